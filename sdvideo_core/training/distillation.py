"""Distillation: makes a LoRA that samples in a few steps without guidance (Luo et al. 2023, "LCM-LoRA").

The consistency function f of a model with the LoRA (`sdvideo_core.lcm`) is taught to say the same of two neighbouring
points of a path from noise to video. The path is the teacher's: the model without the LoRA, with guidance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..lcm import LCM, consistency
from ..sampler import draw_noise
from ..schedule import NoiseSchedule
from .loss import START_FROM, EpsNetwork, per_sample, signal_left, spread

HUBER = 1e-3  # where the loss turns from square to linear, as published
FEW_STEPS = 4


@dataclass(frozen=True)
class Distillation:
    """How a few-step LoRA is made.

    guidance_scale: of the teacher; the LoRA then needs none. num_timesteps: points of the path, 2..500; sampling takes
    as many steps at most. 50 is usual, fewer train faster. timestep_scaling: see `LCM`.
    """

    guidance_scale: float = 7.5
    num_timesteps: int = 50
    timestep_scaling: float = 4.0

    def __post_init__(self) -> None:
        if not 2 <= self.num_timesteps <= 500:
            raise ValueError(f"num_timesteps={self.num_timesteps} of the distillation; expected 2..500, 50 is usual")

    @property
    def sampler(self) -> LCM:
        return LCM(self.timestep_scaling, self.num_timesteps)

    @property
    def sampling(self) -> dict[str, Any]:
        """How a model with the LoRA is called."""
        return {"guidance_scale": 1.0, "timesteps": min(FEW_STEPS, self.num_timesteps), "sampler": self.sampler}


Teacher = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # (x, timesteps) -> eps with the prompt, eps without


@dataclass(frozen=True)
class ConsistencyLoss:
    """Pseudo-Huber distance of f at a timestep from f one point closer to the video.

    start_noise: share of the noisiest samples that see the pure noise sampling starts from; see `DiffusionLoss`.
    """

    schedule: NoiseSchedule
    settings: Distillation
    start_noise: float = 0.0

    def __call__(self, student: EpsNetwork, teacher: Teacher, latents: Tensor, generator: torch.Generator) -> Tensor:
        """Loss of one batch of clean latents (B, 4, F, h, w); all randomness comes from the generator."""
        timesteps, x = self.add_noise(latents.float(), generator)
        f = self._consistency(x, student(x, timesteps.to(x.device)), timesteps)
        with torch.no_grad():
            closer = (timesteps - self._stride).clamp(min=0)
            x_closer = self._teacher_step(teacher, x, timesteps, closer)
            target = self._consistency(x_closer, student(x_closer, closer.to(x.device)), closer)
        return (((f - target) ** 2 + HUBER**2).sqrt() - HUBER).mean()

    def add_noise(self, latents: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Timesteps (B,) of the path, on the CPU, one from each of B equal parts of it, and x there."""
        points = spread(len(latents), self.settings.num_timesteps, generator)  # 0..num_timesteps - 1
        timesteps = (points + 1) * self._stride - 1
        signal = signal_left(len(latents), self.start_noise, generator)
        signal = torch.where(timesteps >= START_FROM * self.schedule.num_timesteps, signal, torch.ones_like(signal))
        noise = draw_noise(latents.shape, generator).to(latents.device)
        a, s = self._signal_and_noise(timesteps, latents)
        return timesteps, a * per_sample(signal, latents) * latents + s * noise

    @property
    def _stride(self) -> int:
        return self.schedule.num_timesteps // self.settings.num_timesteps

    def _teacher_step(self, teacher: Teacher, x: Tensor, timesteps: Tensor, closer: Tensor) -> Tensor:
        """One step of DDIM with guidance along the path."""
        eps, eps_neg = teacher(x, timesteps.to(x.device))
        eps = eps_neg + self.settings.guidance_scale * (eps - eps_neg)
        (a, s), (a_closer, s_closer) = self._signal_and_noise(timesteps, x), self._signal_and_noise(closer, x)
        return a_closer * (x - s * eps) / a + s_closer * eps

    def _consistency(self, x: Tensor, eps: Tensor, timesteps: Tensor) -> Tensor:
        a, s = self._signal_and_noise(timesteps, x)
        return consistency(x, (x - s * eps) / a, per_sample(timesteps, x), self.settings.timestep_scaling)

    def _signal_and_noise(self, timesteps: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Factors (B, 1, 1, 1, 1) of the video and of the noise in x, where x is."""
        alphas = self.schedule.alphas_cumprod[timesteps]
        return per_sample(alphas.sqrt(), x), per_sample((1 - alphas).sqrt(), x)
