"""LCM, DPM-Solver++(2M) and UniPC against diffusers' schedulers, and LCM against its formula in float64 NumPy."""

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_lcm import LCMScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from torch import Tensor

from sdvideo_core.ddim import draw_noise
from sdvideo_core.lcm import LCM
from sdvideo_core.schedule import NoiseSchedule
from sdvideo_core.solvers import DPMSolver2M, UniPC
from tests.numerics import relative_error

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in diffusers

SHAPE = (2, 4, 3, 6, 5)  # (B, 4, F, h, w)
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULE = NoiseSchedule()
SOLVERS = {
    "dpm++2m": (DPMSolver2M(), DPMSolverMultistepScheduler(**BETAS)),
    "unipc": (UniPC(), UniPCMultistepScheduler(**BETAS)),
}


def eps_model(x: Tensor, timestep: int) -> Tensor:
    """A stand-in for the network: smooth, and different for every x and timestep."""
    return torch.tanh(0.7 * x + timestep / 500 - 1)


def start() -> Tensor:
    return draw_noise(SHAPE, torch.Generator().manual_seed(0))


def noise_in_diffusers_order() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def run_diffusers(scheduler, x: Tensor, **options) -> Tensor:
    for t in scheduler.timesteps:
        x = scheduler.step(eps_model(x, int(t)), t, x, **options).prev_sample
    return x


def run_lcm(sampler: LCM, monkeypatch, num_steps: int, t_start: int | None = None) -> Tensor:
    # diffusers draws (B, C, F, h, w) at once, core frame by frame.
    monkeypatch.setattr("sdvideo_core.lcm.draw_noise", lambda shape, source: torch.randn(shape, generator=source))
    return sampler.sample(eps_model, start(), SCHEDULE, num_steps, t_start, noise_in_diffusers_order())


@pytest.mark.parametrize("timestep_scaling", [0.001, 4.0, 10.0])
@pytest.mark.parametrize("num_steps", [1, 2, 4, 6, 8, 50])
def test_lcm_equals_diffusers_with_its_own_grid(monkeypatch, num_steps, timestep_scaling):
    """The tiny scaling makes the boundary functions matter, which at 4 and 10 are 0 and 1 but for rounding."""
    scheduler = LCMScheduler(**BETAS, timestep_scaling=timestep_scaling)
    scheduler.set_timesteps(num_steps)
    sampler = LCM(timestep_scaling, grid="even")
    assert sampler.timesteps(SCHEDULE, num_steps) == scheduler.timesteps.tolist()
    expected = run_diffusers(scheduler, start(), generator=noise_in_diffusers_order())
    assert relative_error(run_lcm(sampler, monkeypatch, num_steps), expected) <= 1e-5


@pytest.mark.parametrize("original_steps", [25, 50, 100])
def test_every_even_grid_is_that_of_diffusers(original_steps):
    scheduler = LCMScheduler(**BETAS, original_inference_steps=original_steps)
    for num_steps in range(1, original_steps + 1):
        scheduler.set_timesteps(num_steps)
        found = LCM(original_steps=original_steps, grid="even").timesteps(SCHEDULE, num_steps)
        assert found == scheduler.timesteps.tolist()


@pytest.mark.parametrize(
    ("num_steps", "t_start", "timesteps"),
    [
        (4, None, [999, 759, 519, 279]),
        (8, None, [999, 879, 759, 639, 519, 399, 279, 159]),
        (4, 2, [519, 279]),
        (8, 1, [159]),
    ],
)
def test_lcm_equals_diffusers_on_the_grid_of_t2v_turbo(monkeypatch, num_steps, t_start, timesteps):
    scheduler = LCMScheduler(**BETAS)
    scheduler.set_timesteps(timesteps=timesteps)
    expected = run_diffusers(scheduler, start(), generator=noise_in_diffusers_order())
    sampler = LCM(timestep_scaling=10.0)
    assert sampler.timesteps(SCHEDULE, num_steps, t_start) == timesteps
    assert relative_error(run_lcm(sampler, monkeypatch, num_steps, t_start), expected) <= 1e-5


def numpy_lcm(x: np.ndarray, timesteps: list[int], timestep_scaling: float) -> np.ndarray:
    alphas, noise = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2), noise_in_diffusers_order()
    for t, following in zip(timesteps, [*timesteps[1:], None], strict=True):
        x0 = (x - np.sqrt(1 - alphas[t]) * np.tanh(0.7 * x + t / 500 - 1)) / np.sqrt(alphas[t])
        scaled = t * timestep_scaling / 0.5
        x = x / (scaled**2 + 1) + x0 * scaled / np.sqrt(scaled**2 + 1)
        if following is not None:
            z = draw_noise(SHAPE, noise).double().numpy()
            x = np.sqrt(alphas[following]) * x + np.sqrt(1 - alphas[following]) * z
    return x


@pytest.mark.parametrize("timestep_scaling", [0.001, 4.0])
def test_lcm_equals_its_formula_in_float64(timestep_scaling):
    sampler = LCM(timestep_scaling)
    expected = torch.from_numpy(numpy_lcm(start().double().numpy(), [999, 759, 519, 279], timestep_scaling))
    for x, tolerance in ((start(), 1e-5), (start().double(), 1e-12)):
        found = sampler.sample(eps_model, x, SCHEDULE, 4, generator=noise_in_diffusers_order())
        assert relative_error(found.double(), expected) <= tolerance


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 10, 20, 25, 50])
def test_solvers_equal_those_of_diffusers(name, num_steps):
    solver, scheduler = SOLVERS[name]
    scheduler.set_timesteps(num_steps)
    expected = run_diffusers(scheduler, start())
    assert relative_error(solver.sample(eps_model, start(), SCHEDULE, num_steps), expected) <= 1e-5


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("t_start", [1, 2, 7, 19])
def test_the_last_steps_of_a_solver_equal_those_of_diffusers(name, t_start):
    solver, scheduler = SOLVERS[name]
    scheduler.set_timesteps(20)
    scheduler.set_begin_index(20 - t_start)
    x = start()
    for t in scheduler.timesteps[-t_start:]:
        x = scheduler.step(eps_model(x, int(t)), t, x).prev_sample
    scheduler.set_begin_index(0)
    assert relative_error(solver.sample(eps_model, start(), SCHEDULE, 20, t_start), x) <= 1e-5


def test_timesteps_of_solvers_are_those_of_diffusers():
    solver, scheduler = SOLVERS["dpm++2m"]
    for num_steps in (1, 2, 3, 6, 7, 18, 20, 25, 37, 50, 111, 333, 500, 999):
        scheduler.set_timesteps(num_steps)
        assert solver.timesteps(SCHEDULE, num_steps) == scheduler.timesteps.tolist()


@pytest.mark.parametrize("name", SOLVERS)
def test_solvers_are_of_second_order(name):
    """Half the step, at most a third of the error: against the same ODE solved in 800 steps."""
    solver, _ = SOLVERS[name]
    x = start().double()
    exact = solver.sample(eps_model, x, SCHEDULE, 800)
    coarse, fine = (relative_error(solver.sample(eps_model, x, SCHEDULE, n), exact) for n in (40, 80))
    assert fine < coarse / 3
