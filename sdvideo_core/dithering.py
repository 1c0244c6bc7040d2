"""Dithering: pictures in the few colours of a palette, that look as if they had more."""

import numpy as np
from PIL import Image

SEARCHED_AT_ONCE = 1 << 10  # colours; their distances to a palette are 1 MB, which a cache holds
LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue: ITU-R BT.601

_TWO = np.array([[0, 2], [3, 1]])
BAYER = np.tile(4 * _TWO, (2, 2)) + np.kron(_TWO, np.ones((2, 2), int))  # 0..15, neighbours as far apart as can be


def colour_codes(pixels: np.ndarray) -> np.ndarray:
    """Each of the pixels (..., 3), red, green and blue in 0..255, as one number (...,)."""
    return np.dot(pixels, np.array([1 << 16, 1 << 8, 1]))


def code_colours(codes: np.ndarray) -> np.ndarray:
    """The way back: (...,) to (..., 3)."""
    return np.stack([codes >> 16, codes >> 8 & 255, codes & 255], -1)


class Palette:
    """Up to 256 colours, from dark to bright, and which of them stands for a colour that is none of them.

    `colours` is (N, 3), red, green and blue in 0..255.
    """

    def __init__(self, colours: np.ndarray) -> None:
        self.colours = colours[np.argsort(colours @ LUMINANCE, kind="stable")].astype(np.uint8)
        # Of each of the 2^24 colours 1 + the number of the closest here, 0 where nobody asked yet. Pillow's own
        # table knows them in steps of 4 levels only, which joins close ones: of 256 greys it keeps 64.
        self._closest = np.zeros(1 << 24, np.uint16)

    def draw(self, image: Image.Image, dither: str) -> Image.Image:
        """The RGB image in these colours, in mode P; `dither` is one of playback.DITHERS."""
        if dither == "floyd-steinberg":
            return image.quantize(palette=self._holding(np.zeros((1, 1), np.uint8)), dither=Image.Dither.FLOYDSTEINBERG)
        pixels = np.asarray(image).astype(np.int32)
        return self._holding(self._ordered(pixels) if dither == "bayer" else self.nearest(pixels))

    def nearest(self, pixels: np.ndarray) -> np.ndarray:
        """The number of the closest colour to each of pixels (..., 3), integers in 0..255."""
        codes = colour_codes(pixels)
        new = np.unique(codes[self._closest[codes] == 0])
        for part in np.split(new, range(SEARCHED_AT_ONCE, len(new), SEARCHED_AT_ONCE)):
            self._closest[part] = 1 + self._search(part)
        return (self._closest[codes] - 1).astype(np.uint8)

    def _search(self, codes: np.ndarray) -> np.ndarray:
        colours = code_colours(codes).astype(np.float32)
        palette = self.colours.astype(np.float32)
        # |colour - palette|^2 without |colour|^2, which is the same for all; float32 holds these integers exactly.
        return ((palette**2).sum(-1) - 2 * colours @ palette.T).argmin(-1)

    def _ordered(self, pixels: np.ndarray) -> np.ndarray:
        """T. Knoll's pattern dithering: a colour is 16 of the palette that average to it, and the place says which.

        Unlike diffused errors, what a pixel becomes depends on nothing but its own colour and place, so that
        still parts of a video stay still.
        """
        height, width, _ = pixels.shape
        error, picks = np.zeros_like(pixels), []
        for _ in range(BAYER.size):
            # In steps of 4 levels it looks up few enough colours to be ten times as fast; the error makes up for it.
            picks.append(self.nearest((pixels + error).clip(0, 255) // 4 * 4 + 2))
            error += pixels - self.colours[picks[-1]]
        from_dark_to_bright = np.sort(np.stack(picks, -1), -1)  # as the palette is sorted so
        rank = np.tile(BAYER, (height // 4 + 1, width // 4 + 1))[:height, :width, None]
        return np.take_along_axis(from_dark_to_bright, rank, -1)[..., 0]

    def _holding(self, numbers: np.ndarray) -> Image.Image:
        image = Image.fromarray(numbers)
        image.putpalette(self.colours.tobytes())
        return image
