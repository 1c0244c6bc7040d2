"""Second-order solvers of the sampling ODE that predict the clean video: DPM-Solver++(2M) and UniPC.

Both step in y = x / sqrt(alpha-bar) = x0 + sigma * noise over the half log-SNR lambda = -log(sigma), where exact
integration of a constant x0 is y' = r * y + (1 - r) * x0 with r = sigma' / sigma. They differ in how they guess the x0
in between. Timesteps are spread evenly from the noisiest on; the last step ends at the clean video (sigma 0).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Generator, Tensor

from .guidance import EpsModel
from .sampler import Sampler, Steps
from .schedule import NoiseSchedule, last_steps


class _Solver(Sampler):
    def timesteps(self, schedule: NoiseSchedule, num_steps: int, t_start: int | None = None) -> list[int]:
        """num_steps timesteps, noisiest first, one step short of 0; only the last t_start of them."""
        schedule.stride(num_steps)  # refuses impossible numbers
        step = (schedule.num_timesteps - 1) / num_steps
        return last_steps([round(k * step) for k in range(num_steps, 0, -1)], t_start)


@dataclass(frozen=True)
class _Step:
    """One step from sigma to the next, and the one before it, as float64 numbers."""

    sigma_before: float | None  # None at the first step
    sigma: float
    sigma_next: float  # 0 at the last step

    @property
    def ratio(self) -> float:
        return self.sigma_next / self.sigma

    @property
    def is_first_order(self) -> bool:
        """There is nothing to extrapolate from at the first step, and no distance to extrapolate over at the last."""
        return self.sigma_before is None or self.sigma_next == 0

    @property
    def h(self) -> float:
        """Length of the step in lambda."""
        return math.log(self.sigma / self.sigma_next)

    @property
    def r(self) -> float:
        """Length of the step before, as a multiple of this one."""
        return math.log((self.sigma_before or self.sigma) / self.sigma) / self.h


def _steps(schedule: NoiseSchedule, timesteps: list[int]) -> list[_Step]:
    sigmas = [*map(schedule.sigma, timesteps), 0.0]
    return [_Step(*around) for around in zip([None, *sigmas], sigmas, sigmas[1:], strict=False)]


def _clean(eps_model: EpsModel, y: Tensor, sigma: float, timestep: int) -> Tensor:
    return y - sigma * eps_model(y / math.sqrt(1 + sigma**2), timestep)


class DPMSolver2M(_Solver):
    """DPM-Solver++(2M) (Lu et al. 2022, "DPM-Solver++", algorithm 2)."""

    def steps(
        self, eps_model: EpsModel, x: Tensor, schedule: NoiseSchedule, timesteps: list[int], generator: Generator | None
    ) -> Steps:
        y = x * math.sqrt(1 + schedule.sigma(timesteps[0]) ** 2)
        before = x  # read from the second step on
        for t, step in zip(timesteps, _steps(schedule, timesteps), strict=True):
            x0 = _clean(eps_model, y, step.sigma, t)
            between = x0 if step.is_first_order else x0 + (x0 - before) / (2 * step.r)
            y = step.ratio * y + (1 - step.ratio) * between
            before = x0
            yield y, x0


class UniPC(_Solver):
    """UniPC of order 2 with B_2(h) (Zhao et al. 2023, "UniPC").

    Its predictor is DPM-Solver++(2M); the next step's prediction then corrects the step, at no further run of the
    network.
    """

    def steps(
        self, eps_model: EpsModel, x: Tensor, schedule: NoiseSchedule, timesteps: list[int], generator: Generator | None
    ) -> Steps:
        steps = _steps(schedule, timesteps)
        y = x * math.sqrt(1 + steps[0].sigma ** 2)
        start, clean = y, []  # y at the step's start, corrected; predictions so far
        for index, (t, step) in enumerate(zip(timesteps, steps, strict=True)):
            x0 = _clean(eps_model, y, step.sigma, t)
            if clean:
                y = _corrected(start, steps[index - 1], clean, x0)
            clean = [*clean[-1:], x0]
            between = x0 if step.is_first_order else x0 + (x0 - clean[0]) / (2 * step.r)
            start, y = y, step.ratio * y + (1 - step.ratio) * between
            yield y, x0


def _corrected(start: Tensor, step: _Step, clean: list[Tensor], x0: Tensor) -> Tensor:
    """The end of a step from `start`, given the predictions before it, at its start and (x0) at its end."""
    here = clean[-1]
    between = here + 0.5 * (x0 - here)
    if not step.is_first_order:
        weight_before, weight_end = _corrector_weights(step)
        between = here + weight_before * (here - clean[0]) / step.r + weight_end * (x0 - here)
    return step.ratio * start + (1 - step.ratio) * between


def _corrector_weights(step: _Step) -> tuple[float, float]:
    """Weights of the slopes before and over the step: UniPC's eq. 9 for order 2, solved by hand."""
    base = math.expm1(-step.h)
    phi_2 = -base / step.h - 1
    phi_3 = -phi_2 / step.h - 0.5
    b_1, b_2 = phi_2 / base, 2 * phi_3 / base
    before = (b_1 - b_2) / (1 + step.r)
    return before, b_1 - before
