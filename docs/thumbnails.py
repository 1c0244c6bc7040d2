"""Thumbnails: runs the example graphs on the demo model and draws their pictures for ComfyUI's Templates.

python -m docs.thumbnails [--only txt2vid] [--output DIR]        (needs a ComfyUI, as the tests do)
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont, ImageOps, ImageSequence

from sdvideo_core import load_sequence
from sdvideo_core.demo import EXAMPLES
from sdvideo_core.demo.clips import SIZE
from tests.comfy.comfy_server import ComfyServer, find_comfyui, make_base_directory, start_comfyui

TEMPLATES = Path(__file__).parents[1] / "example_workflows"
SIDE, TOP, MARGIN, GAP, FIELD_HEIGHT, ARROW_HEIGHT = 480, 68, 24, 12, 56, 44  # pixels
BACKGROUND, FIELD, WORDS, ACCENT = "#17181c", "#2a2d35", "#f2f3f5", "#60a5fa"
INSIDE = (0.09, 0.07, 0.99, 0.87)  # of the plot: left, top, right, bottom
QUALITY = 90
STOCK = "with stock nodes"

Frames = list[Image.Image]


def run(server: ComfyServer, name: str) -> tuple[dict[str, Any], dict[str, Image.Image]]:
    """A graph's API form, and the first picture that each of its nodes put out, by the node's type."""
    graph = server.api_graph(json.loads((TEMPLATES / f"{name}.json").read_text(encoding="utf-8")))
    outputs = server.run(graph, timeout=600)["outputs"]
    first = {node: output["images"][0] for node, output in outputs.items() if "images" in output}
    return graph, {
        graph[node]["class_type"]: Image.open(io.BytesIO(server.view(**image))) for node, image in first.items()
    }


def prompt_of(graph: dict[str, Any]) -> str:
    texts = [node["inputs"].get("positive", node["inputs"].get("text")) for node in graph.values()]
    return next(text for text in texts if isinstance(text, str) and text)


def clip_of(pictures: dict[str, Image.Image]) -> Frames:
    saved = pictures.get("SDVideoSaveGIF") or pictures["SaveAnimatedWEBP"]
    return [frame.convert("RGB") for frame in ImageSequence.Iterator(saved)]


class Card:
    """A square picture that is filled from above, below a title beside the browser's own label."""

    def __init__(self, title: str) -> None:
        self.image = Image.new("RGB", (SIDE, SIDE), BACKGROUND)
        self.draw = ImageDraw.Draw(self.image)
        self.y = TOP
        self._text(title, (SIDE - MARGIN, TOP / 2), 22, ACCENT, "rm")

    def field(self, text: str) -> None:
        self.draw.rounded_rectangle((MARGIN, self.y, SIDE - MARGIN, self.y + FIELD_HEIGHT), 12, FIELD)
        self._text(text, (SIDE / 2, self.y + FIELD_HEIGHT / 2), 26, WORDS, "mm")
        self.y += FIELD_HEIGHT + GAP

    def row(self, frames: Frames) -> None:
        side = (SIDE - 2 * MARGIN + GAP) // len(frames) - GAP
        for column, frame in enumerate(frames):
            self._paste(frame, MARGIN + column * (side + GAP), side, side)
        self.y += side + GAP

    def arrow(self) -> None:
        x, y = SIDE / 2, self.y + (ARROW_HEIGHT - GAP) / 2
        self.draw.line([(x - 22, y - 10), (x, y + 10), (x + 22, y - 10)], ACCENT, 7, joint="curve")
        self.y += ARROW_HEIGHT

    def plot(self, curve: Image.Image, height: int) -> None:
        """A plot's inside, light on dark."""
        left, top, right, bottom = (round(part * side) for part, side in zip(INSIDE, 2 * curve.size, strict=True))
        inside = ImageOps.invert(curve.convert("RGB").crop((left, top, right, bottom)))
        self._paste(inside, MARGIN, SIDE - 2 * MARGIN, height)
        self.y += height + GAP

    def _text(self, text: str, place: tuple[float, float], size: int, color: str, anchor: str) -> None:
        self.draw.text(place, text, color, ImageFont.load_default(size=size), anchor=anchor)

    def _paste(self, picture: Image.Image, x: int, width: int, height: int) -> None:
        mask = Image.new("L", (width, height))
        ImageDraw.Draw(mask).rounded_rectangle((0, 0, width - 1, height - 1), 10, 255)
        picture = picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
        self.image.paste(picture, (x, self.y), mask)


def some(frames: Frames, count: int) -> Frames:
    """Frames at even distances, the first and the last among them."""
    return [frames[round(index * (len(frames) - 1) / (count - 1))] for index in range(count)]


def text_to_video(title: str, prompt: str, clip: Frames) -> Card:
    card = Card(title)
    card.field(prompt)
    card.arrow()
    frames = some(clip, 6)
    card.row(frames[:3])
    card.row(frames[3:])
    return card


def video_to_video(title: str, prompt: str, before: Frames, after: Frames) -> Card:
    card = Card(title)
    card.row(some(before, 3))
    card.field(prompt)
    card.arrow()
    card.row(some(after, 3))
    return card


def training(title: str, curve: Image.Image, before: Frames, after: Frames) -> Card:
    card = Card(title)
    card.plot(curve, 130)
    card.row(some(before, 4))
    card.arrow()
    card.row(some(after, 4))
    return card


def of_text(title: str, server: ComfyServer, name: str) -> Card:
    graph, pictures = run(server, name)
    return text_to_video(title, prompt_of(graph), clip_of(pictures))


def of_video(title: str, server: ComfyServer, name: str) -> Card:
    graph, pictures = run(server, name)
    before = load_sequence(EXAMPLES / "example_frames", image_size=(SIZE, SIZE))
    return video_to_video(title, prompt_of(graph), before, clip_of(pictures))


def of_training(title: str, server: ComfyServer, name: str) -> Card:
    # Prompt, seed and steps are those of txt2vid: only the LoRA makes the difference.
    (_, plain), (_, trained) = run(server, "txt2vid"), run(server, name)
    return training(title, trained["PreviewImage"], clip_of(plain), clip_of(trained))


CARDS = {
    "txt2vid": partial(of_text, "text to video"),
    "txt2vid_few_steps": partial(of_text, "in four steps"),
    "txt2vid_stock_nodes": partial(of_text, STOCK),
    "vid2vid": partial(of_video, "video to video"),
    "vid2vid_stock_nodes": partial(of_video, STOCK),
    "train_lora": partial(of_training, "a LoRA of yours"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=TEMPLATES)
    parser.add_argument("--only", nargs="+", choices=CARDS, default=list(CARDS), help="some of them")
    options = parser.parse_args()
    comfyui = find_comfyui()
    if comfyui is None:
        raise SystemExit("no ComfyUI found: set COMFYUI_PATH to a checkout, or install one at ~/comfy/ComfyUI")
    with (
        tempfile.TemporaryDirectory() as folder,
        start_comfyui(comfyui, make_base_directory(Path(folder, "base"))) as server,
    ):
        for name in options.only:
            card = CARDS[name](server, name)
            card.image.save(options.output / f"{name}.jpg", quality=QUALITY, optimize=True)


if __name__ == "__main__":
    main()
