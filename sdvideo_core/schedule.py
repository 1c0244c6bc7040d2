"""Noise schedule: how much of a video is left at each of the timesteps, and which timesteps a sampler visits."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor


def last_steps(timesteps: list[int], t_start: int | None) -> list[int]:
    """The last t_start of the timesteps, 1..all of them; all where it is None."""
    if t_start is not None and not 1 <= t_start <= len(timesteps):
        raise ValueError(f"t_start={t_start}; with {len(timesteps)} timesteps it must be 1..{len(timesteps)}")
    return timesteps[-(t_start or len(timesteps)) :]


class NoiseSchedule:
    """The "scaled linear" schedule of latent diffusion: betas are the squares of an even grid of their roots.

    `alphas_cumprod` (num_timesteps,) is float64 on the CPU whatever the model's precision.
    """

    def __init__(self, num_timesteps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012):
        self.num_timesteps = num_timesteps
        roots = torch.linspace(math.sqrt(beta_start), math.sqrt(beta_end), num_timesteps, dtype=torch.float64)
        self.betas = roots**2
        self.alphas_cumprod = (1 - self.betas).cumprod(0)

    def stride(self, num_steps: int) -> int:
        """Distance between two visited timesteps."""
        if not 1 <= num_steps < self.num_timesteps:
            raise ValueError(
                f"timesteps={num_steps}; a schedule of {self.num_timesteps} takes 1..{self.num_timesteps - 1} steps"
            )
        return self.num_timesteps // num_steps

    def timesteps(self, num_steps: int, t_start: int | None = None) -> list[int]:
        """Exactly `num_steps` timesteps, noisiest first: 1 + k * stride (DDIM's even spacing, offset by 1).

        t_start: only the last t_start of them, 1..num_steps, where sampling starts from a noised video.
        """
        stride = self.stride(num_steps)
        last = 1 + (num_steps - 1) * stride
        if num_steps > 100 and last < 0.9 * self.num_timesteps:
            warnings.warn(
                f"{num_steps} steps start at timestep {last} of {self.num_timesteps}, where a video is not pure noise; "
                f"use a number of steps that divides {self.num_timesteps}, such as 100, 200 or 250",
                stacklevel=2,
            )
        return last_steps([1 + k * stride for k in reversed(range(num_steps))], t_start)

    def alpha_cumprod(self, timestep: int) -> float:
        """Share of the signal's variance left at a timestep, 0..1 (alpha-bar of Ho et al. 2020)."""
        return self.alphas_cumprod[timestep].item()

    def sigma(self, timestep: int) -> float:
        """Noise over signal at a timestep, the scale of k-diffusion's samplers (Karras et al. 2022)."""
        alpha = self.alpha_cumprod(timestep)
        return math.sqrt((1 - alpha) / alpha)

    def add_noise(self, x0: Tensor, noise: Tensor, timestep: int) -> Tensor:
        """x at `timestep` (Ho et al. 2020, eq. 4)."""
        alpha = self.alpha_cumprod(timestep)
        return math.sqrt(alpha) * x0 + math.sqrt(1 - alpha) * noise

    def remove_noise(self, x: Tensor, eps: Tensor, timestep: int) -> Tensor:
        """The clean video that x at `timestep` is, if its noise is eps."""
        alpha = self.alpha_cumprod(timestep)
        return (x - math.sqrt(1 - alpha) * eps) / math.sqrt(alpha)

    def velocity(self, x: Tensor, eps: Tensor, timestep: int) -> Tensor:
        """v of x at `timestep` with noise eps (Salimans & Ho 2022, section 4)."""
        alpha = self.alpha_cumprod(timestep)
        return (eps - math.sqrt(1 - alpha) * x) / math.sqrt(alpha)
