"""Samplers by name: each knows its timesteps and how to get from noise at the first of them to a clean video."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .ddim import Callback, sample_ddim
from .guidance import EpsModel
from .lcm import LCM
from .schedule import NoiseSchedule
from .solvers import DPMSolver2M, UniPC


class Sampler(Protocol):
    def timesteps(self, schedule: NoiseSchedule, num_steps: int, t_start: int | None = None) -> list[int]:
        """The timesteps visited, noisiest first."""
        ...

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
        """Denoises x, float32 of any shape, from the first of the timesteps visited."""
        ...


@dataclass(frozen=True)
class DDIM:
    """`sample_ddim`; eta: randomness, 0..1."""

    eta: float = 0.0

    def timesteps(self, schedule: NoiseSchedule, num_steps: int, t_start: int | None = None) -> list[int]:
        return schedule.timesteps(num_steps, t_start)

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
        return sample_ddim(eps_model, x, schedule, num_steps, t_start, self.eta, generator, callback)


SAMPLERS: dict[str, type[Sampler]] = {"ddim": DDIM, "dpm++2m": DPMSolver2M, "unipc": UniPC, "lcm": LCM}


def find_sampler(sampler: str | Sampler, eta: float = 0.0) -> Sampler:
    """A sampler by its name in SAMPLERS, or as it is. eta: of DDIM, by its name; 0 with the others."""
    if sampler == "ddim":
        return DDIM(eta)
    if eta:
        raise ValueError(f"eta={eta} with sampler={sampler!r}; eta belongs to 'ddim', set it to 0 for the others")
    if not isinstance(sampler, str):
        return sampler
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler={sampler!r}; expected one of {', '.join(SAMPLERS)}")
    return SAMPLERS[sampler]()
