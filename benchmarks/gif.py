"""GIF benchmark: what each palette and dithering does to two clips, beside Pillow's own GIF writer, in one process.

python benchmarks/gif.py [--rounds 7]    writes results/gif.json and prints it

Drift: eight frames of gradients in all colours, 256x256, that move. Still: a square that crosses one of these frames.
Nothing is random.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, ImageFilter

from sdvideo_core.frames import frames_to_video, images_to_frames
from sdvideo_core.playback import DITHERS, PALETTES, SaveOptions
from sdvideo_core.video_io import load_sequence, save_gif, save_video

RESULT = Path(__file__).parent / "results" / "gif.json"
NUM_FRAMES, SIZE = 8, 256
FAR_EYES = ImageFilter.GaussianBlur(2)  # pixels; what dithering is made for
Clip = list[Image.Image]
Write = Callable[[Clip, Path], object]


def drift() -> Clip:
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    waves = [
        np.stack([0.5 + 0.4 * np.sin(4 * x + t / 3), 0.5 + 0.4 * np.cos(3 * y - t / 4), 0.3 + 0.5 * x * y], -1)
        for t in range(NUM_FRAMES)
    ]
    return [Image.fromarray(np.rint(255 * wave).astype(np.uint8)) for wave in waves]


def still() -> Clip:
    images = [drift()[0].copy() for _ in range(NUM_FRAMES)]
    for index, image in enumerate(images):
        image.paste((255, 40, 40), (16 + 24 * index, 100, 64 + 24 * index, 148))
    return images


def pixels(images: Clip) -> np.ndarray:
    """(F, H, W, 3) in 0..255, that may be subtracted."""
    return np.stack([np.asarray(image.convert("RGB")) for image in images]).astype(int)


def psnr(found: Clip, wanted: Clip) -> float:
    return round(10 * np.log10(255**2 / ((pixels(found) - pixels(wanted)) ** 2).mean()), 1)


def percent_restless(found: Clip, wanted: Clip) -> float:
    """Of the pixels that are equal in two frames of the clip, those which the file shows otherwise."""
    shown, drawn = pixels(found), pixels(wanted)
    equal = (drawn[1:] == drawn[:-1]).all(-1)
    return round(100 * (shown[1:] != shown[:-1]).any(-1)[equal].mean(), 1)


def write_with(options: SaveOptions) -> Write:
    return lambda images, path: save_gif(frames_to_video(images_to_frames(images)), path, options=options)


def write_with_pillow(images: Clip, path: Path) -> None:
    images[0].save(path, save_all=True, append_images=images[1:], duration=125, loop=0)


WRITERS: dict[str, Write] = {
    **{f"{p}, {d}": write_with(SaveOptions(palette=p, dither=d)) for p, d in itertools.product(PALETTES, DITHERS)},
    "Pillow's own": write_with_pillow,
}


def shortest_times(path: Path, rounds: int) -> dict[str, float]:
    """Seconds to write the drifting gradients, by writer; the writers take turns."""
    clip, seconds = drift(), dict.fromkeys(WRITERS, math.inf)
    for name, write in list(WRITERS.items()) * rounds:
        start = time.perf_counter()
        write(clip, path)
        seconds[name] = min(seconds[name], time.perf_counter() - start)
    return {name: round(shortest, 2) for name, shortest in seconds.items()}


def measure(write: Write, path: Path) -> dict[str, float]:
    write(drift(), path)
    moving, size = load_sequence(path, None, image_size=None), path.stat().st_size
    write(still(), path)
    return {
        "psnr": psnr(moving, drift()),
        "psnr_blurred": psnr(
            [image.filter(FAR_EYES) for image in moving], [image.filter(FAR_EYES) for image in drift()]
        ),
        "kilobytes": round(size / 1000, 1),
        "still_pixels_changed_percent": percent_restless(load_sequence(path, None, image_size=None), still()),
        "still_kilobytes": round(path.stat().st_size / 1000, 1),
    }


def measure_video(path: Path) -> dict[str, float]:
    save_video(frames_to_video(images_to_frames(drift())), path)
    found = load_sequence(path, None, image_size=None)
    return {"psnr": psnr(found, drift()), "kilobytes": round(path.stat().st_size / 1000, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="times that each writer is timed")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.gif"
        seconds = shortest_times(path, args.rounds)
        found = {name: measure(write, path) | {"seconds": seconds[name]} for name, write in WRITERS.items()}
        found |= {name: measure_video(Path(folder) / f"clip.{name}") for name in ("webp", "mp4")}
    result = {
        "what": f"{NUM_FRAMES} frames of {SIZE}x{SIZE}; PSNR in dB, seconds to write the drifting gradients",
        "cores": os.cpu_count(),
        **{"python": platform.python_version(), "pillow": PIL.__version__, "platform": sys.platform},
        "palette, dither": found,
    }
    text = json.dumps(result, indent=1)
    RESULT.write_text(text + "\n", encoding="utf-8")
    print(text)  # noqa: T201


if __name__ == "__main__":
    main()
