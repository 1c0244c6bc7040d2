"""Sampling and training in both renderers: what is being made plays on its node, with speed and time left."""

import json
from pathlib import Path

import pytest

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


def test_the_preview_stands_still_where_the_user_wants_less_motion(canvas):
    number = canvas.add("SDVideoDDIMSampler")
    canvas.page.emulate_media(reduced_motion="reduce")
    sheet = """() => {
      const sheet = Object.assign(document.createElement("canvas"), { width: 64, height: 8 });
      const context = sheet.getContext("2d");
      context.fillRect(0, 0, 8, 8);
      context.fillStyle = "white";
      context.fillRect(8, 0, 56, 8);
      return sheet.toDataURL();
    }"""
    report = {"node": number, "step": 1, "steps": 9, "seconds_per_step": 1, "seconds_left": 8}
    report["sheet"] = {"image": canvas.page.evaluate(sheet), "frames": 8, "columns": 8, "width": 8, "height": 8}
    canvas.report("sdvideo.sampling", report)
    picture = live(canvas).get_by_label("The clip so far")
    expect(picture).to_be_visible()
    # A frame is 125 ms long, and only the first is black.
    script = """async (canvas) => {
      await new Promise((resolve) => setTimeout(resolve, 250));
      return [...canvas.getContext("2d").getImageData(4, 4, 1, 1).data];
    }"""
    assert picture.evaluate(script) == [0, 0, 0, 255]
    canvas.page.emulate_media(reduced_motion="no-preference")
    canvas.report("execution_success", {})
    expect(live(canvas)).to_have_count(0)


def test_training_shows_its_loss_and_a_clip(canvas):
    load(canvas, "train_lora", steps=6, num_frames=2, width=64, height=64, sample_every=3, sample_prompt="a red circle")
    canvas.set_widgets({"seed": STEPS[canvas.renderer]})
    canvas.start()
    monitor = live(canvas, "Training")
    expect(monitor.get_by_label("Progress")).to_contain_text("6 / 6", timeout=120_000)
    expect(monitor.get_by_label("Progress")).to_contain_text("· loss ")
    drawn = "(canvas) => canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.some(Boolean)"
    assert monitor.get_by_role("img").evaluate(drawn)
    expect(monitor.get_by_label("Frame counter")).to_contain_text("/ 2")
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
