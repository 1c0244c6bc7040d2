"""Thumbnails: how many there are, of which frames, and how large."""

import numpy as np
import pytest
import torch
from PIL import Image

from sdvideo_core import sequence
from sdvideo_core.sequence import count_frames, load_sequence
from sdvideo_core.thumbnails import make_thumbnails
from sdvideo_core.video_io import save_gif, save_mp4, save_pngs

NUM_FRAMES, WIDTH, HEIGHT = 10, 60, 40
SHADES = [25 * index for index in range(NUM_FRAMES)]


@pytest.fixture(params=["frames", "clip.gif", "clip.mp4"])
def clip(request, tmp_path):
    """Gray frames, each brighter than the one before."""
    video = torch.tensor(SHADES).div(255)[None, None, :, None, None].expand(1, 3, -1, HEIGHT, WIDTH)
    path = tmp_path / request.param
    {"frames": save_pngs, "clip.gif": save_gif, "clip.mp4": save_mp4}[request.param](video, path)
    return path


def shade(image):
    return float(np.asarray(image).mean())


@pytest.mark.parametrize(("most", "every"), [(128, 1), (10, 1), (9, 2), (4, 3), (1, 10)])
def test_thumbnails_are_of_every_nth_frame_and_no_more_than_wanted(clip, most, every):
    made = make_thumbnails(clip, height=20, most=most)
    assert (made.num_frames, made.size, made.every) == (NUM_FRAMES, (WIDTH, HEIGHT), every)
    assert [image.size for image in made.images] == [(30, 20)] * len(SHADES[::every])
    assert [shade(image) for image in made.images] == [pytest.approx(s, abs=3) for s in SHADES[::every]]


def test_a_long_video_shows_the_same_frames_by_seeking(tmp_path, monkeypatch):
    levels = torch.arange(600) % 250 / 255
    save_mp4(levels[None, None, :, None, None].expand(1, 3, -1, 16, 32), tmp_path / "clip.mp4", 30)
    decoded = {}
    for worth in (100, 1000):
        monkeypatch.setattr(sequence, "WORTH_A_SEEK", worth)
        decoded[worth] = make_thumbnails(tmp_path / "clip.mp4", most=5)
    expected = [(120 * index) % 250 for index in range(5)]
    for made in decoded.values():
        assert [shade(image) for image in made.images] == [pytest.approx(level, abs=3) for level in expected]


def test_a_count_is_that_of_the_frames_that_can_be_read(clip):
    assert count_frames(clip) == len(load_sequence(clip, frames=None)) == NUM_FRAMES


def test_a_very_flat_frame_keeps_a_pixel(tmp_path):
    (tmp_path / "tall").mkdir()
    Image.new("RGB", (1, 500)).save(tmp_path / "tall" / "0.png")
    assert make_thumbnails(tmp_path / "tall").images[0].size == (1, 64)


def test_errors_are_those_of_reading(tmp_path):
    (tmp_path / "notes.txt").write_text("no clip")
    with pytest.raises(ValueError, match=r"notes\.txt is not a known kind of video"):
        make_thumbnails(tmp_path / "notes.txt")
    with pytest.raises(FileNotFoundError, match="gone does not exist"):
        make_thumbnails(tmp_path / "gone")
