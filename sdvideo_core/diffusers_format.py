"""diffusers' format: a network's weights under the names and in the shapes of diffusers and transformers, and back.

Nothing is copied but the text tower's queries, keys and values, which ModelScope's files hold as one tensor.
Names that are in no map stay as they are, to be named by whoever checks the weights.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from .config import TextConfig, UNetConfig, VAEConfig
from .key_maps import (
    TEXT_QKV,
    VAE_OLD_ATTENTION,
    Modules,
    diffusers_modules,
    inverted,
    renamed,
    text_modules,
    vae_modules,
)
from .state_dict import StateDict

TEXT_PREFIX = "text_model."
WHOLE_TOWER = TextConfig().layers  # of ViT-H-14, the text tower of every published model
# Projections of transformers: Conv1d of kernel size 1 in time, Linear in space; diffusers has Linear for both.
TEMPORAL_PROJECTION = re.compile(r"(^input_blocks\.0\.1|blocks\.\d+\.2|^middle_block\.2)\.proj_(in|out)\.weight$")
SPATIAL_PROJECTION = re.compile(r"(blocks\.[1-9]\d*\.1|^output_blocks\.0\.1|^middle_block\.1)\.proj_(in|out)\.weight$")
VAE_ATTENTION = re.compile(r"\.mid\.attn_1\.(q|k|v|proj_out)\.weight$")
OLD_ATTENTION = re.compile(r"(?<=mid_block\.attentions\.0\.)(query|key|value|proj_attn)(?=\.)")
IN_PROJ = re.compile(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)$")


def _rename(weights: StateDict, modules: Modules) -> StateDict:
    return {renamed(key, modules) or key: value for key, value in weights.items()}


def count(weights: StateDict, prefix: str) -> int:
    """How many numbered modules there are below a prefix."""
    return len({key[len(prefix) :].split(".")[0] for key in weights if key.startswith(prefix)})


def shape_projection(key: str, weight: Tensor) -> Tensor:
    """A UNet's projection in the shape of ModelScope's files, also out of one re-saved as a 1x1 convolution."""
    if TEMPORAL_PROJECTION.search(key):
        return weight.reshape(*weight.shape[:2], 1) if _is_pointwise(weight) else weight
    if SPATIAL_PROJECTION.search(key):
        return weight.reshape(weight.shape[:2]) if _is_pointwise(weight) else weight
    return weight


def _is_pointwise(weight: Tensor) -> bool:
    return weight.ndim >= 2 and all(side == 1 for side in weight.shape[2:])


def unet_to_diffusers(weights: StateDict, config: UNetConfig) -> StateDict:
    """UNetSD's weights as those of UNet3DConditionModel."""
    flat = {k: w.squeeze(2) if TEMPORAL_PROJECTION.search(k) and w.ndim == 3 else w for k, w in weights.items()}
    return _rename(flat, diffusers_modules(config))


def unet_from_diffusers(weights: StateDict) -> StateDict:
    """UNet3DConditionModel's weights as UNetSD's, for any number of levels and blocks."""
    levels = count(weights, "down_blocks.")
    names = UNetConfig(
        dim_mult=(1,) * levels,
        res_blocks=count(weights, "down_blocks.0.resnets."),
        attn_scales=tuple(0.5**i for i in range(levels) if count(weights, f"down_blocks.{i}.attentions.")),
    )
    return _rename(weights, inverted(diffusers_modules(names)))


def vae_to_diffusers(weights: StateDict, config: VAEConfig) -> StateDict:
    """An autoencoder's weights as those of diffusers' AutoencoderKL; its attention there is made of Linear layers."""
    flat = {k: w.reshape(w.shape[:2]) if VAE_ATTENTION.search(k) else w for k, w in weights.items()}
    return _rename(flat, vae_modules(config))


def vae_from_diffusers(weights: StateDict) -> StateDict:
    """AutoencoderKL's weights of any version of diffusers as latent diffusion's."""
    levels, blocks = count(weights, "encoder.down_blocks."), count(weights, "encoder.down_blocks.0.resnets.")
    modules = inverted(vae_modules(VAEConfig(ch_mult=(1,) * levels, num_res_blocks=blocks)))
    new = {OLD_ATTENTION.sub(lambda old: VAE_OLD_ATTENTION[old[0]], key): value for key, value in weights.items()}
    ours = _rename(new, modules)
    return {k: w[:, :, None, None] if VAE_ATTENTION.search(k) and w.ndim == 2 else w for k, w in ours.items()}


def text_to_transformers(weights: StateDict, config: TextConfig) -> StateDict:
    """A text tower's weights as those of a CLIPTextModel whose last layer is the tower's penultimate one."""
    modules, theirs = text_modules(config.layers - 1), {}
    for key, weight in weights.items():
        if (block := IN_PROJ.match(key)) and int(block[1]) < config.layers - 1:
            names = [f"{TEXT_PREFIX}encoder.layers.{block[1]}.{name}.{block[2]}" for name in TEXT_QKV]
            theirs |= zip(names, weight.chunk(3), strict=True)
        elif name := renamed(key, modules):
            theirs[TEXT_PREFIX + name] = weight
    return theirs


def text_from_transformers(weights: StateDict) -> StateDict:
    """CLIPTextModel's weights (less `text_model.`) as OpenCLIP's, with a last block that never runs.

    In a folder of diffusers the tower ends with its penultimate block, and all that is left runs; so one block is
    added, of zeros, which hands on what it is given. As many blocks as ViT-H-14 has are the whole tower, as LAION
    publishes it, and stay as they are.
    """
    layers = count(weights, "encoder.layers.")
    ours = _rename(weights, inverted(text_modules(layers)))
    for layer in range(layers):
        for kind in ("weight", "bias"):
            names = [f"encoder.layers.{layer}.{name}.{kind}" for name in TEXT_QKV]
            if all(name in ours for name in names):
                ours[_in_proj(layer, kind)] = torch.cat([ours.pop(name) for name in names])
    ours.pop("embeddings.position_ids", None)  # which transformers saved before version 4.31
    if layers >= WHOLE_TOWER:
        return ours
    first = "transformer.resblocks.0."
    block = {key: value for key, value in ours.items() if key.startswith(first)}
    last = {f"transformer.resblocks.{layers}.{k.removeprefix(first)}": v.new_zeros(v.shape) for k, v in block.items()}
    return ours | last


def _in_proj(layer: int, kind: str) -> str:
    return f"transformer.resblocks.{layer}.attn.in_proj_{kind}"
