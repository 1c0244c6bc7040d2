"""Graphs of the 2024 pack ComfyUI_ModelScopeT2V, whose loader is ModelScopeT2VLoader, open and run with ours."""

import io
import json

import numpy as np
import pytest
from PIL import Image

OLD_LOADER = "ModelScopeT2VLoader"
# As the pack's last release has them, in the order of its widgets.
OLD_WIDGETS = {
    "model_path": "demo",
    "enable_attn": True,
    "enable_conv": True,
    "temporal_attn_strength": 1.0,
    "temporal_conv_strength": 1.0,
}
OLD_GRAPHS = {"last release": OLD_WIDGETS, "first release": dict(list(OLD_WIDGETS.items())[:3])}


def graph_with(loader, seed=3):
    """The graph of that pack's page, with its loader or ours as node `old`; CLIP and VAE came from elsewhere."""
    prompts = {"clip": ["parts", 1], "positive": "a red circle moving left", "negative": ""}
    sampling = {"seed": seed, "steps": 2, "cfg": 3.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    links = {"model": ["old", 0], "positive": ["text", 0], "negative": ["text", 1], "latent_image": ["empty", 0]}
    return {
        "old": loader,
        "parts": {"class_type": "SDVideoModelScopeLoader", "inputs": {"model": "demo"}},
        "text": {"class_type": "SDVideoTextEncode", "inputs": prompts},
        "empty": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 3}},
        "sampler": {"class_type": "KSampler", "inputs": {**sampling, **links}},
        "decode": {"class_type": "VAEDecode", "inputs": {"samples": ["sampler", 0], "vae": ["parts", 2]}},
        "save": {"class_type": "SaveImage", "inputs": {"images": ["decode", 0], "filename_prefix": "replaced"}},
    }


def frames_of(server, history):
    pictures = [server.view(**image) for image in history["outputs"]["save"]["images"]]
    return np.stack([np.asarray(Image.open(io.BytesIO(picture))) for picture in pictures])


@pytest.fixture(scope="module")
def ours(server, comfy_demo):
    loader = {"class_type": "SDVideoModelScopeLoader", "inputs": {"model": "demo"}}
    return frames_of(server, server.run(graph_with(loader)))


@pytest.mark.parametrize("widgets", OLD_GRAPHS.values(), ids=OLD_GRAPHS)
def test_an_old_graph_runs_and_gives_the_video_of_our_loader(server, comfy_demo, ours, widgets):
    history = server.run(graph_with({"class_type": OLD_LOADER, "inputs": widgets, "_meta": {"title": "ModelScope"}}))
    assert history["prompt"][2]["old"]["class_type"] == "SDVideoModelScopeLoader"
    assert history["prompt"][2]["old"]["inputs"] == {"model": "demo"}
    frames = frames_of(server, history)
    assert frames.shape == (3, 64, 64, 3) and frames.std() > 1
    np.testing.assert_array_equal(frames, ours)


@pytest.fixture(scope="module")
def replacement(server):
    """What the browser is told, to offer it when it opens a graph with the old node."""
    [only] = json.loads(server.get("/node_replacements"))[OLD_LOADER]
    return only


def test_the_browser_finds_the_saved_values_of_the_old_widgets(replacement):
    # A workflow file holds the values without names, so their order decides which is whose.
    assert replacement["old_widget_ids"] == list(OLD_WIDGETS)


def test_every_mapping_leads_from_an_old_input_or_output_to_one_of_ours(server, replacement):
    schema = server.object_info(replacement["new_node_id"])
    inputs = schema["input"]["required"] | schema["input"].get("optional", {})
    assert {each["new_id"] for each in replacement["input_mapping"]} <= set(inputs)
    assert {each["old_id"] for each in replacement["input_mapping"]} <= set(OLD_WIDGETS)
    [output] = replacement["output_mapping"]
    assert output["old_idx"] == 0  # its only one, a MODEL
    assert schema["output"][output["new_idx"]] == "MODEL"


def test_the_old_node_itself_is_not_claimed(server):
    # With the old pack installed, its own node runs.
    assert OLD_LOADER not in server.object_info()
