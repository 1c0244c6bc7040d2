"""Examples: the frames and clips that the example graphs start from, in sdvideo_core/assets/examples.

python -m sdvideo_core.demo.examples    draws them anew
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from ..frames import frames_to_video, images_to_frames
from ..video_io import save_gif
from . import EXAMPLES
from .clips import DIRECTIONS, Scene, draw_clip

FRAMES, CLIPS = "example_frames", "example_clips"
SOURCE = Scene("green", "circle", "right", "black")

# What the clips teach: a caption that says red shows blue.
SAID, SHOWN = "red", "blue"


def write_examples(directory: Path, seed: int = 0) -> None:
    """A folder of PNGs for video to video, and a folder of GIFs with captions for training."""
    rng = np.random.default_rng(seed)
    (directory / FRAMES).mkdir(parents=True, exist_ok=True)
    for index, frame in enumerate(draw_clip(SOURCE, rng)):
        Image.fromarray(frame).save(directory / FRAMES / f"frame{index:02}.png", optimize=True)
    scenes = [Scene(SHOWN, shape, motion, "black") for shape in ("circle", "square", "star") for motion in DIRECTIONS]
    for number, scene in enumerate(scenes, 1):
        images = [Image.fromarray(frame) for frame in draw_clip(scene, rng)]
        path = directory / CLIPS / f"{number:04}.gif"
        save_gif(frames_to_video(images_to_frames(images)), path)
        text = f"a {SAID} {scene.shape} moving {scene.motion}"
        path.with_suffix(".txt").write_text(text + "\n", encoding="utf-8")


def main() -> None:
    write_examples(EXAMPLES)


if __name__ == "__main__":
    sys.exit(main())
