"""Video files written: WebP, MP4 and PNG folders, and what holds for every writer."""

import math
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from sdvideo_core import gif
from sdvideo_core.video_io import load_sequence, save_gif, save_mp4, save_pngs, save_video, save_webp
from tests.unit.gif_blocks import parse_gif
from tests.unit.small_clips import grey_images, noise_images, pixels, smooth_images, to_video

# Writer -> the name of a clip that it takes.
NAMES = {save_gif: "clip.gif", save_webp: "clip.webp", save_mp4: "clip.mp4", save_pngs: "clip"}
WRITERS = list(NAMES)
FILE_WRITERS = [save_gif, save_webp, save_mp4]


# WebP


def test_a_webp_keeps_frames_timing_and_colours(tmp_path):
    images = smooth_images(7, 64)
    save_webp(to_video(images), tmp_path / "clip.webp", fps=24)
    with Image.open(tmp_path / "clip.webp") as image:
        assert (image.format, image.info["loop"]) == ("WEBP", 0)
        durations = [frame.copy().info["duration"] for frame in ImageSequence.Iterator(image)]
    assert durations == [41, 42, 42, 41, 42, 42, 41]
    written = load_sequence(tmp_path / "clip.webp", frames=7, image_size=None)
    assert np.sqrt(((pixels(written) - pixels(images)) ** 2).mean()) < 3


# MP4


def test_an_mp4_is_h264_with_its_rate_and_its_colours_named(tmp_path):
    save_mp4(to_video(smooth_images(9, 64)), tmp_path / "clip.mp4", fps=23.976)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        (stream,) = container.streams.video
        context = stream.codec_context
        assert "mp4" in container.format.name
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
        assert stream.frames == 9
        assert stream.average_rate is not None and math.isclose(stream.average_rate, 23.976)
        bt709, limited = 1, 1  # ISO 23091-2: code points
        assert (context.colorspace, context.color_primaries, context.color_trc) == (bt709,) * 3
        assert context.color_range == limited
    data = (tmp_path / "clip.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_an_mp4_keeps_colours(tmp_path):
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (250, 100, 30), (0, 0, 0), (255, 255, 255)]
    save_mp4(to_video([Image.new("RGB", (32, 32), colour) for colour in colours]), tmp_path / "clip.mp4")
    written = load_sequence(tmp_path / "clip.mp4", frames=6, image_size=None)
    assert np.abs(pixels(written)[:, 16, 16] - colours).max() <= 4


def test_an_mp4_keeps_detail(tmp_path):
    images = smooth_images(8, 64)
    save_mp4(to_video(images), tmp_path / "clip.mp4")
    written = load_sequence(tmp_path / "clip.mp4", frames=8, image_size=None)
    assert np.sqrt(((pixels(written) - pixels(images)) ** 2).mean()) < 3


@pytest.mark.parametrize("size", [(31, 17), (31, 18), (32, 17)])
def test_odd_sizes_grow_by_a_repeated_row_and_column_in_mp4(tmp_path, size):
    width, height = size
    grey = np.random.default_rng(0).choice(np.array([60, 180], np.uint8), (height, width, 1)).repeat(3, axis=2)
    save_mp4(to_video([Image.fromarray(grey)] * 3), tmp_path / "clip.mp4")
    written = load_sequence(tmp_path / "clip.mp4", frames=3, image_size=None)
    assert written[0].size == (32, 18)
    expected = np.pad(grey, ((0, 18 - height), (0, 32 - width), (0, 0)), mode="edge")
    error = np.abs(pixels(written) - expected)
    assert error.mean(axis=(0, 1, 3)).max() < 12
    assert error.mean(axis=(0, 2, 3)).max() < 12


# PNG folder


def test_pngs_are_exact_and_numbered(tmp_path):
    images = noise_images(11)
    save_pngs(to_video(images), tmp_path / "new" / "clip")
    names = sorted(path.name for path in (tmp_path / "new" / "clip").iterdir())
    assert names == [f"{index:05d}.png" for index in range(11)]
    for name, image in zip(names, images, strict=True):
        with Image.open(tmp_path / "new" / "clip" / name) as written:
            assert np.array_equal(np.asarray(written), np.asarray(image))
    assert np.array_equal(pixels(load_sequence(tmp_path / "new/clip", 11, image_size=None)), pixels(images))


def test_pngs_go_into_an_empty_folder(tmp_path):
    (tmp_path / "clip").mkdir()
    save_pngs(to_video(grey_images(2)), str(tmp_path / "clip"))
    assert len(list((tmp_path / "clip").iterdir())) == 2


def test_pngs_go_into_an_empty_folder_where_a_rename_replaces_none(tmp_path, monkeypatch):
    rename = Path.replace

    def rename_as_windows_does(self, target):
        if target.is_dir():
            raise PermissionError(13, "Access is denied")
        return rename(self, target)

    (tmp_path / "clip").mkdir()
    monkeypatch.setattr(Path, "replace", rename_as_windows_does)
    save_pngs(to_video(grey_images(2)), tmp_path / "clip")
    assert len(list((tmp_path / "clip").iterdir())) == 2


def test_pngs_never_mix_with_what_a_folder_holds(tmp_path):
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "mine.txt").write_text("keep")
    (tmp_path / "file").write_text("keep")
    for name in ("clip", "file"):
        with pytest.raises(FileExistsError, match=f"{name} exists and is not an empty folder; choose a new"):
            save_pngs(to_video(grey_images(2)), tmp_path / name)
    assert [path.name for path in (tmp_path / "clip").iterdir()] == ["mine.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip", "file"]


# save_video


def test_save_video_picks_the_format_by_extension(tmp_path):
    video = to_video(smooth_images(3, 16))
    for name in ("a.gif", "b.WEBP", "c.mp4", "d", "e.gif/"):
        save_video(video, f"{tmp_path}/{name}", fps=10)
    starts = {name: (tmp_path / name).read_bytes()[:12] for name in ("a.gif", "b.WEBP", "c.mp4")}
    assert starts["a.gif"].startswith(b"GIF89a")
    assert starts["b.WEBP"].endswith(b"WEBP")
    assert starts["c.mp4"][4:8] == b"ftyp"
    assert parse_gif((tmp_path / "a.gif").read_bytes()).delays == [10, 10, 10]
    assert len(list((tmp_path / "d").iterdir())) == len(list((tmp_path / "e.gif").iterdir())) == 3


def test_save_video_lists_the_formats_it_knows(tmp_path):
    with pytest.raises(ValueError, match=r"clip\.flv: unknown extension \.flv; use \.gif \.webp \.mp4 or none"):
        save_video(to_video(grey_images(2)), tmp_path / "clip.flv")


# Every writer


@pytest.mark.parametrize("writer", FILE_WRITERS)
@pytest.mark.parametrize("name", ["clip.jpg", "clip", "clip.gif.txt", "gif", ".gif"])
def test_a_file_is_named_as_what_it_holds(tmp_path, writer, name):
    such = f"a name such as clip{Path(NAMES[writer]).suffix}"
    expected = f"expected {such}, with the ending of its format; rename it, or use"
    with pytest.raises(ValueError, match=rf"^cannot write .*{name.rstrip('/')}: {expected} save_video"):
        writer(to_video(grey_images(2)), tmp_path / name)
    assert list(tmp_path.iterdir()) == []
    writer(to_video(grey_images(2)), tmp_path / NAMES[writer].upper())


@pytest.mark.parametrize("name", ["clip.png", "clip.GIF", "clip.mp4"])
def test_a_folder_of_pngs_is_not_named_as_a_file_unless_it_ends_in_a_slash_or_is_there(tmp_path, name):
    with pytest.raises(ValueError, match=rf"^cannot write .*{name}: PNGs go into a folder, expected its name, without"):
        save_pngs(to_video(grey_images(2)), tmp_path / name)
    assert list(tmp_path.iterdir()) == []
    save_pngs(to_video(grey_images(2)), f"{tmp_path / name}/")
    (tmp_path / "there.png").mkdir()
    for folder in (tmp_path / "there.png", tmp_path / "v1.5"):
        save_pngs(to_video(grey_images(2)), folder)
        assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize(
    ("writer", "name", "fastest"), [(save_gif, "GIF", 50), (save_webp, "WebP", 90), (save_mp4, "MP4", 240)]
)
def test_frame_rates_out_of_range_are_refused(tmp_path, writer, name, fastest):
    for fps in (0, -8, fastest + 0.1, float("nan"), float("inf"), 1e-5):
        with pytest.raises(ValueError, match=rf"fps is .*, but {name} plays 0\.01 to {fastest}; choose"):
            writer(to_video(grey_images(2)), tmp_path / NAMES[writer], fps)
    for fps in (0.01, fastest):
        writer(to_video(grey_images(2)), tmp_path / NAMES[writer], fps)


@pytest.mark.parametrize("writer", WRITERS)
def test_a_video_with_nan_leaves_no_file(tmp_path, writer):
    with pytest.raises(ValueError, match="NaN or infinite"):
        writer(torch.full((1, 3, 2, 8, 8), float("nan")), tmp_path / NAMES[writer])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("writer", WRITERS)
def test_missing_folders_are_made_and_nothing_else_is_left(tmp_path, writer):
    writer(to_video(grey_images(2)), tmp_path / "a" / "b" / NAMES[writer])
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == [NAMES[writer]]


@pytest.mark.parametrize("writer", FILE_WRITERS)
def test_an_older_file_is_replaced(tmp_path, writer):
    (tmp_path / NAMES[writer]).write_bytes(b"old")
    writer(to_video(grey_images(2)), tmp_path / NAMES[writer])
    assert len((tmp_path / NAMES[writer]).read_bytes()) > 50
    assert [path.name for path in tmp_path.iterdir()] == [NAMES[writer]]


@pytest.mark.parametrize("writer", FILE_WRITERS)
def test_a_folder_in_place_of_the_file_is_refused(tmp_path, writer):
    (tmp_path / NAMES[writer]).mkdir()
    with pytest.raises(IsADirectoryError, match=r"cannot write .*clip\.\w+: it is a folder; give the name of a file"):
        writer(to_video(grey_images(2)), tmp_path / NAMES[writer])
    assert [path.name for path in tmp_path.iterdir()] == [NAMES[writer]]


@pytest.mark.parametrize("writer", WRITERS)
def test_a_place_that_cannot_be_written_is_named_with_a_remedy(tmp_path, writer):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match=r"cannot write .*clip[.\w]*: .*; choose another place or check") as caught:
        writer(to_video(grey_images(2)), tmp_path / "file" / NAMES[writer])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("writer", WRITERS)
def test_a_writer_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, writer, error):
    def fail(*_):
        raise error

    is_file = writer is not save_pngs
    if is_file:
        (tmp_path / NAMES[writer]).write_bytes(b"old")
    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises((OSError, KeyboardInterrupt)):
        writer(to_video(grey_images(2)), tmp_path / NAMES[writer])
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [(NAMES[writer], b"old")] * is_file


def test_an_encoder_that_stops_midway_leaves_nothing(tmp_path, monkeypatch):
    def fail_on_second_frame(image, offset, **_):
        if offset == (0, 0) and image.size == (32, 16):
            return [b"first frame"]
        raise RuntimeError("stopped")

    monkeypatch.setattr(gif, "getdata", fail_on_second_frame)
    image = grey_images(1)[0]
    changed = image.copy()
    changed.putpixel((3, 3), (255, 0, 0))
    with pytest.raises(RuntimeError, match="stopped"):
        save_gif(to_video([image, changed]), tmp_path / "clip.gif")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("writer", FILE_WRITERS)
def test_files_get_the_ordinary_permissions(tmp_path, writer):
    (tmp_path / "ordinary").write_bytes(b"")
    writer(to_video(grey_images(2)), tmp_path / NAMES[writer])
    assert (tmp_path / NAMES[writer]).stat().st_mode == (tmp_path / "ordinary").stat().st_mode
