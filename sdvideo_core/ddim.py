"""DDIM sampling (Song et al. 2020, "Denoising Diffusion Implicit Models")."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .guidance import EpsModel
from .schedule import NoiseSchedule

Callback = Callable[[int, int, Tensor], object]  # (index of the step, number of steps, predicted clean x)

Denoiser = Callable[[Tensor, Tensor], Tensor]  # (x, sigma (B,)) -> clean x


def draw_noise(shape: tuple[int, ...] | torch.Size, generator: torch.Generator | None) -> Tensor:
    """Unit noise in float32 on the generator's device, drawn frame by frame.

    For a video (B, C, F, H, W) the values are those of its frames (B*F, C, H, W), the layout of ComfyUI's latents,
    so that one seed means one video in both.
    """
    device = generator.device if generator else "cpu"
    if len(shape) == 4:
        return torch.randn(shape, generator=generator, device=device)
    batch, channels, frames, height, width = shape
    return torch.randn((batch, frames, channels, height, width), generator=generator, device=device).transpose(1, 2)


def ddim_step(x: Tensor, eps: Tensor, alpha: float, alpha_prev: float, sigma: float) -> tuple[Tensor, Tensor]:
    """Eq. 12 without its noise term -> (x at the previous timestep, predicted clean x)."""
    x0 = (x - math.sqrt(1 - alpha) * eps) / math.sqrt(alpha)
    return math.sqrt(alpha_prev) * x0 + math.sqrt(1 - alpha_prev - sigma**2) * eps, x0


def ddim_sigma(alpha: float, alpha_prev: float, eta: float) -> float:
    """Standard deviation of a step's fresh noise (eq. 16): eta 0 is deterministic, 1 is DDPM's."""
    return eta * math.sqrt((1 - alpha_prev) / (1 - alpha) * (1 - alpha / alpha_prev))


def eps_of_denoiser(denoiser: Denoiser, schedule: NoiseSchedule) -> EpsModel:
    """The noise that a k-diffusion denoiser implies; it sees x scaled to variance 1 + sigma**2."""

    def eps_model(x: Tensor, timestep: int) -> Tensor:
        sigma = schedule.sigma(timestep)
        x = x * math.sqrt(1 + sigma**2)
        return (x - denoiser(x, x.new_full((len(x),), sigma))) / sigma

    return eps_model


def sample_ddim(
    eps_model: EpsModel,
    x: Tensor,
    schedule: NoiseSchedule,
    num_steps: int,
    t_start: int | None = None,
    eta: float = 0.0,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Denoises x, which is at the first of the timesteps visited; returns it at the schedule's index 0.

    x: float32 of any shape. t_start: run only the last t_start of num_steps steps (1..num_steps, all when None).
    eta: 0..1. generator: source of the noise of eta > 0. callback: called after every step.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta={eta}; it must be from 0 (deterministic) to 1 (as much noise as DDPM)")
    timesteps = schedule.timesteps(num_steps, t_start)
    for index, t in enumerate(timesteps):
        alpha = schedule.alpha_cumprod(t)
        alpha_prev = schedule.alpha_cumprod(schedule.previous(t, num_steps))
        sigma = ddim_sigma(alpha, alpha_prev, eta)
        x, x0 = ddim_step(x, eps_model(x, t), alpha, alpha_prev, sigma)
        if sigma > 0:
            x = x + sigma * draw_noise(x.shape, generator).to(x)
        if callback:
            callback(index, len(timesteps), x0)
    return x
