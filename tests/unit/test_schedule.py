"""Noise schedule: its timesteps and levels."""

import math
from itertools import pairwise

import pytest
import torch

from sdvideo_core.schedule import NoiseSchedule


@pytest.mark.parametrize(
    ("num_steps", "first", "second", "last"),
    [(50, 981, 961, 1), (20, 951, 901, 1), (30, 958, 925, 1), (10, 901, 801, 1), (999, 999, 998, 1)],
)
def test_timesteps_are_evenly_spaced_from_1(num_steps, first, second, last):
    timesteps = NoiseSchedule().timesteps(num_steps)
    assert [timesteps[0], timesteps[1], timesteps[-1]] == [first, second, last]


@pytest.mark.filterwarnings("ignore:.* steps start at timestep .* of 1000:UserWarning")
def test_every_step_count_gives_exactly_that_many_evenly_spaced_timesteps():
    schedule = NoiseSchedule()
    for num_steps in range(1, 1000):
        timesteps = schedule.timesteps(num_steps)
        assert len(timesteps) == num_steps
        assert 1 <= min(timesteps) <= max(timesteps) <= 999
        assert {before - after for before, after in pairwise(timesteps)} <= {1000 // num_steps}
        assert timesteps[-1] == 1


def test_timesteps_of_another_number_of_training_steps():
    schedule = NoiseSchedule(num_timesteps=100)
    assert schedule.timesteps(10) == [91, 81, 71, 61, 51, 41, 31, 21, 11, 1]
    assert len(schedule.alphas_cumprod) == 100


@pytest.mark.parametrize("num_steps", [-1, 0, 1000, 2000])
@pytest.mark.parametrize("method", ["stride", "timesteps"])
def test_impossible_step_counts_are_refused(method, num_steps):
    with pytest.raises(ValueError, match=f"timesteps={num_steps}; a schedule of 1000 takes 1..999 steps"):
        getattr(NoiseSchedule(), method)(num_steps)


@pytest.mark.parametrize(("num_steps", "first"), [(112, 889), (300, 898), (501, 501), (600, 600)])
def test_step_counts_that_start_far_below_pure_noise_warn(num_steps, first):
    with pytest.warns(UserWarning, match=f"{num_steps} steps start at timestep {first} of 1000"):
        assert NoiseSchedule().timesteps(num_steps)[0] == first


@pytest.mark.parametrize("num_steps", [1, 7, 20, 50, 100, 200, 250, 500, 950])
def test_other_step_counts_do_not_warn(num_steps, recwarn):
    assert len(NoiseSchedule().timesteps(num_steps)) == num_steps
    assert len(recwarn) == 0


def test_betas_are_squares_of_an_even_grid_in_float64_on_the_cpu():
    schedule = NoiseSchedule()
    assert schedule.alphas_cumprod.dtype == schedule.betas.dtype == torch.float64
    assert schedule.alphas_cumprod.device.type == "cpu"
    assert schedule.betas[[0, -1]].tolist() == pytest.approx([0.00085, 0.012], rel=1e-12)
    spacing = (math.sqrt(0.012) - math.sqrt(0.00085)) / 999
    assert schedule.betas.sqrt().diff().tolist() == pytest.approx([spacing] * 999, rel=1e-9)


def test_alphas_cumprod_are_running_products_of_1_less_beta():
    schedule = NoiseSchedule()
    products, product = [], 1.0
    for beta in schedule.betas.tolist():
        product *= 1 - beta
        products.append(product)
    assert schedule.alphas_cumprod.tolist() == pytest.approx(products, rel=1e-12)


@pytest.mark.parametrize("timestep", [0, 1, 981, 999])
def test_alpha_cumprod_is_a_python_float_and_sigma_is_noise_over_signal(timestep):
    schedule = NoiseSchedule()
    alpha = schedule.alpha_cumprod(timestep)
    assert isinstance(alpha, float)
    assert alpha == schedule.alphas_cumprod[timestep].item()
    assert schedule.sigma(timestep) == pytest.approx(math.sqrt(1 / alpha - 1), rel=1e-12)


@pytest.mark.parametrize("timestep", [0, 500, 999])
def test_add_noise_mixes_signal_and_noise_at_unit_variance(timestep):
    schedule = NoiseSchedule()
    one, zero = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    signal = schedule.add_noise(one, zero, timestep).item()
    noise = schedule.add_noise(zero, one, timestep).item()
    assert signal**2 == pytest.approx(schedule.alpha_cumprod(timestep), rel=1e-12)
    assert signal**2 + noise**2 == pytest.approx(1, rel=1e-12)
    assert noise > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_add_noise_keeps_dtype_and_shape_and_leaves_its_inputs_alone(dtype):
    x0, noise = torch.ones(1, 4, 2, 3, 5, dtype=dtype), torch.ones(1, 4, 2, 3, 5, dtype=dtype)
    result = NoiseSchedule().add_noise(x0, noise, 500)
    assert (result.dtype, result.shape) == (dtype, x0.shape)
    assert x0.eq(1).all() and noise.eq(1).all()
