"""The example graphs as the Templates dialog offers them and as they lie on the canvas, in both renderers."""

import itertools
import json
from pathlib import Path

import pytest
from PIL import Image

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect

TEMPLATES = {path.stem: path for path in (Path(__file__).parents[2] / "example_workflows").glob("*.json")}
CLIP = "square.gif"
SAVERS = ("SDVideoSaveGIF", "SaveAnimatedWEBP")
REPORT = {"step": 2, "steps": 2, "seconds_per_step": 1, "seconds_left": 0, "losses": [0.2, 0.1]}


@pytest.fixture(scope="module")
def clip(output):
    """A clip of the demo model's size."""
    first, *rest = [Image.new("RGB", (96, 96), (40 * index, 0, 0)) for index in range(3)]
    first.save(output / CLIP, save_all=True, append_images=rest, duration=100)
    return {"images": [{"filename": CLIP, "subfolder": "", "type": "output"}]}


def test_each_has_its_picture_in_the_templates_dialog(canvas):
    canvas.page.evaluate("app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    canvas.page.get_by_text("sdvideo", exact=True).first.click()
    for name in TEMPLATES:
        card = canvas.page.get_by_test_id(f"template-workflow-{name}")
        card.scroll_into_view_if_needed()
        # The frontend loads it by itself; where there is none, it shows a picture of its own.
        picture = card.locator(f"img[alt='{name}'][src^='blob:']")
        assert picture.evaluate("(image) => image.decode().then(() => image.naturalWidth)") > 0
    canvas.page.get_by_role("button", name="Close dialog").first.click()


@pytest.mark.parametrize("name", TEMPLATES)
def test_no_node_lies_on_another_with_all_that_they_show(canvas, clip, name):
    canvas.load(json.loads(TEMPLATES[name].read_text(encoding="utf-8")))
    numbers = {node["type"]: node["id"] for node in canvas.serialize()["nodes"]}
    for saver in numbers.keys() & SAVERS:
        canvas.show_output(numbers[saver], clip)
    if "SDVideoSaveGIF" in numbers:
        expect(canvas.player).to_be_visible()
    if "SDVideoLoadFrameSequence" in numbers:
        expect(canvas.page.get_by_label("Frames", exact=True).get_by_role("listitem")).to_have_count(16)
    if "SDVideoTrainLoRA" in numbers:
        canvas.report("sdvideo.training", {"node": numbers["SDVideoTrainLoRA"], **REPORT})
        expect(canvas.page.get_by_role("group", name="Training")).to_be_visible()
    canvas.wait_for_frames()
    for (one, a), (other, b) in itertools.combinations(canvas.boxes().items(), 2):
        assert a[2] < b[0] or b[2] < a[0] or a[3] < b[1] or b[3] < a[1], (one, a, other, b)
