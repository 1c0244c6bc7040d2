"""Sampling: core's DDIM inside ComfyUI's machinery of noise, masks, guidance, previews and interrupts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from torch import Tensor

from ...sdvideo_core.ddim import eps_of_denoiser, sample_ddim
from ...sdvideo_core.schedule import NoiseSchedule


def empty_latent(width: int, height: int, num_frames: int) -> Tensor:
    """LATENT (F, 4, height / 8, width / 8) of nothing."""
    if num_frames < 1:  # ComfyUI checks no bounds of what comes through a link
        raise ValueError(f"num_frames={num_frames}; a video has at least 1 frame, set it to 16")
    device, dtype = comfy.model_management.intermediate_device(), comfy.model_management.intermediate_dtype()
    return torch.zeros(num_frames, 4, height // 8, width // 8, device=device, dtype=dtype)


@dataclass(frozen=True)
class DDIMSettings:
    seed: int
    steps: int
    cfg: float
    eta: float
    denoise: float


class DDIM(comfy.samplers.KSAMPLER):
    """Core's DDIM as a SAMPLER: the steps, the last step and the noise of the Python API."""

    def __init__(self, num_steps: int, eta: float, from_noise: bool):
        super().__init__(_sample_ddim, {"num_steps": num_steps, "eta": eta})
        self.from_noise = from_noise

    def max_denoise(self, model_wrap: Any, sigmas: Tensor) -> bool:
        """Whether the first noise gets unit variance: right when there is nothing but noise."""
        return self.from_noise


def _sample_ddim(
    model: Any,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any],
    callback: Any,
    disable: bool,
    **options: Any,
) -> Tensor:
    schedule = NoiseSchedule()
    eps_model = eps_of_denoiser(lambda x, sigma: model(x, sigma, **extra_args), schedule)

    def report(index: int, _total: int, x0: Tensor) -> None:
        callback({"i": index, "x": x0, "denoised": x0, "sigma": sigmas[index], "sigma_hat": sigmas[index]})

    generator = torch.Generator().manual_seed((extra_args["seed"] + 1) % 2**64)
    x = x / math.sqrt(1 + sigmas[0].item() ** 2)  # ComfyUI's variance is 1 + sigma**2, core's is 1
    t_start = len(sigmas) - 1
    x = sample_ddim(eps_model, x, schedule, t_start=t_start, generator=generator, callback=report, **options)
    mask = extra_args.get("denoise_mask")
    return x if mask is None else torch.where(mask > 0, x, model.latent_image)  # the model call blended the rest


def sample_latent(
    model: Any, positive: Any, negative: Any, latent: dict[str, Any], settings: DDIMSettings
) -> dict[str, Any]:
    """Runs DDIM on a LATENT with ComfyUI's progress, previews, masks and interrupts."""
    if settings.denoise == 0:
        return latent
    ratio = latent.get("downscale_ratio_spacial")
    samples = comfy.sample.fix_empty_latent_channels(model, latent["samples"], ratio)
    from_noise = not torch.count_nonzero(samples)
    if from_noise and settings.denoise < 1:
        raise ValueError(
            f"denoise={settings.denoise} keeps part of the latent, but the latent is empty; "
            "set denoise to 1, or connect frames to start from"
        )
    t_start = max(1, round(settings.steps * settings.denoise))
    schedule = NoiseSchedule()
    sigmas = torch.tensor([schedule.sigma(t) for t in [*schedule.timesteps(settings.steps, t_start), 0]])
    samples = comfy.sample.sample_custom(
        model,
        comfy.sample.prepare_noise(samples, settings.seed, latent.get("batch_index")),
        settings.cfg,
        DDIM(settings.steps, settings.eta, from_noise),
        sigmas,
        positive,
        negative,
        samples,
        noise_mask=latent.get("noise_mask"),
        callback=latent_preview.prepare_callback(model, t_start),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=settings.seed,
    )
    latent = {key: value for key, value in latent.items() if key != "downscale_ratio_spacial"}
    return latent | {"samples": samples}
