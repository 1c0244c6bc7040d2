"""LCM: model sampling with the family's timestep scaling, and the sigmas of the steps."""

from __future__ import annotations

from typing import Any

import comfy.model_sampling
import torch
from torch import Tensor

from ...sdvideo_core.lcm import LCM, consistency
from ...sdvideo_core.schedule import NoiseSchedule


class LCMSampling(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.EPS):
    """Only the timesteps that the model was distilled at exist, and what it predicts is the consistency function's."""

    def __init__(self, model_config: Any, original_timesteps: int, timestep_scaling: float):
        super().__init__(model_config)
        self.stride = self.num_timesteps // original_timesteps
        self.timestep_scaling = timestep_scaling
        self.set_sigmas(self.sigmas[self.stride - 1 : self.stride * original_timesteps : self.stride])

    def timestep(self, sigma: Tensor) -> Tensor:
        return (super().timestep(sigma) + 1) * self.stride - 1

    def sigma(self, timestep: Tensor) -> Tensor:
        return super().sigma((timestep.float() + 1) / self.stride - 1)

    def calculate_denoised(self, sigma: Tensor, model_output: Tensor, model_input: Tensor) -> Tensor:
        x0 = super().calculate_denoised(sigma, model_output, model_input)
        t, sigma = (comfy.model_sampling.reshape_sigma(v, x0.ndim) for v in (self.timestep(sigma).float(), sigma))
        x = model_input / (1 + sigma**2) ** 0.5  # ComfyUI's variance is 1 + sigma**2, core's is 1
        return consistency(x, x0, t, self.timestep_scaling)


def with_lcm_sampling(model: Any, original_timesteps: int, timestep_scaling: float) -> Any:
    """A clone of a MODEL that samples as LCM."""
    patched = model.clone()
    sampling = LCMSampling(model.model.model_config, original_timesteps, timestep_scaling)
    patched.add_object_patch("model_sampling", sampling)
    return patched


def lcm_sigmas(steps: int, denoise: float, original_timesteps: int, grid: Any) -> Tensor:
    """SIGMAS of the last round(steps * denoise) of the steps, at least one, and 0; none where denoise is 0."""
    if denoise == 0:
        return torch.zeros(0)
    schedule = NoiseSchedule()
    t_start = max(1, round(steps * denoise))
    timesteps = LCM(original_steps=original_timesteps, grid=grid).timesteps(schedule, steps, t_start)
    return torch.tensor([*map(schedule.sigma, timesteps), 0.0])
