"""Sampler: the loop that all samplers share, from noise to a video, and the noise they draw."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import torch
from torch import Generator, Tensor

from .guidance import EpsModel
from .schedule import NoiseSchedule

Callback = Callable[[int, int, Tensor], object]  # (index of the step, number of steps, predicted clean x)

# After each step: what the next one starts from (after the last, the result) and the predicted clean x.
Steps = Iterator[tuple[Tensor, Tensor]]


class Sampler(ABC):
    """A way from noise to a video: the timesteps it visits and the step it takes at each."""

    @abstractmethod
    def timesteps(self, schedule: NoiseSchedule, num_steps: int, t_start: int | None = None) -> list[int]:
        """The timesteps visited, noisiest first; only the last t_start of them, 1..num_steps, all when None."""

    @abstractmethod
    def steps(
        self, eps_model: EpsModel, x: Tensor, schedule: NoiseSchedule, timesteps: list[int], generator: Generator | None
    ) -> Steps:
        """Takes the steps; arguments as in `sample`."""

    def sample(
        self,
        eps_model: EpsModel,
        x: Tensor,
        schedule: NoiseSchedule,
        num_steps: int,
        t_start: int | None = None,
        generator: Generator | None = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """Denoises x, which is at the first of the timesteps visited, and returns the video.

        x: float32 of any shape, left as it is. t_start: run only the last t_start of num_steps steps (1..num_steps,
        all when None). generator: source of the noise that steps add, if any. callback: called after every step.
        """
        timesteps = self.timesteps(schedule, num_steps, t_start)
        for index, (after, x0) in enumerate(self.steps(eps_model, x, schedule, timesteps, generator)):
            x = after
            if callback:
                callback(index, len(timesteps), x0)
        return x


def draw_noise(shape: tuple[int, ...] | torch.Size, generator: Generator | None) -> Tensor:
    """Unit noise in float32 on the generator's device, drawn frame by frame.

    For a video (B, C, F, H, W) the values are those of its frames (B*F, C, H, W), the layout of ComfyUI's latents,
    so that one seed means one video in both.
    """
    device = generator.device if generator else "cpu"
    if len(shape) == 4:
        return torch.randn(shape, generator=generator, device=device)
    batch, channels, frames, height, width = shape
    return torch.randn((batch, frames, channels, height, width), generator=generator, device=device).transpose(1, 2)
