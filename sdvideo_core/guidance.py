"""Classifier-free guidance (Ho & Salimans 2021): one noise prediction from a prompt and a negative prompt."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .unet import UNetSD

EpsModel = Callable[[Tensor, int], Tensor]


def guided_eps(
    unet: UNetSD, context: Tensor, context_neg: Tensor, guidance_scale: float, batched: bool = True
) -> EpsModel:
    """eps(x (B, 4, F, h, w), timestep) of a UNet, in float32, for fixed prompts.

    context, context_neg: (B, N, D) each. guidance_scale 1 is the prompt alone and runs the network once a step;
    batched=False runs the two predictions one after the other, in half the memory.
    """
    if guidance_scale == 1:
        return _network(unet, context)
    if not batched:
        positive, negative = _network(unet, context), _network(unet, context_neg)
        return lambda x, t: _combine(negative(x, t), positive(x, t), guidance_scale)
    both = _network(unet, torch.cat([context_neg, context]))

    def eps(x: Tensor, timestep: int) -> Tensor:
        eps_neg, eps_pos = both(torch.cat([x, x]), timestep).chunk(2)
        return _combine(eps_neg, eps_pos, guidance_scale)

    return eps


def _combine(eps_neg: Tensor, eps: Tensor, guidance_scale: float) -> Tensor:
    return eps_neg + guidance_scale * (eps - eps_neg)


def _network(unet: UNetSD, context: Tensor) -> EpsModel:
    projected = unet.project_context(context)
    dtype = context.dtype

    def eps(x: Tensor, timestep: int) -> Tensor:
        timesteps = torch.full((len(x),), timestep, device=x.device)
        return unet(x.to(dtype), timesteps, projected).float()

    return eps
