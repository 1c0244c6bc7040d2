"""LoRA in ComfyUI: files of any format as weight patches of MODEL and CLIP."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import comfy.model_patcher
import comfy.sd
import comfy.weight_adapter
import folder_paths
import torch

from ...sdvideo_core.lora_files import read_lora
from ...sdvideo_core.lora_formats import Pair
from ...sdvideo_core.lora_layers import TEXT_BLOCKS, TEXT_EMBEDDINGS, TEXT_MODULES, Layers, Shape
from ...sdvideo_core.unet import UNetSD
from .model import ComfyUNet

FOLDER = "loras"
UNET_PREFIX, TEXT_PREFIX = "diffusion_model.", "clip_h.transformer."


def lora_names() -> list[str]:
    return folder_paths.get_filename_list(FOLDER)


def apply_lora(
    model: comfy.model_patcher.ModelPatcher,
    clip: comfy.sd.CLIP | None,
    name: str,
    strength_model: float,
    strength_clip: float,
) -> tuple[comfy.model_patcher.ModelPatcher, comfy.sd.CLIP | None]:
    """Copies of MODEL and CLIP with patches for a listed LoRA; what was applied and what not goes to the log."""
    path = Path(folder_paths.get_full_path_or_raise(FOLDER, name))
    match = read_lora(path).match(_layers(model, clip))
    logging.info("%s", match.report)
    model, clip = model.clone(), clip and clip.clone()
    if strength_model != 0:
        model.add_patches(_patches(match.unet, UNET_PREFIX), strength_model)
    if clip is not None and strength_clip != 0:
        clip.add_patches(_patches(match.text, TEXT_PREFIX), strength_clip)
    return model, clip


def _layers(model: comfy.model_patcher.ModelPatcher, clip: comfy.sd.CLIP | None) -> Layers:
    unet: Any = getattr(model.model, "diffusion_model", model.model)
    if not isinstance(unet, ComfyUNet):
        raise ValueError(
            f"model is a {type(unet).__name__}; expected one of Load ModelScope Video Model. "
            "For other models use ComfyUI's own Load LoRA"
        )
    layers = Layers.of(UNetSD(unet.config, device=torch.device("meta")))  # streamed weights have no shapes of their own
    return layers.with_text(_text_shapes(clip) if clip is not None else {})


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
