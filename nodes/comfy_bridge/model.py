"""MODEL: UNetSD as a native ComfyUI model."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.conds
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import comfy.supported_models_base
import comfy.utils
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import apply_control
from torch import Tensor

from ...sdvideo_core import checkpoint
from ...sdvideo_core.blocks import to_frames, to_video
from ...sdvideo_core.config import UNetConfig
from ...sdvideo_core.families import Family, family_of, far_from_training, find_family, summary
from ...sdvideo_core.layouts import find_layout, names_of
from ...sdvideo_core.unet import UNetSD
from .attention_patches import ComfyAttention, PatchedSpatialTransformer
from .live_preview import latent_format, preview_sampling

DTYPES = [torch.float16, torch.bfloat16, torch.float32]
# Of ComfyUI's estimate of memory: what the tensors of a step take at most, at any size of video that these models are
# made for (benchmarks/sampling_memory.py). Activations are as wide as the network.
MEMORY_PER_CHANNEL = 0.8 / 320
GUIDANCE = "sdvideo_guidance"  # in transformer_options: an embedded guidance scale (dim,), as cond_proj would give it


class VideoCrossAttn(comfy.conds.CONDCrossAttn):
    """A prompt stays one row per video instead of a copy per frame, so it is projected once."""

    def process_cond(self, batch_size: int, **kwargs: Any) -> VideoCrossAttn:
        return self if self.cond.shape[0] == 1 else super().process_cond(batch_size, **kwargs)


class ModelScopeModel(comfy.model_base.BaseModel):
    def __init__(self, model_config: ModelScopeConfig, device: torch.device | None = None):
        super().__init__(model_config, comfy.model_base.ModelType.EPS, device, unet_model=ComfyUNet)

    def extra_conds(self, **kwargs: Any) -> dict[str, Any]:
        conds = super().extra_conds(**kwargs)
        if "c_crossattn" in conds:
            text = conds["c_crossattn"]
            conds["c_crossattn"] = VideoCrossAttn(text.cond)
            if "control" in kwargs:  # a ControlNet sees frames, each with its row
                conds.setdefault("crossattn_controlnet", text)
        return conds


class ModelScopeConfig(comfy.supported_models_base.BASE):
    unet_extra_config = {}  # noqa: RUF012 - the base class' way to be configured
    supported_inference_dtypes = DTYPES

    def __init__(self, unet: UNetConfig, family: Family | None):
        super().__init__({"config": unet, "model_channels": unet.dim})
        self.memory_usage_factor = MEMORY_PER_CHANNEL * unet.dim
        self.latent_format = latent_format(family)

    def get_model(self, _state_dict: Any, _prefix: str = "", device: Any = None) -> ModelScopeModel:
        return ModelScopeModel(self, device)


class ComfyUNet(UNetSD):
    """UNetSD under ComfyUI's call: frames as batch, its attention, its wrappers and patches."""

    spatial_transformer = PatchedSpatialTransformer

    def __init__(self, config: UNetConfig, dtype: Any, device: Any, operations: Any, **_: Any):
        super().__init__(config, operations, dtype=dtype, device=device)
        self.dtype = dtype

    def to(self, *args: Any, memory_format: Any = None, **named: Any) -> ComfyUNet:
        """Leaves out --force-channels-last, which torch refuses for weights of five axes: see `load_model`."""
        return super().to(*args, **named)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride] - ComfyUI's call
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Any,
        control: Any = None,
        transformer_options: Any = None,
        **_: Any,
    ) -> Tensor:
        """x: frames of one or more videos (B*F, 4, h, w), or videos (B, 4, F, h, w) -> the same shape."""
        options = {} if transformer_options is None else transformer_options
        kind = comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL
        wrappers = comfy.patcher_extension.get_all_wrappers(kind, options)
        executor = comfy.patcher_extension.WrapperExecutor.new_class_executor(self._forward, self, wrappers)
        return executor.execute(x, timesteps, context, control, options)

    def _forward(self, x: Tensor, timesteps: Tensor, context: Tensor, control: Any, options: dict[str, Any]) -> Tensor:
        if x.ndim == 5:
            return self._run_video(x, timesteps, context, control, options)
        batch = len(options.get("cond_or_uncond", (0,)))  # one chunk is one video
        video = to_video(x, (batch, len(x) // batch))
        return to_frames(self._run_video(video, timesteps, context, control, options))

    def _run_video(
        self, video: Tensor, timesteps: Tensor, context: Tensor, control: Any, options: dict[str, Any]
    ) -> Tensor:
        videos = video.shape[0], video.shape[2]
        h = to_frames(video).contiguous(memory_format=torch.channels_last)
        options |= {"original_shape": list(h.shape), "transformer_index": 0}
        cond = self.condition(h, timesteps, context, videos, ComfyAttention(options), options.get(GUIDANCE))
        skips = []
        for index, stage in enumerate(self.input_blocks):
            options["block"] = ("input", index)
            h = _patched(apply_control(stage(h, cond), control, "input"), "input_block_patch", options)
            skips.append(h)
            h = _patched(h, "input_block_patch_after_skip", options)
        options["block"] = ("middle", 0)
        h = apply_control(self.middle_block(h, cond), control, "middle")
        for index, stage in enumerate(self.output_blocks):
            options["block"] = ("output", index)
            skip = apply_control(skips.pop(), control, "output")
            for patch in _patches("output_block_patch", options):
                h, skip = patch(h, skip, options)
            h = stage(torch.cat([h, skip], dim=1), cond, skips[-1].shape[2:] if skips else (0, 0))
        return to_video(self.out(h), videos)

    def _project_guidance(self, guidance_emb: Tensor) -> Tensor:
        return guidance_emb  # projected where it was made, so that the network needs no layer that it lacks


def _patches(name: str, options: dict[str, Any]) -> list[Callable[..., Any]]:
    return options.get("patches", {}).get(name, [])


def _patched(h: Tensor, name: str, options: dict[str, Any]) -> Tensor:
    for patch in _patches(name, options):
        h = patch(h, options)
    return h


def load_model(path: str | Path, disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    """The UNet of a model folder or a file as a MODEL; dtype and placement are ComfyUI's choice."""
    management = comfy.model_management
    layout = find_layout(path)
    config, shapes, _ = checkpoint.read_network(layout, "unet", "meta")
    family = family_of(names_of(layout), config)
    device = management.get_torch_device()
    dtype = management.unet_dtype(
        model_params=sum(w.numel() for w in shapes.values()),
        supported_dtypes=DTYPES,
        weight_dtype=comfy.utils.weight_dtype(shapes),
    )
    network = checkpoint.read_network(layout, "unet", dtype=dtype)
    checkpoint.check_network("unet", network)
    weights = network.weights
    model_config = ModelScopeConfig(config, family)
    model_config.set_inference_dtype(dtype, management.unet_manual_cast(dtype, device, DTYPES))
    model = model_config.get_model(weights)
    make = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    patcher = make(model, load_device=device, offload_device=management.unet_offload_device())
    if not patcher.is_dynamic():  # which converts weights as it streams them
        # Memory of a file cannot be pinned everywhere, as ComfyUI does with weights that it streams.
        own = not management.is_device_cpu(device)
        weights = {key: weight.to(dtype, copy=own) for key, weight in weights.items()}
    model.load_model_weights(weights, assign=True)
    if management.force_channels_last() and not patcher.is_dynamic():  # which lays every weight out anew
        checkpoint.use_channels_last(model.diffusion_model)
    patcher.cached_patcher_init = (load_model, (path,))
    warn = functools.partial(_warn_far_from_training, family)
    sampling = comfy.patcher_extension.WrappersMP.OUTER_SAMPLE
    patcher.add_wrapper_with_key(sampling, "sdvideo_family", warn)
    patcher.add_wrapper_with_key(sampling, "sdvideo_preview", preview_sampling)
    patcher.add_callback_with_key(comfy.patcher_extension.CallbacksMP.ON_LOAD, "sdvideo_sampling", _keep_sampling)
    return patcher


def _keep_sampling(patcher: Any, *_: Any) -> None:
    """Leaves each kind of sampling its own sigmas.

    ComfyUI's dynamic memory puts buffers back by their names, where another object may be by then: those of one model
    sampling into another (ComfyUI issue 16490).
    """
    buffers = getattr(patcher, "backup_buffers", {})
    for key in [key for key in buffers if key.startswith("model_sampling.")]:
        del buffers[key]


def model_summary(path: str | Path) -> str:
    """Which model lies at a path, and how it is best used."""
    return summary(find_family(path))


def _warn_far_from_training(family: Family | None, executor: Any, noise: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Once per sampling, whatever the sampler: noise is (F, 4, h, w) or (B, 4, F, h, w)."""
    num_frames = noise.shape[2] if noise.ndim == 5 else len(noise)
    if warning := far_from_training(family, noise.shape[-1] * 8, noise.shape[-2] * 8, num_frames):
        logging.warning(f"SDVideo: {warning}")
    return executor(noise, *args, **kwargs)
