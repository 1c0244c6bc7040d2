"""The nodes in a running ComfyUI: progress, interrupts, files that come and go, and what wrong input says."""

import copy
import io
import itertools
import shutil
from datetime import date

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from sdvideo_core.demo import DIRECTORY
from tests.comfy.comfy_server import make_base_directory, start_comfyui

SHIPPED = ["demo"] if DIRECTORY.is_dir() else []

GRAPH = {
    "loader": {"class_type": "SDVideoModelScopeLoader", "inputs": {"model": "demo"}},
    "text": {
        "class_type": "SDVideoTextEncode",
        "inputs": {"clip": ["loader", 1], "positive": "a red circle", "negative": "blurry"},
    },
    "latent": {"class_type": "SDVideoLatentInit", "inputs": {"width": 64, "height": 64, "num_frames": 4}},
    "sampler": {
        "class_type": "SDVideoDDIMSampler",
        "inputs": {
            "model": ["loader", 0],
            "positive": ["text", 0],
            "negative": ["text", 1],
            "latent": ["latent", 0],
            "seed": 0,
            "steps": 3,
            "cfg": 9.0,
            "eta": 0.0,
            "denoise": 1.0,
        },
    },
    "decode": {"class_type": "SDVideoVAEDecode", "inputs": {"samples": ["sampler", 0], "vae": ["loader", 2]}},
    "save": {
        "class_type": "SDVideoSaveGIF",
        "inputs": {"images": ["decode", 0], "filename_prefix": "nodes/video", "fps": 8.0},
    },
}
FRAMES = {
    "frames": {
        "class_type": "SDVideoLoadFrameSequence",
        "inputs": {
            "source": "example_frames",
            "num_frames": 3,
            "offset": 0,
            "stride": 1,
            "width": 64,
            "height": 64,
        },
    },
    "save": {
        "class_type": "SDVideoSaveGIF",
        "inputs": {"images": ["frames", 0], "filename_prefix": "nodes/frames", "fps": 8.0},
    },
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


def linked_number(graph, node, **value):
    """The same for a whole number."""
    ((name, number),) = value.items()
    primitive = {"class_type": "PrimitiveInt", "inputs": {"value": number}}
    return {**change(graph, node, **{name: ["number", 0]}), "number": primitive}


def frames_from(source, **inputs):
    return change(FRAMES, "frames", source=source, **inputs)


def executed(server):
    return {m["data"]["node"] for m in server.messages if m["type"] == "executing"} - {None}


def options(server, node, name):
    return server.object_info(node)["input"]["required"][name][1]["options"]


def save_pictures(folder, sizes):
    folder.mkdir(parents=True)
    for index, size in enumerate(sizes):
        Image.new("RGB", size, (10 * index, 0, 0)).save(folder / f"{index}.png")
    return folder


def test_sampling_reports_progress_and_shows_previews(server, comfy_demo):
    prompt_id = server.queue(change(GRAPH, "sampler", seed=next(seeds), steps=4))
    server.wait(prompt_id)
    of_sampler = [m["data"] for m in server.messages if m["data"].get("node") == "sampler"]
    progress = [(data["value"], data["max"]) for data in of_sampler if "max" in data]
    assert progress == [(step, 4) for step in range(1, 5)]
    previews = [m["data"] for m in server.messages if m["type"] == "preview"]
    assert len(previews) == 4
    assert {preview["node_id"] for preview in previews} == {"sampler"}
    with Image.open(io.BytesIO(previews[-1]["image"])) as image:
        assert image.width == image.height
        assert len(image.getcolors(1 << 20)) > 1


def test_cancel_stops_within_a_step_and_the_next_graph_runs(server, comfy_demo):
    # Large enough for a step to take longer than the messages.
    graph = change(GRAPH, "latent", width=192, height=192, num_frames=8)
    prompt_id = server.queue(change(graph, "sampler", seed=next(seeds), steps=999))
    server.wait_for(prompt_id, "progress", value=1)
    server.interrupt(prompt_id)
    with pytest.raises(RuntimeError, match=r"SDVideoDDIMSampler \(node sampler\) was interrupted"):
        server.wait(prompt_id, timeout=20)
    assert max(m["data"]["value"] for m in server.messages if m["type"] == "progress") <= 2
    assert server.run(change(GRAPH, "sampler", seed=next(seeds)))["outputs"]["save"]["images"]


def test_frames_are_loaded_again_when_their_files_change_and_only_then(server):
    folder = save_pictures(server.base / "input" / "changing", [(64, 64)] * 3)
    graph = frames_from("changing")
    for change_files, expected in (
        (lambda: None, {"frames", "save"}),
        (lambda: None, set()),
        (lambda: Image.new("RGB", (64, 64), "white").save(folder / "1.png"), {"frames", "save"}),
        (lambda: save_pictures(server.base / "input" / "another", [(64, 64)]), set()),
        # What file managers and captioners leave there.
        (lambda: [(folder / name).write_bytes(b"1") for name in (".DS_Store", "Thumbs.db", "0.txt")], set()),
        (lambda: save_pictures(folder / "sub", [(64, 64)]), set()),
        (lambda: (folder / "0.png").rename(folder / "3.png"), {"frames", "save"}),
    ):
        change_files()
        server.run(graph)
        assert executed(server) == expected


def test_a_gif_is_loaded_again_when_it_changes_and_only_then(server):
    folder = server.base / "input" / "gifs"
    folder.mkdir()

    def save(name, shade):
        first, *rest = [Image.new("RGB", (64, 64), (shade, 40 * index, 0)) for index in range(3)]
        first.save(folder / name, save_all=True, append_images=rest)

    for name, shade, expected in (
        ("a.gif", 0, {"frames", "save"}),
        ("b.gif", 0, set()),
        ("a.gif", 255, {"frames", "save"}),
    ):
        save(name, shade)
        server.run(frames_from("gifs/a.gif"))
        assert executed(server) == expected


def test_the_browser_is_offered_what_can_be_loaded(server, comfy_demo, example_frames):
    root = server.base / "input"
    save_pictures(root / "shots" / "first", [(64, 64)])
    Image.new("RGB", (64, 64)).save(root / "clip.gif")
    (root / "notes.txt").write_text("no frames")
    offered = options(server, "SDVideoLoadFrameSequence", "source")
    assert {"example_frames", "shots/first", "clip.gif"} <= set(offered)
    assert {"notes.txt", "shots"}.isdisjoint(offered)
    assert "demo" in options(server, "SDVideoModelScopeLoader", "model")


def test_a_source_may_come_through_a_link(server, example_frames):
    graph = linked(FRAMES, "frames", source="example_frames")
    assert server.run(graph)["outputs"]["save"]["images"]
    # Its files cannot be watched, so it runs every time.
    server.run(graph)
    assert "frames" in executed(server)


def test_a_file_name_may_hold_fields(server, example_frames):
    history = server.run(change(FRAMES, "save", filename_prefix="%width%/%year%/clip"))
    (saved,) = history["outputs"]["save"]["images"]
    assert saved["subfolder"] == f"64/{date.today().year}"
    assert saved["filename"] == "clip_00001_.gif"


@pytest.fixture(scope="module")
def bad_files(server, comfy_demo, example_frames):
    """Inputs and models that cannot be used, each named after what is wrong with it."""
    pictures, models = server.base / "input", comfy_demo.parent
    (save_pictures(pictures / "unreadable", [(64, 64)] * 3) / "1.png").write_bytes(b"not a picture")
    save_pictures(pictures / "mixed", [(64, 64), (64, 64), (64, 80)])
    (server.base / "output" / "blocked").touch()
    nan = torch.full((4, 4, 8, 8), float("nan"))
    save_file({"latent_tensor": nan, "latent_format_version_0": torch.zeros(0)}, pictures / "nan.latent")
    for name in ("no_vae", "no_unet", "animatediff"):
        shutil.copytree(comfy_demo, models / name)
    (models / "no_vae" / "VQGAN_autoencoder.pth").unlink()
    (models / "no_unet" / "text2video_pytorch_model.pth").unlink()
    motion = {"down_blocks.0.motion_modules.0.temporal_transformer.norm.weight": torch.ones(32)}
    save_file(motion, models / "animatediff" / "text2video_pytorch_model.safetensors")


NAN_GRAPH = {
    **change(GRAPH, "decode", samples=["load", 0]),
    "load": {"class_type": "LoadLatent", "inputs": {"latent": "nan.latent"}},
}
NO_VAE_GRAPH = {**change(GRAPH, "latent", frames=["frames", 0]), "frames": FRAMES["frames"]}

BAD_INPUTS = {
    "model outside its folder": (
        change(GRAPH, "loader", model="../x"),
        r"\(node loader\): Custom validation failed .*model '\.\./x' is not in .*text2video; found .*demo",
    ),
    "part outside its folder": (
        change(GRAPH, "loader", clip="checkpoints/../x"),
        r"\(node loader\): Custom validation failed .*model 'checkpoints/\.\./x' is not in .*text2video; found",
    ),
    "model outside its folder, through a link": (
        linked(GRAPH, "loader", model="../text2video/demo"),
        r"\(node loader\) failed: .*model '\.\./text2video/demo' is not in .*text2video; found .*demo",
    ),
    "source outside the input folder": (
        frames_from("../models/text2video"),
        r"\(node frames\): Custom validation failed .*Invalid file path: '\.\./models/text2video'",
    ),
    "source outside the input folder, through a link": (
        linked(FRAMES, "frames", source="../models/text2video"),
        r"\(node frames\) failed: ValueError: Invalid file path: '\.\./models/text2video'",
    ),
    "source that is gone": (
        frames_from("gone"),
        r"\(node frames\): Custom validation failed .*gone is not in ComfyUI's input folder any more",
    ),
    "output outside the output folder": (
        change(FRAMES, "save", filename_prefix="../../video"),
        r"\(node save\) failed: .*outside the output folder is not allowed",
    ),
    "width that is no multiple of 8": (
        change(GRAPH, "latent", width=65),
        r"\(node latent\) failed: ValueError: width 65 is not usable: .*multiple of 8; try 64",
    ),
    "no frames at all": (
        linked_number(GRAPH, "latent", num_frames=0),
        r"\(node latent\) failed: ValueError: num_frames=0; a video has at least 1 frame, set it to 16",
    ),
    "output below a file": (
        change(FRAMES, "save", filename_prefix="blocked/clip"),
        r"\(node save\) failed: OSError: cannot write blocked/clip in .*output: Not a directory; change filename",
    ),
    "frames without a VAE": (
        NO_VAE_GRAPH,
        r"\(node latent\) failed: ValueError: frames are connected but no vae; connect the loader's VAE",
    ),
    "more frames than there are": (
        frames_from("example_frames", num_frames=6, stride=4),
        r"\(node frames\) failed: ValueError: example_frames has 16 frames; 6 frames .*need 21\. Take fewer frames",
    ),
    "picture that cannot be read": (
        frames_from("unreadable"),
        r"\(node frames\) failed: OSError: cannot read .*unreadable/1\.png: .*replace or remove the file",
    ),
    "pictures of different sizes": (
        frames_from("mixed"),
        r"\(node frames\) failed: ValueError: 2\.png is 64x80, 0\.png is 64x64; all frames .*must have one size",
    ),
    "latents that are no numbers": (
        NAN_GRAPH,
        r"\(node decode\) failed: FloatingPointError: the latents hold NaN or infinity; sample again",
    ),
    "missing weights": (
        change(GRAPH, "loader", model="no_unet"),
        r"\(node loader\) failed: FileNotFoundError: text2video_pytorch_model\.pth is missing; looked for .*no_unet",
    ),
    "UNet of another kind": (
        change(GRAPH, "loader", model="animatediff"),
        r"\(node loader\) failed: .*animatediff/text2video_.*\.safetensors is an AnimateDiff motion module; expected",
    ),
}


def test_a_part_that_the_model_lacks_is_named_where_it_is_used(server, bad_files):
    prompt_id = server.queue(change(GRAPH, "loader", model="no_vae"))
    data = server.wait_for(prompt_id, "execution_error")
    assert data["node_id"] == "decode"
    message = "Execution Blocked: no_vae has no autoencoder; choose where it comes from at vae of Load ModelScope Video"
    assert data["exception_message"].startswith(message)
    server.wait(prompt_id)  # the UNet and the text encoder did their work


@pytest.mark.parametrize("what", BAD_INPUTS)
def test_wrong_input_is_named(server, bad_files, what):
    graph, message = BAD_INPUTS[what]
    with pytest.raises(RuntimeError, match=message):
        server.run(graph)


@pytest.fixture(scope="module")
def elsewhere(comfyui, comfy_demo, tmp_path_factory):
    """A ComfyUI without models/text2video that looks for models elsewhere, and writes no metadata."""
    base = make_base_directory(tmp_path_factory.mktemp("elsewhere") / "base")
    (base / "models" / "text2video").rmdir()
    paths = base.parent / "paths.yaml"
    paths.write_text(f"here:\n  base_path: {base.parent}\n  text2video: videos\n", encoding="utf-8")
    with start_comfyui(comfyui, base, "--disable-metadata", "--extra-model-paths-config", str(paths)) as running:
        yield running


def test_models_are_found_in_every_folder_as_they_come(elsewhere, comfy_demo):
    def models():
        return options(elsewhere, "SDVideoModelScopeLoader", "model")

    assert "IMPORT FAILED" not in elsewhere.startup_log
    assert models() == SHIPPED
    default, extra = elsewhere.base / "models" / "text2video", elsewhere.base.parent / "videos"
    default.mkdir()
    assert models() == SHIPPED
    shutil.copytree(comfy_demo, extra / "family" / "demo")
    assert models() == ["family/demo", *SHIPPED]
    (default / "near").symlink_to(comfy_demo, target_is_directory=True)
    assert models() == ["family/demo", "near", *SHIPPED]
    with pytest.raises(RuntimeError, match=r"model 'gone' is not in .*; found family/demo, near"):
        elsewhere.run(change(GRAPH, "loader", model="gone"))
    shutil.copytree(comfy_demo, extra, dirs_exist_ok=True)
    assert models() == ["family/demo", "near", "videos", *SHIPPED]
    for name in (".", "videos"):  # workflows of the first version say "."
        graph = change(GRAPH, "loader", model="near", vae=name, clip=name)
        for changed in (graph, change(GRAPH, "loader", model=name)):
            assert elsewhere.run(changed)["outputs"]["save"]["images"]
    shutil.copytree(comfy_demo, extra / "videos")
    assert models() == [".", "family/demo", "near", "videos", *SHIPPED]


@pytest.mark.parametrize("format", ["gif", "webp", "mp4", "png sequence"])
def test_without_metadata_no_file_holds_any(elsewhere, comfy_demo, format):
    model = elsewhere.base.parent / "videos" / "family" / "demo"
    shutil.copytree(comfy_demo, model, dirs_exist_ok=True)
    graph = change(change(GRAPH, "loader", model="family/demo"), "save", format=format)
    files = [
        elsewhere.view(**saved) for saved in elsewhere.run(graph, workflow={"nodes": []})["outputs"]["save"]["images"]
    ]
    assert len(files) == (4 if format == "png sequence" else 1)
    # The graph names this pack's nodes; beside it, the names under which graphs are stored.
    assert not any(word in file for file in files for word in (b"SDVideo", b"workflow", b"prompt"))
