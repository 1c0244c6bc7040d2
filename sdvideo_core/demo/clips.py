"""Clips of moving shapes: what the demo model is trained on, drawn on demand with their captions."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np
from PIL import Image, ImageDraw

SIZE = 96  # pixels of a side
NUM_FRAMES = 16
SUPERSAMPLING = 4

COLORS = {
    "red": (226, 32, 32),
    "orange": (250, 138, 16),
    "yellow": (248, 224, 40),
    "green": (40, 190, 64),
    "blue": (40, 100, 240),
    "purple": (140, 48, 200),
    "pink": (250, 120, 190),
    "white": (248, 248, 248),
}
BACKGROUNDS = {
    "black": (14, 14, 18),
    "white": (244, 244, 244),
    "gray": (124, 124, 128),
    "blue": (20, 34, 92),
    "green": (16, 70, 42),
}
# Pairs that a viewer could not tell apart, and colours that share the background's name.
UNSEEN = {
    *(("white", color) for color in ("white", "yellow", "pink")),
    *(("blue", color) for color in ("blue", "purple")),
    ("green", "green"),
}
SHAPES = ("circle", "square", "triangle", "star")
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}  # x, y of the picture
MOTIONS = (*DIRECTIONS, "growing", "shrinking", "turning", "still")

# Corners at radius 1, first one up; sizes such that all shapes cover about the same area.
CORNERS = {"square": 4, "triangle": 3, "star": 5}
RADII = {"circle": 18.0, "square": 22.0, "triangle": 25.0, "star": 26.0}
STAR_INNER_RADIUS = 0.45
# A shape's place varies by that many pixels. With more, what the noisiest timesteps can tell of it is a lump.
PLAY = 3.0

NOUNS = {
    "circle": ("circle", "circle", "ball", "disc"),
    "square": ("square", "square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
}
VERBS = ("moving {}", "moving {}", "moving to the {}", "sliding {}", "going {}", "flying {}", "drifting {}")
VERTICAL_VERBS = ("moving {}", "moving {}", "sliding {}", "going {}", "flying {}", "drifting {}", "moving {}wards")
MOTION_WORDS = {
    "left": tuple(verb.format("left") for verb in VERBS),
    "right": tuple(verb.format("right") for verb in VERBS),
    "up": (*(verb.format("up") for verb in VERTICAL_VERBS), "rising"),
    "down": (*(verb.format("down") for verb in VERTICAL_VERBS), "falling"),
    "growing": ("growing", "growing", "growing larger", "getting bigger", "becoming larger"),
    "shrinking": ("shrinking", "shrinking", "getting smaller", "becoming smaller"),
    "turning": ("turning", "turning around", "rotating", "spinning"),
    "still": ("standing still", "not moving", "staying in place", "at rest"),
}
TEMPLATES = (
    "a {color} {noun} {motion}",
    "a {color} {noun} {motion} on a {background} background",
    "a {color} {noun} {motion} on {background}",
    "a {color} {noun} {motion} in front of a {background} background",
    "{color} {noun} {motion}, {background} background",
    "on a {background} background, a {color} {noun} {motion}",
    "the {color} {noun} is {motion}, the background is {background}",
    "a video of a {color} {noun} {motion} over {background}",
    "a {noun} that is {color}, {motion}, {background} background",
    "{background} background with a {color} {noun} {motion}",
)
UNSAID_BACKGROUND = "black"  # what a caption without a background means


Path = Callable[[float], tuple[float, float, float, float]]  # time 0..1 -> x, y, radius, angle


@dataclass(frozen=True)
class Scene:
    """What a clip shows: a shape of one colour that moves in one way over one background."""

    color: str
    shape: str
    motion: str
    background: str

    @property
    def held_out(self) -> bool:
        """Whether training never shows this colour, shape and motion together: about 14 % of them."""
        return zlib.crc32(f"{self.color} {self.shape} {self.motion}".encode()) % 100 < 15


def scenes() -> list[Scene]:
    """All that can be seen: no circle that turns, no shape in the colour of its background."""
    every = (Scene(*parts) for parts in product(COLORS, SHAPES, MOTIONS, BACKGROUNDS))
    return [s for s in every if (s.background, s.color) not in UNSEEN and (s.shape, s.motion) != ("circle", "turning")]


def draw_clip(scene: Scene, rng: np.random.Generator, num_frames: int = NUM_FRAMES, size: int = SIZE) -> np.ndarray:
    """A clip (F, size, size, 3) of 8-bit pixels; place, extent and amount of motion vary a little."""
    path = _path(scene, rng)
    return np.stack([_draw_frame(scene, *path(t), size) for t in np.linspace(0, 1, num_frames)])


def draw_frame(scene: Scene, rng: np.random.Generator, size: int = SIZE) -> np.ndarray:
    """One frame (size, size, 3) from a random moment of a random clip."""
    return _draw_frame(scene, *_path(scene, rng)(rng.random()), size)


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """One of many ways to say what the scene shows; what is left unsaid is a black background and no motion."""
    template = str(rng.choice(TEMPLATES))
    if scene.background == UNSAID_BACKGROUND and rng.random() < 0.5:
        template = TEMPLATES[0]
    elif "{background}" not in template and scene.background != UNSAID_BACKGROUND:
        template = TEMPLATES[1]
    silent = scene.motion == "still" and rng.random() < 0.5
    motion = "" if silent else str(rng.choice(MOTION_WORDS[scene.motion]))
    noun = str(rng.choice(NOUNS[scene.shape]))
    template = template.replace("a {color}", "an {color}") if scene.color == "orange" else template
    text = template.format(color=scene.color, noun=noun, motion=motion, background=scene.background)
    return " ".join(text.replace(" is ,", ",").replace(", ,", ",").replace(" ,", ",").split())


def _path(scene: Scene, rng: np.random.Generator) -> Path:
    """Centre (x, y), radius and angle of the shape as functions of time 0..1, in pixels of a 96-pixel frame."""
    radius = RADII[scene.shape] * rng.uniform(0.96, 1.04)
    x, y = SIZE / 2 + rng.uniform(-PLAY, PLAY, 2)
    if scene.motion in DIRECTIONS:
        dx, dy = DIRECTIONS[scene.motion]
        travel = rng.uniform(36, 40)
        return lambda t: (x + dx * travel * (t - 0.5), y + dy * travel * (t - 0.5), radius, 0.0)
    if scene.motion in ("growing", "shrinking"):
        small, large = radius * rng.uniform(0.48, 0.54), radius * rng.uniform(1.45, 1.55)
        first, last = (small, large) if scene.motion == "growing" else (large, small)
        return lambda t: (x, y, first + (last - first) * t, 0.0)
    turn = math.radians(rng.uniform(105, 125)) if scene.motion == "turning" else 0.0
    return lambda t: (x, y, radius, turn * t)


def _draw_frame(scene: Scene, x: float, y: float, radius: float, angle: float, size: int) -> np.ndarray:
    scale = SUPERSAMPLING * size / SIZE
    mask = Image.new("L", (SUPERSAMPLING * size, SUPERSAMPLING * size))
    draw = ImageDraw.Draw(mask)
    if scene.shape == "circle":
        box = (x - radius, y - radius, x + radius, y + radius)
        draw.ellipse([side * scale for side in box], fill=255)
    else:
        corners = outline(scene.shape, angle) * radius + (x, y)
        draw.polygon([tuple(corner) for corner in corners * scale], fill=255)
    coverage = np.asarray(mask.reduce(SUPERSAMPLING), np.float32)[..., None] / 255
    color, background = (
        np.asarray(table, np.float32) for table in (COLORS[scene.color], BACKGROUNDS[scene.background])
    )
    return np.rint(background + (color - background) * coverage).astype(np.uint8)


def outline(shape: str, angle: float = 0.0) -> np.ndarray:
    """Corners (N, 2) of a square, triangle or star of radius 1, turned clockwise by `angle` radians."""
    count = CORNERS[shape]
    first = -math.pi / 4 if shape == "square" else -math.pi / 2
    angles = angle + first + np.arange(count) * 2 * math.pi / count
    corners = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    if shape != "star":
        return corners
    between = angles + math.pi / count
    inner = STAR_INNER_RADIUS * np.stack([np.cos(between), np.sin(between)], axis=1)
    return np.stack([corners, inner], axis=1).reshape(-1, 2)
