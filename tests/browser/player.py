"""The player in tests: clips for it to show, and what the screen says of it."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sdvideo_core.video_io import save_mp4

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect

NUM_FRAMES, WIDTH, HEIGHT = 6, 64, 48
COLORS = [(40 * i, 255 - 40 * i, 128) for i in range(NUM_FRAMES)]


def save_clips(output: Path):
    """A clip of plain frames in each format, each of a colour of its own, 100 ms long: {format: files}."""
    first, *rest = [Image.new("RGB", (WIDTH, HEIGHT), color) for color in COLORS]
    first.save(output / "plain.gif", save_all=True, append_images=rest, duration=100, loop=0)
    first.save(output / "plain.webp", save_all=True, append_images=rest, duration=100, loop=0, lossless=True)
    video = torch.tensor(COLORS).div(255)[:, :, None, None].expand(-1, -1, HEIGHT, WIDTH)  # (F, 3, H, W)
    save_mp4(video.movedim(1, 0)[None], output / "plain.mp4", fps=10)
    (output / "plain").mkdir(exist_ok=True)
    for index, image in enumerate([first, *rest]):
        image.save(output / "plain" / f"{index}.png")
    return {
        "gif": [saved("plain.gif")],
        "webp": [saved("plain.webp")],
        "mp4": [saved("plain.mp4")],
        "png": [saved(f"{index}.png", "plain") for index in range(NUM_FRAMES)],
    }


def saved(name, folder=""):
    return {"filename": name, "subfolder": folder, "type": "output"}


def show(canvas, files, *formats):
    """The player of a new Save GIF node that has saved the files, in as many runs as there are formats."""
    number = canvas.add("SDVideoSaveGIF")
    expect(canvas.player).to_be_hidden()
    formats = formats or ("png sequence" if len(files) > 1 else "gif",)
    # Outputs of older versions lack the path.
    path = [f"/of/server/{files[0]['filename']}"] if len(formats) == 1 else []
    canvas.show_output(number, {"images": files, "sdvideo": [[10, NUM_FRAMES, format, *path] for format in formats]})
    expect(canvas.player).to_be_visible()
    return canvas.player


def picture(player):
    """The pixels on the screen where the clip is."""
    screenshot = player.locator(".sdvideo-stage").screenshot(animations="allow")
    return np.asarray(Image.open(io.BytesIO(screenshot)).convert("RGB")).astype(int)


def color(player):
    pixels = picture(player)
    height, width, _ = pixels.shape
    return pixels[height // 2, width // 2]


def counter(player):
    return player.get_by_label("Frame counter")


def wait_for_color(player, expected, tolerance):
    """A video has its place before it has its picture."""
    for _ in range(10):
        if abs(color(player) - expected).max() <= tolerance:
            return
    pytest.fail(f"{color(player)}, not {expected}")


def moves(player):
    before = color(player)
    return any(abs(color(player) - before).max() > 20 for _ in range(10))


def pause(player):
    player.get_by_role("button", name="Pause").click()
