"""CLIP and VAE: ComfyUI's own text encoder and autoencoder, fed from a model of any known layout."""

from __future__ import annotations

import functools
from dataclasses import asdict
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.utils
import folder_paths
import torch
from comfy_execution.graph_utils import ExecutionBlocker
from torch import Tensor

from ...sdvideo_core import checkpoint
from ...sdvideo_core.config import TextConfig
from ...sdvideo_core.layouts import PARTS, find_layout

# What ComfyUI's autoencoder wants to be told beside the fields of VAEConfig.
VAE_CONSTANTS = {
    "double_z": True,
    "in_channels": 3,
    "out_ch": 3,
    "resolution": 256,
    "attn_resolutions": [],
    "dropout": 0.0,
}


Encoders = tuple[comfy.sd.CLIP | ExecutionBlocker, comfy.sd.VAE | ExecutionBlocker]


def load_encoders(model: Path, clip: Path, vae: Path) -> Encoders:
    """CLIP and VAE for a model's UNet; where it has none, and none comes from elsewhere, outputs that cannot be used.

    Raises unless they fit the UNet. Stock loaders may take the place of an output that is not used.
    """
    layout = find_layout(model)
    missing = {part for part, place in (("text encoder", clip), ("vae", vae)) if place == model} & layout.missing.keys()
    places = {"unet": model, "vae": vae, "text encoder": clip}
    found = {part: checkpoint.read_network(places[part], part, "meta").config for part in places.keys() - missing}
    checkpoint.check_parts(found["unet"], found.get("vae"), found.get("text encoder"), model)
    return (
        _blocker(model, "text encoder", "clip") if "text encoder" in missing else load_clip(clip),
        _blocker(model, "vae", "vae") if "vae" in missing else load_vae(vae),
    )


def _blocker(model: Path, part: str, widget: str) -> ExecutionBlocker:
    return ExecutionBlocker(
        f"{model.name} has no {PARTS[part]}; choose where it comes from at {widget} of Load ModelScope Video Model, "
        "or connect a stock loader"
    )


def _storable(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights in precisions that ComfyUI's CLIP and VAE take: float16 in place of 8-bit floats, which loses nothing."""
    return {key: w.half() if w.dtype.itemsize == 1 else w for key, w in weights.items()}


def load_clip(path: str | Path, disable_dynamic: bool = False) -> comfy.sd.CLIP:
    """The OpenCLIP text tower of a model or a file, of any size, as a CLIP."""
    management = comfy.model_management
    dtype = management.text_encoder_dtype(management.text_encoder_device())
    config, weights, _ = checkpoint.read_network(path, "text encoder", dtype=dtype)
    weights = _storable(weights)
    weights.setdefault("text_projection", torch.eye(config.width))  # transformers' text towers go without
    weights = comfy.utils.clip_text_transformers_convert(weights, "", "")
    clip = comfy.sd.CLIP(
        _ClipTarget(config),
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
        parameters=sum(w.numel() for w in weights.values()),
        state_dict=[weights],
        disable_dynamic=disable_dynamic,
    )
    clip.patcher.cached_patcher_init = (_clip_patcher, (path,))
    return clip


def _clip_patcher(path: str | Path, disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    return load_clip(path, disable_dynamic).patcher


class _ClipTarget:
    """ComfyUI's classes for Stable Diffusion 2's text tower, at the size of a config."""

    def __init__(self, config: TextConfig):
        text_model = functools.partial(
            comfy.sd1_clip.SDClipModel,
            layer="hidden",
            layer_idx=-2,
            special_tokens={"start": 49406, "end": 49407, "pad": 0},
            textmodel_json_config=_transformers_config(config),
        )
        tokenizer = functools.partial(
            comfy.sd1_clip.SDTokenizer,
            pad_with_end=False,
            embedding_size=config.width,
            embedding_key="clip_h",
        )
        self.clip = functools.partial(comfy.sd1_clip.SD1ClipModel, clip_name="h", clip_model=text_model)
        self.tokenizer = functools.partial(comfy.sd1_clip.SD1Tokenizer, clip_name="h", tokenizer=tokenizer)
        self.params: dict[str, Any] = {}


def _transformers_config(config: TextConfig) -> dict[str, Any]:
    return {
        "hidden_size": config.width,
        "intermediate_size": 4 * config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "max_position_embeddings": config.context_length,
        "vocab_size": config.vocab_size,
        "projection_dim": config.width,
        "hidden_act": "gelu",
        "eos_token_id": 49407,
    }


def encode_text(clip: comfy.sd.CLIP, text: str) -> list[Any]:
    """CONDITIONING of a prompt, with ComfyUI's weighting syntax."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def load_vae(path: str | Path) -> comfy.sd.VAE:
    """The autoencoder of a model or a file as a VAE."""
    network = checkpoint.read_network(path, "vae")
    checkpoint.check_network("vae", network)
    config, weights, _ = network
    shape = asdict(config) | {"ch_mult": list(config.ch_mult)} | VAE_CONSTANTS
    params = {"ddconfig": shape, "embed_dim": config.z_channels}
    vae = comfy.sd.VAE(_storable(weights), config={"params": params})
    vae.patcher.cached_patcher_init = (_vae_patcher, (path,))
    return vae


def _vae_patcher(path: str | Path, disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    vae = load_vae(path)
    if not (disable_dynamic and vae.patcher.is_dynamic()):
        return vae.patcher
    # Its own clone() would call this function. A dynamic patcher leaves weights in the precision of their file.
    model = vae.first_stage_model.to(vae.vae_dtype)
    return comfy.model_patcher.ModelPatcher(model, vae.device, vae.patcher.offload_device)


def decode_latent(vae: comfy.sd.VAE, samples: Tensor) -> Tensor:
    """Latents (F, 4, h, w) or (B, 4, F, h, w) -> IMAGE (F or B*F, H, W, 3)."""
    if not samples.numel():
        raise ValueError("the latents hold no frame; sample at least one")
    if not torch.isfinite(samples).all():
        raise FloatingPointError(
            "the latents hold NaN or infinity; sample again with a lower cfg, or start ComfyUI with --force-fp32"
        )
    return vae.decode(samples.transpose(1, 2).flatten(0, 1) if samples.ndim == 5 else samples)
