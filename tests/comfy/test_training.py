"""Training in ComfyUI: what the LoRA does in the graph, progress, interrupts, and what wrong input says."""

import copy
import itertools
import json
import shutil

import pytest
import torch
from safetensors import safe_open

from sdvideo_core import SDVideo
from sdvideo_core.checkpoint import load_unet
from sdvideo_core.lora import LoRA, kohya_name, target_layers

SIZE, NUM_FRAMES, SEED, PROMPT = 64, 4, 3, "a red circle moving left"
SETTINGS = {
    "lora_rank": 4,
    "lr": 5e-3,
    "batch_size": 2,
    "gradient_accumulation": 1,
    "train_only": "all",
    "mixed_precision": "no",
    "gradient_checkpointing": True,
    "seed": 0,
}
GRAPH_PROMPT, WORKFLOW = {"1": {"class_type": "SDVideoTrainLoRA"}}, {"nodes": []}


def train_in_comfy(graph, workflow):
    """Frames of the base and of both ways to the trained LoRA, and all that the nodes return."""
    from types import SimpleNamespace

    import comfy.model_management as management
    import folder_paths
    from comfy_extras.nodes_train import LoraModelLoader

    import nodes
    from tests.comfy import called_nodes as calls

    calls.BY_ID["SDVideoTrainLoRA"].hidden = SimpleNamespace(prompt=graph, extra_pnginfo={"workflow": workflow})
    model, clip, vae = calls.load()
    management.load_models_gpu([model])
    dataset, num_clips = calls.call("SDVideoDataset", "example_clips", NUM_FRAMES, SIZE, SIZE, 1, False)
    train = {**SETTINGS, "steps": 3, "filename_prefix": "trained/lora"}
    lora, curve, name = calls.call("SDVideoTrainLoRA", "demo", dataset, **train)
    freed = model not in management.loaded_models()
    half = {**train, "steps": 1, "mixed_precision": "bf16", "gradient_accumulation": 2, "train_only": "temporal"}
    temporal, _, second = calls.call("SDVideoTrainLoRA", "demo", dataset, **half)

    (by_weights,) = calls.call(LoraModelLoader, model, lora, 1.0)
    (by_file,) = nodes.LoraLoaderModelOnly().load_lora_model_only(model, name, 1.0)
    frames = {}
    for kind, each in {"base": model, "weights": by_weights, "file": by_file}.items():
        samples = calls.sample(each, calls.encode(clip, PROMPT, ""), calls.empty(SIZE, SIZE, NUM_FRAMES), seed=SEED)
        (frames[kind],) = calls.call("SDVideoVAEDecode", {"samples": samples}, vae)
    return {
        **frames,
        "curve": curve,
        "num_clips": num_clips,
        "freed": freed,
        "names": [name, second],
        "listed": folder_paths.get_filename_list("loras"),
        "inference": [torch.is_inference_mode_enabled(), any(value.is_inference() for value in lora.values())],
        "temporal": list(temporal),
        "finite": all(bool(value.isfinite().all()) for value in temporal.values()),
        **{f"lora {key}": value for key, value in lora.items()},
    }


@pytest.fixture(scope="module")
def trained(in_comfy, comfy_demo, example_clips):
    return in_comfy(train_in_comfy, graph=GRAPH_PROMPT, workflow=WORKFLOW)


@pytest.fixture(scope="module")
def trained_file(trained, comfy_base):
    return comfy_base / "models" / "loras" / trained["names"][0]


def test_a_trained_lora_acts_in_the_graph_as_in_python(trained, trained_file, comfy_demo):
    model = SDVideo(comfy_demo, amp=False)
    settings = {"guidance_scale": 9.0, "timesteps": 2, "image_size": (SIZE, SIZE), "num_frames": NUM_FRAMES}
    with LoRA.from_file(model.unet, trained_file):
        attached = model(PROMPT, seed=SEED, **settings)[0].permute(1, 2, 3, 0)
    assert (trained["weights"] - attached).abs().max() <= 1e-4
    assert (trained["weights"] - trained["base"]).abs().max() > 0.02


def test_the_output_is_what_the_file_holds(trained, trained_file):
    # Both are the float16 numbers of the file, so nothing but the order of sums could differ.
    assert (trained["weights"] - trained["file"]).abs().max() <= 1e-6
    with safe_open(trained_file, "pt") as file:
        for key in file.keys():  # noqa: SIM118 - it is no dict
            assert torch.equal(file.get_tensor(key), trained[f"lora {key}"])
        metadata = file.metadata()
    assert (json.loads(metadata["prompt"]), json.loads(metadata["workflow"])) == (GRAPH_PROMPT, WORKFLOW)
    assert (metadata["ss_network_dim"], metadata["step"]) == ("4", "3")


def test_files_are_numbered_and_listed_as_the_node_says(trained):
    assert trained["names"] == ["trained/lora_00001_.safetensors", "trained/lora_00002_.safetensors"]
    assert set(trained["names"]) <= set(trained["listed"])


def test_the_loss_curve_is_an_image_with_colours(trained):
    curve = trained["curve"]
    assert curve.ndim == 4
    assert (curve.shape[0], curve.shape[3]) == (1, 3)
    assert (curve.min() >= 0, curve.max() <= 1, curve.dtype) == (True, True, torch.float32)
    assert (curve.max(dim=3).values - curve.min(dim=3).values).max() > 0.2


def test_half_precision_trains_the_layers_that_are_asked_for(trained, comfy_demo):
    layers = {kohya_name(path) for path in target_layers(load_unet(comfy_demo), "temporal")}
    assert {key.split(".")[0] for key in trained["temporal"]} == layers
    assert trained["finite"]


def test_inference_mode_is_left_for_training_only(trained):
    assert trained["inference"] == [True, False]


def test_other_models_make_room(trained):
    assert trained["freed"]
    assert trained["num_clips"] == 2


def metadata_in_comfy():
    from comfy.cli_args import args
    from sdvideo.nodes.comfy_bridge.folders import workflow_metadata

    whole = workflow_metadata({"1": {}}, {"workflow": {}})
    args.disable_metadata = True
    return {"whole": whole, "without": workflow_metadata({"1": {}}, {"workflow": {}})}


def test_metadata_can_be_left_out(in_comfy):
    assert in_comfy(metadata_in_comfy) == {"whole": {"prompt": '{"1": {}}', "workflow": "{}"}, "without": {}}


GRAPH = {
    "dataset": {
        "class_type": "SDVideoDataset",
        "inputs": {
            "directory": "example_clips",
            "num_frames": NUM_FRAMES,
            "width": SIZE,
            "height": SIZE,
            "stride": 1,
            "skip_bad": False,
        },
    },
    "train": {
        "class_type": "SDVideoTrainLoRA",
        "inputs": {
            "model": "demo",
            "dataset": ["dataset", 0],
            "steps": 3,
            "filename_prefix": "served/lora",
            **SETTINGS,
        },
    },
}
COUNT = {
    "dataset": GRAPH["dataset"],
    "show": {"class_type": "PreviewAny", "inputs": {"source": ["dataset", 1]}},
}
seeds = itertools.count(1000)  # ComfyUI does not run a graph again that it knows


def change(graph, node, **inputs):
    graph = copy.deepcopy(graph)
    graph[node]["inputs"] |= inputs
    return graph


def linked(graph, node, **value):
    """The graph with a value that arrives through a link: of such ComfyUI checks nothing beforehand."""
    ((name, text),) = value.items()
    switch = {"class_type": "ComfySwitchNode", "inputs": {"switch": True, "on_false": text, "on_true": text}}
    return {**change(graph, node, **{name: ["switch", 0]}), "switch": switch}


def loras(server):
    return {path for path in (server.base / "models" / "loras").rglob("*") if path.is_file()}


def progress(server):
    return [m["data"]["value"] for m in server.messages if m["type"] == "progress" and m["data"]["node"] == "train"]


def executed(server):
    return {m["data"]["node"] for m in server.messages if m["type"] == "executing"} - {None}


def test_training_reports_progress_and_the_stock_loader_lists_the_lora(server, comfy_demo, example_clips):
    server.run(change(GRAPH, "train", seed=next(seeds)))
    found = progress(server)
    assert (found[0], found[-1]) == (1, 3)
    (options,) = server.object_info("LoraLoaderModelOnly")["input"]["required"]["lora_name"][:1]
    listed = options if isinstance(options, list) else server.object_info("LoraLoaderModelOnly")
    assert "served/lora_00001_.safetensors" in json.dumps(listed)


def test_cancel_stops_within_a_step_leaves_nothing_and_the_next_run_works(server, comfy_demo, example_clips):
    before = loras(server)
    # Large enough for a step to take longer than the messages.
    graph = change(GRAPH, "dataset", width=192, height=192, num_frames=8)
    prompt_id = server.queue(change(graph, "train", steps=100, seed=next(seeds), filename_prefix="stopped/lora"))
    server.wait_for(prompt_id, "progress", value=1)
    server.interrupt(prompt_id)
    with pytest.raises(RuntimeError, match=r"SDVideoTrainLoRA \(node train\) was interrupted"):
        server.wait(prompt_id, timeout=60)
    assert max(progress(server)) <= 2
    assert loras(server) == before
    assert not list((server.base / "temp").glob("tmp*"))
    server.run(change(GRAPH, "train", seed=next(seeds), steps=1, filename_prefix="stopped/lora"))
    assert {path.name for path in loras(server) - before} == {"lora_00001_.safetensors"}


def test_clips_are_looked_for_again_when_files_change_and_only_then(server, example_clips):
    folder = server.base / "input" / "growing"
    shutil.copytree(example_clips, folder / "part")

    def add_a_clip():
        for suffix in ("gif", "txt"):
            shutil.copy(folder / "part" / f"0001.{suffix}", folder / "part" / f"0003.{suffix}")

    def rewrite_a_caption():
        (folder / "part" / "0003.txt").write_text("another caption")

    graph = change(COUNT, "dataset", directory=str(folder))
    counted = []
    for change_files, runs in ((None, True), (None, False), (add_a_clip, True), (rewrite_a_caption, True)):
        if change_files:
            change_files()
        history = server.run(graph)
        assert ("dataset" in executed(server)) == runs
        counted += history["outputs"]["show"]["text"]
    assert [count for count, _ in itertools.groupby(counted)] == ["2", "3"]


@pytest.fixture(scope="module")
def bad_clips(server, comfy_demo, example_clips):
    """Folders that cannot be trained on, each named after what is wrong with it."""
    inputs = server.base / "input"
    for name in ("no_caption", "unreadable_clip"):
        shutil.copytree(example_clips, inputs / name)
    (inputs / "no_caption" / "0002.txt").unlink()
    (inputs / "unreadable_clip" / "0002.gif").write_bytes(b"GIF89a and nothing more")
    (inputs / "no_clips").mkdir()
    (inputs / "no_clips" / "notes.md").write_text("no clips")
    unet = next(comfy_demo.glob("text2video_pytorch_model.*"))
    alone = comfy_demo.parent / f"unet_alone{unet.suffix}"
    shutil.copyfile(unet, alone)
    yield
    alone.unlink()  # other tests list these models


BAD_INPUTS = {
    "folder that is not there": (
        change(COUNT, "dataset", directory="gone"),
        r"\(node dataset\): Custom validation failed .*directory 'gone' is not a folder; expected one in .*input, or",
    ),
    "no folder": (
        change(COUNT, "dataset", directory=" "),
        r"\(node dataset\): Custom validation failed .*directory '' is not a folder; expected",
    ),
    "folder outside the input folder": (
        change(COUNT, "dataset", directory="../models"),
        r"\(node dataset\): Custom validation failed .*Invalid file path: '\.\./models'",
    ),
    "folder outside the input folder, through a link": (
        linked(COUNT, "dataset", directory="../models"),
        r"\(node dataset\) failed: ValueError: Invalid file path: '\.\./models'",
    ),
    "folder without clips": (
        change(COUNT, "dataset", directory="no_clips"),
        r"\(node dataset\) failed: .*no_clips is no dataset: found 1 \.md; expected GIFs with captions",
    ),
    "clip without a caption": (
        change(COUNT, "dataset", directory="no_caption"),
        r"\(node dataset\) failed: .*0002\.gif has no caption, expected .*skip_bad=True",
    ),
    "width that is no multiple of 8": (
        change(COUNT, "dataset", width=65),
        r"\(node dataset\) failed: ValueError: width 65 is not usable",
    ),
    "clip that cannot be read": (
        change(GRAPH, "dataset", directory="unreadable_clip"),
        r"\(node train\) failed: .*ClipError: .*unreadable_clip/0002\.gif",
    ),
    "half precision without a GPU": (
        change(GRAPH, "train", mixed_precision="fp16"),
        r"\(node train\) failed: ValueError: mixed_precision='fp16' needs a GPU .* use 'bf16' or 'no'",
    ),
    "model that is not there, through a link": (
        linked(GRAPH, "train", model="gone"),
        r"\(node train\) failed: FileNotFoundError: model 'gone' is not in .*found .*demo",
    ),
    "model without its own autoencoder and text encoder": (
        linked(GRAPH, "train", model="unet_alone.pth"),
        r"\(node train\) failed: ValueError: model 'unet_alone\.pth' has no autoencoder and no OpenCLIP text tower, "
        r"and training takes none from elsewhere; put them with the UNet into one folder of models/text2video",
    ),
    "file outside models/loras": (
        change(GRAPH, "train", filename_prefix="../../lora"),
        r"\(node train\) failed: .*outside the output folder is not allowed",
    ),
}


@pytest.mark.parametrize("what", BAD_INPUTS)
def test_wrong_input_is_named_and_leaves_nothing(server, bad_clips, what):
    graph, message = BAD_INPUTS[what]
    before = loras(server)
    with pytest.raises(RuntimeError, match=message):
        server.run(graph)
    assert loras(server) == before
    assert not list((server.base / "temp").glob("tmp*"))
