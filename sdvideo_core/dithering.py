"""Dithering: pictures in the few colours of a palette, that look as if they had more."""

from collections.abc import Callable

import numpy as np
from PIL import Image

SEARCHED_AT_ONCE = 1 << 10  # colours; their distances to a palette are 1 MB, which a cache holds
MIXED_AT_ONCE = 1 << 14
LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue: ITU-R BT.601

_TWO = np.array([[0, 2], [3, 1]])
BAYER = np.tile(4 * _TWO, (2, 2)) + np.kron(_TWO, np.ones((2, 2), int))  # 0..15, neighbours as far apart as can be


def colour_codes(pixels: np.ndarray) -> np.ndarray:
    """Each of the pixels (..., 3), red, green and blue in 0..255, as one number (...,)."""
    red, green, blue = np.moveaxis(pixels.astype(np.int32), -1, 0)
    return red << 16 | green << 8 | blue


def code_colours(codes: np.ndarray) -> np.ndarray:
    """The way back: (...,) to (..., 3)."""
    return np.stack([codes >> 16, codes >> 8 & 255, codes & 255], -1)


class Answers:
    """A table of what `answer` says of numbers below `size`: bytes of a given shape, for each it was asked for."""

    def __init__(
        self, answer: Callable[[np.ndarray], np.ndarray], at_once: int, size: int, shape: tuple[int, ...] = ()
    ) -> None:
        self._answer, self._at_once = answer, at_once
        self._known = np.zeros(size, bool)
        self._table = np.empty((size, *shape), np.uint8)

    def of(self, numbers: np.ndarray) -> np.ndarray:
        """The table, in which the rows of these numbers are filled."""
        asked = np.zeros(len(self._known), bool)  # marks in a row are quicker than sorting
        asked[numbers] = True
        new = np.flatnonzero(asked > self._known)
        for part in np.split(new, range(self._at_once, len(new), self._at_once)):
            self._table[part] = self._answer(part)
        self._known[new] = True
        return self._table


class Palette:
    """Up to 256 colours, from dark to bright, and which of them stands for a colour that is none of them.

    `colours` is (N, 3), red, green and blue in 0..255.
    """

    def __init__(self, colours: np.ndarray) -> None:
        self.colours = colours[np.argsort(colours @ LUMINANCE, kind="stable")].astype(np.uint8)
        # Pillow's own table knows colours in steps of 4 levels only, which joins close ones: of 256 greys it keeps 64.
        self._closest = Answers(lambda codes: self._search(code_colours(codes)), SEARCHED_AT_ONCE, 1 << 24)
        self._near = Answers(lambda cells: self._search(_cell_colours(cells, 6)), SEARCHED_AT_ONCE, 1 << 18)
        self._mixed = Answers(lambda cells: self._mix(_cell_colours(cells, 7)), MIXED_AT_ONCE, 1 << 21, (BAYER.size,))

    def draw(self, image: Image.Image, dither: str) -> Image.Image:
        """The RGB image in these colours, in mode P; `dither` is one of playback.DITHERS."""
        if dither == "floyd-steinberg":
            return image.quantize(palette=self._holding(np.zeros((1, 1), np.uint8)), dither=Image.Dither.FLOYDSTEINBERG)
        pixels = np.asarray(image)
        return self._holding(self._ordered(pixels) if dither == "bayer" else self.nearest(pixels))

    def nearest(self, pixels: np.ndarray) -> np.ndarray:
        """The number of the closest colour to each of pixels (..., 3), integers in 0..255."""
        codes = colour_codes(pixels)
        return self._closest.of(codes)[codes]

    def _search(self, colours: np.ndarray) -> np.ndarray:
        palette = self.colours.astype(np.float32)
        # |colour - palette|^2 without |colour|^2, which is the same for all; float32 holds these integers exactly.
        return ((palette**2).sum(-1) - 2 * colours.astype(np.float32) @ palette.T).argmin(-1)

    def _ordered(self, pixels: np.ndarray) -> np.ndarray:
        """T. Knoll's pattern dithering: a colour is 16 of the palette that average to it, and the place says which.

        Unlike diffused errors, what a pixel becomes depends on nothing but its own colour and place, so that
        still parts of a video stay still.
        """
        height, width, _ = pixels.shape
        rank = np.tile(BAYER, (height // 4 + 1, width // 4 + 1))[:height, :width]
        # In steps of 2 levels a frame has few enough colours to mix each once; the eye tells them from none.
        cells = _cells(pixels, 7)
        return self._mixed.of(cells)[cells, rank]

    def _mix(self, colours: np.ndarray) -> np.ndarray:
        """For colours (N, 3) the numbers (N, 16) of those that average to each, from dark to bright."""
        error, picks = np.zeros_like(colours), []
        for _ in range(BAYER.size):
            # In steps of 4 levels it looks up few enough colours; the error makes up for it.
            cells = _cells((colours + error).clip(0, 255), 6)
            picks.append(self._near.of(cells)[cells])
            error += colours - self.colours[picks[-1]]
        return np.sort(np.stack(picks, -1), -1)  # as the palette is sorted so

    def _holding(self, numbers: np.ndarray) -> Image.Image:
        image = Image.fromarray(numbers)
        image.putpalette(self.colours.tobytes())
        return image


def _cells(pixels: np.ndarray, bits: int) -> np.ndarray:
    """Which cell of a cube of 2^bits cells a side holds each of pixels (..., 3)."""
    red, green, blue = np.moveaxis(pixels >> 8 - bits, -1, 0)
    return red.astype(np.int32) << 2 * bits | green.astype(np.int32) << bits | blue


def _cell_colours(cells: np.ndarray, bits: int) -> np.ndarray:
    """The colours (..., 3) in the middle of such cells."""
    mask = (1 << bits) - 1
    corners = np.stack([cells >> 2 * bits, cells >> bits & mask, cells & mask], -1) << 8 - bits
    return corners + (1 << 7 - bits)
