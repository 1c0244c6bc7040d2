"""Reading of clips: which colour, shape, motion and background a video of one moving shape shows.

Plain image processing, no network: it judges what the demo model draws, so it must not share the model's mistakes. What
does not look clearly like one thing is read as None. Lengths are in pixels of a 96-pixel frame, colours in 0..255.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .clips import BACKGROUNDS, COLORS, CORNERS, SHAPES, SIZE, outline

# Distances of colours. Two of the palette are at least 61 apart, a colour and its background at least 106.
COLOR_LIMIT = 50  # further from the palette than this is no colour of it
COLOR_RATIO = 0.7  # the nearest must be that much nearer than the second
FLAT_SHARE = 0.75  # of an area's pixels that must be within COLOR_LIMIT of their median
NOISE_LIMIT = 30  # a pixel nearer to the background belongs to it; more where the border itself is noisy

RING = 3  # width of the border that shows the background
EDGE = 2  # width of the shape's rim, whose colours are mixed
MIN_AREA, MAX_AREA = 0.005, 0.6  # of the frame; drawn shapes cover 0.015..0.3
ALONE = 0.85  # share of the pixels off the background that are one connected area
CLEAR_SHARE = 0.75  # of the frames that must show one such area

# Overlap (intersection over union) of the area with a perfect shape of the same place and size.
MIN_FIT = {"circle": 0.93, "square": 0.92, "triangle": 0.9, "star": 0.83}
FIT_LEAD = 0.08  # ahead of the second best shape: half of what a circle is ahead of a square
UPRIGHT = 12  # degrees that a shape may lean, unless it turns
ANGLE_STEP = 3  # degrees
GRID, REACH = 64, math.sqrt(math.pi)  # GRID x GRID points reach that many radii from the centre, twice a square's side

# Change from first to last frame: the least that drawn clips show, in pixels, of the area's logarithm, in degrees.
LEAST_CHANGE = {"x": 34.0, "y": 34.0, "area": 2 * math.log(1.45 / 0.55), "angle": 100.0}
NAMES = {"x": ("left", "right"), "y": ("up", "down"), "area": ("shrinking", "growing"), "angle": ("turning", "turning")}
MOVES = 0.3  # times LEAST_CHANGE is a motion, less is none: 10 pixels, 34 % of the radius, 30 degrees
DOMINANCE = 2.0  # the largest change, as multiples of LEAST_CHANGE, is that many times the second
STEADY = 0.85  # share of an angle's variance that an even turn explains; angles of a round shape are chance


@dataclass(frozen=True)
class Reading:
    """What a video shows, in the words of `Scene`; None is what cannot be told.

    fit: overlap 0..1 of the shape with the best of the perfect ones, also where it is too small to name a shape.
    """

    color: str | None
    shape: str | None
    motion: str | None
    background: str | None
    fit: float


@dataclass(frozen=True)
class Blobs:
    """The shape's area in the N frames that clearly show one.

    times (N,) in 0..1; masks (N, H, W) of the area; soft (N, H, W) the same before the decision, which is at 0.5;
    areas (N,) and centers (N, 2) as x, y in the video's pixels.
    """

    times: np.ndarray
    masks: np.ndarray
    soft: np.ndarray
    areas: np.ndarray
    centers: np.ndarray


def read_scene(video: np.ndarray) -> Reading:
    """Reads a video (F, H, W, 3) of 8-bit pixels, of any size and of 4 or more frames."""
    if video.ndim != 4 or video.shape[3] != 3 or video.dtype != np.uint8 or len(video) < 4:
        raise ValueError(f"video is {video.dtype} {video.shape}; expected uint8 (F, H, W, 3) with 4 or more frames")
    ring = _ring(video)
    background = nearest(ring, BACKGROUNDS)
    blobs = find_blobs(video, ring)
    if len(blobs.times) < max(CLEAR_SHARE * len(video), 4):
        return Reading(None, None, None, background, 0.0)
    fits, angles = shape_fits(blobs)
    motion = _motion(blobs, fits, angles)
    shape, fit = _shape(blobs, fits if motion == "turning" else np.where(abs(angles) <= UPRIGHT, fits, 0))
    return Reading(nearest(_interior(video, blobs), COLORS), shape, motion, background, fit)


def nearest(pixels: np.ndarray, palette: dict[str, tuple[int, int, int]]) -> str | None:
    """The palette's name for the median of pixels (N, 3); None where they differ or no name fits."""
    if not len(pixels):
        return None
    color = np.median(pixels, axis=0)
    if np.mean(np.linalg.norm(pixels - color, axis=1) < COLOR_LIMIT) < FLAT_SHARE:
        return None
    distances = np.linalg.norm(np.array(list(palette.values())) - color, axis=1)
    first, second = np.sort(distances)[:2]
    known = first <= min(COLOR_LIMIT, COLOR_RATIO * second)
    return list(palette)[int(distances.argmin())] if known else None


def find_blobs(video: np.ndarray, ring: np.ndarray) -> Blobs:
    """The one area of each frame (of F, H, W, 3) that differs from the background, of which `ring` (N, 3) is a part."""
    color = np.median(ring, axis=0)
    distance = np.linalg.norm(video - color, axis=3)
    noise = max(NOISE_LIMIT, 2.5 * np.median(np.linalg.norm(ring - color, axis=1)))
    seen = distance[distance > noise]
    # Halfway between background and shape the edge stays in place when it is blurred.
    limit = max(np.median(seen) / 2, noise) if seen.size else noise
    off = distance > limit
    masks = largest_areas(off)
    areas = masks.sum(axis=(1, 2))
    share = areas / off[0].size
    clear = (share >= MIN_AREA) & (share <= MAX_AREA) & (areas >= ALONE * off.sum(axis=(1, 2)))
    soft = np.where(off & ~masks, 0, distance / (2 * limit))
    times = np.linspace(0, 1, len(video))
    return Blobs(times[clear], masks[clear], soft[clear], areas[clear], _centers(masks[clear], areas[clear]))


def largest_areas(masks: np.ndarray) -> np.ndarray:
    """Masks (F, H, W) with the largest connected area of each frame only; neighbours share a side."""
    labels = np.where(masks, np.arange(1, masks.size + 1).reshape(masks.shape), 0)
    while True:
        spread = _spread(_spread(labels).swapaxes(1, 2)).swapaxes(1, 2)
        if np.array_equal(spread, labels):
            break
        labels = spread
    winners = [int(np.bincount(frame[frame > 0]).argmax()) if frame.any() else -1 for frame in labels]
    return labels == np.array(winners)[:, None, None]


def _spread(labels: np.ndarray) -> np.ndarray:
    """Gives each run of labels along the last axis its largest one; 0 separates runs."""
    padded = np.pad(labels, ((0, 0), (0, 0), (0, 1)))
    flat = padded.ravel()
    starts = np.concatenate([[0], np.flatnonzero(np.diff(flat > 0)) + 1])
    lengths = np.diff(np.append(starts, flat.size))
    return np.repeat(np.maximum.reduceat(flat, starts), lengths).reshape(padded.shape)[..., :-1]


def shape_fits(blobs: Blobs) -> tuple[np.ndarray, np.ndarray]:
    """Overlap (N, K) of each frame's area with each template, in 0..1, and the templates' angles (K,) in degrees."""
    templates, _, angles = _templates()
    masks = _resample(blobs)
    common = masks @ templates
    return common / (masks.sum(axis=1, keepdims=True) + templates.sum(axis=0) - common), angles


@lru_cache(maxsize=1)
def _templates() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Perfect shapes of area pi as points (GRID * GRID, K), their shapes' numbers (K,) and their angles (K,)."""
    points, shapes, angles = [], [], []
    for number, shape in enumerate(SHAPES):
        for angle in range(-_period(shape) // 2, (_period(shape) + 1) // 2, ANGLE_STEP) if shape in CORNERS else (0,):
            points.append(_template(shape, math.radians(angle)))
            shapes.append(number)
            angles.append(angle)
    return np.stack(points, axis=1), np.array(shapes), np.array(angles)


def _period(shape: str) -> int:
    """Degrees after which it looks the same."""
    return 360 // CORNERS[shape]


def _template(shape: str, angle: float) -> np.ndarray:
    """Which of the grid's points (GRID * GRID,) lie in the shape turned by `angle` radians."""
    points = _grid()
    inside = np.linalg.norm(points, axis=1) < 1 if shape not in CORNERS else _within(points, outline(shape, angle))
    return inside.astype(np.float32)


def _within(points: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Which points (P, 2) lie in the outline with these corners (N, 2), scaled to area pi."""
    x, y = corners.T
    area = abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2
    inside = np.zeros(len(points), bool)
    corners = corners * math.sqrt(math.pi / area)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, 1, axis=0), strict=True):
        # A ray to the right crosses the outline an odd number of times from inside.
        between = (points[:, 1] < y0) != (points[:, 1] < y1)
        crossing = x0 + (points[:, 1] - y0) * (x1 - x0) / (y1 - y0 or 1)
        inside ^= between & (points[:, 0] < crossing)
    return inside


def _grid() -> np.ndarray:
    """Points (GRID * GRID, 2) around the centre of a shape of area pi."""
    step = ((np.arange(GRID) + 0.5) / GRID * 2 - 1) * REACH
    return np.stack(np.meshgrid(step, step), axis=-1).reshape(-1, 2)


def _resample(blobs: Blobs) -> np.ndarray:
    """The areas as points (N, GRID * GRID), each centred and scaled to area pi."""
    radii = np.sqrt(blobs.areas / math.pi)
    masks = _look(blobs.soft, blobs.centers, radii)
    # Whole pixels misjudge place and extent by up to a few percent; the points between them know better.
    counts = masks.sum(axis=1)
    centers = blobs.centers + radii[:, None] * (masks @ _grid()) / counts[:, None]
    return _look(blobs.soft, centers, radii * np.sqrt(counts / math.pi) * 2 * REACH / GRID)


def _look(soft: np.ndarray, centers: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Which of the grid's points (N, GRID * GRID) around the centres (N, 2) belong to the area; none off the frame."""
    x, y = np.moveaxis(centers[:, None] + radii[:, None, None] * _grid(), 2, 0)
    height, width = soft.shape[1:]
    inside = (x > -0.5) & (x < width - 0.5) & (y > -0.5) & (y < height - 0.5)
    return (inside & (_sample(soft, x.clip(0, width - 1), y.clip(0, height - 1)) > 0.5)).astype(np.float32)


def _sample(pictures: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Bilinear values (N, P) of pictures (N, H, W) at points (N, P) within them."""
    left = x.astype(int).clip(0, pictures.shape[2] - 2)
    top = y.astype(int).clip(0, pictures.shape[1] - 2)
    frame = np.arange(len(pictures))[:, None]
    u, v = x - left, y - top
    upper = pictures[frame, top, left] * (1 - u) + pictures[frame, top, left + 1] * u
    lower = pictures[frame, top + 1, left] * (1 - u) + pictures[frame, top + 1, left + 1] * u
    return upper * (1 - v) + lower * v


def _shape(blobs: Blobs, fits: np.ndarray) -> tuple[str | None, float]:
    scores = _scores(blobs, fits)
    second, first = np.sort(scores)[-2:]
    shape = SHAPES[int(scores.argmax())]
    clear = first >= MIN_FIT[shape] and first - second >= FIT_LEAD
    return (shape if clear else None), float(first)


def _scores(blobs: Blobs, fits: np.ndarray) -> np.ndarray:
    """Overlap (4,) with each shape at its best angle, over the frames by their areas: small ones are hard to draw."""
    shapes = _templates()[1]
    best = np.stack([fits[:, shapes == number].max(axis=1) for number in range(len(SHAPES))])
    return best @ blobs.areas / blobs.areas.sum()


def _motion(blobs: Blobs, fits: np.ndarray, angles: np.ndarray) -> str | None:
    scale = SIZE / min(blobs.masks.shape[1:])
    x, y = blobs.centers.T * scale
    changes = {"x": _trend(blobs.times, x)[0], "y": _trend(blobs.times, y)[0]}
    changes["area"] = _trend(blobs.times, np.log(blobs.areas))[0]
    changes["angle"] = _turn(blobs, fits, angles)
    strengths = {name: abs(change) / LEAST_CHANGE[name] for name, change in changes.items()}
    second, first = sorted(strengths, key=strengths.__getitem__)[-2:]
    if strengths[first] < MOVES:
        return "still"
    if strengths[first] < DOMINANCE * strengths[second]:
        return None
    return NAMES[first][int(changes[first] > 0)]


def _turn(blobs: Blobs, fits: np.ndarray, angles: np.ndarray) -> float:
    """Degrees that a shape with corners turns; 0 for a round one and for angles that do not follow each other."""
    number = int(_scores(blobs, fits).argmax())
    if SHAPES[number] not in CORNERS:
        return 0.0
    own = _templates()[1] == number
    found = angles[own][fits[:, own].argmax(axis=1)]
    change, steadiness = _trend(blobs.times, np.unwrap(found, period=_period(SHAPES[number])))
    return change if steadiness >= STEADY else 0.0


def _trend(times: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """Change of the fitted line from first to last frame, and the share of the variance that the line explains."""
    slope, start = np.polyfit(times, values, 1)
    variance = values.var()
    return float(slope), float(1 - (values - start - slope * times).var() / variance) if variance else 0.0


def _ring(video: np.ndarray) -> np.ndarray:
    """The pixels (N, 3) of all frames' borders."""
    height, width = video.shape[1:3]
    border = np.ones((height, width), bool)
    depth = max(1, round(RING * min(height, width) / SIZE))
    border[depth:-depth, depth:-depth] = False
    return video[:, border].reshape(-1, 3)


def _interior(video: np.ndarray, blobs: Blobs) -> np.ndarray:
    """The pixels (N, 3) of all frames' shapes without their rims."""
    inner = blobs.masks
    for _ in range(max(1, round(EDGE * min(inner.shape[1:]) / SIZE))):
        padded = np.pad(inner, ((0, 0), (1, 1), (1, 1)))
        inner = inner & padded[:, 2:, 1:-1] & padded[:, :-2, 1:-1] & padded[:, 1:-1, 2:] & padded[:, 1:-1, :-2]
    clear = np.rint(blobs.times * (len(video) - 1)).astype(int)
    return video[clear][inner]


def _centers(masks: np.ndarray, areas: np.ndarray) -> np.ndarray:
    x = masks.sum(axis=1) @ np.arange(masks.shape[2]) / areas
    y = masks.sum(axis=2) @ np.arange(masks.shape[1]) / areas
    return np.stack([x, y], axis=1)
