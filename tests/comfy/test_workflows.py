"""The example workflows: each is offered as a template, well formed, and runs on the tiny model."""

import io
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from sdvideo_core.checkpoint import load_unet
from sdvideo_core.demo import FEW_STEPS_LORA
from sdvideo_core.demo.clips import NUM_FRAMES as NUM_FRAMES_OF_DEMO
from sdvideo_core.demo.clips import SIZE
from sdvideo_core.demo.reading import read_scene
from sdvideo_core.lora import LoRA, save_lora
from sdvideo_core.lora_files import read_lora
from tests.comfy.comfy_server import make_base_directory, start_comfyui

FOLDER = Path(__file__).parents[2] / "example_workflows"
NAMES = ("txt2vid", "txt2vid_few_steps", "vid2vid", "txt2vid_stock_nodes", "vid2vid_stock_nodes", "train_lora")

# What the graphs' videos show when run as they are; shapes only where the text alone decides them.
EXPECTED = {
    "txt2vid": ("red", "circle", "left"),
    "txt2vid_few_steps": ("red", "circle", "left"),
    "vid2vid": ("blue", "circle", "right"),
    "txt2vid_stock_nodes": ("red", "circle", "left"),
    "vid2vid_stock_nodes": ("blue", "circle", "right"),
    "train_lora": ("blue", "circle", "left"),
}

# For speed; the files say what suits the demo model that is shipped. Here a tinier one takes its name.
WIDTH, HEIGHT, NUM_FRAMES, STEPS = 72, 64, 5, 3
SMALL = {"width": WIDTH, "height": HEIGHT, "num_frames": NUM_FRAMES, "batch_size": NUM_FRAMES, "steps": STEPS}
TITLE_HEIGHT = 30  # the browser draws it above a node's position


def read(name):
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def small_graph(server, workflow):
    graph = server.api_graph(workflow)
    for node in graph.values():
        node["inputs"] |= {key: value for key, value in SMALL.items() if key in node["inputs"]}
    return graph


def saved_image(server, history):
    """The only file that a graph saved, opened."""
    images = [image for output in history["outputs"].values() for image in output.get("images", [])]
    (saved,) = (image for image in images if image["type"] == "output")
    return Image.open(io.BytesIO(server.view(**saved)))


def test_every_workflow_file_is_a_template(server):
    assert sorted(path.stem for path in FOLDER.glob("*.json")) == sorted(NAMES)
    assert sorted(server.workflow_templates()["sdvideo"]) == sorted(NAMES)
    served = json.loads(server.get("/api/workflow_templates/sdvideo/txt2vid.json"))
    assert served == read("txt2vid")


@pytest.mark.parametrize("name", [name for name in NAMES if "stock" in name])
def test_graphs_of_stock_nodes_have_nothing_but_loaders_of_ours(name):
    ours = {node["type"] for node in read(name)["nodes"] if node["type"].startswith("SDVideo")}
    loaders = {"SDVideoModelScopeLoader"} | ({"SDVideoLoadFrameSequence"} if "vid2vid" in name else set())
    assert ours == loaders


@pytest.mark.parametrize("name", NAMES)
def test_a_template_has_a_small_picture_where_the_browser_looks_for_it(server, name):
    data = server.get(f"/api/workflow_templates/sdvideo/{name}.jpg")
    assert len(data) < 40_000
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "JPEG"
        assert image.width == image.height == 480  # it is shown as a square
        assert np.asarray(image).std() > 10


@pytest.fixture(scope="module")
def few_steps_lora(comfy_base, comfy_demo):
    """The LoRA of the example workflow, for the tiny model that takes the demo model's name."""
    unet, path = load_unet(comfy_demo), comfy_base / "models" / "loras" / FEW_STEPS_LORA.name
    save_lora(
        LoRA(unet, 1, generator=torch.Generator().manual_seed(0)),
        path,
        metadata=read_lora(FEW_STEPS_LORA).metadata,
    )
    yield path
    path.unlink()


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_runs_and_writes_its_video(server, comfy_demo, few_steps_lora, example_frames, example_clips, name):
    history = server.run(small_graph(server, read(name)))
    with saved_image(server, history) as image:
        assert image.format == ("WEBP" if "stock" in name else "GIF")
        assert image.size == (WIDTH, HEIGHT)
        frames = [np.asarray(frame.convert("RGB")).astype(int) for frame in ImageSequence.Iterator(image)]
    assert len(frames) == NUM_FRAMES
    assert all(frame.std() > 1 for frame in frames)
    assert all(abs(before - after).max() > 8 for before, after in itertools.pairwise(frames))


@pytest.fixture(scope="module")
def fresh(comfyui, tmp_path_factory):
    """A ComfyUI with this pack and nothing else in its folders."""
    with start_comfyui(comfyui, make_base_directory(tmp_path_factory.mktemp("fresh"))) as running:
        yield running


@pytest.mark.parametrize("name", EXPECTED)
def test_a_fresh_install_draws_what_the_prompt_says(fresh, name):
    history = fresh.run(fresh.api_graph(read(name)), timeout=400)
    with saved_image(fresh, history) as image:
        video = np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)])
    assert video.shape == (NUM_FRAMES_OF_DEMO, SIZE, SIZE, 3)
    reading = read_scene(video)
    assert (reading.color, reading.shape, reading.motion) == EXPECTED[name]


def test_a_gif_carries_the_graph_and_the_workflow_that_made_it(server, comfy_demo):
    workflow = read("txt2vid")
    graph = small_graph(server, workflow)
    history = server.run(graph, workflow=workflow)
    with saved_image(server, history) as image:
        assert json.loads(image.info["comment"]) == {"prompt": graph, "workflow": workflow}


@pytest.mark.parametrize("name", NAMES)
def test_the_values_of_a_workflow_suit_the_demo_model(server, comfy_demo, example_frames, name):
    values = {}
    for node in server.api_graph(read(name)).values():
        values |= {key: value for key, value in node["inputs"].items() if not isinstance(value, list)}
    expected = {"model": "demo", "width": SIZE, "height": SIZE, "cfg": 2.0, "steps": 25, "fps": 8.0}
    if name == "txt2vid_few_steps":
        # What the LoRA's file says is left to it.
        expected |= {"lora_name": FEW_STEPS_LORA.name, "steps": 4, "cfg": 1.0, "original_timesteps": 0, "grid": "auto"}
    assert {key: values[key] for key in expected} == expected
    assert values.get("num_frames", values.get("batch_size")) == NUM_FRAMES_OF_DEMO
    assert values["denoise"] == (0.7 if name.startswith("vid2vid") else 1.0)


def test_clips_are_trained_on_at_the_size_they_are_sampled_at():
    dataset, latent = (
        next(node["widgets_values"] for node in read("train_lora")["nodes"] if node["type"] == kind)
        for kind in ("SDVideoDataset", "SDVideoLatentInit")
    )
    assert dataset == ["example_clips", NUM_FRAMES_OF_DEMO, SIZE, SIZE, 1, False]
    assert latent == [SIZE, SIZE, NUM_FRAMES_OF_DEMO]


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_says_which_files_it_needs(name):
    (note,) = (node for node in read(name)["nodes"] if node["type"] == "MarkdownNote")
    (text,) = note["widgets_values"]
    assert "`demo` comes with SDVideo" in text
    assert "models/text2video/<name>/configuration.json" in text
    assert ("ComfyUI/input" in text) == (not name.startswith("txt2vid"))


@pytest.mark.parametrize("name", NAMES)
def test_nodes_are_laid_out_from_left_to_right_without_overlap(name):
    workflow = read(name)
    boxes = {}
    for node in workflow["nodes"]:
        (x, y), (width, height) = node["pos"], node["size"]
        assert width >= 315
        boxes[node["id"]] = (x, y - TITLE_HEIGHT, x + width, y + height)
    for a, b in itertools.combinations(boxes.values(), 2):
        apart = a[2] < b[0] or b[2] < a[0] or a[3] < b[1] or b[3] < a[1]
        assert apart, (a, b)
    for _, source, _, target, _, _ in workflow["links"]:
        below = boxes[source][0] == boxes[target][0] and boxes[source][3] < boxes[target][1]
        assert below or boxes[source][2] < boxes[target][0]


@pytest.mark.parametrize("name", NAMES)
def test_each_node_is_in_one_group_and_all_fit_the_window(name):
    workflow = read(name)
    frames = [group["bounding"] for group in workflow["groups"]]
    for node in (node for node in workflow["nodes"] if node["type"] != "MarkdownNote"):
        (x, y), (width, height) = node["pos"], node["size"]
        around = [f for f in frames if f[0] < x and f[1] < y - TITLE_HEIGHT and x + width < f[0] + f[2]]
        assert len(around) == 1 and y + height < around[0][1] + around[0][3]
    # ComfyUI shows a template at three quarters of the window's width or height.
    right, bottom = (max(frame[axis] + frame[axis + 2] for frame in frames) for axis in (0, 1))
    zoom = 0.75 * min(1280 / right, 800 / (bottom - min(frame[1] for frame in frames)))
    assert zoom > (0.45 if name == "train_lora" else 0.6)


@pytest.mark.parametrize("name", NAMES)
def test_links_and_slots_agree_with_each_other_and_the_schemas(server, name):
    workflow = read(name)
    nodes = {node["id"]: node for node in workflow["nodes"]}
    links = {link[0]: link for link in workflow["links"]}
    assert workflow["version"] == 0.4
    assert (workflow["last_node_id"], workflow["last_link_id"]) == (max(nodes), max(links))
    assert len(nodes) == len(workflow["nodes"])
    assert len(links) == len(workflow["links"])
    for number, source, output, target, slot, kind in links.values():
        assert number in nodes[source]["outputs"][output]["links"]
        assert nodes[target]["inputs"][slot]["link"] == number
        assert kind == nodes[source]["outputs"][output]["type"] == nodes[target]["inputs"][slot]["type"]
    used = [number for node in nodes.values() for slot in node["outputs"] for number in slot["links"] or []]
    assert sorted(used) == sorted(links)
    schemas = server.object_info()
    for node in (node for node in nodes.values() if node["type"] != "MarkdownNote"):
        schema = schemas[node["type"]]
        groups = [schema["input"].get(group, {}) for group in ("required", "optional")]
        assert {slot["name"] for slot in node["inputs"]} == set().union(*groups)
        assert [slot["type"] for slot in node["outputs"]] == schema["output"]
        assert [slot["name"] for slot in node["outputs"]] == schema["output_name"]
