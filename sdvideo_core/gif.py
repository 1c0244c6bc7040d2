"""GIF files: a clip in 256 colours, with every frame, its timing, how often it plays, and a comment."""

import math
import os
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image, ImageChops
from PIL.GifImagePlugin import getdata, getheader
from torch import Tensor

from .dithering import Palette, code_colours, colour_codes
from .frames import video_to_images
from .playback import DEFAULT_OPTIONS, Progress, SaveOptions, check_ending, check_fps, delays, no_progress
from .whole_file import whole_file

MAX_COLOURS = 256
PALETTE_SAMPLE, FRAME_SAMPLE = 1 << 17, 1 << 14  # pixels of a clip and of one frame; more choose no better


def save_gif(
    video: Tensor,
    path: str | os.PathLike[str],
    fps: float = 8,
    comment: str | None = None,
    options: SaveOptions = DEFAULT_OPTIONS,
    progress: Progress = no_progress,
) -> None:
    """Write `video` (1, 3, F, H, W), values 0..1, as a GIF with every frame, even those equal to the one before.

    GIF counts in 10 ms, so delays alternate around 1/fps without drift. `comment` is stored in the file.
    A clip of up to 256 colours keeps them exactly, whatever the options say of palette and dithering.
    `progress` is called after each frame; if it raises, nothing is written.
    Raises ValueError for a wrong video, a name without .gif or an fps outside 0.01..50, OSError if the file
    cannot be written.
    """
    check_ending(path, ".gif")
    check_fps(fps, "GIF")
    images = video_to_images(video)
    with whole_file(path) as temporary:
        temporary.write_bytes(b"".join(_blocks(images, fps, comment, options, progress)))


def _blocks(
    images: list[Image.Image], fps: float, comment: str | None, options: SaveOptions, progress: Progress
) -> Iterator[bytes]:
    # Pillow's own writer merges equal frames, and then the file has fewer frames than the video.
    order = options.play_order(len(images))
    durations = delays(len(order), fps, ticks_per_second=100)
    before: Image.Image | None = None
    for done, (frame, delay) in enumerate(zip(_draw(images, order, options), durations, strict=True), 1):
        shown = frame.convert("RGB")
        if before is None:
            changed = (0, 0, *frame.size)
            yield from getheader(frame, info={"loop": _repeats(options.loop), "comment": comment, "duration": delay})[0]
        else:
            changed = ImageChops.difference(before, shown).getbbox() or (0, 0, 1, 1)
        settings = {"duration": delay * 10, "include_color_table": options.palette == "frame"}
        yield from getdata(frame.crop(changed), changed[:2], **settings)
        before = shown
        progress(done, len(order))
    yield b";"


def _repeats(loop: int) -> int | None:
    """What browsers take from the file: not how often it plays but how often it does so again; 0 is for ever."""
    return None if loop == 1 else max(loop - 1, 0)


def _draw(images: list[Image.Image], order: list[int], options: SaveOptions) -> Iterator[Image.Image]:
    """The images in the colours of a GIF, one after the other in the order they are shown."""
    drawn: list[Image.Image] = []
    palette, dither = _choose_palette(images if options.palette == "clip" else images[:1], options.dither)
    for index in order:
        if index == len(drawn):  # else it goes back
            if index and options.palette == "frame":
                palette, dither = _choose_palette([images[index]], options.dither)
            drawn.append(palette.draw(images[index], dither))
        yield drawn[index]


def _choose_palette(images: list[Image.Image], dither: str) -> tuple[Palette, str]:
    """Colours for these images, and how to dither: not at all where they have no more than a GIF can hold."""
    colours = _few_colours(images)
    if colours is not None:
        return Palette(colours), "none"
    return Palette(_choose_colours(images, is_dithered=dither != "none")), dither


def _few_colours(images: Sequence[Image.Image]) -> np.ndarray | None:
    """The colours (N, 3) of the images if a GIF can hold them all."""
    seen = np.zeros(1 << 24, bool)
    for step in (7, 1):  # most frames show by a few of their pixels that they have too many
        for image in images:
            codes = colour_codes(np.asarray(image)[::step, ::step])
            seen[codes[~seen[codes]]] = True
            if np.count_nonzero(seen) > MAX_COLOURS:
                return None
    return code_colours(np.flatnonzero(seen))


def _choose_colours(images: Sequence[Image.Image], is_dithered: bool) -> np.ndarray:
    """256 colours (N, 3) for these images."""
    num_pixels = len(images) * images[0].width * images[0].height
    step = math.ceil(math.sqrt(num_pixels / (FRAME_SAMPLE if len(images) == 1 else PALETTE_SAMPLE)))
    sample = Image.fromarray(np.concatenate([np.asarray(image)[::step, ::step] for image in images]))
    # Dithering mixes only what lies between palette entries. Median cut, Pillow's default, averages rare and
    # strong colours away; maximum coverage keeps the ends of the range. What is not dithered is closer to means.
    chosen = sample.quantize(MAX_COLOURS, Image.Quantize.MAXCOVERAGE, kmeans=0 if is_dithered else 1).getpalette() or []
    return np.array(chosen, np.uint8).reshape(-1, 3)
