"""Live preview: while a clip is sampled, the browser gets all its frames, and how fast it goes."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable
from typing import Any

import comfy.cli_args
import torch
from comfy.latent_formats import SD15, LatentFormat
from PIL import Image
from torch import Tensor

from ...sdvideo_core.families import Family
from .browser import Reports

EVENT = "sdvideo.sampling"
FPS = 8  # which these models are made for
MAX_FRAMES, MAX_SIDE = 32, 96  # of a preview; latents are an eighth of the frames' size

Callback = Callable[[int, Tensor, Tensor, int], None]  # (index of the step, clean latents, latents, number of steps)


def latent_format(family: Family | None) -> LatentFormat:
    """Stable Diffusion's, as of the published models; with other colours for a family whose autoencoder is another."""
    latents = SD15()
    if family and family.latent_rgb_factors:
        *latents.latent_rgb_factors, latents.latent_rgb_factors_bias = map(list, family.latent_rgb_factors)
        latents.taesd_decoder_name = None  # it draws Stable Diffusion's latents
    return latents


def preview_sampling(executor: Any, *args: Any, **kwargs: Any) -> Tensor:
    """ComfyUI's outer_sample, with a callback that reports to the browser whatever the sampler is."""
    *before, callback = args[:6]  # noise, latents, sampler, sigmas, mask, callback
    latent_format = executor.class_obj.model_patcher.model.latent_format
    return executor(*before, _reporting(callback, latent_format), *args[6:], **kwargs)


def _reporting(callback: Callback | None, latent_format: LatentFormat) -> Callback:
    reports = Reports(EVENT)

    def both(index: int, x0: Tensor, x: Tensor, num_steps: int) -> None:
        if callback:
            callback(index, x0, x, num_steps)
        reports.step(index + 1, num_steps, lambda: _clip(x0, latent_format))

    return both


def _clip(x0: Tensor, latent_format: LatentFormat) -> dict[str, Any]:
    """The frames of clean latents (F, 4, h, w) as one picture of rows and columns; nothing where previews are off."""
    if comfy.cli_args.args.preview_method == comfy.cli_args.LatentPreviewMethod.NoPreviews:
        return {}
    latents = x0[0].transpose(0, 1) if x0.ndim == 5 else x0
    frames, fps = latents_to_frames(latents, latent_format), FPS / every_shown(len(latents))
    num_frames, height, width, _ = frames.shape
    columns = math.ceil(math.sqrt(num_frames))
    sheet = Image.new("RGB", (columns * width, math.ceil(num_frames / columns) * height))
    for index, frame in enumerate(frames.numpy()):
        sheet.paste(Image.fromarray(frame), (index % columns * width, index // columns * height))
    file = io.BytesIO()
    sheet.save(file, "JPEG", quality=85)
    image = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
    size = {"columns": columns, "width": width, "height": height}
    return {"sheet": {"image": image, "frames": num_frames, "fps": fps, **size}}


def every_shown(num_frames: int) -> int:
    """A preview shows every so-many-th frame of a clip."""
    return math.ceil(num_frames / MAX_FRAMES)


def latents_to_frames(latents: Tensor, latent_format: LatentFormat) -> Tensor:
    """Rough colours of latents (F, 4, h, w) -> uint8 (F, h, w, 3) on the CPU, no more and no larger than a preview."""
    latents = latents[:: every_shown(len(latents))].float()
    scale = MAX_SIDE / max(latents.shape[2:])
    if scale < 1:
        latents = torch.nn.functional.interpolate(latents, scale_factor=scale, mode="area")
    to_rgb = torch.tensor(latent_format.latent_rgb_factors, device=latents.device)  # (4, 3)
    colors = latents.movedim(1, 3) @ to_rgb
    if latent_format.latent_rgb_factors_bias is not None:
        colors += torch.tensor(latent_format.latent_rgb_factors_bias, device=latents.device)
    return colors.add(1).mul(127.5).clamp(0, 255).byte().cpu()
