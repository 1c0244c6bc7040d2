"""Formats in ComfyUI: one small model in several layouts, as native MODEL, CLIP and VAE, makes one video."""

import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdvideo_core.config import ModelConfig
from sdvideo_core.convert import convert
from sdvideo_core.state_dict import read_state_dict
from tests.unit.small_model import save_diffusers, their_model

ENDINGS = ["a.bin", "b.sft", "c.SAFETENSORS", "d.ckpt", "e.pt"]
LONE = "lone/diffusion_pytorch_model.safetensors"
WAYS = {
    "original": ("zeroscope_v2_576w", {}),
    "diffusers": ("family/checkpoint-100", {}),
    "UNet alone": (LONE, {"vae": "family/checkpoint-100", "clip": "zeroscope_v2_576w"}),
    "files of ComfyUI's folders": (
        LONE,
        {"vae": "vae/one.safetensors", "clip": "text_encoders/one.bin"},
    ),
    "Stable Diffusion 2 checkpoint": (
        LONE,
        {"vae": "checkpoints/sd2.safetensors", "clip": "checkpoints/sd2.safetensors"},
    ),
}


@pytest.fixture(scope="module")
def models(comfy_base):
    """The same weights in every way."""
    root = comfy_base / "models" / "text2video"
    parts = their_model()
    diffusers = save_diffusers(root / "family" / "checkpoint-100", parts)
    original = root / "zeroscope_v2_576w"
    convert(diffusers, original, "modelscope")
    (root / "lone").mkdir()
    convert(original, root / LONE, "safetensors")
    shutil.copyfile(diffusers / "unet" / "config.json", root / "lone" / "config.json")
    for folder in ("vae", "text_encoders", "checkpoints"):
        (comfy_base / "models" / folder).mkdir(exist_ok=True)
    shutil.copyfile(
        diffusers / "vae" / "diffusion_pytorch_model.safetensors", comfy_base / "models/vae/one.safetensors"
    )
    shutil.copyfile(original / "open_clip_pytorch_model.bin", comfy_base / "models/text_encoders/one.bin")
    vae, text = (read_state_dict(original / name) for name in (ModelConfig.vae_file, ModelConfig.text_file))
    text = {f"cond_stage_model.model.{key}": value.clone() for key, value in text.items()}
    save_file(vae | text, comfy_base / "models/checkpoints/sd2.safetensors")
    shutil.copytree(diffusers, root / "family" / "without_vae", ignore=shutil.ignore_patterns("vae"))
    (root / "zs2_XL").mkdir()
    for name in ("configuration.json", ModelConfig.unet_file):
        shutil.copyfile(original / name, root / "zs2_XL" / name)
    parts["unet"].save_pretrained(root / "sharded", max_shard_size="1MB")
    (root / "endings").mkdir()
    for name in ENDINGS:
        (root / "endings" / name).touch()
    eighth = shutil.copytree(diffusers, root / "fp8")
    for part in ("unet", "text_encoder", "vae"):
        [file] = (eighth / part).glob("*.safetensors")
        save_file({key: value.to(torch.float8_e4m3fn) for key, value in load_file(file).items()}, file)
    half = shutil.copytree(eighth, root / "fp8_as_fp16")
    for part in ("unet", "text_encoder", "vae"):
        [file] = (half / part).glob("*.safetensors")
        save_file({key: value.half() for key, value in load_file(file).items()}, file)
    folder = Path(shutil.copytree(diffusers / "text_encoder", comfy_base / "variants"))
    weights = load_file(folder / "model.safetensors")
    save_file({key: value.half() for key, value in weights.items()}, folder / "model.fp16.safetensors")
    save_file({key: torch.zeros_like(value) for key, value in weights.items()}, folder / "model.safetensors")
    folder = Path(shutil.copytree(diffusers / "unet", comfy_base / "unet_variants"))
    weights = load_file(folder / "diffusion_pytorch_model.safetensors")
    half = {key: value.half() for key, value in weights.items()}
    save_file(half, folder / "diffusion_pytorch_model.fp16.safetensors")
    zeros = {key: torch.zeros_like(value) for key, value in weights.items()}
    save_file(zeros, folder / "diffusion_pytorch_model.safetensors")
    return root


def unet_in_comfy(folder):
    """A weight of a UNet where ComfyUI wants it in float32, and in float16 as it does on a GPU."""
    from comfy.cli_args import args
    from sdvideo.nodes.comfy_bridge.model import load_model

    found = {}
    for name, args.fp16_unet in (("float32", False), ("float16", True)):
        found[name] = load_model(folder).model.diffusion_model.out[2].weight
    return found


def text_in_comfy(folder):
    """What a text encoder gives where ComfyUI wants it in float32, and in float16 as it does by default."""
    from comfy.cli_args import args
    from sdvideo.nodes.comfy_bridge.encoders import encode_text, load_clip

    found = {}
    for name, args.fp32_text_enc in (("float16", False), ("float32", True)):
        found[name] = encode_text(load_clip(folder), "a red circle")[0][0]
    return found


def load_in_comfy(ways):
    from sdvideo.nodes.comfy_bridge.folders import model_directories, model_directory, part_names

    from tests.comfy import called_nodes as calls

    logged = []
    handler = logging.Handler()
    handler.emit = lambda record: logged.append(record.getMessage())
    logging.getLogger().addHandler(handler)
    found = {"listed": list(model_directories()), "errors": {}}
    found |= {f"listed for {part}": part_names(part, ["a model"]) for part in ("vae", "clip")}
    for name, (model, parts) in {**ways, "fp8": ("fp8", {}), "fp16": ("fp8_as_fp16", {})}.items():
        loaded = calls.load(model, **parts)
        logged.clear()
        samples = calls.sample(loaded[0], calls.encode(loaded[1]), calls.empty(), cfg=3.0)
        found[name] = calls.call("SDVideoVAEDecode", {"samples": samples}, loaded[2])[0]
        found[f"log of {name}"] = [line for line in logged if line.startswith("SDVideo:")]
    found["info"] = calls.call("SDVideoModelScopeLoader", "zeroscope_v2_576w")[3]
    model, clip, vae = calls.load(LONE)
    found["blocked"] = [clip.message, vae.message]
    clip, vae = calls.load("zs2_XL")[1:]
    found["blocked of a folder"] = [clip.message, vae.message]
    clip, vae = calls.load("family/without_vae")[1:]
    found["blocked of a folder of diffusers"] = [type(clip).__name__, vae.message]
    found["sharded"] = calls.load("sharded")[0].model.diffusion_model.out[2].weight
    found["whole"] = calls.load(LONE)[0].model.diffusion_model.out[2].weight
    samples = calls.sample(model, calls.encode(calls.load("zeroscope_v2_576w")[1]), calls.empty(), cfg=3.0)
    found["UNet with stock loaders"] = samples
    old = model_directory(LONE).parents[1] / "text2video_pytorch_model.pth"
    old.touch()  # where the pack of 2024 had it
    found["named by its file"] = model_directory(old.name).name
    old.unlink()
    for name, parts in (
        ("strange vae", {"vae": "../one"}),
        ("wrong vae", {"vae": "text_encoders/one.bin"}),
    ):
        try:
            calls.load(LONE, **parts)
        except (FileNotFoundError, ValueError) as error:
            found["errors"][name] = str(error)
    return found


@pytest.fixture(scope="module")
def found(in_comfy, models):
    return in_comfy(load_in_comfy, ways=WAYS)


def test_folders_and_files_are_listed_and_their_parts_are_not(found):
    names = {"zeroscope_v2_576w", "family/checkpoint-100", LONE, "fp8", "fp8_as_fp16"}
    assert names <= set(found["listed"])
    assert not [name for name in found["listed"] if name.endswith((".safetensors", ".pth")) and name not in names]


@pytest.mark.parametrize("part", ["vae", "clip"])
def test_a_part_may_come_from_the_model_another_model_or_a_checkpoint(found, part):
    listed = found[f"listed for {part}"]
    assert listed[:2] == ["the model's own", "a model"]
    assert "checkpoints/sd2.safetensors" in listed


def test_the_float16_variant_of_a_text_encoder_is_read_where_comfyui_wants_float16(in_comfy, comfy_base, models):
    found = in_comfy(text_in_comfy, folder=str(comfy_base / "variants"))
    assert found["float16"].any()
    assert not found["float32"].any()


def test_the_float16_variant_of_a_unet_is_read_where_comfyui_wants_float16(in_comfy, comfy_base, models):
    found = in_comfy(unet_in_comfy, folder=str(comfy_base / "unet_variants"))
    assert (found["float16"].dtype, found["float32"].dtype) == (torch.float16, torch.float32)
    assert found["float16"].any()
    assert not found["float32"].any()


@pytest.mark.parametrize("way", [name for name in WAYS if name != "original"])
def test_every_way_makes_the_same_video(found, way):
    assert found["original"].std() > 0.01
    torch.testing.assert_close(found[way], found["original"], rtol=0, atol=1e-5)


def test_eight_bit_storage_is_that_of_the_same_values_in_sixteen(found):
    torch.testing.assert_close(found["fp8"], found["fp16"], rtol=0, atol=1e-4)


def test_a_length_far_from_training_is_warned_of_where_the_name_tells_the_model(found):
    [warning] = found["log of original"]
    assert "ZeroScope v2 576w (by its name) is asked for 64x64 pixels, trained on 576x320 and for 4 frames" in warning
    assert found["log of diffusers"] == []


def test_the_loader_tells_what_the_model_is(found):
    assert found["info"].startswith(
        "ZeroScope v2 576w, by its name. Trained on 576x320, 24 frames (huggingface.co/cerspense/zeroscope_v2_576w). "
        "Suggested: 50 steps, cfg 9, 8 frames per second (the defaults of ModelScope's pipeline)."
    )


def test_a_unet_alone_is_a_model_and_its_missing_parts_say_where_they_may_come_from(found):
    name = Path(LONE).name
    assert found["blocked"] == [
        f"{name} has no {part}; choose where it comes from at {widget} of Load ModelScope Video Model, or "
        "connect a stock loader"
        for part, widget in (("OpenCLIP text tower", "clip"), ("autoencoder", "vae"))
    ]
    assert torch.isfinite(found["UNet with stock loaders"]).all()


def test_a_folder_without_a_part_is_a_model_just_as_well(found):
    remedy = "of Load ModelScope Video Model, or connect a stock loader"
    assert found["blocked of a folder"] == [
        f"zs2_XL has no OpenCLIP text tower; choose where it comes from at clip {remedy}",
        f"zs2_XL has no autoencoder; choose where it comes from at vae {remedy}",
    ]
    vae = f"without_vae has no autoencoder; choose where it comes from at vae {remedy}"
    assert found["blocked of a folder of diffusers"] == ["CLIP", vae]


def test_a_unet_in_shards_is_listed_as_its_folder(found):
    assert [name for name in found["listed"] if name.startswith("sharded")] == ["sharded"]
    assert torch.equal(found["sharded"], found["whole"])


def test_files_of_every_ending_are_listed(found):
    assert [name for name in found["listed"] if name.startswith("endings")] == [f"endings/{name}" for name in ENDINGS]


def test_a_unet_right_in_the_models_folder_goes_by_the_name_older_graphs_have(found):
    assert found["named by its file"] == "text2video_pytorch_model.pth"


def test_what_cannot_be_used_is_named(found):
    errors = found["errors"]
    assert errors["strange vae"].startswith("model '../one' is not in ")
    assert errors["wrong vae"].startswith("model 'text_encoders/one.bin' is not in ")
