"""Sampling and training in both renderers: what is being made plays on its node, with speed and time left."""

import base64
import io
import itertools
import json
import re
from pathlib import Path

import pytest
from PIL import Image

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect

TEMPLATES = Path(__file__).parents[2] / "example_workflows"
STEPS = {"classic": 100, "vue": 125}  # numbers that divide 1000; ComfyUI does not run again what it has run
SAMPLERS = {"txt2vid": "SDVideoDDIMSampler", "txt2vid_stock_nodes": "KSampler"}
REPORTS = {
    "sdvideo.sampling": ("SDVideoDDIMSampler", "Live preview"),
    "sdvideo.training": ("SDVideoTrainLoRA", "Training"),
}
SPEED = {"step": 1, "steps": 9, "seconds_per_step": 1, "seconds_left": 8, "losses": [0.2, 0.1]}
SHOWN_ON = """app.canvas.graph.nodes
  .filter((node) => node.widgets?.some((widget) => ["live_preview", "training"].includes(widget.name)))
  .map((node) => String(node.id))"""


def load(canvas, name, **widgets):
    canvas.load(json.loads((TEMPLATES / f"{name}.json").read_text(encoding="utf-8")))
    canvas.set_widgets(widgets)


def live(canvas, name="Live preview"):
    return canvas.page.get_by_role("group", name=name)


def shown_on(canvas):
    """The nodes of the open graph that show a preview or a curve."""
    return canvas.page.evaluate(SHOWN_ON)


def values(canvas):
    """All but seeds, which a run may change."""
    found = [node.get("widgets_values_named") or {} for node in canvas.serialize()["nodes"]]
    return [{name: value for name, value in values.items() if name != "seed"} for values in found]


@pytest.mark.parametrize("template", SAMPLERS)
def test_the_clip_plays_on_its_sampler_while_it_is_made_and_is_gone_after(canvas, template):
    load(canvas, template, width=64, height=64, num_frames=4, batch_size=4, steps=STEPS[canvas.renderer])
    before = values(canvas)
    canvas.page.evaluate(
        "app.api.addEventListener('sdvideo.sampling', ({ detail }) => (window.report = detail), { once: true })"
    )
    canvas.start()
    expect(live(canvas).get_by_label("Progress")).to_contain_text(f"/ {STEPS[canvas.renderer]} · ")
    picture = live(canvas).get_by_label("The clip so far")
    expect(picture).to_be_visible()
    assert picture.evaluate("(canvas) => [canvas.width, canvas.height]") == [8, 8]
    # In Vue nodes ComfyUI shows the first frame too.
    stock = canvas.page.get_by_alt_text("Live sampling preview")
    expect(stock).to_have_count(1 if canvas.renderer == "vue" else 0)
    assert not any(picture.is_visible() for picture in stock.all())
    script = """(canvas) => new Promise((resolve) => {
      const pixels = () => canvas.getContext("2d").getImageData(0, 0, 8, 8).data.join();
      const first = pixels();
      setInterval(() => pixels() !== first && resolve(true), 20);
    })"""
    assert picture.evaluate(script)
    on = canvas.page.evaluate(
        "app.graph.nodes.filter((n) => n.widgets?.some((w) => w.name === 'live_preview'))[0].type"
    )
    about = canvas.page.evaluate("window.report")
    assert on == about["type"] == SAMPLERS[template]
    assert about["workflow"] == canvas.serialize()["id"]
    canvas.finish()
    expect(live(canvas)).to_have_count(0)
    assert values(canvas) == before


def sheet(reds, columns, height=8):
    """Frames 8 pixels wide, each of a red of its own, as the server sends them."""
    picture = Image.new("RGB", (8 * columns, height * -(-len(reds) // columns)))
    for index, red in enumerate(reds):
        picture.paste(Image.new("RGB", (8, height), (red, 0, 0)), (index % columns * 8, index // columns * height))
    file = io.BytesIO()
    picture.save(file, "PNG")
    image = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    return {"image": image, "frames": len(reds), "fps": 8, "columns": columns, "width": 8, "height": height}


def reds_shown(picture, milliseconds):
    """The reds that follow each other in the preview."""
    script = """(canvas, milliseconds) => new Promise((resolve) => {
      const reds = [];
      const look = setInterval(() => {
        const [red] = canvas.getContext("2d").getImageData(4, 4, 1, 1).data;
        if (red !== reds.at(-1)) reds.push(red);
      }, 5);
      setTimeout(() => resolve(reds, clearInterval(look)), milliseconds);
    })"""
    return picture.evaluate(script, milliseconds)


def height(canvas):
    canvas.wait_for_frames()
    return canvas.page.evaluate("app.graph.nodes[0].size[1]")


def test_the_preview_goes_through_its_frames_in_order_and_leaves_the_node_as_it_was(canvas):
    number = canvas.add("SDVideoDDIMSampler")
    before = height(canvas)
    reds = [20 + 30 * index for index in range(8)]
    canvas.report("sdvideo.sampling", {"node": number, **SPEED, "sheet": sheet(reds, columns=3)})
    picture = live(canvas).get_by_label("The clip so far")
    expect(picture).to_be_visible()
    shown = reds_shown(picture, 1500)
    assert set(shown) == set(reds)
    assert all((b - a) % 240 == 30 for a, b in itertools.pairwise(shown))
    # Another clip, on the same node before the one before is over.
    canvas.report("sdvideo.sampling", {"node": number, **SPEED, "sheet": sheet([11, 99], columns=2, height=6)})
    expect(picture).to_have_js_property("height", 6)
    assert set(reds_shown(picture, 400)) == {11, 99}
    canvas.report("reconnecting", {})
    expect(live(canvas)).to_have_count(0)
    canvas.report("reconnected", {})
    assert height(canvas) == before


def test_the_preview_stands_still_where_the_user_wants_less_motion(canvas):
    number = canvas.add("SDVideoDDIMSampler")
    canvas.page.emulate_media(reduced_motion="reduce")
    canvas.report("sdvideo.sampling", {"node": number, **SPEED, "sheet": sheet([20, 80, 140], columns=2)})
    picture = live(canvas).get_by_label("The clip so far")
    expect(picture).to_be_visible()
    assert reds_shown(picture, 300) == [20]
    canvas.page.emulate_media(reduced_motion="no-preference")
    canvas.report("execution_success", {})
    expect(live(canvas)).to_have_count(0)


def test_a_preview_that_is_over_before_its_picture_is_read_leaves_no_timer(canvas):
    """As of a run of one step."""
    script = """async (report) => {
      const { setInterval, clearInterval } = window;
      const running = new Set();
      window.setInterval = (...args) => {
        const timer = setInterval(...args);
        if (new Error().stack.includes("sampling.js")) running.add(timer);
        return timer;
      };
      window.clearInterval = (timer) => {
        running.delete(timer);
        clearInterval(timer);
      };
      app.api.dispatchCustomEvent("sdvideo.sampling", report);
      app.api.dispatchCustomEvent("executing", null);
      const image = Object.assign(new Image(), { src: report.sheet.image });
      await image.decode();
      await new Promise((resolve) => setTimeout(resolve, 100));
      Object.assign(window, { setInterval, clearInterval });
      return running.size;
    }"""
    number = canvas.add("SDVideoDDIMSampler")
    assert canvas.page.evaluate(script, {"node": number, **SPEED, "sheet": sheet([20, 80], columns=2)}) == 0


def test_step_speed_and_time_left_are_said(canvas):
    number = canvas.add("SDVideoDDIMSampler")
    for seconds, left, text in (
        (0.25, 3725, "3 / 9 · 4.0 steps/s · 01:02:05 left"),
        (2.5, 8, "3 / 9 · 2.5 s/step · 00:08 left"),
    ):
        report = {"node": number, "step": 3, "steps": 9, "seconds_per_step": seconds, "seconds_left": left}
        canvas.report("sdvideo.sampling", report)
        expect(live(canvas).get_by_label("Progress")).to_have_text(text)
    canvas.report("execution_success", {})


def test_where_previews_are_off_only_the_progress_is_shown(canvas):
    method = "(method) => app.extensionManager.setting.set('Comfy.Execution.PreviewMethod', method)"
    canvas.page.evaluate(method, "none")
    load(canvas, "txt2vid", width=64, height=64, num_frames=4, steps=STEPS[canvas.renderer] // 5)
    canvas.start()
    expect(live(canvas).get_by_label("Progress")).to_contain_text(" left")
    expect(live(canvas).get_by_label("The clip so far")).to_be_hidden()
    canvas.finish()
    canvas.page.evaluate(method, "default")


def test_the_loss_curve_goes_from_the_highest_to_the_lowest(canvas):
    number = canvas.add("SDVideoTrainLoRA")
    canvas.report("sdvideo.training", {"node": number, **SPEED, "losses": [1, 0]})
    script = """(curve, places) => places.map(([x, y]) =>
      curve.querySelector("polyline").isPointInStroke(new DOMPoint(x, y)))"""
    places = [[20, 30], [240, 80], [460, 130], [467, 28], [30, 130]]
    curve = live(canvas, "Training").get_by_label("Loss curve")
    assert curve.evaluate(script, places) == [True, True, True, False, False]
    assert curve.locator("text").all_text_contents() == ["1.0000", "0.0000"]


def test_training_shows_its_loss_and_a_clip(canvas):
    load(canvas, "train_lora", steps=6, num_frames=2, width=64, height=64, sample_every=3, sample_prompt="a red circle")
    canvas.set_widgets({"seed": STEPS[canvas.renderer]})
    texts = """() => {
      window.texts = new Set();
      const look = () => window.texts.add(document.querySelector(".sdvideo-live output")?.value);
      window.observer = new MutationObserver(look);
      window.observer.observe(document.body, { subtree: true, childList: true, characterData: true });
    }"""
    canvas.page.evaluate(texts)
    canvas.start()
    monitor = live(canvas, "Training")
    expect(monitor.get_by_label("Progress")).to_contain_text("6 / 6", timeout=120_000)
    expect(monitor.get_by_label("Progress")).to_contain_text("· loss ")
    shown = canvas.page.evaluate("() => (window.observer.disconnect(), [...window.texts].filter(Boolean))")
    assert len({text.partition(" / ")[0] for text in shown}) > 1
    expect(monitor.get_by_role("img", name=re.compile("^0*6_"))).to_be_visible()  # the newest clip
    expect(monitor.get_by_label("Frame counter")).to_contain_text("/ 2")
    assert canvas.tab_through(monitor, 5)[2:] == ["Next frame", "Frame", "Speed"]
    canvas.finish()


def test_cancel_ends_the_preview_which_a_subgraph_shows_too(canvas):
    load(canvas, "txt2vid", width=64, height=64, num_frames=4, steps=5 * STEPS[canvas.renderer])
    (sampler,) = [node["id"] for node in canvas.serialize()["nodes"] if node["type"] == SAMPLERS["txt2vid"]]
    outer = canvas.wrap(sampler)
    canvas.start()
    expect(live(canvas)).to_be_visible()
    assert shown_on(canvas) == [outer]
    canvas.enter(outer)
    expect(live(canvas)).to_be_visible()
    canvas.page.wait_for_function(f"({SHOWN_ON}).length === 1")
    canvas.page.get_by_role("button", name="Cancel current run").click()
    expect(live(canvas)).to_have_count(0)
    assert canvas.ended()[0] == "execution_interrupted"


@pytest.mark.parametrize("event", REPORTS)
def test_a_node_in_a_subgraph_shows_it_where_the_user_is(canvas, event):
    kind, name = REPORTS[event]
    inner = canvas.add(kind)
    outer = canvas.wrap(inner)
    for place, node in ((None, outer), (outer, str(inner)), (None, outer)):
        canvas.enter(place)
        canvas.report(event, {"node": f"{outer}:{inner}", "type": kind, **SPEED})
        expect(live(canvas, name)).to_be_visible()
        expect(live(canvas, name).get_by_label("Progress")).to_have_attribute("aria-live", "off")
        assert shown_on(canvas) == [node]
    canvas.report("execution_success", {})


@pytest.mark.parametrize("event", REPORTS)
def test_a_report_of_another_workflow_or_kind_of_node_is_not_shown(canvas, event):
    kind, name = REPORTS[event]
    number = canvas.add(kind)
    here = canvas.page.evaluate("app.rootGraph.id")
    report = {"node": str(number), "type": kind, "workflow": here, **SPEED}
    for wrong in ({"workflow": "another"}, {"type": "VAEDecode"}, {"node": "77"}, {"node": f"{number}:1"}):
        canvas.report(event, report | wrong)
        assert shown_on(canvas) == []
    canvas.report(event, report)
    assert shown_on(canvas) == [str(number)]
    # The same report, after the workflow was switched.
    canvas.page.evaluate("app.rootGraph.id = crypto.randomUUID()")
    canvas.report(event, report)
    assert shown_on(canvas) == []
    expect(live(canvas, name)).to_have_count(0)
