"""Frames read from folders, animations and videos."""

import struct
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from sdvideo_core import sequence
from sdvideo_core.video_io import load_sequence, save_gif, save_video
from tests.unit.small_clips import frame_numbers, grey_images, noise_images, pixels, to_video


def save_numbered(folder: Path, names: list[str]) -> None:
    folder.mkdir()
    for name, image in zip(names, grey_images(len(names)), strict=True):
        image.save(folder / name)


def write_video(path: Path, codec: str, images: list[Image.Image]) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, 8)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height = images[0].size
        stream.pix_fmt = "yuv420p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(image), format="rgb24")))
        container.mux(stream.encode(None))


# Folders


def test_a_folder_is_read_in_natural_order(tmp_path):
    save_numbered(tmp_path / "clip", ["frame1.png", "Frame2.png", "frame10.png", "frame011.png"])
    assert frame_numbers(load_sequence(tmp_path / "clip", frames=4)) == [0, 1, 2, 3]


def test_hidden_files_folders_and_other_files_in_a_folder_are_ignored(tmp_path):
    save_numbered(tmp_path / "clip", ["0.png", "1.JPG", "2.webp"])
    (tmp_path / "clip" / "0.txt").write_text("a caption")
    (tmp_path / "clip" / "._0.png").write_bytes(b"resource fork")
    (tmp_path / "clip" / "00.png").mkdir()
    assert frame_numbers(load_sequence(str(tmp_path / "clip"), frames=None)) == [0, 1, 2]


def test_a_folder_follows_offset_and_stride_and_opens_no_other_file(tmp_path):
    save_numbered(tmp_path / "clip", [f"{index}.png" for index in range(8)])
    for index in (0, 2, 4, 6):
        (tmp_path / "clip" / f"{index}.png").write_bytes(b"no picture")
    assert frame_numbers(load_sequence(tmp_path / "clip", frames=3, offset=1, stride=2)) == [1, 3, 5]


def test_an_unreadable_picture_is_named(tmp_path):
    save_numbered(tmp_path / "clip", ["0.png", "1.png", "2.png"])
    noise_images(1)[0].save(tmp_path / "clip" / "1.png")
    data = (tmp_path / "clip" / "1.png").read_bytes()
    (tmp_path / "clip" / "1.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(OSError, match=r"cannot read .*1\.png: .*truncated.*; replace or") as caught:
        load_sequence(tmp_path / "clip", frames=3)
    assert "\n" not in str(caught.value)


def test_an_error_of_many_lines_becomes_one(tmp_path, monkeypatch):
    def fail(_):
        raise OSError("broken\n  at byte 7")

    save_numbered(tmp_path / "clip", ["0.png"])
    monkeypatch.setattr(sequence.Image, "open", fail)
    with pytest.raises(OSError, match=r"0\.png: broken at byte 7; replace or remove the file"):
        load_sequence(tmp_path / "clip", frames=1)


@pytest.mark.parametrize("image_size", [None, (8, 8)])
def test_pictures_of_two_sizes_are_refused(tmp_path, image_size):
    save_numbered(tmp_path / "clip", ["0.png", "1.png", "2.png"])
    Image.new("RGB", (16, 16)).save(tmp_path / "clip" / "2.png")
    with pytest.raises(ValueError, match=r"2\.png is 16x16, 0\.png is 32x16; .*resize or remove"):
        load_sequence(tmp_path / "clip", frames=3, image_size=image_size)


def test_a_turned_photo_counts_with_its_upright_size(tmp_path):
    save_numbered(tmp_path / "clip", ["0.png", "1.png"])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (16, 32), (10, 10, 10)).save(tmp_path / "clip" / "1.png", exif=exif)
    images = load_sequence(tmp_path / "clip", frames=2, image_size=None)
    assert [image.size for image in images] == [(32, 16), (32, 16)]


def test_an_empty_folder_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(FileNotFoundError, match=r"has no pictures; expected files named \.png \.jpg"):
        load_sequence(tmp_path)


# Any source


def test_frames_are_sized_to_256_unless_told_otherwise(tmp_path):
    save_numbered(tmp_path / "clip", [f"{index:02}.png" for index in range(16)])
    images = load_sequence(tmp_path / "clip")
    assert [image.size for image in images] == [(256, 256)] * 16
    assert load_sequence(tmp_path / "clip", image_size=(24, 8))[5].size == (24, 8)
    assert load_sequence(tmp_path / "clip", image_size=None)[5].size == (32, 16)


def test_a_missing_path_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"lost\.gif does not exist; give a folder"):
        load_sequence(tmp_path / "lost.gif")


def test_an_unknown_extension_is_refused(tmp_path):
    (tmp_path / "clip.docx").write_bytes(b"")
    with pytest.raises(ValueError, match=r"clip\.docx is not a known kind of video; .*\.gif .*\.mp4"):
        load_sequence(tmp_path / "clip.docx")


@pytest.mark.parametrize("name", ["clip", "clip.gif", "clip.mp4"])
def test_a_short_sequence_is_refused_in_one_line(tmp_path, name):
    save_video(to_video(grey_images(9)), tmp_path / name)
    with pytest.raises(ValueError) as caught:
        load_sequence(tmp_path / name)
    assert str(caught.value) == (
        f"{name} has 9 frames; 16 frames from offset 0 with stride 1 need 16. Take fewer frames or a lower stride."
    )
    with pytest.raises(ValueError, match="9 frames; offset 9 is past the end"):
        load_sequence(tmp_path / name, frames=None, offset=9)


@pytest.mark.parametrize("name", ["clip", "clip.gif", "clip.mp4"])
@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ({"frames": 0}, "num_frames is 0, expected at least 1"),
        ({"frames": 2, "offset": -1}, "offset is -1, expected at least 0"),
        ({"frames": None, "stride": 0}, "stride is 0, expected at least 1"),
    ],
)
def test_arguments_out_of_range_are_refused(tmp_path, name, selection, message):
    save_video(to_video(grey_images(2)), tmp_path / name)
    with pytest.raises(ValueError, match=message):
        load_sequence(tmp_path / name, **selection)


@pytest.mark.parametrize("extension", [".gif", ".webp", ".png", ".mp4"])
def test_a_file_that_is_something_else_is_named(tmp_path, extension):
    (tmp_path / f"clip{extension}").write_bytes(b"<html>Not found</html>" * 20)
    with pytest.raises(OSError, match=rf"cannot read .*clip\{extension}: .*; replace or remove the file"):
        load_sequence(tmp_path / f"clip{extension}")


# Animations


@pytest.mark.parametrize("extension", [".gif", ".webp", ".png", ".apng"])
def test_animations_follow_offset_and_stride(tmp_path, extension):
    path = tmp_path / f"clip{extension}"
    first, *others = grey_images(9)
    first.save(path, {".apng": "PNG"}.get(extension), save_all=True, append_images=others, lossless=True)
    assert frame_numbers(load_sequence(path, frames=3, offset=2, stride=3)) == [2, 5, 8]
    assert frame_numbers(load_sequence(path, frames=None, offset=5)) == [5, 6, 7, 8]


def test_extensions_may_be_in_capitals(tmp_path):
    save_gif(to_video(grey_images(3)), tmp_path / "CLIP.GIF")
    assert frame_numbers(load_sequence(tmp_path / "CLIP.GIF", frames=3)) == [0, 1, 2]


def test_the_picture_for_old_viewers_is_no_frame_of_an_animated_png(tmp_path):
    still, *frames = grey_images(4)
    still.save(tmp_path / "clip.png", save_all=True, append_images=frames, default_image=True)
    assert frame_numbers(load_sequence(tmp_path / "clip.png", frames=None)) == [1, 2, 3]
    with pytest.raises(ValueError, match="has 3 frames"):
        load_sequence(tmp_path / "clip.png", frames=4)


def test_gif_frames_are_composed_as_their_disposal_says(tmp_path):
    canvas, black, red, green, blue = (8, 1), 0, 1, 2, 3

    def frame(colour: int, position: int) -> Image.Image:
        image = Image.new("P", canvas, black)
        image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
        image.putpixel((position, 0), colour)
        image.info["transparency"] = black
        return image

    frames = [frame(red, 0), frame(green, 2), frame(blue, 4)]
    options: dict[str, Any] = {"save_all": True, "append_images": frames[1:], "transparency": black}
    frames[0].save(tmp_path / "keep.gif", disposal=[1, 1, 1], **options)
    frames[0].save(tmp_path / "clear.gif", disposal=[1, 2, 1], **options)
    frames[0].save(tmp_path / "restore.gif", disposal=[1, 3, 1], **options)
    seen = {}
    for name in ("keep", "clear", "restore"):
        last = load_sequence(tmp_path / f"{name}.gif", frames=3, image_size=None)[2]
        seen[name] = [last.getpixel((position, 0)) for position in (0, 2, 4, 6)]
    red_pixel, green_pixel, blue_pixel, nothing = (255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0)
    assert seen["keep"] == [red_pixel, green_pixel, blue_pixel, nothing]
    assert seen["clear"][1:] == [nothing, blue_pixel, nothing]
    assert seen["restore"] == [red_pixel, nothing, blue_pixel, nothing]


# Videos


@pytest.mark.parametrize(
    ("extension", "codec"),
    [
        (".mp4", "libx264"),
        (".m4v", "libx264"),
        (".mov", "libx264"),
        (".mkv", "libx264"),
        (".webm", "libvpx"),
        (".avi", "mpeg4"),
    ],
)
def test_videos_follow_offset_and_stride(tmp_path, extension, codec):
    write_video(tmp_path / f"clip{extension}", codec, grey_images(12))
    assert frame_numbers(load_sequence(tmp_path / f"clip{extension}", 4, offset=1, stride=3)) == [1, 4, 7, 10]
    assert frame_numbers(load_sequence(tmp_path / f"clip{extension}", None, offset=9)) == [9, 10, 11]


def test_a_video_is_decoded_no_further_than_needed(tmp_path, monkeypatch):
    write_video(tmp_path / "clip.mp4", "libx264", grey_images(20))
    decoded = []
    open_video = sequence.iio.imopen

    def open_and_count(*args, **kwargs):
        file = open_video(*args, **kwargs)
        frames = file.iter

        def count(**options):
            for frame in frames(**options):
                decoded.append(1)
                yield frame

        file.iter = count
        return file

    monkeypatch.setattr(sequence.iio, "imopen", open_and_count)
    load_sequence(tmp_path / "clip.mp4", frames=3, offset=1, stride=2)
    assert len(decoded) == 6


@pytest.mark.parametrize(("turns", "a", "b"), [(1, 0, -1), (2, -1, 0), (3, 0, 1)])
def test_a_video_filmed_sideways_is_turned_upright(tmp_path, turns, a, b):
    path = tmp_path / "phone.mp4"
    image = Image.new("RGB", (64, 32))
    image.paste((255, 255, 255), (0, 0, 32, 16))
    write_video(path, "libx264", [image] * 2)
    # ISO 14496-12, 6.2.2: the track header's matrix [a b u; c d v; x y w] takes pixels to their place.
    upright, turned = (
        struct.pack(">9i", *row)
        for row in (
            (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30),
            (a * 65536, b * 65536, 0, -b * 65536, a * 65536, 0, 0, 0, 1 << 30),
        )
    )
    head, tail = path.read_bytes().split(b"tkhd")
    path.write_bytes(head + b"tkhd" + tail.replace(upright, turned, 1))
    (seen,) = load_sequence(path, frames=1, image_size=None)
    expected = np.rot90(np.asarray(image), turns)
    assert seen.size == (expected.shape[1], expected.shape[0])
    assert np.abs(np.asarray(seen).astype(int) - expected).mean() < 4


@pytest.mark.parametrize(("matrix_name", "matrix_number"), [("ITU709", 1), ("SMPTE170M", 6)])
def test_video_colours_follow_the_matrix_that_the_file_names(tmp_path, matrix_name, matrix_number):
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (250, 100, 30)]
    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream = container.add_stream("libx264", 8)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        stream.codec_context.colorspace = matrix_number
        for colour in colours:
            pixel = np.full((32, 32, 3), colour, np.uint8)
            frame = av.VideoFrame.from_ndarray(pixel, format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace=matrix_name)))
        container.mux(stream.encode(None))
    images = load_sequence(tmp_path / "clip.mp4", frames=4, image_size=None)
    assert np.abs(pixels(images)[:, 16, 16] - colours).max() <= 5


def test_a_file_without_pictures_is_named(tmp_path):
    with av.open(str(tmp_path / "song.mp4"), "w") as container:
        stream = container.add_stream("aac", 44100)
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        samples.sample_rate = 44100
        container.mux(stream.encode(samples))
        container.mux(stream.encode(None))
    with pytest.raises(OSError, match=r"cannot read .*song\.mp4: it has no video stream"):
        load_sequence(tmp_path / "song.mp4")
