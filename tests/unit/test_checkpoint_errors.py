"""Checkpoints that cannot be loaded: each says what the file is or lacks, and nothing in it ever runs."""

import json
import os
import pickle
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from sdvideo_core import SDVideo, demo_model
from sdvideo_core.checkpoint import (
    CheckpointError,
    load_text_encoder,
    load_unet,
    load_vae,
    read_config,
    read_state_dict,
    what_is,
)
from sdvideo_core.config import ModelConfig, VAEConfig
from sdvideo_core.layouts import ELSEWHERE
from sdvideo_core.vae import AutoencoderKL

UNET, VAE, TEXT = ModelConfig.unet_file, ModelConfig.vae_file, ModelConfig.text_file
PARTS = {UNET: "unet", VAE: "vae", TEXT: "text encoder"}
LOADERS = {UNET: load_unet, VAE: load_vae, TEXT: load_text_encoder}
CONFIG = "configuration.json"


@pytest.fixture
def model_dir(demo_model_dir: Path, tmp_path: Path) -> Path:
    """A copy of the demo model, for one test to change."""
    return Path(shutil.copytree(demo_model_dir, tmp_path / "model"))


def exactly(text: str) -> str:
    return f"^{re.escape(text)}$"


def starting(text: str) -> str:
    return f"^{re.escape(text)}"


def zeros(*keys: str) -> dict[str, Tensor]:
    return {key: torch.zeros(2, 2) for key in keys}


def unwrapped(path: Path) -> dict[str, Tensor]:
    content = torch.load(path, weights_only=True)
    return content.get("state_dict", content)


def test_missing_directory(tmp_path):
    path = tmp_path / "nowhere"
    with pytest.raises(
        FileNotFoundError, match=exactly(f"{path} is not a directory; expected one with {CONFIG} and weights")
    ):
        read_config(path)


def test_missing_configuration(tmp_path):
    path = tmp_path / CONFIG
    message = f"{path} is missing; copy the {CONFIG} that belongs to the model there"
    with pytest.raises(FileNotFoundError, match=exactly(message)):
        read_config(tmp_path)


BAD_CONFIGURATIONS = [
    ("", "is empty; download it again"),
    ("\n <!DOCTYPE html>\n<html>", "is a web page, not JSON; download the raw file instead of its page"),
    ('{"model": ', "is not valid JSON: Expecting value: line 1 column 10 (char 9); download it again"),
    ("\xff\xfe", "is not valid JSON: Expecting value: line 1 column 1 (char 0); download it again"),
    ("[1, 2]", "holds a list; expected a JSON object"),
    ("{}", "has no model.model_cfg; expected ModelScope's configuration.json"),
    ('{"model": "x"}', "has no model.model_cfg; expected ModelScope's configuration.json"),
    ('{"model": {"model_cfg": null}}', "has no model.model_cfg; expected ModelScope's configuration.json"),
    (
        '{"model": {"model_cfg": {"unet_dim": "wide"}}}',
        "has a value of the wrong kind: invalid literal for int() with base 10: 'wide'; download it again",
    ),
    (
        '{"model": {"model_cfg": {"unet_dim_mult": 4}}}',
        "has a value of the wrong kind: 'int' object is not iterable; download it again",
    ),
    (
        '{"model": {"model_cfg": {}, "model_args": [1]}}',
        "has a value of the wrong kind: 'list' object has no attribute 'get'; download it again",
    ),
]


@pytest.mark.parametrize(("text", "message"), BAD_CONFIGURATIONS)
def test_bad_configuration(tmp_path, text, message):
    path = tmp_path / CONFIG
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=exactly(f"{path} {message}")):
        read_config(tmp_path)


@pytest.mark.parametrize("value", ["False", False, 0, None])
def test_models_without_temporal_attention_are_refused(tmp_path, value):
    (tmp_path / CONFIG).write_text(json.dumps({"model": {"model_cfg": {"temporal_attention": value}}}))
    with pytest.raises(CheckpointError, match="says temporal_attention is false; only models with it are supported"):
        read_config(tmp_path)


@pytest.mark.parametrize("name", LOADERS)
def test_missing_weights_are_named_with_where_they_were_looked_for(model_dir, name):
    (model_dir / name).unlink()
    message = f"{name} is missing; looked for {model_dir / name} and its .safetensors twin. Put the file there"
    with pytest.raises(FileNotFoundError, match=exactly(message + ELSEWHERE[PARTS[name]])):
        LOADERS[name](model_dir)


@pytest.mark.parametrize(
    ("named", "expected"), [({}, [VAE, TEXT]), ({"text_encoder": demo_model()}, [VAE]), ({"vae": demo_model()}, [TEXT])]
)
def test_all_that_is_nowhere_is_told_at_once(model_dir, named, expected):
    for name in (VAE, TEXT):
        (model_dir / name).unlink()
    with pytest.raises(FileNotFoundError) as raised:
        SDVideo(model_dir, **named)
    assert re.findall(r"looked for (\S+) and", str(raised.value)) == [str(model_dir / name) for name in expected]


def unreadable(path: Path) -> str:
    size = path.stat().st_size
    return f"{path} cannot be read ({size} bytes): it is damaged, cut short or no file of weights. Download it again."


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.999])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_truncated_files(tmp_path, kind, keep):
    path = tmp_path / ("model.safetensors" if kind == "safetensors" else "model.pth")
    weights = {"a": torch.ones(100, 100), "b": torch.ones(100)}
    if kind == "safetensors":
        safetensors.torch.save_file(weights, path)
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=kind == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    with pytest.raises(CheckpointError, match=exactly(unreadable(path))):
        read_state_dict(path)


@pytest.mark.parametrize("legacy", [False, True])
def test_damage_anywhere_is_a_checkpoint_error(tmp_path, legacy):
    path = tmp_path / "model.pth"
    torch.save(zeros("a.weight", "b.bias"), path, _use_new_zipfile_serialization=not legacy)
    content, rng = path.read_bytes(), random.Random(0)
    refused = 0
    for _ in range(200):
        damaged = bytearray(content)
        damaged[rng.randrange(min(len(content), 700))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            read_state_dict(path)
        except CheckpointError:
            refused += 1
    assert refused > 50


class Bomb:
    """Pickled, it is a command for whoever unpickles it."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"mkdir {self.marker}",)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_pickle_never_runs(tmp_path, legacy):
    path, marker = tmp_path / "model.pth", tmp_path / "marker"
    content = {"state_dict": zeros("a"), "callbacks": Bomb(marker)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    message = f"{path} holds more than weights ({os.system.__module__}.system) and was not opened"
    with pytest.raises(CheckpointError, match=starting(message)):
        read_state_dict(path)
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists()  # it does run for those who let it


def test_code_in_a_bare_pickle_never_runs(tmp_path):
    path, marker = tmp_path / "model.pth", tmp_path / "marker"
    path.write_bytes(pickle.dumps(Bomb(marker), protocol=2))
    with pytest.raises(CheckpointError, match=starting(f"{path} ")):
        read_state_dict(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "holds no named tensors; expected a checkpoint of named weights"),
        ({"epoch": 1}, "holds no named tensors; expected a checkpoint of named weights"),
        (torch.zeros(2), "holds no named tensors; expected a checkpoint of named weights"),
        (
            [torch.zeros(2), torch.zeros(2)],
            "holds a list, such as a LoRA in cloneofsimo's format; expected a checkpoint of named weights",
        ),
    ],
)
def test_no_named_weights(tmp_path, content, message):
    path = tmp_path / "model.pth"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=exactly(f"{path} {message}")):
        read_state_dict(path)


OTHER_FILES = [
    ("model.diffusion_model.input_blocks.1.0.in_layers.0.weight", "a Stable Diffusion checkpoint (an image model)"),
    ("down_blocks.0.motion_modules.0.temporal_transformer.norm.weight", "an AnimateDiff motion module"),
    ("conditioner.embedders.1.model.ln_final.weight", "a Stable Diffusion XL checkpoint (an image model)"),
    ("first_stage_model.decoder.mid.block_1.time_stack.norm1.bias", "a Stable Video Diffusion checkpoint"),
    ("lora_unet_input_blocks_0_1_proj_in.lora_down.weight", "a LoRA"),
    ("unet.transformer_in.proj_in.lora_A.weight", "a LoRA"),
    ("transformer_in.proj_in.weight", "a UNet in diffusers' format"),
    ("down_blocks.0.resnets.0.norm1.weight", "an image UNet in diffusers' format"),
    ("decoder.up_blocks.0.resnets.0.norm1.weight", "an autoencoder in diffusers' format"),
    ("input_blocks.1.0.in_layers.0.weight", "an image UNet"),
    ("input_blocks.0.1.proj_in.weight", "a ModelScope UNet"),
    ("first_stage_model.decoder.conv_in.weight", "a checkpoint with an autoencoder"),
    ("decoder.up.0.block.0.conv1.weight", "an autoencoder"),
    ("transformer.resblocks.0.ln_1.weight", "an OpenCLIP model"),
    ("text_model.encoder.layers.0.layer_norm1.weight", "a CLIP text model in transformers' format"),
    ("fc.weight", "unknown (its first tensor is fc.weight)"),
]
KINDS = {
    UNET: (["a ModelScope UNet", "a UNet in diffusers' format"], "UNet"),
    VAE: (
        ["an autoencoder", "a checkpoint with an autoencoder", "an autoencoder in diffusers' format"],
        "autoencoder",
    ),
    TEXT: (["an OpenCLIP model", "a CLIP text model in transformers' format"], "OpenCLIP text tower"),
}


@pytest.mark.parametrize(("key", "what"), OTHER_FILES, ids=[what for _, what in OTHER_FILES])
def test_files_are_known_by_their_keys(key, what):
    assert what_is([key]) == what


MIXED_UP = [
    pytest.param(name, key, what, id=f"{what} as {kind}")
    for name, (own, kind) in KINDS.items()
    for key, what in OTHER_FILES
    if what not in own
]


@pytest.mark.parametrize(("name", "key", "what"), MIXED_UP)
def test_another_file_in_place_of_ours(model_dir, name, key, what):
    path, kind = model_dir / name, KINDS[name][1]
    torch.save(zeros(key), path)
    with pytest.raises(CheckpointError, match=exactly(f"{path} is {what}; expected a ModelScope {kind}")):
        LOADERS[name](model_dir)


PICKED = {
    UNET: "middle_block.3.temopral_conv.conv4.3.weight",
    VAE: "first_stage_model.decoder.mid.attn_1.q.weight",
    TEXT: "transformer.resblocks.1.mlp.c_fc.weight",
}


@pytest.mark.parametrize(("name", "key"), PICKED.items())
def test_missing_key_is_named(model_dir, name, key):
    weights = unwrapped(model_dir / name)
    del weights[key]
    torch.save(weights, model_dir / name)
    own = key.removeprefix("first_stage_model.")
    message = f"{model_dir / name} does not fit its model (1 keys): {own} is missing"
    with pytest.raises(CheckpointError, match=exactly(message)):
        LOADERS[name](model_dir)


@pytest.mark.parametrize(("name", "key"), PICKED.items())
def test_unexpected_key_is_named(model_dir, name, key):
    key = key.replace("weight", "extra")
    torch.save(unwrapped(model_dir / name) | zeros(key), model_dir / name)
    own = key.removeprefix("first_stage_model.")
    message = f"{model_dir / name} does not fit its model (1 keys): {own} is not part of the model"
    with pytest.raises(CheckpointError, match=exactly(message)):
        LOADERS[name](model_dir)


@pytest.mark.parametrize(("name", "key"), PICKED.items())
def test_wrong_shape_is_named_with_both_shapes(model_dir, name, key):
    weights = unwrapped(model_dir / name)
    shape = tuple(weights[key].shape)
    torch.save(weights | {key: weights[key][:3]}, model_dir / name)
    own = key.removeprefix("first_stage_model.")
    problem = f"{own} has shape {(3, *shape[1:])}, expected {shape}"
    with pytest.raises(
        CheckpointError, match=exactly(f"{model_dir / name} does not fit its model (1 keys): {problem}")
    ):
        LOADERS[name](model_dir)


def test_every_wrong_key_is_named(model_dir):
    weights = unwrapped(model_dir / UNET)
    gone = [key for key in weights if key.startswith("out.")]
    kept = {key: value for key, value in weights.items() if key not in gone}
    torch.save(kept | zeros("ema.decay"), model_dir / UNET)
    with pytest.raises(CheckpointError) as caught:
        load_unet(model_dir)
    problems = [f"{key} is missing" for key in gone] + ["ema.decay is not part of the model"]
    assert str(caught.value).endswith(f"(5 keys): {'; '.join(problems)}")


@pytest.mark.parametrize(
    ("name", "gone"),
    [
        (VAE, "encoder.conv_in.weight"),
        (VAE, "encoder.down.2.block.0.conv2.weight"),
        (TEXT, "token_embedding.weight"),
        (TEXT, "positional_embedding"),
    ],
)
def test_missing_key_that_tells_the_shape_is_named(model_dir, name, gone):
    weights = {key: value for key, value in unwrapped(model_dir / name).items() if not key.endswith(gone)}
    torch.save(weights, model_dir / name)
    with pytest.raises(CheckpointError, match=exactly(f"{model_dir / name} lacks {gone}; download it again")):
        LOADERS[name](model_dir)


@pytest.mark.parametrize(("levels", "factor"), [(3, 4), (5, 16)])
def test_autoencoders_of_other_factors_are_refused(model_dir, levels, factor):
    torch.save(AutoencoderKL(VAEConfig(32, (1,) * levels, 1)).state_dict(), model_dir / VAE)
    message = f"{model_dir / VAE} is an autoencoder that shrinks frames by {factor}; expected 8, as ModelScope's"
    with pytest.raises(CheckpointError, match=exactly(message)):
        load_vae(model_dir)
