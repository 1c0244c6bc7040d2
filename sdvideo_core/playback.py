"""Playback: how fast, how often and in which order the frames of a saved clip are shown."""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from tqdm import tqdm

from .arguments import NUMBER, WHOLE

PALETTES = ("clip", "frame")
DITHERS = ("floyd-steinberg", "bayer", "none")
MAX_LOOPS = 65535  # GIF and WebP count in 16 bits

SLOWEST_FPS = 0.01
# Browsers play GIF frames shorter than 20 ms at 10 fps, and WebP frames of 10 ms and less.
FASTEST_FPS = {"GIF": 50, "WebP": 90, "MP4": 240}


@dataclass(frozen=True)
class SaveOptions:
    """How a clip is saved, beyond its frames and their rate.

    loop: how many times it plays; 0 is for ever. GIF and WebP store it; MP4 and PNG files cannot.
    ping_pong: it plays forwards, then backwards; neither end is doubled, so that F frames become 2F - 2.
    palette (GIF): "clip", one of 256 colours for all frames, or "frame", one for each, which is closer and may flicker.
    dither (GIF): "floyd-steinberg" is smoothest, "bayer" keeps still what stands still, "none" makes flat colours.

    Raises ValueError for any other value.
    """

    loop: int = 0
    ping_pong: bool = False
    palette: str = "clip"
    dither: str = "floyd-steinberg"

    def __post_init__(self) -> None:
        WHOLE.check("loop", self.loop)
        if not 0 <= self.loop <= MAX_LOOPS:
            raise ValueError(f"loop is {self.loop}, expected 0 (for ever) to {MAX_LOOPS}; choose one of these")
        for name, value, choices in (("palette", self.palette, PALETTES), ("dither", self.dither, DITHERS)):
            if value not in choices:
                raise ValueError(f"{name} is {value!r}, expected {' or '.join(choices)}; choose one of these")

    def play_order(self, num_frames: int) -> list[int]:
        """Which of `num_frames` frames are shown, one after the other."""
        forwards = list(range(num_frames))
        return forwards + forwards[-2:0:-1] if self.ping_pong else forwards


DEFAULT_OPTIONS = SaveOptions()

Progress = Callable[[int, int], None]  # (frames done, of how many), after each; what it raises ends the work


def no_progress(_done: int, _total: int) -> None:
    """For those who need not know."""


@contextmanager
def progress_bar(what: str, unit: str, shown: bool = True) -> Iterator[Progress]:
    """Progress that moves a bar, which is there from the first report on."""
    with ExitStack() as stack:
        bars: list[tqdm] = []

        def report(done: int, total: int) -> None:
            if not bars:
                options = {"total": total or None, "unit_scale": unit == "B", "disable": not shown}
                bars.append(stack.enter_context(tqdm(desc=what, unit=unit, **options)))
            bars[0].update(done - bars[0].n)

        yield report


def check_ending(path: str | os.PathLike[str], ending: str) -> None:
    """Raise ValueError unless a file is named as what is written into it."""
    if Path(path).suffix.lower() != ending:
        raise ValueError(
            f"cannot write {path}: expected a name such as clip{ending}, with the ending of its format; "
            "rename it, or use save_video, which takes the format from the name"
        )


def check_fps(fps: float, name: str) -> None:
    """Raise ValueError unless a format, one of FASTEST_FPS, plays at this rate."""
    fastest = FASTEST_FPS[name]
    NUMBER.check("fps", fps)
    if not SLOWEST_FPS <= fps <= fastest:
        raise ValueError(f"fps is {fps}, but {name} plays {SLOWEST_FPS} to {fastest}; choose one of these")


def delays(num_frames: int, fps: float, ticks_per_second: int) -> list[int]:
    """Give each frame whole ticks such that every frame starts less than a tick before its exact time."""
    starts = [math.floor(ticks_per_second * index / float(fps)) for index in range(num_frames + 1)]
    return [after - start for start, after in pairwise(starts)]
