"""Graphs of the 2024 pack ComfyUI_ModelScopeT2V in both renderers: our loader replaces its own, and the graph runs."""

import json
from pathlib import Path

import pytest

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect

STOCK_GRAPH = Path(__file__).parents[2] / "example_workflows" / "txt2vid_stock_nodes.json"
SMALL = {"width": 64, "height": 64, "batch_size": 3, "steps": 2}
SEEDS = {"classic": 11, "vue": 12}  # ComfyUI does not run again what it has run


@pytest.fixture(scope="session")
def old_model(server):
    """The name of a model that a new loader does not begin with."""
    folder = server.base / "models" / "text2video"
    (folder / "old_model").symlink_to(folder / "demo", target_is_directory=True)
    return "old_model"


@pytest.fixture
def old_graph(old_model):
    """A graph whose sampler takes its model from the old loader, as the old pack saved it."""
    graph = json.loads(STOCK_GRAPH.read_text(encoding="utf-8"))
    number = graph["last_node_id"] = graph["last_node_id"] + 1
    (link,) = (link for link in graph["links"] if link[5] == "MODEL")
    source = next(node for node in graph["nodes"] if node["id"] == link[1])
    source["outputs"][link[2]]["links"] = []
    link[1:3] = [number, 0]
    loader = {"id": number, "type": "ModelScopeT2VLoader", "pos": [376, 600], "size": [315, 180], "flags": {}}
    loader |= {"order": 0, "mode": 0, "inputs": [], "properties": {"Node name for S&R": "ModelScopeT2VLoader"}}
    loader["outputs"] = [{"name": "MODEL", "type": "MODEL", "links": [link[0]], "slot_index": 0}]
    loader["widgets_values"] = [old_model, True, True, 1.0, 1.0]
    return graph | {"nodes": [*graph["nodes"], loader]}


def test_the_old_loader_is_replaced_at_a_click_and_the_graph_runs(canvas, old_model, old_graph):
    number = old_graph["last_node_id"]
    canvas.load(old_graph)
    canvas.page.get_by_test_id("error-overlay-see-errors").click()
    canvas.page.get_by_role("button", name="Replace Node").click()
    canvas.page.wait_for_function("(id) => app.graph.getNodeById(id).type === 'SDVideoModelScopeLoader'", arg=number)
    saved = canvas.serialize()
    (loader,) = (node for node in saved["nodes"] if node["id"] == number)
    assert loader["widgets_values"][0] == old_model
    assert [link[1:3] for link in saved["links"] if link[5] == "MODEL"] == [[number, 0]]
    canvas.set_widgets(SMALL | {"seed": SEEDS[canvas.renderer]})
    canvas.run()
