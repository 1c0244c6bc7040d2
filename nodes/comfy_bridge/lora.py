"""LoRA in ComfyUI: files of any format as weight patches of MODEL and CLIP."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any

import comfy.model_patcher
import comfy.sd
import comfy.weight_adapter
import folder_paths
import torch

from ...sdvideo_core.demo import FEW_STEPS_LORA, few_steps_lora
from ...sdvideo_core.lcm import LCM
from ...sdvideo_core.lora_files import LoRAFile, Match, read_lora
from ...sdvideo_core.lora_formats import Pair
from ...sdvideo_core.lora_layers import TEXT_BLOCKS, TEXT_EMBEDDINGS, TEXT_MODULES, Layers, Shape
from ...sdvideo_core.lora_weights import GUIDANCE_LAYER
from ...sdvideo_core.unet import UNetSD
from .lcm import remember
from .model import ComfyUNet

FOLDER = "loras"
UNET_PREFIX, TEXT_PREFIX = "diffusion_model.", "clip_h.transformer."


def lora_names() -> list[str]:
    """The files in models/loras; last the shipped one, unless another has its name."""
    names = list(folder_paths.get_filename_list(FOLDER))
    with contextlib.suppress(FileNotFoundError):  # installed without it, to save space
        names += {few_steps_lora().name}.difference(names)
    return names


def lora_path(name: str) -> Path:
    """The path of a listed LoRA."""
    path = folder_paths.get_full_path(FOLDER, name)
    if path is None and name == FEW_STEPS_LORA.name:
        return few_steps_lora()
    return Path(path or folder_paths.get_full_path_or_raise(FOLDER, name))


def apply_lora(
    model: comfy.model_patcher.ModelPatcher,
    clip: comfy.sd.CLIP | None,
    name: str,
    strength_model: float,
    strength_clip: float,
) -> tuple[comfy.model_patcher.ModelPatcher, comfy.sd.CLIP | None, str]:
    """Copies of MODEL and CLIP with patches for a listed LoRA, and what was applied and what not, which is logged too.

    The copy of MODEL also keeps how the LoRA wants to be sampled, for the nodes of LCM.
    """
    file = read_lora(lora_path(name))
    match = file.match(_layers(model, clip))
    logging.log(logging.WARNING if match.report.is_doubtful else logging.INFO, "%s", match.report)
    model, clip = model.clone(), clip and clip.clone()
    if strength_model != 0:
        _patch(model, file, match, strength_model)
    if clip is not None and strength_clip != 0:
        clip.add_patches(_patches(match.text, TEXT_PREFIX), strength_clip)
    settings = LCM.from_metadata(file.metadata)
    return model, clip, match.report.details() + (f"\nto be sampled as {settings}" if settings else "")


def _patch(model: comfy.model_patcher.ModelPatcher, file: LoRAFile, match: Match, strength: float) -> None:
    pairs = dict(match.unet)
    layer = pairs.pop(GUIDANCE_LAYER, None)  # ComfyUNet has none to patch
    model.add_patches(_patches(pairs, UNET_PREFIX), strength)
    remember(model, LCM.from_metadata(file.metadata), strength * layer.delta().float() if layer else None)


def _layers(model: comfy.model_patcher.ModelPatcher, clip: comfy.sd.CLIP | None) -> Layers:
    unet: Any = getattr(model.model, "diffusion_model", model.model)
    if not isinstance(unet, ComfyUNet):
        raise ValueError(
            f"model is a {type(unet).__name__}; expected one of Load ModelScope Video Model. "
            "For other models use ComfyUI's own Load LoRA"
        )
    like = UNetSD(unet.config, device=torch.device("meta"))  # streamed weights have no shapes of their own
    like.add_guidance_embedding()
    return Layers.of(like).with_text(_text_shapes(clip) if clip is not None else {})


def _text_shapes(clip: comfy.sd.CLIP) -> dict[str, Shape]:
    weights = clip.cond_stage_model.state_dict()
    paths = {key.removeprefix(TEXT_PREFIX).removesuffix(".weight"): key for key in weights if key.endswith(".weight")}
    ours = [path for path in paths if path in TEXT_EMBEDDINGS or _in_block(path)]
    return {path: tuple(weights[paths[path]].shape) for path in ours}


def _in_block(path: str) -> bool:
    return path.startswith(TEXT_BLOCKS) and path.removeprefix(TEXT_BLOCKS).split(".", 1)[1] in TEXT_MODULES


def _patches(pairs: dict[str, Pair], prefix: str) -> dict[str, comfy.weight_adapter.LoRAAdapter]:
    adapters = {path: (pair.up, pair.down, pair.alpha, None, None, None) for path, pair in pairs.items()}
    return {
        f"{prefix}{path}.weight": comfy.weight_adapter.LoRAAdapter(set(), weights) for path, weights in adapters.items()
    }
