"""Frame sequences in tests: pictures and clips to upload, and a Load Frame Sequence node's part that shows them."""

import itertools
from pathlib import Path

import pytest
from PIL import Image

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect

NUM_FRAMES, WIDTH, HEIGHT = 12, 48, 32
SIZE = f"{WIDTH} \N{MULTIPLICATION SIGN} {HEIGHT}"
FOLDERS = (f"walk-{number}" for number in itertools.count())
TITLE = (350, 135)  # a place on the node's title


def save_pictures(parent: Path) -> list[Path]:
    folder = parent / next(FOLDERS)
    folder.mkdir()
    (folder / "notes.txt").write_text("frames of a walk", encoding="utf-8")
    for index in range(NUM_FRAMES):
        Image.new("RGB", (WIDTH, HEIGHT), (20 * index, 0, 0)).save(folder / f"{folder.name}_{index + 1}.png")
    return sorted(folder.glob("*.png"))


def add_node(canvas):
    canvas.add("SDVideoLoadFrameSequence")
    frames = canvas.page.get_by_role("group", name="Frames to load")
    # It begins with the first source there is.
    expect(frames.get_by_role("listitem")).not_to_have_count(0)
    return frames


def wait_for_source(canvas, name):
    canvas.page.wait_for_function("(name) => app.graph.nodes[0].widgets[0].value === name", arg=name)


def save_gif(path, num_frames):
    first, *rest = [Image.new("RGB", (WIDTH, HEIGHT), (0, 40 * index, 0)) for index in range(num_frames)]
    first.save(path, save_all=True, append_images=rest)
    return path
