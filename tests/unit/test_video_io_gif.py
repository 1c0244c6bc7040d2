"""GIF files written, held against a parser of their blocks, FFmpeg and Pillow."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageSequence

from sdvideo_core import gif
from sdvideo_core.playback import DITHERS, PALETTES, SaveOptions
from sdvideo_core.video_io import load_sequence, save_gif
from tests.unit.gif_blocks import parse_gif
from tests.unit.small_clips import frame_numbers, grey_images, noise_images, pixels, smooth_images, to_video

ANY = np.random.default_rng(0).integers(0, 256, (200, 3), np.uint8)
GREYS = np.arange(256, dtype=np.uint8)[:, None].repeat(3, axis=1)


def decode_with_ffmpeg(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)]).astype(int)


# GIF


def test_a_gif_has_every_frame_even_equal_ones(tmp_path):
    a, b = noise_images(2)
    save_gif(to_video([a, a, a, b, b, a]), tmp_path / "clip.gif")
    assert len(parse_gif((tmp_path / "clip.gif").read_bytes()).delays) == 6
    with Image.open(tmp_path / "clip.gif") as image:
        assert len(list(ImageSequence.Iterator(image))) == 6
    frames = pixels(load_sequence(tmp_path / "clip.gif", frames=6, image_size=None))
    for one, other in [(0, 1), (1, 2), (3, 4), (0, 5)]:
        assert np.array_equal(frames[one], frames[other])
    assert not np.array_equal(frames[2], frames[3])


def test_equal_frames_take_next_to_no_space_in_a_gif(tmp_path):
    (image,) = noise_images(1)
    save_gif(to_video([image]), tmp_path / "one.gif")
    save_gif(to_video([image] * 6), tmp_path / "six.gif")
    assert (tmp_path / "six.gif").stat().st_size < (tmp_path / "one.gif").stat().st_size + 5 * 40


def test_a_gif_of_one_frame_and_of_one_pixel_is_written(tmp_path):
    save_gif(to_video(grey_images(1)), tmp_path / "one.gif")
    assert frame_numbers(load_sequence(tmp_path / "one.gif", frames=1)) == [0]
    save_gif(torch.ones(1, 3, 3, 1, 1), tmp_path / "dot.gif")
    assert len(load_sequence(tmp_path / "dot.gif", frames=3)) == 3


@pytest.mark.parametrize("fps", [8, 10, 12.5, 15, 23.976, 24, 30, 50, 1, 0.5])
def test_gif_delays_keep_the_exact_frame_rate(tmp_path, fps):
    save_gif(to_video(grey_images(25)), tmp_path / "clip.gif", fps)
    delays = parse_gif((tmp_path / "clip.gif").read_bytes()).delays
    for index, start in enumerate(np.cumsum([0, *delays]).tolist()):
        assert start <= Fraction(100 * index) / Fraction(fps) < start + 1


def test_8_frames_a_second_alternate_between_120_and_130_ms(tmp_path):
    save_gif(to_video(grey_images(4)), tmp_path / "clip.gif")
    assert parse_gif((tmp_path / "clip.gif").read_bytes()).delays == [12, 13, 12, 13]


def test_a_gif_loops_forever_and_has_one_colour_table(tmp_path):
    save_gif(to_video(noise_images(5)), tmp_path / "clip.gif")
    gif = parse_gif((tmp_path / "clip.gif").read_bytes())
    assert (gif.loops, gif.num_colour_tables, gif.comment) == (0, 1, b"")


def test_a_gif_carries_its_comment(tmp_path):
    comment = "a dog in a café, seed 42; " * 40
    save_gif(to_video(grey_images(3)), tmp_path / "clip.gif", comment=comment)
    assert parse_gif((tmp_path / "clip.gif").read_bytes()).comment.decode() == comment
    with Image.open(tmp_path / "clip.gif") as image:
        assert image.info["comment"].decode() == comment


@pytest.mark.parametrize("colours", [ANY, GREYS], ids=["any", "greys"])
@pytest.mark.parametrize("palette", PALETTES)
@pytest.mark.parametrize("dither", DITHERS)
def test_a_gif_of_up_to_256_colours_is_exact(tmp_path, colours, palette, dither):
    indices = np.random.default_rng(1).integers(0, len(colours), (4, 20, 30))
    indices[2] = indices[1]
    indices[2, 7:12, 9:21] = 0
    images = [Image.fromarray(colours[frame]) for frame in indices]
    save_gif(to_video(images), tmp_path / "clip.gif", options=SaveOptions(palette=palette, dither=dither))
    assert np.array_equal(pixels(load_sequence(tmp_path / "clip.gif", 4, image_size=None)), pixels(images))


@pytest.mark.parametrize("palette", PALETTES)
def test_other_decoders_see_the_same_gif(tmp_path, palette):
    a, b, c = noise_images(3)
    corner = a.copy()
    corner.paste((0, 0, 0), (5, 3, 9, 8))
    save_gif(to_video([a, corner, corner, b, c]), tmp_path / "clip.gif", options=SaveOptions(palette=palette))
    ours = pixels(load_sequence(tmp_path / "clip.gif", 5, image_size=None))
    assert np.array_equal(decode_with_ffmpeg(tmp_path / "clip.gif"), ours)


@pytest.mark.parametrize("dither", ["floyd-steinberg", "bayer"])
def test_gif_dithering_keeps_smooth_gradients_smooth(tmp_path, dither):
    images = smooth_images(8, 96)
    save_gif(to_video(images), tmp_path / "clip.gif", options=SaveOptions(dither=dither))
    written = load_sequence(tmp_path / "clip.gif", frames=8, image_size=None)
    blur = ImageFilter.GaussianBlur(2)
    error = pixels([image.filter(blur) for image in written]) - pixels([image.filter(blur) for image in images])
    assert np.sqrt((error**2).mean()) < 1.4


def test_a_small_bright_spot_late_in_the_clip_keeps_its_colour(tmp_path):
    images = smooth_images(8, 96)
    images[7].paste((255, 0, 255), (40, 40, 46, 46))
    save_gif(to_video(images), tmp_path / "clip.gif")
    written = load_sequence(tmp_path / "clip.gif", frames=8, image_size=None)
    assert np.abs(pixels(written)[7, 41:45, 41:45] - [255, 0, 255]).max() <= 8


def test_the_palette_of_a_long_clip_is_chosen_from_a_sample(tmp_path, monkeypatch):
    monkeypatch.setattr(gif, "PALETTE_SAMPLE", 2000)
    images = smooth_images(8, 96)
    save_gif(to_video(images), tmp_path / "clip.gif")
    written = load_sequence(tmp_path / "clip.gif", frames=8, image_size=None)
    assert np.sqrt(((pixels(written) - pixels(images)) ** 2).mean()) < 8


def test_a_few_pixels_show_that_a_frame_has_too_many_colours(monkeypatch):
    codes, looked_at = gif.colour_codes, []
    monkeypatch.setattr(gif, "colour_codes", lambda pixels: looked_at.append(pixels.size) or codes(pixels))
    assert gif._few_colours(noise_images(9, (256, 256))) is None
    assert sum(looked_at) < 256 * 256 * 3 / 20


def test_a_colour_too_many_is_found_wherever_it_is():
    greys = np.tile(GREYS, (8, 1)).reshape(32, 64, 3)
    assert len(gif._few_colours([Image.fromarray(greys)])) == 256
    greys[31, 63] = (1, 2, 3)
    assert gif._few_colours([Image.fromarray(greys)]) is None
