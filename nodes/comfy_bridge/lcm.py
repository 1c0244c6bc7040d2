"""LCM: what a MODEL's few-step LoRA says of its sampling, model sampling by that, and the sigmas of the steps."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import comfy.model_sampling
import comfy.patcher_extension
import torch
from torch import Tensor

from ...sdvideo_core.lcm import LCM, consistency, guidance_embedding
from ...sdvideo_core.schedule import NoiseSchedule
from .model import GUIDANCE

AUTO = "auto"  # beside 0, as the LoRA says
# Attachments of a MODEL, which its clones keep: an LCM, and the weight (dim, 256) of the LoRAs' layer `cond_proj`.
SETTINGS, LAYER = "sdvideo_lcm", "sdvideo_cond_proj"
EXACT = 1e-4  # of the logarithm of a sigma; those of neighbouring timesteps differ by more than 0.004


def remember(model: Any, settings: LCM | None, guidance_layer: Tensor | None) -> None:
    """Attaches to a MODEL what a LoRA brings; of several LoRAs the first says how to sample, their layers add up."""
    if settings and not model.get_attachment(SETTINGS):
        model.set_attachments(SETTINGS, settings)
    if guidance_layer is not None:
        before = model.get_attachment(LAYER)
        model.set_attachments(LAYER, guidance_layer if before is None else before + guidance_layer)


class LCMSampling(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.EPS):
    """Only the timesteps that the model was distilled at exist, and what it predicts is the consistency function's."""

    def __init__(self, model_config: Any, settings: LCM):
        super().__init__(model_config)
        self.stride = self.num_timesteps // settings.original_steps
        self.timestep_scaling = settings.timestep_scaling
        self.set_sigmas(self.sigmas[self.stride - 1 : self.stride * settings.original_steps : self.stride])

    def has(self, sigmas: Tensor) -> bool:
        """Whether all of them, 0 aside, are of timesteps that the model was distilled at."""
        distance = (sigmas[sigmas > 0].float().log()[:, None].cpu() - self.log_sigmas.cpu()).abs()
        return bool((distance.amin(1) < EXACT).all())

    def timestep(self, sigma: Tensor) -> Tensor:
        return (super().timestep(sigma) + 1) * self.stride - 1

    def sigma(self, timestep: Tensor) -> Tensor:
        return super().sigma((timestep.float() + 1) / self.stride - 1)

    def calculate_denoised(self, sigma: Tensor, model_output: Tensor, model_input: Tensor) -> Tensor:
        x0 = super().calculate_denoised(sigma, model_output, model_input)
        t, sigma = (comfy.model_sampling.reshape_sigma(v, x0.ndim) for v in (self.timestep(sigma).float(), sigma))
        x = model_input / (1 + sigma**2) ** 0.5  # ComfyUI's variance is 1 + sigma**2, core's is 1
        return consistency(x, x0, t, self.timestep_scaling)


def with_lcm_sampling(model: Any, original_timesteps: int, timestep_scaling: float, guidance_embed: float = 0.0) -> Any:
    """A clone of a MODEL that samples as LCM. guidance_embed: of models that take one, 0 is off."""
    settings = _settings(model, original_steps=original_timesteps, timestep_scaling=timestep_scaling)
    patched = model.clone()
    patched.add_object_patch("model_sampling", LCMSampling(model.model.model_config, settings))
    patched.set_attachments(SETTINGS, settings)  # for LCM Video Scheduler
    kind = comfy.patcher_extension.WrappersMP.OUTER_SAMPLE
    patched.remove_wrappers_with_key(kind, SETTINGS)
    patched.add_wrapper_with_key(kind, SETTINGS, _check_sampling)
    _embed_guidance(patched, guidance_embed)
    return patched


def lcm_sigmas(steps: int, denoise: float, original_timesteps: int, grid: Any, model: Any = None) -> Tensor:
    """SIGMAS of the last round(steps * denoise) of the steps, at least one, and 0; none where denoise is 0."""
    if denoise == 0:
        return torch.zeros(0)
    schedule = NoiseSchedule()
    t_start = max(1, round(steps * denoise))
    timesteps = _settings(model, original_steps=original_timesteps, grid=grid).timesteps(schedule, steps, t_start)
    return torch.tensor([*map(schedule.sigma, timesteps), 0.0])


def _settings(model: Any, **chosen: Any) -> LCM:
    """What the user chose, and for 0 and AUTO what the MODEL's LoRA says, or else LCM's defaults."""
    said = model and model.get_attachment(SETTINGS)
    settings = replace(said or LCM(), **{name: value for name, value in chosen.items() if value not in (0, AUTO)})
    settings.timesteps(NoiseSchedule(), 1)  # refuses what cannot be
    values = ", ".join(f"{name} {getattr(settings, name)}" for name in chosen)
    left_open = [name for name, value in chosen.items() if value in (0, AUTO)]
    source = ("as the model says" if said else "by default") if left_open else "as set"
    logging.info("SDVideo: LCM with %s, %s", values, source)
    return settings


def _embed_guidance(model: Any, scale: float) -> None:
    """Gives a MODEL's network the embedding of a guidance scale, or says that it wants one."""
    layer = model.get_attachment(LAYER)
    if layer is None and scale:
        raise ValueError(
            f"guidance_embed is {scale:g}, but no LoRA of this model has the layer for it, cond_proj; set it to 0, or "
            "load T2V-Turbo's LoRA with Load Video LoRA"
        )
    if layer is None:
        return
    options = model.model_options.setdefault("transformer_options", {})
    options[GUIDANCE] = layer @ guidance_embedding(scale) if scale else None
    if not scale:
        logging.warning(
            "SDVideo: this LoRA was distilled with an embedded guidance scale, as T2V-Turbo was, and runs without it; "
            "set guidance_embed of LCM Video Model Sampling to 7.5 (5 to 15)"
        )


def _check_sampling(executor: Any, *args: Any, **kwargs: Any) -> Tensor:
    """ComfyUI's outer_sample; once per sampling, warns of what few-step models are not made for."""
    guider, sigmas = executor.class_obj, args[3]
    sampling = guider.model_patcher.get_model_object("model_sampling")
    if isinstance(sampling, LCMSampling) and not sampling.has(sigmas):
        logging.warning(
            "SDVideo: the sigmas are not of the %d timesteps that LCM Video Model Sampling has; use LCM Video "
            "Scheduler, with the same model and original_timesteps",
            len(sampling.sigmas),
        )
    if getattr(guider, "cfg", 1) != 1:
        logging.warning("SDVideo: cfg is %g; few-step models have guidance built in, use cfg 1", guider.cfg)
    return executor(*args, **kwargs)
