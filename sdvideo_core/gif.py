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
from .playback import DEFAULT_OPTIONS, SaveOptions, check_fps, delays
from .whole_file import whole_file

MAX_COLOURS = 256
PALETTE_SAMPLE = 1 << 17  # pixels; more cost seconds and choose no better


def save_gif(
    video: Tensor,
    path: str | os.PathLike[str],
    fps: float = 8,
    comment: str | None = None,
    options: SaveOptions = DEFAULT_OPTIONS,
) -> None:
    """Write `video` (1, 3, F, H, W), values 0..1, as a GIF with every frame, even those equal to the one before.

    GIF counts in 10 ms, so delays alternate around 1/fps without drift. `comment` is stored in the file.
    A clip of up to 256 colours keeps them exactly, whatever the options say of palette and dithering.
    Raises ValueError for a wrong video or an fps outside 0.01..50, OSError if the file cannot be written.
    """
    check_fps(fps, "GIF")
    images = video_to_images(video)
    with whole_file(path) as temporary:
        temporary.write_bytes(b"".join(_blocks(images, fps, comment, options)))


def _blocks(images: list[Image.Image], fps: float, comment: str | None, options: SaveOptions) -> Iterator[bytes]:
    # Pillow's own writer merges equal frames, and then the file has fewer frames than the video.
    drawn = _draw(images, options)
    order = options.play_order(len(drawn))
    before: Image.Image | None = None
    for index, delay in zip(order, delays(len(order), fps, ticks_per_second=100), strict=True):
        frame, shown = drawn[index], drawn[index].convert("RGB")
        if before is None:
            changed = (0, 0, *frame.size)
            yield from getheader(frame, info={"loop": _repeats(options.loop), "comment": comment, "duration": delay})[0]
        else:
            changed = ImageChops.difference(before, shown).getbbox() or (0, 0, 1, 1)
        settings = {"duration": delay * 10, "include_color_table": options.palette == "frame"}
        yield from getdata(frame.crop(changed), changed[:2], **settings)
        before = shown
    yield b";"


def _repeats(loop: int) -> int | None:
    """What browsers take from the file: not how often it plays but how often it does so again; 0 is for ever."""
    return None if loop == 1 else max(loop - 1, 0)


def _draw(images: list[Image.Image], options: SaveOptions) -> list[Image.Image]:
    if options.palette == "clip":
        return _draw_alike(images, options.dither)
    return [frame for image in images for frame in _draw_alike([image], options.dither)]


def _draw_alike(images: list[Image.Image], dither: str) -> list[Image.Image]:
    colours = _few_colours(images)
    if colours is None:
        palette = Palette(_choose_colours(images, is_dithered=dither != "none"))
    else:
        palette, dither = Palette(colours), "none"
    return [palette.draw(image, dither) for image in images]


def _few_colours(images: Sequence[Image.Image]) -> np.ndarray | None:
    """The colours (N, 3) of the images if a GIF can hold them all."""
    codes = np.empty(0, np.int64)
    for image in images:
        codes = np.union1d(codes, colour_codes(np.asarray(image)))
        if len(codes) > MAX_COLOURS:
            return None
    return code_colours(codes)


def _choose_colours(images: Sequence[Image.Image], is_dithered: bool) -> np.ndarray:
    """256 colours (N, 3) for these images."""
    num_pixels = len(images) * images[0].width * images[0].height
    step = math.ceil(math.sqrt(num_pixels / PALETTE_SAMPLE))
    sample = Image.fromarray(np.concatenate([np.asarray(image)[::step, ::step] for image in images]))
    # Dithering mixes only what lies between palette entries. Median cut, Pillow's default, averages rare and
    # strong colours away; maximum coverage keeps the ends of the range. What is not dithered is closer to means.
    chosen = sample.quantize(MAX_COLOURS, Image.Quantize.MAXCOVERAGE, kmeans=0 if is_dithered else 1).getpalette() or []
    return np.array(chosen, np.uint8).reshape(-1, 3)
