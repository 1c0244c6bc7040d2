"""The noise schedule and DDIM against diffusers' DDIMScheduler, and against both written out in float64 NumPy."""

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor

from sdvideo_core.ddim import draw_noise, sample_ddim
from sdvideo_core.schedule import NoiseSchedule
from tests.numerics import relative_error

SHAPE = (2, 4, 3, 6, 5)  # (B, 4, F, h, w)


def diffusers_scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def eps_model(x: Tensor, timestep: int) -> Tensor:
    """A stand-in for the network: smooth, and different for every x and timestep."""
    return torch.tanh(0.7 * x + timestep / 500 - 1)


def start() -> Tensor:
    return draw_noise(SHAPE, torch.Generator().manual_seed(0))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def diffusers_ddim(x: Tensor, num_steps: int, eta: float, t_start: int) -> Tensor:
    scheduler, noise = diffusers_scheduler(), generator()
    scheduler.set_timesteps(num_steps)
    for timestep in scheduler.timesteps[-t_start:]:
        variance_noise = draw_noise(x.shape, noise) if eta else None
        x = scheduler.step(
            eps_model(x, int(timestep)), int(timestep), x, eta=eta, variance_noise=variance_noise
        ).prev_sample
    return x


def numpy_alphas_cumprod() -> np.ndarray:
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    return np.cumprod(1 - betas)


def numpy_ddim(x: np.ndarray, num_steps: int, eta: float, t_start: int) -> np.ndarray:
    """Song et al. 2020, eq. 12 and 16, over timesteps 1 + k * (1000 // num_steps)."""
    alphas, stride, noise = numpy_alphas_cumprod(), 1000 // num_steps, generator()
    for k in reversed(range(t_start)):
        t = 1 + k * stride
        alpha, alpha_prev = alphas[t], alphas[max(t - stride, 0)]
        eps = np.tanh(0.7 * x + t / 500 - 1)
        sigma = eta * np.sqrt((1 - alpha_prev) / (1 - alpha)) * np.sqrt(1 - alpha / alpha_prev)
        x0 = (x - np.sqrt(1 - alpha) * eps) / np.sqrt(alpha)
        x = np.sqrt(alpha_prev) * x0 + np.sqrt(1 - alpha_prev - sigma**2) * eps
        if eta:
            x = x + sigma * draw_noise(SHAPE, noise).double().numpy()
    return x


def sample(x: Tensor, num_steps: int, eta: float, t_start: int | None = None) -> Tensor:
    return sample_ddim(eps_model, x, NoiseSchedule(), num_steps, t_start, eta, generator())


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("num_steps", [1, 7, 20, 30, 50])
def test_samples_equal_those_of_diffusers(num_steps, eta):
    x = start()
    assert relative_error(sample(x, num_steps, eta), diffusers_ddim(x, num_steps, eta, num_steps)) <= 1e-5


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("t_start", [1, 7, 19, 20])
def test_the_last_steps_alone_equal_those_of_diffusers(t_start, eta):
    x = start()
    assert relative_error(sample(x, 20, eta, t_start), diffusers_ddim(x, 20, eta, t_start)) <= 1e-5


@pytest.mark.parametrize(
    ("num_steps", "eta", "t_start"), [(1, 0.0, 1), (7, 0.5, 7), (30, 1.0, 11), (50, 0.0, 50), (50, 1.0, 50)]
)
def test_samples_equal_ddim_written_in_float64(num_steps, eta, t_start):
    x = start()
    expected = torch.from_numpy(numpy_ddim(x.double().numpy(), num_steps, eta, t_start))
    assert relative_error(sample(x, num_steps, eta, t_start).double(), expected) <= 1e-5
    assert relative_error(sample(x.double(), num_steps, eta, t_start), expected) <= 1e-12


@pytest.mark.filterwarnings("ignore:501 steps start at timestep 501 of 1000:UserWarning")
@pytest.mark.parametrize("num_steps", [1, 2, 4, 10, 20, 25, 30, 40, 50, 100, 333, 500, 501, 999])
def test_timesteps_equal_those_of_diffusers(num_steps):
    scheduler = diffusers_scheduler()
    scheduler.set_timesteps(num_steps)
    assert NoiseSchedule().timesteps(num_steps) == scheduler.timesteps.tolist()


def test_alphas_cumprod_equal_those_of_diffusers_in_its_float32():
    ours, theirs = NoiseSchedule().alphas_cumprod, diffusers_scheduler().alphas_cumprod
    torch.testing.assert_close(ours, theirs.double(), rtol=1e-5, atol=0)


def test_alphas_cumprod_equal_those_of_numpy_in_float64():
    expected = torch.from_numpy(numpy_alphas_cumprod())
    torch.testing.assert_close(NoiseSchedule().alphas_cumprod, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("timestep", [0, 1, 501, 999])
def test_add_noise_equals_that_of_diffusers(timestep):
    x0, noise = start(), draw_noise(SHAPE, generator())
    expected = diffusers_scheduler().add_noise(x0, noise, torch.tensor([timestep]))
    assert relative_error(NoiseSchedule().add_noise(x0, noise, timestep), expected) <= 1e-5
