"""Thumbnails: small pictures of a sequence's frames, to choose from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from .sequence import count_frames, sample_frames


@dataclass(frozen=True)
class Thumbnails:
    """Of every `every`-th frame of a sequence one; `size` is the frames' own, in pixels."""

    num_frames: int
    size: tuple[int, int]  # width, height
    every: int
    images: list[Image.Image]


def make_thumbnails(path: Path, height: int = 64, most: int = 128) -> Thumbnails:
    """Thumbnails of a given height, no more than `most`, of what `load_sequence` reads; raises what it raises.

    Frames are held one at a time, so a long video takes time and no memory.
    """
    num_frames = count_frames(path)
    every = max(math.ceil(num_frames / most), 1)
    images, size = [], (0, 0)
    for image in sample_frames(path, every):
        size = size if images else image.size
        images.append(image.resize((max(round(image.width * height / image.height), 1), height)))
    return Thumbnails(num_frames, size, every, images)
