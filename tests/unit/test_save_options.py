"""How clips are saved: loops, ping-pong, palettes and metadata, read back by Pillow and FFmpeg."""

import json
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image, ImageSequence

from sdvideo_core.playback import SaveOptions
from sdvideo_core.video_io import load_sequence, save_gif, save_video, save_webp
from tests.unit.gif_blocks import parse_gif
from tests.unit.small_clips import frame_numbers, grey_images, pixels, smooth_images, to_video

NAMES = ["clip.gif", "clip.webp", "clip.mp4", "clip"]
GRAPHS = {
    "prompt": {"1": {"class_type": "Café", "inputs": {"text": 'a "dog": red\n', "seed": 2**60}}},
    "workflow": {"nodes": [{"id": number, "values": [0.5, None, True]} for number in range(2000)]},
}


def save(path, images=None, fps=8.0, **options):
    save_video(to_video(images or grey_images(5)), path, fps, options=SaveOptions(**options))
    return path


# Loops


@pytest.mark.parametrize(("loop", "repeats"), [(0, 0), (1, None), (2, 1), (3, 2), (65535, 65534)])
def test_a_gif_plays_as_often_as_told(tmp_path, loop, repeats):
    with Image.open(save(tmp_path / "clip.gif", loop=loop)) as image:
        assert image.info.get("loop") == repeats  # which counts what follows the first time
        assert image.n_frames == 5
    assert parse_gif((tmp_path / "clip.gif").read_bytes()).loops == repeats


@pytest.mark.parametrize("loop", [0, 1, 3, 65535])
def test_a_webp_plays_as_often_as_told(tmp_path, loop):
    with Image.open(save(tmp_path / "clip.webp", loop=loop)) as image:
        assert image.info["loop"] == loop


# Ping-pong


@pytest.mark.parametrize(
    ("num_frames", "shown"), [(1, [0]), (2, [0, 1]), (3, [0, 1, 2, 1]), (5, [0, 1, 2, 3, 4, 3, 2, 1])]
)
@pytest.mark.parametrize("name", NAMES)
def test_ping_pong_goes_there_and_back_without_doubled_ends(tmp_path, name, num_frames, shown):
    save(tmp_path / name, grey_images(num_frames), ping_pong=True)
    assert frame_numbers(load_sequence(tmp_path / name, None)) == shown
    assert SaveOptions(ping_pong=True).play_order(num_frames) == shown


@pytest.mark.parametrize("fps", [7, 23.976, 30])
def test_ping_pong_keeps_the_exact_frame_rate(tmp_path, fps):
    save(tmp_path / "clip.gif", grey_images(12), fps, ping_pong=True)
    with Image.open(tmp_path / "clip.gif") as image:
        durations = [frame.info["duration"] for frame in ImageSequence.Iterator(image)]
    assert len(durations) == 22
    for index, start in enumerate(np.cumsum([0, *durations]).tolist()):
        assert start <= Fraction(1000 * index) / Fraction(fps) < start + 10


# Progress


@pytest.mark.parametrize("num_frames", [1, 4])
@pytest.mark.parametrize("name", NAMES)
def test_each_frame_is_told_once_in_order(tmp_path, name, num_frames):
    told = []
    options = SaveOptions(ping_pong=True)
    save_video(to_video(grey_images(num_frames)), tmp_path / name, 8, {}, options, lambda *step: told.append(step))
    total = len(options.play_order(num_frames))
    assert told == [(done, total) for done in range(1, total + 1)]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_cancelled_leaves_nothing_behind(tmp_path, name):
    def cancel(done, _total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_video(to_video(grey_images(5)), tmp_path / name, progress=cancel)
    assert not list(tmp_path.iterdir())


# Palettes


def error(images, path):
    return np.sqrt(((pixels(load_sequence(path, None, image_size=None)) - pixels(images)) ** 2).mean())


def test_a_palette_for_each_frame_is_closer_to_the_frames(tmp_path):
    red, green = (Image.merge("RGB", bands) for bands in bands_of(smooth_images(1, 64)[0]))
    alike = save(tmp_path / "clip.gif", [red, green], dither="none")
    own = save(tmp_path / "frame.gif", [red, green], dither="none", palette="frame")
    assert parse_gif(alike.read_bytes()).num_colour_tables == 1
    assert parse_gif(own.read_bytes()).num_colour_tables == 1 + 2
    assert error([red, green], own) < 0.8 * error([red, green], alike)


def bands_of(image):
    """The same picture in two lights, which have no colour in common."""
    red, green, blue = image.split()
    dark = green.point(lambda level: level // 4)
    return (red, dark, dark), (dark, green, blue)


def test_equal_frames_stay_equal_with_a_palette_for_each(tmp_path):
    (image,) = smooth_images(1, 64)
    save(tmp_path / "one.gif", [image], palette="frame")
    save(tmp_path / "four.gif", [image] * 4, palette="frame")
    first, *others = pixels(load_sequence(tmp_path / "four.gif", 4, image_size=None))
    assert all(np.array_equal(first, other) for other in others)
    assert (tmp_path / "four.gif").stat().st_size < (tmp_path / "one.gif").stat().st_size + 3 * (3 * 256 + 40)


def test_the_dithering_asked_for_is_the_one_in_the_file(tmp_path):
    images = smooth_images(2, 48)
    saved = [save(tmp_path / f"{dither}.gif", images, dither=dither) for dither in ("none", "bayer", "floyd-steinberg")]
    seen = [pixels(load_sequence(path, None, image_size=None)) for path in saved]
    assert not any(np.array_equal(seen[one], seen[other]) for one, other in [(0, 1), (0, 2), (1, 2)])
    # Dithering is paid for by each pixel, and the smallest files have none.
    assert error(images, saved[0]) < min(error(images, saved[1]), error(images, saved[2]))
    assert saved[0].stat().st_size < min(saved[1].stat().st_size, saved[2].stat().st_size)


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loop": -1}, r"loop is -1, expected 0 \(for ever\) to 65535; choose"),
        ({"loop": 65536}, r"loop is 65536, expected 0 \(for ever\) to 65535; choose"),
        ({"palette": "best"}, "palette is 'best', expected clip or frame; choose"),
        ({"dither": "noise"}, "dither is 'noise', expected floyd-steinberg or bayer or none; choose"),
    ],
)
def test_options_that_do_not_exist_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SaveOptions(**options)


# Metadata


def exif_texts(path):
    """EXIF tags in the order ComfyUI writes them, and what they hold, each after its name and a colon."""
    with Image.open(path) as image:
        tags = image.getexif()
        return {tag: tuple(tags[tag].split(":", 1)) for tag in sorted(tags, reverse=True)}


def stored(path):
    """Metadata by name, from where ComfyUI looks for it in this kind of file."""
    if path.suffix == ".webp":
        return {name: json.loads(text) for name, text in exif_texts(path).values()}
    if path.suffix == ".mp4":
        with av.open(str(path)) as container:
            return {name: json.loads(text) for name, text in container.metadata.items() if text.startswith("{")}
    if path.suffix == ".gif":
        with Image.open(path) as image:
            return json.loads(image.info.get("comment", "{}"))
    found = []
    for file in sorted(path.iterdir()):
        with Image.open(file) as image:
            found.append({name: json.loads(text) for name, text in image.text.items()})
    assert all(each == found[0] for each in found)
    return found[0]


@pytest.mark.parametrize("name", NAMES)
def test_metadata_comes_back_and_only_if_there_was_any(tmp_path, name):
    video = to_video(grey_images(3))
    save_video(video, tmp_path / name, metadata=GRAPHS)
    assert stored(tmp_path / name) == GRAPHS
    assert frame_numbers(load_sequence(tmp_path / name, None)) == [0, 1, 2]
    save_video(video, tmp_path / "plain" / name)
    assert stored(tmp_path / "plain" / name) == {}


def test_a_gif_without_metadata_has_no_comment(tmp_path):
    assert parse_gif(save(tmp_path / "clip.gif").read_bytes()).comment == b""


def test_the_exif_tags_of_a_webp_go_down_from_the_cameras_model(tmp_path):
    save_webp(to_video(grey_images(2)), tmp_path / "clip.webp", metadata=GRAPHS)
    assert [(tag, name) for tag, (name, _) in exif_texts(tmp_path / "clip.webp").items()] == [
        (0x0110, "prompt"),
        (0x010F, "workflow"),
    ]


def test_a_webp_has_room_for_more_than_the_two_graphs(tmp_path):
    metadata = {f"name{index}": [index] for index in range(9)}
    save_webp(to_video(grey_images(2)), tmp_path / "clip.webp", metadata=metadata)
    assert stored(tmp_path / "clip.webp") == metadata


def test_the_metadata_of_an_mp4_comes_before_its_pictures(tmp_path):
    save_video(to_video(grey_images(3)), tmp_path / "clip.mp4", metadata=GRAPHS)
    data = (tmp_path / "clip.mp4").read_bytes()
    # ComfyUI's browser side looks into moov/udta/meta, and only near the start of the file.
    assert data.index(b"moov") < data.index(b"udta") < data.index(b"mdta") < data.index(b"prompt") < data.index(b"mdat")


def test_a_gif_takes_comment_and_options_together(tmp_path):
    options = SaveOptions(loop=1, ping_pong=True, palette="frame", dither="none")
    save_gif(to_video(grey_images(3)), tmp_path / "clip.gif", 10, "made by hand", options)
    gif = parse_gif((tmp_path / "clip.gif").read_bytes())
    assert gif == ([10] * 4, 1 + 4, None, b"made by hand")
