"""Gallery: draws the README's picture with the demo model, eight clips side by side above their prompts.

python docs/gallery.py [--output docs/images/demo.gif]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sdvideo_core import SDVideo, demo_model, save_gif
from sdvideo_core.frames import video_to_images
from sdvideo_core.playback import SaveOptions

PROMPTS = [
    "a red circle moving left",
    "a yellow star moving up on a blue background",
    "a green square turning",
    "a pink triangle falling on a gray background",
    "a purple circle moving down on a white background",
    "a white star turning on a green background",
    "a blue square moving right",
    "an orange triangle shrinking on a blue background",
]
COLUMNS, CELL, GAP, TEXT_HEIGHT = 4, 192, 8, 40
STEPS, GUIDANCE_SCALE, SEED = 25, 2.0, 5


def cell(image: Image.Image, prompt: str) -> Image.Image:
    picture = Image.new("RGB", (CELL, CELL + TEXT_HEIGHT), "white")
    picture.paste(image.resize((CELL, CELL), Image.Resampling.BICUBIC))
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=13)
    for line, text in enumerate(wrapped(prompt, draw, font)):
        draw.text((CELL / 2, CELL + 12 + 16 * line), text, "black", font, anchor="mm")
    return picture


def wrapped(prompt: str, draw: ImageDraw.ImageDraw, font: object) -> list[str]:
    """One or two lines that fit."""
    words = prompt.split()
    for count in range(len(words), 0, -1):
        first = " ".join(words[:count])
        if draw.textlength(first, font=font) <= CELL:  # pyright: ignore[reportArgumentType]
            return [first, " ".join(words[count:])]
    return [prompt]


def grid(cells: list[Image.Image]) -> Image.Image:
    rows = -(-len(cells) // COLUMNS)
    width, height = cells[0].size
    size = (COLUMNS * (width + GAP) + GAP, rows * (height + GAP) + GAP)
    picture = Image.new("RGB", size, "white")
    for index, image in enumerate(cells):
        row, column = divmod(index, COLUMNS)
        picture.paste(image, (GAP + column * (width + GAP), GAP + row * (height + GAP)))
    return picture


def to_video(images: list[Image.Image]) -> Tensor:
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images]))  # (F, H, W, 3)
    return pixels.permute(3, 0, 1, 2)[None].float() / 255


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=None, help="another model's directory")
    parser.add_argument("--output", type=Path, default=Path("docs/images/demo.gif"))
    options = parser.parse_args()
    model = SDVideo(options.model or demo_model(), amp=False)
    settings = {"timesteps": STEPS, "guidance_scale": GUIDANCE_SCALE, "image_size": (96, 96), "seed": SEED}
    clips = [video_to_images(model(prompt, bar=True, **settings)) for prompt in PROMPTS]
    frames = [
        grid([cell(image, prompt) for image, prompt in zip(images, PROMPTS, strict=True)])
        for images in zip(*clips, strict=True)
    ]
    save_gif(to_video(frames), options.output, options=SaveOptions(dither="none"))  # the clips are flat colours


if __name__ == "__main__":
    main()
