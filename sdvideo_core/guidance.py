"""Classifier-free guidance (Ho & Salimans 2021), its changes over the steps, and what tames it.

One noise prediction from a prompt and a negative prompt: an EpsModel, whatever is chosen, which every sampler takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from .schedule import NoiseSchedule
from .unet import UNetSD

EpsModel = Callable[[Tensor, int], Tensor]

Combine = Callable[[Tensor, Tensor, Tensor, int], Tensor]  # (eps of the prompt, of the negative, x, timestep) -> eps
Wrapper = Callable[[Combine], Combine]  # changes what a combination gives

ScaleAt = Callable[[int], float]  # timestep -> guidance scale
GuidanceSchedule = Sequence[float] | Callable[[float], float]  # see `scale_over_steps`


def guided_eps(
    unet: UNetSD,
    context: Tensor,
    context_neg: Tensor,
    guidance_scale: float | ScaleAt,
    batched: bool = True,
    wrappers: Sequence[Wrapper] = (),
    guidance_emb: Tensor | None = None,
) -> EpsModel:
    """eps(x (B, 4, F, h, w), timestep) of a UNet, in float32, for fixed prompts.

    context, context_neg: (B, N, D) each. guidance_scale: a number, or a function of the timestep. Where it is 1 the
    prompt is taken alone and the network runs once, without wrappers; batched=False runs the two predictions one after
    the other, in half the memory. wrappers: `rescale_cfg` and `dynamic_thresholding`, applied in this order.
    guidance_emb: (256,), for a UNet with a layer for it (`UNetSD.add_guidance_embedding`).
    """
    varies = callable(guidance_scale)
    scale_at: ScaleAt = guidance_scale if callable(guidance_scale) else lambda _timestep: guidance_scale
    if not varies and guidance_scale == 1:
        return _network(unet, context, guidance_emb)
    both = _both(unet, context, context_neg, batched, guidance_emb)
    alone = _network(unet, context, guidance_emb) if varies else None
    combine = cfg(scale_at)
    for wrapper in wrappers:
        combine = wrapper(combine)

    def eps_model(x: Tensor, timestep: int) -> Tensor:
        if alone and scale_at(timestep) == 1:
            return alone(x, timestep)
        return combine(*both(x, timestep), x, timestep)

    return eps_model


def cfg(scale_at: ScaleAt) -> Combine:
    """From the negative prompt's prediction through the prompt's and beyond."""
    return lambda eps, eps_neg, _x, timestep: eps_neg + scale_at(timestep) * (eps - eps_neg)


def rescale_cfg(amount: float, schedule: NoiseSchedule) -> Wrapper:
    """RescaleCFG (Lin et al. 2024, "Common Diffusion Noise Schedules and Sample Steps are Flawed", section 3.4).

    Gives the guided prediction the spread of the prompt's own, by `amount`: 0 not at all, 1 fully, 0.7 in the paper. As
    there and in ComfyUI's node of that name, the prediction is of velocity v, and each frame has its own spread;
    diffusers' guidance_rescale scales eps instead, which at the noisiest steps leaves the video nearly unchanged.
    """
    if not 0 <= amount <= 1:
        raise ValueError(f"guidance_rescale={amount}; it must be from 0 (off) to 1, and 0.7 is usual")

    def wrapper(combine: Combine) -> Combine:
        def rescaled(eps: Tensor, eps_neg: Tensor, x: Tensor, timestep: int) -> Tensor:
            guided = combine(eps, eps_neg, x, timestep)
            v, v_guided = (schedule.velocity(x, prediction, timestep) for prediction in (eps, guided))
            axes = (1, -2, -1)  # channels, height, width
            spread = v.std(axes, keepdim=True) / v_guided.std(axes, keepdim=True)
            change = amount * (spread - 1) * v_guided
            return guided + math.sqrt(schedule.alpha_cumprod(timestep)) * change

        return rescaled

    return wrapper


def dynamic_thresholding(percentile: float, schedule: NoiseSchedule) -> Wrapper:
    """Dynamic thresholding (Saharia et al. 2022, "Imagen", section 2.3) of the predicted clean video.

    Imagen clips the guided x0 at a percentile of its magnitudes and divides it down to the range of pixels, 1. Latents
    have no such range, so here it is the same percentile of what the prompt predicts without guidance.
    percentile: above 0, at most 1; 0.995 is usual, 1 scales without clipping.
    """
    if not 0 < percentile <= 1:
        raise ValueError(f"dynamic_thresholding={percentile}; it must be above 0 and at most 1, and 0.995 is usual")

    def wrapper(combine: Combine) -> Combine:
        def thresholded(eps: Tensor, eps_neg: Tensor, x: Tensor, timestep: int) -> Tensor:
            guided = combine(eps, eps_neg, x, timestep)
            limit = magnitude(schedule.remove_noise(x, eps, timestep), percentile)
            x0 = schedule.remove_noise(x, guided, timestep)
            # As a difference, a video within the limit keeps its prediction bit for bit.
            return guided + (x0 - threshold(x0, percentile, limit)) / schedule.sigma(timestep)

        return thresholded

    return wrapper


def guidance_wrappers(schedule: NoiseSchedule, rescale: float, percentile: float | None) -> list[Wrapper]:
    """The wrappers that a user's settings ask for, in their order; rescale 0 and percentile None ask for none."""
    wrappers = [rescale_cfg(rescale, schedule)] if rescale else []
    return wrappers if percentile is None else [*wrappers, dynamic_thresholding(percentile, schedule)]


def threshold(x0: Tensor, percentile: float, limit: Tensor | float) -> Tensor:
    """Clips each video of x0 (B, ...) at a percentile of its magnitudes and scales that to `limit`, if it is above."""
    found = magnitude(x0, percentile)
    largest = found.clamp(min=limit)
    return torch.where(found > limit, x0.clamp(-largest, largest) / largest * limit, x0)


def magnitude(x0: Tensor, percentile: float) -> Tensor:
    """The percentile (B, 1, ...) of each video's absolute values."""
    values = x0.abs().flatten(1).quantile(percentile, dim=1)
    return values.view(-1, *[1] * (x0.ndim - 1))


def scale_over_steps(guidance_schedule: GuidanceSchedule, num_timesteps: int = 1000) -> ScaleAt:
    """A guidance scale that changes while a video is sampled.

    guidance_schedule: scales, such as (12, 4), spread evenly over the progress with straight lines in between; or a
    function of the progress, such as `cosine_guidance` and `guidance_interval` give. The progress is 0 at the
    schedule's noisiest timestep and 1 at its cleanest (as start_percent and end_percent of ComfyUI's nodes count it),
    whichever are visited: with t_start sampling begins in the middle of it, not at the first scale.
    """

    def progress(timestep: int) -> float:
        return 1 - timestep / (num_timesteps - 1)

    if callable(guidance_schedule):
        return lambda timestep: guidance_schedule(progress(timestep))
    scales = list(guidance_schedule)
    if not scales:
        raise ValueError("guidance_schedule is empty; give scales from the noisiest step to the cleanest, as (12, 4)")
    places = np.linspace(0, 1, len(scales))
    return lambda timestep: float(np.interp(progress(timestep), places, scales))


def cosine_guidance(first: float, last: float) -> Callable[[float], float]:
    """A guidance schedule that goes from the first scale to the last as half a wave, slow at both ends."""
    return lambda progress: last + (first - last) * (1 + math.cos(math.pi * progress)) / 2


def guidance_interval(guidance_scale: float, start: float, end: float) -> Callable[[float], float]:
    """A guidance schedule that guides only from `start` to `end` of the progress (Kynkaanniemi et al. 2024).

    Elsewhere the prompt is taken alone, in half the time.
    """
    if not 0 <= start < end <= 1:
        raise ValueError(f"guidance interval {start}..{end}; it must lie in 0..1, its start before its end")
    return lambda progress: guidance_scale if start <= progress <= end else 1.0


def _both(
    unet: UNetSD, context: Tensor, context_neg: Tensor, batched: bool, guidance_emb: Tensor | None
) -> Callable[[Tensor, int], tuple[Tensor, Tensor]]:
    """The predictions with the prompt and with the negative prompt."""
    if not batched:
        positive, negative = (_network(unet, text, guidance_emb) for text in (context, context_neg))
        return lambda x, timestep: (positive(x, timestep), negative(x, timestep))
    network = _network(unet, torch.cat([context_neg, context]), guidance_emb)

    def both(x: Tensor, timestep: int) -> tuple[Tensor, Tensor]:
        eps_neg, eps = network(torch.cat([x, x]), timestep).chunk(2)
        return eps, eps_neg

    return both


def _network(unet: UNetSD, context: Tensor, guidance_emb: Tensor | None) -> EpsModel:
    projected = unet.project_context(context)
    dtype = context.dtype

    def eps(x: Tensor, timestep: int) -> Tensor:
        timesteps = torch.full((len(x),), timestep, device=x.device)
        return unet(x.to(dtype), timesteps, projected, guidance_emb).float()

    return eps
