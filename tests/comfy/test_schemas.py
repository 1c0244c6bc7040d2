"""Schemas of the nodes: saved workflows depend on them, so a change of one is a decision, not an accident.

After a wanted change: python -m pytest tests/comfy/test_schemas.py --update-schemas, then read the difference.
"""

import json
from pathlib import Path

import pytest

SNAPSHOT = Path(__file__).with_name("schemas.json")
PACK = "custom_nodes.sdvideo"

# Node id -> inputs, outputs. Later nodes and inputs may join them; these stay as they are.
CONTRACT = {
    "SDVideoModelScopeLoader": (["model"], ["MODEL", "CLIP", "VAE"]),
    "SDVideoLoRALoader": (["model", "clip", "lora_name", "strength_model", "strength_clip"], ["MODEL", "CLIP"]),
    "SDVideoTextEncode": (["clip", "positive", "negative"], ["positive", "negative"]),
    "SDVideoLatentInit": (["width", "height", "num_frames", "frames", "vae"], ["LATENT"]),
    "SDVideoDDIMSampler": (
        ["model", "positive", "negative", "latent", "seed", "steps", "cfg", "eta", "denoise"],
        ["LATENT"],
    ),
    "SDVideoModelSamplingLCM": (["model", "original_timesteps", "timestep_scaling"], ["MODEL"]),
    "SDVideoLCMScheduler": (["steps", "denoise", "original_timesteps", "grid"], ["SIGMAS"]),
    "SDVideoVAEDecode": (["samples", "vae"], ["IMAGE"]),
    "SDVideoLoadFrameSequence": (
        ["source", "num_frames", "offset", "stride", "width", "height"],
        ["IMAGE", "num_frames"],
    ),
    "SDVideoSaveGIF": (["images", "filename_prefix", "fps"], []),
    "SDVideoDataset": (
        ["directory", "num_frames", "width", "height", "stride", "skip_bad"],
        ["dataset", "num_clips"],
    ),
    "SDVideoTrainLoRA": (["model", "dataset", "steps", "filename_prefix"], ["lora", "loss_curve", "lora_name"]),
}

# What these list depends on the files a user has.
FILE_LISTS = ("model", "source", "lora_name", "vae", "clip")
# Words for people, which may change freely.
TEXTS = ("tooltip", "display_name", "placeholder")


def snapshot(info):
    """What a workflow depends on; inputs are a list, as their order decides which saved value is whose."""
    inputs = []
    for group in ("required", "optional"):
        for name, (kind, options) in info["input"].get(group, {}).items():
            hidden = (*TEXTS, "options") if name in FILE_LISTS else TEXTS
            kept = {key: value for key, value in options.items() if key not in hidden}
            inputs.append({"name": name, "type": kind, "optional": group == "optional", **kept})
    return {
        "category": info["category"],
        "output_node": info["output_node"],
        "inputs": inputs,
        "outputs": [list(pair) for pair in zip(info["output_name"], info["output"], strict=True)],
    }


@pytest.fixture(scope="module")
def schemas(server):
    return {name: info for name, info in server.object_info().items() if info["python_module"] == PACK}


def test_schemas_are_those_of_the_snapshot(schemas, request):
    found = {name: snapshot(info) for name, info in sorted(schemas.items())}
    if request.config.getoption("--update-schemas", default=False):
        SNAPSHOT.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    recorded = json.loads(SNAPSHOT.read_text(encoding="utf-8"))
    assert found == recorded, f"a schema changed, which breaks saved workflows; if it is meant to: {__doc__}"


def test_the_promised_nodes_are_there_with_their_inputs_and_outputs(schemas):
    assert set(CONTRACT) <= set(schemas)
    for node, (inputs, outputs) in CONTRACT.items():
        found = snapshot(schemas[node])
        by_name = {each["name"]: each for each in found["inputs"]}
        assert set(inputs) <= set(by_name), node
        later = [each for name, each in by_name.items() if name not in inputs]
        assert all(each["optional"] or "default" in each for each in later), node
        assert [name for name, _ in found["outputs"]][: len(outputs)] == outputs


def test_node_ids_say_whose_they_are(schemas):
    assert all(name.startswith("SDVideo") for name in schemas)


def test_the_browser_lists_the_nodes_together(schemas):
    assert {info["category"].split("/")[0] for info in schemas.values()} == {"SDVideo"}
    names = [info["display_name"] for info in schemas.values()]
    assert len(set(names)) == len(names)


def test_nodes_are_found_by_words_of_both_languages(schemas):
    for node, info in schemas.items():
        words = info["search_aliases"]
        assert len(set(words)) == len(words) >= 3, node
        assert any(word.isascii() for word in words), node
        assert any("\u4e00" <= letter <= "\u9fff" for word in words for letter in word), node


def test_every_node_input_and_output_is_explained(schemas):
    for node, info in schemas.items():
        assert len(info["description"]) > 20, node
        assert info["description"].endswith("."), node
        for group in ("required", "optional"):
            for name, (_, options) in info["input"].get(group, {}).items():
                assert options.get("tooltip"), f"{node}.{name} has no tooltip"
        assert all(info["output_tooltips"]), f"{node} has an output without a tooltip"
        assert len(info["output_tooltips"]) == len(info["output"]), node
