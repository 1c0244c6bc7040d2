"""Training on a running ComfyUI: progress, interrupts, which files are looked at, and what wrong input says."""

import copy
import itertools
import json
import re
import shutil
import time

import pytest
import torch

from tests.comfy.training_inputs import NUM_FRAMES, SETTINGS, SIZE

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
    """What is done, and of how much, in order."""
    told = [m["data"] for m in server.messages if m["type"] == "progress" and m["data"]["node"] == "train"]
    return [(data["value"], data["max"]) for data in told]


def executed(server):
    return {m["data"]["node"] for m in server.messages if m["type"] == "executing"} - {None}


def test_training_reports_progress_and_the_stock_loader_lists_the_lora(server, comfy_demo, example_clips):
    sampling = {"sample_prompt": "a circle", "sample_every": 3}
    server.run(change(GRAPH, "train", seed=next(seeds), **sampling))
    assert progress(server) == [(1, 2), (2, 2), (1, 3), (2, 3), (3, 3)]  # clips that are encoded, then steps
    (options,) = server.object_info("LoraLoaderModelOnly")["input"]["required"]["lora_name"][:1]
    listed = options if isinstance(options, list) else server.object_info("LoraLoaderModelOnly")
    assert "served/lora_00001_.safetensors" in json.dumps(listed)
    reports = [message["data"] for message in server.messages if message["type"] == "sdvideo.training"]
    assert re.match("0+3_", reports[-1]["sample"]["filename"])
    assert server.view(**reports[-1]["sample"]).startswith(b"GIF8")  # though the training's own folder is gone
    assert not list((server.base / "temp").glob("tmp*"))


STOPS = {  # after which message, with which settings; and what may be done by then at most
    "encoding": ({"value": 1, "max": 2}, {}, (2, 2)),
    "first step": ({"value": 2, "max": 2}, {"gradient_accumulation": 1000}, (2, 2)),
    "later step": ({"value": 1, "max": 100}, {}, (2, 100)),
}


def wait_for_file(folder, pattern, timeout=30):
    deadline = time.monotonic() + timeout
    while not list(folder.glob(pattern)):
        assert time.monotonic() < deadline, f"no {pattern} in {folder}"
        time.sleep(0.02)


@pytest.mark.parametrize("stop", STOPS)
def test_cancel_stops_at_once_leaves_nothing_and_the_next_run_works(server, comfy_demo, example_clips, stop):
    before = loras(server)
    when, settings, last = STOPS[stop]
    # Large enough for a step to take longer than the messages.
    graph = change(GRAPH, "dataset", width=128, height=128, num_frames=8)
    settings = settings | {"steps": 100, "filename_prefix": "stopped/lora"}
    prompt_id = server.queue(change(graph, "train", seed=next(seeds), **settings))
    server.wait_for(prompt_id, "progress", **when)
    if stop == "first step":
        wait_for_file(server.base / "temp", "tmp*/encoded/index.json")  # the last thing that encoding writes
    server.interrupt(prompt_id)
    with pytest.raises(RuntimeError, match=r"SDVideoTrainLoRA \(node train\) was interrupted"):
        server.wait(prompt_id, timeout=60)
    assert progress(server)[-1] <= last
    assert loras(server) == before
    assert not list((server.base / "temp").glob("tmp*"))
    server.run(change(GRAPH, "train", seed=next(seeds), steps=1, filename_prefix=f"after {stop}/lora"))
    assert progress(server) == [(1, 1)]  # clips that are seen once are not encoded beforehand
    assert {path.name for path in loras(server) - before} == {"lora_00001_.safetensors"}


def choose_in_comfy():
    """What `auto` is on a CPU, on a GPU with both halves, with float16 alone, and with none, as --force-fp32 says."""
    import comfy.model_management
    from sdvideo.nodes.comfy_bridge.training import _best_precision

    chosen = [_best_precision(torch.device("cpu"))]
    for bf16, fp16 in ((True, True), (False, True), (False, False)):
        comfy.model_management.should_use_bf16 = lambda _, can=bf16: can
        comfy.model_management.should_use_fp16 = lambda _, can=fp16: can
        chosen.append(_best_precision(torch.device("cuda")))
    return {"chosen": chosen}


def test_the_precision_of_itself_is_what_the_device_computes_in(in_comfy):
    assert in_comfy(choose_in_comfy)["chosen"] == ["no", "bf16", "fp16", "no"]


def test_settings_are_checked_before_clips_are_encoded(server, comfy_demo, example_clips):
    with pytest.raises(RuntimeError, match=r"\(node train\) failed: .*mixed_precision='fp16' needs a GPU .* 'no'"):
        server.run(change(GRAPH, "train", mixed_precision="fp16"))
    assert progress(server) == []


def test_a_model_right_in_the_models_folder_goes_by_the_name_older_graphs_have(server, comfy_demo, example_clips):
    links = [comfy_demo.parent / path.name for path in comfy_demo.iterdir()]
    for link in links:
        link.symlink_to(comfy_demo / link.name)
    try:
        server.run(change(GRAPH, "train", model=".", seed=next(seeds), steps=1))
    finally:
        for link in links:
            link.unlink()


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
def bad_clips(server, unet_alone, example_clips):
    """Folders that cannot be trained on, each named after what is wrong with it."""
    inputs = server.base / "input"
    for name in ("no_caption", "unreadable_clip"):
        shutil.copytree(example_clips, inputs / name)
    (inputs / "no_caption" / "0002.txt").unlink()
    (inputs / "unreadable_clip" / "0002.gif").write_bytes(b"GIF89a and nothing more")
    (inputs / "no_clips").mkdir()
    (inputs / "no_clips" / "notes.md").write_text("no clips")


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
    "model that is not there, through a link": (
        linked(GRAPH, "train", model="gone"),
        r"\(node train\) failed: FileNotFoundError: model 'gone' is not in .*found .*demo",
    ),
    "model without its own autoencoder and text encoder": (
        change(GRAPH, "train", model="alone/diffusion_pytorch_model.pth", vae="demo"),
        r"\(node train\) failed: .*CheckpointError: .*_model\.pth is a ModelScope UNet; expected a ModelScope OpenCLIP "
        r"text tower, or take the text encoder from another file or model: .*clip in the node",
    ),
    "part outside its folder": (
        change(GRAPH, "train", vae="checkpoints/../x"),
        r"\(node train\): Custom validation failed .*model 'checkpoints/\.\./x' is not in .*text2video; found",
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
