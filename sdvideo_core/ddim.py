"""DDIM sampling (Song et al. 2020, "Denoising Diffusion Implicit Models")."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Generator, Tensor

from .guidance import EpsModel
from .sampler import Callback, Sampler, Steps, draw_noise
from .schedule import NoiseSchedule

__all__ = ["DDIM", "Denoiser", "draw_noise", "eps_of_denoiser", "sample_ddim"]

Denoiser = Callable[[Tensor, Tensor], Tensor]  # (x, sigma (B,)) -> clean x


@dataclass(frozen=True)
class DDIM(Sampler):
    """Visits the timesteps that the published models do, and ends where they do, at the schedule's index 0.

    eta: randomness, 0 (deterministic) to 1 (as much noise as DDPM).
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta={self.eta}; it must be from 0 (deterministic) to 1 (as much noise as DDPM)")

    def timesteps(self, schedule: NoiseSchedule, num_steps: int, t_start: int | None = None) -> list[int]:
        return schedule.timesteps(num_steps, t_start)

    def steps(
        self, eps_model: EpsModel, x: Tensor, schedule: NoiseSchedule, timesteps: list[int], generator: Generator | None
    ) -> Steps:
        for t, t_next in zip(timesteps, [*timesteps[1:], 0], strict=True):
            alpha, alpha_next = schedule.alpha_cumprod(t), schedule.alpha_cumprod(t_next)
            sigma = ddim_sigma(alpha, alpha_next, self.eta)
            x, x0 = ddim_step(x, eps_model(x, t), alpha, alpha_next, sigma)
            if sigma > 0:
                x = x + sigma * draw_noise(x.shape, generator).to(x)
            yield x, x0


def sample_ddim(
    eps_model: EpsModel,
    x: Tensor,
    schedule: NoiseSchedule,
    num_steps: int,
    t_start: int | None = None,
    eta: float = 0.0,
    generator: Generator | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """`DDIM(eta).sample`: denoises x, which is at the first of the timesteps visited; returns it at index 0."""
    return DDIM(eta).sample(eps_model, x, schedule, num_steps, t_start, generator, callback)


def ddim_step(x: Tensor, eps: Tensor, alpha: float, alpha_next: float, sigma: float) -> tuple[Tensor, Tensor]:
    """Eq. 12 without its noise term -> (x at the next timestep visited, predicted clean x)."""
    x0 = (x - math.sqrt(1 - alpha) * eps) / math.sqrt(alpha)
    return math.sqrt(alpha_next) * x0 + math.sqrt(1 - alpha_next - sigma**2) * eps, x0


def ddim_sigma(alpha: float, alpha_next: float, eta: float) -> float:
    """Standard deviation of a step's fresh noise (eq. 16): eta 0 is deterministic, 1 is DDPM's."""
    return eta * math.sqrt((1 - alpha_next) / (1 - alpha) * (1 - alpha / alpha_next))


def eps_of_denoiser(denoiser: Denoiser, schedule: NoiseSchedule) -> EpsModel:
    """The noise that a k-diffusion denoiser implies; it sees x scaled to variance 1 + sigma**2."""

    def eps_model(x: Tensor, timestep: int) -> Tensor:
        sigma = schedule.sigma(timestep)
        x = x * math.sqrt(1 + sigma**2)
        return (x - denoiser(x, x.new_full((len(x),), sigma))) / sigma

    return eps_model
