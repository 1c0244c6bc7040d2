"""LCM sampling of few-step models (Luo et al. 2023, "Latent Consistency Models"), such as MCM and T2V-Turbo.

A consistency function maps x at any timestep to the clean video: f(x, t) = c_skip(t) * x + c_out(t) * x0(x, t), where
x0 is what the predicted noise implies. Sampling applies it, adds fresh noise down to the next timestep, and so on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from .ddim import Callback, draw_noise
from .guidance import EpsModel
from .schedule import NoiseSchedule, last_steps

SIGMA_DATA = 0.5
Number = TypeVar("Number", float, Tensor)


def c_skip(timestep: Number, timestep_scaling: float) -> Number:
    """Share of x itself in the consistency function: 1 at timestep 0, where x is the clean video."""
    return SIGMA_DATA**2 / ((timestep * timestep_scaling) ** 2 + SIGMA_DATA**2)


def c_out(timestep: Number, timestep_scaling: float) -> Number:
    """Share of the predicted clean video in the consistency function: 0 at timestep 0."""
    scaled = timestep * timestep_scaling
    length: Any = (scaled**2 + SIGMA_DATA**2) ** 0.5
    return scaled / length


def guidance_embedding(guidance_scale: float, dim: int = 256) -> Tensor:
    """The embedding (dim,) of a distilled guidance scale (Meng et al. 2023), float32: sines, then cosines.

    T2V-Turbo's: of 1000 * guidance_scale, with dim / 2 frequencies from 1 down to 1 / 10000, both included.
    """
    half = dim // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float64) / (half - 1))
    angles = 1000 * guidance_scale * frequencies
    return torch.cat([angles.sin(), angles.cos()]).float()


@dataclass(frozen=True)
class LCM:
    """A sampler of `samplers.SAMPLERS`.

    timestep_scaling: 4 as MCM was trained, 10 for T2V-Turbo; from timestep 19 on, videos of the two differ by less than
    rounding to half precision does. original_steps: number of timesteps that the model was distilled at. grid: which
    of them are visited, "strided" (T2V-Turbo; 4 steps are 999, 759, 519, 279) or "even" (diffusers' LCMScheduler, as
    MCM uses it; 999, 759, 499, 259).
    """

    timestep_scaling: float = 4.0
    original_steps: int = 50
    grid: Literal["strided", "even"] = "strided"

    def timesteps(self, schedule: NoiseSchedule, num_steps: int, t_start: int | None = None) -> list[int]:
        """num_steps timesteps, 1..original_steps, noisiest first; only the last t_start of them."""
        if not 1 <= self.original_steps <= schedule.num_timesteps // 2:
            raise ValueError(
                f"original_steps={self.original_steps}; expected 1..{schedule.num_timesteps // 2}, and 50 is usual"
            )
        if not 1 <= num_steps <= self.original_steps:
            raise ValueError(
                f"timesteps={num_steps}; LCM takes 1..{self.original_steps} steps, those that the model was distilled "
                "at; few-step models are made for 4 to 8"
            )
        if self.grid not in ("strided", "even"):
            raise ValueError(f"grid={self.grid!r}; expected 'strided' or 'even'")
        stride = schedule.num_timesteps // self.original_steps
        skip = self.original_steps // num_steps if self.grid == "strided" else self.original_steps / num_steps
        indices = [self.original_steps - int(k * skip) for k in range(num_steps)]
        return last_steps([index * stride - 1 for index in indices], t_start)

    def sample(
        self,
        eps_model: EpsModel,
        x: Tensor,
        schedule: NoiseSchedule,
        num_steps: int,
        t_start: int | None = None,
        generator: torch.Generator | None = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """Denoises x, which is at the first of the timesteps visited; returns the clean video.

        generator: source of the noise of every step but the last. callback: called after every step.
        """
        timesteps = self.timesteps(schedule, num_steps, t_start)
        for index, t in enumerate(timesteps):
            clean = self.consistency(x, eps_model(x, t), t, schedule)
            is_last = index == len(timesteps) - 1
            x = clean
            if not is_last:
                x = schedule.add_noise(clean, draw_noise(x.shape, generator).to(x), timesteps[index + 1])
            if callback:
                callback(index, len(timesteps), clean)
        return x

    def consistency(self, x: Tensor, eps: Tensor, timestep: int, schedule: NoiseSchedule) -> Tensor:
        """f(x, t) of the predicted noise eps."""
        x0 = schedule.remove_noise(x, eps, timestep)
        t = float(timestep)
        return c_skip(t, self.timestep_scaling) * x + c_out(t, self.timestep_scaling) * x0
