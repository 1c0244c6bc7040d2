"""A user's way through ComfyUI, in both renderers: find a node, open a template, run it, drop the GIF it made."""

import json
from pathlib import Path

from PIL import Image

from tests.browser.player import expect, moves

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


def new_file(output, before):
    """The first of the files that are not among those before."""
    return min({path for path in output.rglob("*.*") if path.is_file()} - before)


# Where the clip is and where its node, on the screen.
PLACES = """(player) => {
  const box = ({ left, top, right, bottom }) => [left, top, right, bottom];
  const node = app.graph.nodes.find((node) => node.type === "SDVideoSaveGIF");
  const element = document.querySelector(`[data-node-id="${node.id}"]`);
  const { scale, offset } = app.canvas.ds;
  const [x, y, width, height] = node.getBounding();
  const at = app.canvas.canvas.getBoundingClientRect();
  const [left, top] = [at.left + (x + offset[0]) * scale, at.top + (y + offset[1]) * scale];
  const drawn = { left, top, right: left + width * scale, bottom: top + height * scale };
  return [box(player.getBoundingClientRect()), box(element?.getBoundingClientRect() ?? drawn)];
}"""


def test_a_template_runs_plays_and_comes_back_from_its_files(canvas, output):
    canvas.page.evaluate("app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    canvas.page.get_by_text("sdvideo", exact=True).first.click()
    canvas.page.get_by_test_id("template-workflow-txt2vid").click()
    canvas.page.wait_for_function("app.graph.nodes.length > 5")
    canvas.set_widgets(SMALL | {"seed": SEEDS[canvas.renderer], "control_after_generate": "fixed"})
    types = canvas.node_types()
    for format in ("gif", "webp", "mp4", "png sequence"):
        canvas.set_widgets({"format": format})
        made = canvas.serialize()
        before = {path for path in output.rglob("*.*") if path.is_file()}
        canvas.run()
        expect(canvas.player).to_be_visible()
        expect(canvas.player.get_by_label("Frame counter")).to_contain_text(f"/ {SMALL['num_frames']}")
        if format == "gif":
            assert moves(canvas.player)
            clip, node = canvas.player.evaluate(PLACES)
            assert all(place > edge for place, edge in zip(clip[:2], node[:2], strict=True))
            assert all(place < edge for place, edge in zip(clip[2:], node[2:], strict=True))

        canvas.clear()
        assert canvas.node_types() == []
        canvas.drop(new_file(output, before))
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


COMMENTS = (
    "made by hand",
    '{"prompt": "a cat"}',
    '{"prompt": {"seed": 4}}',
    '{"workflow": "x"}',
    '{"workflow": {"a": 1}}',
)


def test_a_gif_without_a_graph_goes_the_stock_way(canvas, tmp_path):
    for number, comment in enumerate(COMMENTS):
        canvas.clear()
        canvas.drop(make_gif(tmp_path / f"{number}.gif", comment))
        canvas.page.wait_for_function("app.graph.nodes.length > 0")
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
