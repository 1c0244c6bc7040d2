"""GIF files written, held against a parser of their blocks, FFmpeg and Pillow."""

import struct
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageSequence

from sdvideo_core import video_io
from sdvideo_core.frames import frames_to_video, images_to_frames
from sdvideo_core.video_io import load_sequence, save_gif


def grey_images(num_frames: int, size: tuple[int, int] = (32, 16)) -> list[Image.Image]:
    """Frame k is plain grey of level 10 * k, so that a pixel tells which frame it came from."""
    return [Image.new("RGB", size, (10 * index,) * 3) for index in range(num_frames)]


def frame_numbers(images: list[Image.Image]) -> list[int]:
    return [round(np.asarray(image).mean() / 10) for image in images]


def noise_images(num_frames: int, size: tuple[int, int] = (32, 16)) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8)) for _ in range(num_frames)]


def to_video(images: list[Image.Image]) -> torch.Tensor:
    return frames_to_video(images_to_frames(images))


def pixels(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image.convert("RGB")) for image in images]).astype(int)


def decode_with_ffmpeg(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)]).astype(int)


class GifFile(NamedTuple):
    delays: list[int]
    num_colour_tables: int
    loops: int | None
    comment: bytes


def parse_gif(data: bytes) -> GifFile:
    """Walk the blocks of a GIF89a file, independently of Pillow."""
    assert data[:6] == b"GIF89a"
    position = 13 + 3 * (2 << (data[10] & 7))
    delays, tables, loops, comment = [], 1, None, b""
    while data[position] != 0x3B:
        kind, label = data[position], data[position + 1]
        if kind == 0x2C:
            flags = data[position + 9]
            tables += flags >> 7
            position += 11 + (3 * (2 << (flags & 7)) if flags >> 7 else 0)
        else:
            position += 2
        body = b""
        while data[position]:
            body += data[position + 1 : position + 1 + data[position]]
            position += 1 + data[position]
        position += 1
        if kind == 0x21 and label == 0xF9:
            delays.append(struct.unpack("<H", body[1:3])[0])
        elif kind == 0x21 and label == 0xFF:
            loops = struct.unpack("<H", body[12:14])[0]
        elif kind == 0x21 and label == 0xFE:
            comment = body
    assert position == len(data) - 1
    return GifFile(delays, tables, loops, comment)


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


def test_a_gif_of_up_to_256_colours_is_exact(tmp_path):
    colours = np.random.default_rng(0).integers(0, 32, (200, 3), np.uint8) * 8
    indices = np.random.default_rng(1).integers(0, 200, (4, 20, 30))
    indices[2] = indices[1]
    indices[2, 7:12, 9:21] = 0
    images = [Image.fromarray(colours[frame]) for frame in indices]
    save_gif(to_video(images), tmp_path / "clip.gif")
    assert np.array_equal(pixels(load_sequence(tmp_path / "clip.gif", 4, image_size=None)), pixels(images))


def test_other_decoders_see_the_same_gif(tmp_path):
    a, b, c = noise_images(3)
    corner = a.copy()
    corner.paste((0, 0, 0), (5, 3, 9, 8))
    save_gif(to_video([a, corner, corner, b, c]), tmp_path / "clip.gif")
    ours = pixels(load_sequence(tmp_path / "clip.gif", 5, image_size=None))
    assert np.array_equal(decode_with_ffmpeg(tmp_path / "clip.gif"), ours)


def smooth_clip(num_frames: int, size: int) -> list[Image.Image]:
    """Soft gradients in all three colours that drift from frame to frame: far more than 256 colours."""
    y, x = np.mgrid[0:size, 0:size] / size
    waves = [
        np.stack([0.5 + 0.4 * np.sin(4 * x + t / 3), 0.5 + 0.4 * np.cos(3 * y - t / 4), 0.3 + 0.5 * x * y], -1)
        for t in range(num_frames)
    ]
    return [Image.fromarray(np.rint(255 * wave).astype(np.uint8)) for wave in waves]


def test_gif_dithering_keeps_smooth_gradients_smooth(tmp_path):
    images = smooth_clip(8, 96)
    save_gif(to_video(images), tmp_path / "clip.gif")
    written = load_sequence(tmp_path / "clip.gif", frames=8, image_size=None)
    blur = ImageFilter.GaussianBlur(2)
    error = pixels([image.filter(blur) for image in written]) - pixels([image.filter(blur) for image in images])
    assert np.sqrt((error**2).mean()) < 1.4


def test_a_small_bright_spot_late_in_the_clip_keeps_its_colour(tmp_path):
    images = smooth_clip(8, 96)
    images[7].paste((255, 0, 255), (40, 40, 46, 46))
    save_gif(to_video(images), tmp_path / "clip.gif")
    written = load_sequence(tmp_path / "clip.gif", frames=8, image_size=None)
    assert np.abs(pixels(written)[7, 41:45, 41:45] - [255, 0, 255]).max() <= 8


def test_the_palette_of_a_long_clip_is_chosen_from_a_sample(tmp_path, monkeypatch):
    monkeypatch.setattr(video_io, "PALETTE_SAMPLE", 2000)
    images = smooth_clip(8, 96)
    save_gif(to_video(images), tmp_path / "clip.gif")
    written = load_sequence(tmp_path / "clip.gif", frames=8, image_size=None)
    assert np.sqrt(((pixels(written) - pixels(images)) ** 2).mean()) < 8
