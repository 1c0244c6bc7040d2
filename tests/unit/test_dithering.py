"""Dithering held against its definitions: the closest colour, published thresholds, the average, and stillness."""

import numpy as np
import pytest
from PIL import Image

from sdvideo_core import dithering
from sdvideo_core.dithering import BAYER, Palette
from sdvideo_core.playback import DITHERS, SaveOptions
from sdvideo_core.video_io import load_sequence, save_gif
from tests.unit.small_clips import noise_images, pixels, smooth_images, to_video

# B. E. Bayer, An optimum method for two-level rendition of continuous-tone pictures, 1973.
THRESHOLDS = [[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]]
BLACK_AND_WHITE = np.array([[255] * 3, [0] * 3])


def random_colours(number):
    return np.random.default_rng(number).integers(0, 256, (number, 3))


def grey(level, size=(8, 8)):
    return Image.new("RGB", size, (level,) * 3)


def test_without_dithering_every_pixel_takes_the_closest_colour():
    colours, (image,) = random_colours(200), noise_images(1, (40, 30))
    drawn = np.asarray(Palette(colours).draw(image, "none").convert("RGB")).astype(float)
    distances = ((np.asarray(image).astype(float)[..., None, :] - colours) ** 2).sum(-1)
    chosen = ((np.asarray(image).astype(float) - drawn) ** 2).sum(-1)
    assert np.array_equal(chosen, distances.min(-1))
    assert {tuple(colour) for colour in drawn.reshape(-1, 3)} <= {tuple(colour) for colour in colours.astype(float)}


def test_many_colours_are_searched_in_parts(monkeypatch):
    (image,), palette = noise_images(1), random_colours(50)
    whole = Palette(palette).nearest(np.asarray(image))
    search, sizes = Palette._search, []
    monkeypatch.setattr(Palette, "_search", lambda self, colours: sizes.append(len(colours)) or search(self, colours))
    monkeypatch.setattr(dithering, "SEARCHED_AT_ONCE", 100)
    assert np.array_equal(Palette(palette).nearest(np.asarray(image)), whole)
    assert sizes == [100] * 5 + [12]  # noise of 32 x 16 pixels, no two alike


def test_each_colour_is_mixed_once_however_often_it_is_drawn(monkeypatch):
    """Which is what keeps bayer fast: a clip's frames have most of their colours in common."""
    (image,), palette = noise_images(1), Palette(random_colours(50))
    mix, mixed = Palette._mix, []
    monkeypatch.setattr(Palette, "_mix", lambda self, colours: mixed.extend(map(tuple, colours)) or mix(self, colours))
    first, again = (np.asarray(palette.draw(image, "bayer")) for _ in range(2))
    assert np.array_equal(first, again)
    pixels = {tuple(pixel) for pixel in np.asarray(image).reshape(-1, 3) // 2}
    assert {tuple(np.array(colour) // 2) for colour in mixed} == pixels
    assert len(mixed) == len(pixels)


def test_the_thresholds_are_bayers():
    assert BAYER.tolist() == THRESHOLDS


@pytest.mark.parametrize("level", range(0, 256, 5))
def test_bayer_mixes_black_and_white_to_the_grey_by_his_thresholds(level):
    white = np.asarray(Palette(BLACK_AND_WHITE).draw(grey(level), "bayer").convert("L")) == 255
    assert white.sum() / 4 == pytest.approx(16 * level / 255, abs=0.5)
    # As in print: the more light there is, the more places of the pattern are white, and always the same first.
    darkest_white = np.where(white[:4, :4], THRESHOLDS, 16).min()
    assert np.array_equal(white, np.tile(np.array(THRESHOLDS) >= darkest_white, (2, 2)))


@pytest.mark.parametrize("dither", ["floyd-steinberg", "bayer"])
def test_dithered_colours_average_to_the_picture(dither):
    corners = np.array(np.meshgrid([0, 255], [0, 255], [0, 255])).reshape(3, 8).T
    for colour in [(200, 30, 90), (17, 128, 250)]:
        drawn = Palette(corners).draw(Image.new("RGB", (64, 64), colour), dither).convert("RGB")
        assert np.abs(np.asarray(drawn).mean((0, 1)) - colour).max() < 9


@pytest.mark.parametrize("dither", DITHERS)
def test_any_size_and_any_number_of_colours_is_drawn(dither):
    for size, number in [((1, 1), 1), ((5, 3), 2), ((3, 7), 256)]:
        drawn = Palette(random_colours(number)).draw(noise_images(1, size)[0], dither)
        assert (drawn.size, drawn.mode) == (size, "P")


def changed_where_nothing_changes(tmp_path, dither):
    """The share of the pixels equal to those of the frame before that the GIF shows otherwise."""
    (still,) = smooth_images(1, 64)
    images = [still.copy() for _ in range(5)]
    for index, image in enumerate(images):
        image.paste((255, 40, 40), (8 + 8 * index, 4, 16 + 8 * index, 12))
    save_gif(to_video(images), tmp_path / "clip.gif", options=SaveOptions(dither=dither))
    before, after = pixels(images), pixels(load_sequence(tmp_path / "clip.gif", None, image_size=None))
    equal = (before[1:] == before[:-1]).all(-1)
    return (after[1:] != after[:-1]).any(-1)[equal].mean()


def test_what_stands_still_keeps_still_unless_errors_are_diffused(tmp_path):
    assert changed_where_nothing_changes(tmp_path, "bayer") == 0
    assert changed_where_nothing_changes(tmp_path, "none") == 0
    assert changed_where_nothing_changes(tmp_path, "floyd-steinberg") > 0.05
