"""Reading of clips: right about what is drawn, blurred or not, and silent about what is not clearly a scene."""

import math

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from sdvideo_core.demo.clips import BACKGROUNDS, COLORS, SIZE, Scene, draw_clip, scenes
from sdvideo_core.demo.reading import Reading, largest_areas, nearest, read_scene

PAIRS = [("left", "right"), ("up", "down"), ("growing", "shrinking")]
OPPOSITE = dict(PAIRS) | {second: first for first, second in PAIRS}
CLEAN = np.random.default_rng(0).permutation(len(scenes()))[:80]
BLACK, RED, BLUE = BACKGROUNDS["black"], COLORS["red"], COLORS["blue"]


def words(reading):
    return reading.color, reading.shape, reading.motion, reading.background


def expected(scene):
    return scene.color, scene.shape, scene.motion, scene.background


def clip_of(shape, motion, seed=0, num_frames=8, size=SIZE):
    return draw_clip(Scene("red", shape, motion, "black"), np.random.default_rng(seed), num_frames, size)


def degraded(video, rng, blur=1.5, noise=6.0):
    """As a decoder leaves it: blurred by some pixels, noise of some levels."""
    blurred = [np.asarray(Image.fromarray(frame).filter(ImageFilter.GaussianBlur(blur))) for frame in video]
    return np.clip(np.stack(blurred) + rng.normal(0, noise, video.shape), 0, 255).astype(np.uint8)


def squeezed(video, width):
    narrow = np.stack([np.asarray(Image.fromarray(frame).resize((width, SIZE))) for frame in video])
    return np.pad(narrow, ((0, 0), (0, 0), (SIZE - width, 0), (0, 0)), mode="edge")


def polar_clip(radius, color=RED, step=(0.0, 0.0), background=BLACK):
    """8 frames of an outline radius(angle) of area as a circle's of 18 pixels, moved by `step` pixels a frame."""
    angles = np.linspace(0, 2 * math.pi, 360, endpoint=False)
    radii = radius(angles)
    radii = 18 * radii / np.sqrt((radii**2).mean())
    outline = np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1) + SIZE / 2
    frames = []
    for moment in np.arange(8) - 3.5:
        picture = Image.new("RGB", (4 * SIZE, 4 * SIZE), background)
        ImageDraw.Draw(picture).polygon([tuple(p) for p in 4 * (outline + moment * np.array(step))], fill=color)
        frames.append(np.asarray(picture.reduce(4)))
    return np.stack(frames)


def circle(angles):
    return np.ones_like(angles)


def ellipse(ratio):
    return lambda angles: ((np.cos(angles) / ratio) ** 2 + np.sin(angles) ** 2) ** -0.5


def lump(lobes, depth=0.18):
    return lambda angles: 1 + depth * np.sin(lobes * angles + 0.3)


def squircle(power):
    return lambda angles: (abs(np.cos(angles)) ** power + abs(np.sin(angles)) ** power) ** (-1 / power)


def mixed(first, second):
    return tuple(round((a + b) / 2) for a, b in zip(COLORS[first], COLORS[second], strict=True))


@pytest.mark.parametrize("number", CLEAN)
def test_drawn_clips_are_read(number):
    scene = scenes()[number]
    rng = np.random.default_rng(number)
    video = draw_clip(scene, rng, num_frames=(8, 16)[number % 2])
    assert words(read_scene(video)) == expected(scene)
    assert words(read_scene(degraded(video, rng))) == expected(scene)


@pytest.mark.parametrize("size", [48, 64, 192])
@pytest.mark.parametrize(("shape", "motion"), [("circle", "left"), ("square", "growing"), ("star", "turning")])
def test_sizes_do_not_matter(size, shape, motion):
    assert words(read_scene(clip_of(shape, motion, size=size))) == ("red", shape, motion, "black")


@pytest.mark.parametrize("number", CLEAN[:8])
def test_strong_noise_is_seen_through(number):
    scene, rng = scenes()[number], np.random.default_rng(number)
    assert words(read_scene(degraded(draw_clip(scene, rng, 8), rng, blur=2.0, noise=12.0))) == expected(scene)


def test_few_pixels_decide_in_large_videos_as_in_small_ones():
    video = polar_clip(circle, step=(1, 0))
    assert read_scene(video.repeat(2, axis=1).repeat(2, axis=2)).motion == read_scene(video).motion == "still"


def test_wide_videos_are_read():
    video = np.pad(clip_of("triangle", "down"), ((0, 0), (0, 0), (32, 64), (0, 0)), mode="edge")
    assert words(read_scene(video)) == ("red", "triangle", "down", "black")


@pytest.mark.parametrize("motion", OPPOSITE)
def test_reversed_clips_move_the_other_way(motion):
    reading = read_scene(clip_of("circle", motion)[::-1])
    assert words(reading) == ("red", "circle", OPPOSITE[motion], "black")


@pytest.mark.parametrize("shape", ["square", "triangle", "star"])
def test_turning_is_told_either_way_round(shape):
    assert read_scene(clip_of(shape, "turning")[::-1]).motion == "turning"
    assert read_scene(clip_of(shape, "turning")[::-1, :, ::-1]).motion == "turning"


def test_uneven_turning_is_turning():
    video = clip_of("triangle", "turning", num_frames=16)[[0, 1, 2, 4, 7, 10, 13, 15]]
    assert read_scene(video).motion == "turning"


def test_angles_by_chance_are_no_turning():
    order = np.random.default_rng(0).permutation(8)
    assert read_scene(clip_of("triangle", "turning")[order]).motion == "still"


def test_large_shapes_that_grow_a_little_are_still():
    assert read_scene(clip_of("square", "growing", num_frames=16)[-5:]).motion == "still"


NEITHER = {
    "ellipse": ellipse(1.4),
    "slight ellipse": ellipse(1.16),
    "lump of 3": lump(3),
    "lump of 4": lump(4),
    "lump of 5": lump(5),
    "slight lump": lump(5, 0.1),
    "shield": lambda angles: 1 + 0.12 * np.sin(angles) + 0.1 * np.cos(2 * angles),
    "between circle and square": squircle(3.2),
    "square on its corner": squircle(1),
}


@pytest.mark.parametrize("name", NEITHER)
def test_lumps_have_no_shape(name):
    reading = read_scene(polar_clip(NEITHER[name]))
    assert words(reading) == ("red", None, "still", "black")
    assert 0.7 < reading.fit < 0.96


@pytest.mark.parametrize("shape", ["square", "triangle", "star"])
def test_squeezed_shapes_have_no_name(shape):
    assert words(read_scene(squeezed(clip_of(shape, "still"), 80))) == ("red", None, "still", "black")


def test_a_frame_is_no_square():
    video = clip_of("square", "still")
    y, x = np.argwhere((video[0] == RED).all(axis=2)).mean(axis=0).astype(int)
    video[:, y - 5 : y + 5, x - 5 : x + 5] = BLACK
    assert words(read_scene(video)) == ("red", None, "still", "black")


def test_shapes_may_touch_the_border():
    video = clip_of("square", "still")
    left = np.flatnonzero((video[0] == RED).all(axis=2).any(axis=0))[0]
    assert read_scene(np.roll(video, -left, axis=2)).fit > 0.97


@pytest.mark.parametrize(("name", "radius"), [("circle", circle), ("circle", ellipse(1.06)), ("square", squircle(12))])
def test_nearly_perfect_shapes_pass(name, radius):
    assert read_scene(polar_clip(radius)).shape == name


def test_fit_is_the_overlap():
    assert read_scene(polar_clip(circle)).fit > 0.99
    assert read_scene(polar_clip(ellipse(1.4))).fit == pytest.approx(0.81, abs=0.02)


@pytest.mark.parametrize("shape", ["circle", "square", "triangle", "star"])
def test_place_between_pixels_does_not_matter(shape):
    assert min(read_scene(clip_of(shape, "still", seed)).fit for seed in range(4)) > 0.97


def test_large_frames_count_more():
    video = degraded(clip_of("star", "growing"), np.random.default_rng(0), blur=2.5)
    small, large = read_scene(video[:4]).fit, read_scene(video[4:]).fit
    assert read_scene(video).fit > small + 0.7 * (large - small) > small


def test_a_shape_may_change_with_time_only_little():
    halves = clip_of("circle", "still")[:4], clip_of("square", "still")[:4]
    assert read_scene(np.concatenate(halves)).shape is None


def test_a_lying_shape_counts_only_where_it_turns():
    turned = np.rot90(clip_of("triangle", "still"), axes=(1, 2))
    assert words(read_scene(turned)) == ("red", None, "still", "black")


@pytest.mark.parametrize("colors", [("red", "orange"), ("blue", "purple"), ("pink", "white"), ("orange", "yellow")])
def test_colours_between_two_have_no_name(colors):
    video = polar_clip(circle, mixed(*colors), step=(4, 0))
    assert words(read_scene(video)) == (None, "circle", "right", "black")


def test_a_colour_far_from_all_has_no_name():
    assert words(read_scene(polar_clip(circle, (10, 110, 40)))) == (None, "circle", "still", "black")


def test_half_and_half_has_no_colour():
    video = polar_clip(circle)
    left = video[:, :, : SIZE // 2]
    left[left[..., 0] > 100] = COLORS["green"]
    assert words(read_scene(video)) == (None, "circle", "still", "black")


@pytest.mark.parametrize("background", [(200, 60, 60), (70, 70, 74)])
def test_other_backgrounds_have_no_name(background):
    assert words(read_scene(polar_clip(circle, BLUE, background=background))) == ("blue", "circle", "still", None)


def test_background_of_two_colours_has_no_name():
    video = polar_clip(circle)
    video[:, 60:] = BACKGROUNDS["white"]
    assert read_scene(video).background is None


@pytest.mark.parametrize(("step", "motion"), [((3, 3), None), ((-3, 2), None), ((4, 1), "right"), ((1, 1), "still")])
def test_diagonal_is_no_direction(step, motion):
    assert read_scene(polar_clip(circle, step=step)).motion == motion


def test_growing_on_the_way_is_no_one_motion():
    video = clip_of("circle", "growing")
    moved = np.stack([np.roll(frame, 4 * number - 14, axis=1) for number, frame in enumerate(video)])
    assert read_scene(moved).motion is None


def test_nothing_to_see():
    blank = np.full((8, SIZE, SIZE, 3), BACKGROUNDS["gray"], np.uint8)
    assert read_scene(blank) == Reading(None, None, None, "gray", 0.0)


def test_faint_and_small_things_are_nothing():
    small = np.full((8, SIZE, SIZE, 3), BLACK, np.uint8)
    small[:, 40:46, 40:46] = RED
    for video in (small, polar_clip(circle, (30, 30, 36))):
        assert words(read_scene(video)) == (None, None, None, "black")


def test_small_blurred_shapes_keep_their_colour():
    video = clip_of("star", "shrinking")[-4:]
    assert read_scene(degraded(video, np.random.default_rng(0), blur=2.5)).color == "red"


def test_noise_is_nothing():
    noise = np.random.default_rng(0).integers(0, 256, (8, SIZE, SIZE, 3), dtype=np.uint8)
    assert words(read_scene(noise)) == (None, None, None, None)


def test_two_blobs_are_no_shape():
    video = polar_clip(circle)
    both = np.maximum(np.roll(video, -22, axis=2), np.roll(video, 22, axis=2))
    assert words(read_scene(both)) == (None, None, None, "black")


def test_a_speck_does_no_harm():
    video = polar_clip(circle)
    video[:, 20:29, 20:29] = RED
    assert words(read_scene(video)) == ("red", "circle", "still", "black")
    assert read_scene(video).fit > 0.98


@pytest.mark.parametrize(("lost", "shape"), [(2, "star"), (3, None)])
def test_a_quarter_of_the_frames_may_be_lost(lost, shape):
    video = clip_of("star", "left")
    video[1 : 1 + lost] = BLACK
    reading = read_scene(video)
    assert words(reading) == (("red", shape, "left", "black") if shape else (None, None, None, "black"))


def test_largest_area_is_connected_by_sides():
    picture = ["##..#", "##.#.", "..#..", "###..", "#.###"]
    mask = np.array([[[mark == "#" for mark in line] for line in picture]])
    largest = largest_areas(np.concatenate([mask, ~mask & False]))
    lines = ["".join(".#"[int(on)] for on in line) for line in largest[0]]
    assert lines == [".....", ".....", "..#..", "###..", "#.###"]
    assert not largest[1].any()


def test_winding_areas_stay_whole():
    spiral = np.zeros((1, 9, 9), bool)
    for row in range(0, 9, 2):
        spiral[0, row] = True
        spiral[0, min(row + 1, 8), 8 if row % 4 == 0 else 0] = True
    assert np.array_equal(largest_areas(spiral), spiral)


def test_no_pixels_have_no_colour():
    assert nearest(np.zeros((0, 3)), COLORS) is None


@pytest.mark.parametrize(
    "video",
    [
        np.zeros((8, 96, 96, 3), np.float32),
        np.zeros((8, 96, 96), np.uint8),
        np.zeros((8, 3, 96, 96), np.uint8),
        np.zeros((3, 96, 96, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused(video):
    with pytest.raises(ValueError, match="expected uint8"):
        read_scene(video)
