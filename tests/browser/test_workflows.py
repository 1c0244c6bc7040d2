"""A user's way through ComfyUI, in both renderers: find a node, open a template, run it, drop the GIF it made."""

import json
from pathlib import Path

import pytest
from PIL import Image

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect

TEMPLATES = Path(__file__).parents[2] / "example_workflows"
SMALL = {"width": 72, "height": 64, "num_frames": 5, "steps": 2}
SEEDS = {"classic": 1, "vue": 2}  # ComfyUI does not run again what it has run

WORDS = {
    "ModelScopeT2VLoader": "Load ModelScope Video Model",
    "视频解码": "Decode Video",  # "video decoding" in Chinese
    "export gif": "Save GIF",
}


def test_nodes_are_found_by_words_that_users_know(canvas):
    canvas.page.mouse.dblclick(700, 400)
    canvas.page.wait_for_function("document.activeElement.matches('input')")
    for words, name in WORDS.items():
        canvas.page.keyboard.press("Control+A")
        canvas.page.keyboard.type(words)
        expect(canvas.page.get_by_text(name, exact=True).first).to_be_visible()
    canvas.page.keyboard.press("Enter")
    canvas.page.mouse.click(700, 400)  # where it is put
    canvas.page.wait_for_function("app.graph.nodes.length === 1")
    assert canvas.node_types() == ["SDVideoSaveGIF"]


def test_a_template_runs_plays_and_comes_back_from_its_gif(canvas, output):
    canvas.page.evaluate("app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    canvas.page.get_by_text("sdvideo", exact=True).first.click()
    canvas.page.get_by_test_id("template-workflow-txt2vid").click()
    canvas.page.wait_for_function("app.graph.nodes.length > 5")
    canvas.set_widgets(SMALL | {"seed": SEEDS[canvas.renderer]})
    made = canvas.serialize()
    types = canvas.node_types()
    before = set(output.glob("*.gif"))
    canvas.run()
    (saved,) = set(output.glob("*.gif")) - before
    expect(canvas.player).to_be_visible()
    expect(canvas.player.get_by_label("Frame counter")).to_contain_text(f"/ {SMALL['num_frames']}")

    canvas.clear()
    assert canvas.node_types() == []
    canvas.drop(saved)
    canvas.page.wait_for_function("app.graph.nodes.length > 5")
    assert canvas.node_types() == types
    restored = canvas.serialize()
    values = [{node["id"]: node.get("widgets_values") for node in graph["nodes"]} for graph in (made, restored)]
    assert values[0] == values[1]
    assert len(restored["links"]) == len(made["links"])


def make_gif(path, comment):
    first, *rest = [Image.new("RGB", (16, 16), (80 * i, 0, 0)) for i in range(3)]
    first.save(path, save_all=True, append_images=rest, comment=comment.encode())
    return path


def test_a_gif_without_a_workflow_goes_the_stock_way(canvas, tmp_path):
    canvas.drop(make_gif(tmp_path / "plain.gif", "made by hand"))
    canvas.page.wait_for_function("app.graph.nodes.length === 1")
    assert canvas.node_types() == ["LoadImage"]


def test_a_gif_with_only_a_prompt_brings_its_nodes(canvas, tmp_path):
    prompt = {"7": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 48, "batch_size": 3, "color": 0}}}
    prompt["7"]["is_changed"] = [float("nan")]
    canvas.drop(make_gif(tmp_path / "prompt.gif", json.dumps({"prompt": prompt})))
    canvas.page.wait_for_function("app.graph.nodes.length === 1")
    assert canvas.serialize()["nodes"][0]["widgets_values"][:3] == [64, 48, 3]


def test_the_file_dialog_opens_gifs_too(canvas, tmp_path):
    workflow = json.loads((TEMPLATES / "txt2vid.json").read_text(encoding="utf-8"))
    # More than a sub-block's 255 bytes, beyond ASCII, and a picture behind it.
    workflow["nodes"][0]["widgets_values"] = ["视频" * 300]
    path = make_gif(tmp_path / "graph.gif", json.dumps({"workflow": workflow}, ensure_ascii=False))
    with canvas.page.expect_file_chooser() as chooser:
        canvas.page.evaluate("document.getElementById('comfy-file-input').click()")
    assert "image/gif" in canvas.page.locator("#comfy-file-input").get_attribute("accept")
    chooser.value.set_files(path)
    canvas.page.wait_for_function(f"app.graph.nodes.length === {len(workflow['nodes'])}")
    assert canvas.serialize()["nodes"][0]["widgets_values"] == ["视频" * 300]


def test_a_long_text_in_a_gif_is_read(canvas):
    """16 MB, and then a number that JSON has not."""
    script = """async () => {
      const { readGifGraphs } = await import("/extensions/sdvideo/gif_comment.js");
      const encoder = new TextEncoder();
      return [0, NaN].map((number) => {
        const text = encoder.encode(`{"workflow": {"text": "${'x\\\\"'.repeat(4e6)}NaN"}, "prompt": [${number}]}`);
        const blocks = Math.ceil(text.length / 255);
        const bytes = new Uint8Array(15 + text.length + blocks + 2);
        bytes.set([...encoder.encode("GIF89a"), 1, 0, 1, 0, 0, 0, 0, 0x21, 0xfe]);
        for (let block = 0; block < blocks; block++) {
          const part = text.subarray(255 * block, 255 * (block + 1));
          bytes.set([part.length, ...part], 15 + 256 * block);
        }
        const { workflow, prompt } = readGifGraphs(bytes);
        return [workflow.text.length, workflow.text.slice(-5), prompt];
      });
    }"""
    assert canvas.page.evaluate(script) == [[8e6 + 3, 'x"NaN', [0]], [8e6 + 3, 'x"NaN', [None]]]
