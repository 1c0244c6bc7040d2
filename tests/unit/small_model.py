"""A small model in every layout: diffusers' and transformers' own classes define theirs, and save them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet3DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from sdvideo_core.checkpoint import LOADERS
from sdvideo_core.config import ModelConfig, TextConfig, UNetConfig, VAEConfig
from sdvideo_core.configuration import CONFIG_NAME, configuration

Weights = dict[str, Tensor]
THEIR_FILES = {
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "text encoder": "text_encoder/model.safetensors",
}

# As diffusers has it: 8 heads in the first temporal transformer, whatever the width.
UNET = UNetConfig(dim=32, context_dim=64, dim_mult=(1, 2), num_heads=8, head_dim=16, res_blocks=1, attn_scales=(1.0,))
VAE = VAEConfig(ch=32, ch_mult=(1, 1, 1, 2), num_res_blocks=1)
TEXT = TextConfig(width=64, layers=3, heads=1)


def their_unet(dim: int = 32) -> UNet3DConditionModel:
    return UNet3DConditionModel(
        sample_size=32,
        block_out_channels=(dim, 2 * dim),
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        layers_per_block=1,
        cross_attention_dim=64,
        attention_head_dim=16,
    )


def their_vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(32, 32, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
    )


def their_text_encoder(layers: int = 2) -> CLIPTextModel:
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": layers, "num_attention_heads": 1}
    tokens = {"bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 0}
    return CLIPTextModel(CLIPTextConfig(hidden_act="gelu", **sizes, **tokens))


def their_model() -> dict[str, Any]:
    """unet, vae and text_encoder with random weights, none of them zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = {"unet": their_unet(), "vae": their_vae(), "text_encoder": their_text_encoder()}
        for module in parts.values():
            for parameter in module.eval().requires_grad_(False).parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return parts


def save_diffusers(folder: Path, parts: dict[str, Any], **options: Any) -> Path:
    """Saves the parts as diffusers and transformers do; options are those of save_pretrained."""
    for name, module in parts.items():
        module.save_pretrained(folder / name, **options)
    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    DDIMScheduler(**betas, steps_offset=1).save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "TextToVideoSDPipeline"}))
    return folder


def change(path: Path, change_weights: Callable[[Weights], Weights], target: Path | None = None) -> None:
    """Rewrites a file, or writes another, with changed weights; by its suffix as safetensors or a pickle."""
    weights = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    target = target or path
    weights = {key: value.clone().contiguous() for key, value in change_weights(weights).items()}
    if target != path:
        path.unlink()
    save_file(weights, target) if target.suffix == ".safetensors" else torch.save(weights, target)


def renamed(path: Path, rename: Callable[[str], str], target: Path | None = None) -> None:
    change(path, lambda weights: {rename(key): value for key, value in weights.items()}, target)


def assert_same(path: Path, loaded: dict[str, Weights], parts=tuple(LOADERS)) -> None:
    for part in parts:
        found = LOADERS[part](path).state_dict()
        assert found.keys() == loaded[part].keys()
        assert [key for key in found if not torch.equal(found[key], loaded[part][key])] == []


def say_heads(folder: Path) -> None:
    """Writes the JSON that says how wide the heads of so small a UNet are."""
    (folder / CONFIG_NAME).write_text(json.dumps(configuration(ModelConfig(unet=UNET))))


def put_beside_nothing(original_dir: Path, tmp_path: Path, name: str = "zeroscope_v1_320s.pth") -> Path:
    """A UNet's file alone, with the JSON that says how wide the heads of so small a model are."""
    shutil.copyfile(original_dir / ModelConfig.unet_file, tmp_path / name)
    say_heads(tmp_path)
    return tmp_path / name
