"""Screenshots: the README's picture of the canvas and one of each node for its help page, from a real ComfyUI.

python -m docs.screenshots [--train-steps 60]        (needs ComfyUI and Chromium, as the tests do)
"""

from __future__ import annotations

import argparse
import io
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import FloatRect, expect, sync_playwright

from tests.browser.canvas import Canvas
from tests.browser.conftest import CHROMIUM, FLAGS, open_canvas
from tests.comfy.comfy_server import find_comfyui, make_base_directory, start_comfyui

ROOT = Path(__file__).parents[1]
README_PICTURE = ROOT / "docs" / "images" / "canvas.png"
PAGES = ROOT / "web" / "docs" / "images"

# Nodes without a graph of ours around them, at the widths that suit their words.
ALONE = {"SDVideoLoRALoader": 340, "SDVideoModelSamplingLCM": 320, "SDVideoLCMScheduler": 320}
LORA = "zoom_in.safetensors"  # a name for the LoRA loader to show

QUIET = {"Comfy.Minimap.Visible": False, "Comfy.Graph.CanvasInfo": False, "Comfy.NodeBadge.NodeSourceBadgeMode": "None"}
BORDER = 12  # pixels of canvas around a node
NEWS_TIME = 8000  # milliseconds that news of the queue are shown, and more

ALONE_ON_CANVAS = """([id, border]) => {
  const { canvas } = app;
  const node = app.graph.getNodeById(id);
  canvas.deselectAll();
  canvas.links_render_mode = LiteGraph.HIDDEN_LINK;
  for (const group of [...app.graph.groups]) app.graph.remove(group);
  canvas.ds.scale = 1;
  canvas.ds.offset[0] = 200 + border - node.pos[0];
  canvas.ds.offset[1] = 150 + border - node.pos[1];
  canvas.setDirty(true, true);
}"""


@contextmanager
def opened() -> Iterator[Canvas]:
    comfyui, chromium = find_comfyui(), next(filter(None, map(shutil.which, CHROMIUM)), None)
    if comfyui is None or chromium is None:
        raise SystemExit("needs a ComfyUI ($COMFYUI_PATH, or ~/comfy/ComfyUI) and Chromium")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        base = make_base_directory(Path(folder, "base"))
        (base / "models" / "loras").mkdir()
        (base / "models" / "loras" / LORA).touch()
        browser = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        with start_comfyui(comfyui, base) as server, open_canvas(browser, server, "vue", settings=QUIET) as canvas:
            yield canvas
        browser.close()


def load(canvas: Canvas, template: str, **widgets: Any) -> dict[str, int]:
    """Open an example graph. Returns the nodes' numbers by their types."""
    canvas.clear()
    path = ROOT / "example_workflows" / f"{template}.json"
    canvas.load(json.loads(path.read_text(encoding="utf-8")))
    canvas.set_widgets(widgets)
    return {node["type"]: node["id"] for node in canvas.serialize()["nodes"]}


def save(screenshot: bytes, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.open(io.BytesIO(screenshot)).convert("RGB").save(path, optimize=True)


def picture(canvas: Canvas, kind: str, number: int) -> None:
    """Save how a node looks, with its slots, which stand out a little."""
    canvas.page.set_viewport_size({"width": 1280, "height": 1400})  # tall enough for any
    canvas.page.evaluate(ALONE_ON_CANVAS, [number, BORDER])
    canvas.page.wait_for_timeout(300)
    box = canvas.page.locator(f"[data-node-id='{number}']").bounding_box()
    assert box is not None
    x, y, width, height = (box[part] for part in ("x", "y", "width", "height"))
    around = 2 * BORDER
    clip = {"x": x - BORDER, "y": y - BORDER, "width": width + around, "height": height + around}
    save(canvas.page.screenshot(clip=FloatRect(**clip)), PAGES / f"{kind}.png")


def text_to_video(canvas: Canvas) -> None:
    load(canvas, "txt2vid", control_after_generate="fixed")
    canvas.run()
    # Again, without the last preview: ComfyUI takes what it has.
    nodes = load(canvas, "txt2vid", control_after_generate="fixed")
    canvas.run()
    expect(canvas.player).to_be_visible()
    canvas.player.get_by_label("Frame", exact=True).fill("5")
    canvas.page.evaluate("app.canvas.deselectAll()")
    canvas.page.wait_for_timeout(NEWS_TIME)
    save(canvas.page.screenshot(), README_PICTURE)
    for kind, number in nodes.items():
        if kind.startswith("SDVideo"):
            picture(canvas, kind, number)


def sampling(canvas: Canvas) -> None:
    nodes = load(canvas, "txt2vid", control_after_generate="fixed", seed=43)
    canvas.start()
    live = canvas.page.get_by_role("group", name="Live preview")
    expect(live.get_by_label("Progress")).to_have_text(re.compile(r"^(1[5-9]|2\d) / "), timeout=60_000)
    picture(canvas, "SDVideoDDIMSampler", nodes["SDVideoDDIMSampler"])
    canvas.page.evaluate("app.api.interrupt(null)")


def video_to_video(canvas: Canvas) -> None:
    nodes = load(canvas, "vid2vid", num_frames=6, offset=2, stride=2)
    expect(canvas.page.get_by_role("group", name="Frames to load").get_by_role("listitem")).to_have_count(16)
    picture(canvas, "SDVideoLoadFrameSequence", nodes["SDVideoLoadFrameSequence"])


def training(canvas: Canvas, steps: int) -> None:
    nodes = load(canvas, "train_lora", steps=steps)
    canvas.start()
    monitor = canvas.page.get_by_role("group", name="Training")
    expect(monitor.get_by_label("Progress")).to_contain_text(f"{steps} / {steps}", timeout=600_000)
    for kind in ("SDVideoDataset", "SDVideoTrainLoRA"):
        picture(canvas, kind, nodes[kind])
    canvas.page.evaluate("app.api.interrupt(null)")


def alone(canvas: Canvas) -> None:
    for kind, width in ALONE.items():
        canvas.clear()
        number = canvas.add(kind)
        canvas.page.evaluate("(width) => app.graph.nodes[0].setSize([width, app.graph.nodes[0].size[1]])", width)
        picture(canvas, kind, number)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train-steps", type=int, default=60, help="of the run whose loss curve is shown")
    options = parser.parse_args()
    with opened() as canvas:
        text_to_video(canvas)
        sampling(canvas)
        video_to_video(canvas)
        training(canvas, options.train_steps)
        alone(canvas)


if __name__ == "__main__":
    main()
