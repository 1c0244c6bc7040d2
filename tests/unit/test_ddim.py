"""DDIM sampling: its arguments, randomness and callbacks."""

import math

import pytest
import torch
from torch import Tensor

from sdvideo_core.ddim import draw_noise, eps_of_denoiser, sample_ddim
from sdvideo_core.schedule import NoiseSchedule

SHAPE = (1, 4, 3, 8, 4)  # (B, C, F, h, w)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def eps_model(x: Tensor, timestep: int) -> Tensor:
    return torch.tanh(x + timestep / 1000)


def sample(num_steps: int = 10, **options) -> Tensor:
    return sample_ddim(eps_model, draw_noise(SHAPE, generator()), NoiseSchedule(), num_steps, **options)


@pytest.mark.parametrize("t_start", [-1, 0, 11, 1000])
def test_t_start_outside_the_steps_is_refused(t_start):
    with pytest.raises(ValueError, match=f"t_start={t_start}; with 10 timesteps it must be 1..10"):
        sample(t_start=t_start)


@pytest.mark.parametrize("eta", [-0.1, 1.01, 2.0, math.nan])
def test_eta_outside_0_to_1_is_refused(eta):
    with pytest.raises(ValueError, match=f"eta={eta}; it must be from 0 .* to 1"):
        sample(eta=eta)


@pytest.mark.parametrize("num_steps", [0, 1000])
def test_impossible_step_counts_are_refused(num_steps):
    with pytest.raises(ValueError, match=f"timesteps={num_steps}; a schedule of 1000 takes 1..999 steps"):
        sample(num_steps)


@pytest.mark.parametrize(("t_start", "first"), [(None, 901), (10, 901), (4, 301), (1, 1)])
def test_the_last_t_start_timesteps_are_visited_noisiest_first(t_start, first):
    visited: list[int] = []

    def recorder(x: Tensor, timestep: int) -> Tensor:
        visited.append(timestep)
        return eps_model(x, timestep)

    sample_ddim(recorder, draw_noise(SHAPE, generator()), NoiseSchedule(), 10, t_start)
    assert visited == list(range(first, 0, -100))


def test_t_start_of_all_steps_is_the_default():
    assert torch.equal(sample(t_start=10), sample())


@pytest.mark.parametrize(("t_start", "count"), [(None, 10), (3, 3)])
def test_callback_runs_after_every_step_with_the_predicted_clean_video(t_start, count):
    clean = torch.full(SHAPE, 0.5)

    def perfect_eps(x: Tensor, timestep: int) -> Tensor:
        alpha = NoiseSchedule().alpha_cumprod(timestep)
        return (x - math.sqrt(alpha) * clean) / math.sqrt(1 - alpha)

    calls: list[tuple[int, int]] = []
    videos: list[Tensor] = []

    def callback(index: int, num_steps: int, x0: Tensor) -> None:
        calls.append((index, num_steps))
        videos.append(x0)

    x = draw_noise(SHAPE, generator())
    sample_ddim(perfect_eps, x, NoiseSchedule(), 10, t_start, callback=callback)
    assert calls == [(index, count) for index in range(count)]
    torch.testing.assert_close(torch.stack(videos), clean.expand(count, *SHAPE), rtol=0, atol=1e-5)


@pytest.mark.parametrize("t_start", [1, 7, 50])
def test_knowing_the_noise_gives_back_the_video_at_index_0(t_start):
    schedule = NoiseSchedule()
    clean, noise = draw_noise(SHAPE, generator(1)).double(), draw_noise(SHAPE, generator(2)).double()
    x = schedule.add_noise(clean, noise, schedule.timesteps(50)[-t_start])
    result = sample_ddim(lambda _x, _t: noise, x, schedule, 50, t_start)
    torch.testing.assert_close(result, schedule.add_noise(clean, noise, 0), rtol=0, atol=1e-12)


def test_eta_0_neither_depends_on_the_generator_nor_draws_from_it():
    source = generator(5)
    before = source.get_state()
    assert torch.equal(sample(eta=0.0, generator=source), sample())
    assert torch.equal(source.get_state(), before)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_eta_above_0_is_decided_by_the_generator_alone(eta):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = sample(eta=eta, generator=generator(5))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(sample(eta=eta, generator=generator(5)), first)
    assert not torch.equal(sample(eta=eta, generator=generator(6)), first)


def test_eta_matters():
    results = [sample(eta=eta, generator=generator(5)) for eta in (0.0, 0.5, 1.0)]
    distances = [(result - results[0]).norm().item() for result in results]
    assert 0 == distances[0] < distances[1] < distances[2]


@pytest.mark.parametrize("shape", [(2, 3), (3, 4, 8, 4), SHAPE])
def test_x_of_any_shape_is_sampled_and_left_as_it_was(shape):
    x = torch.randn(shape, generator=generator())
    before = x.clone()
    result = sample_ddim(eps_model, x, NoiseSchedule(), 10)
    assert (result.shape, result.dtype) == (shape, torch.float32)
    assert torch.equal(x, before)


# draw_noise


@pytest.mark.parametrize("shape", [(1, 4, 3, 8, 4), (2, 4, 5, 7, 9)])
def test_noise_of_a_video_is_that_of_its_frames(shape):
    batch, channels, num_frames, height, width = shape
    frames = draw_noise((batch * num_frames, channels, height, width), generator())
    video = draw_noise(shape, generator())
    assert video.shape == shape
    assert torch.equal(video, frames.unflatten(0, (batch, num_frames)).transpose(1, 2))


@pytest.mark.parametrize("size", [(8, 4), (32, 57), (32, 32)])
@pytest.mark.parametrize("num_frames", [1, 3, 16])
def test_noise_of_a_longer_video_starts_with_that_of_a_shorter_one(num_frames, size):
    short = draw_noise((1, 4, num_frames, *size), generator())
    long = draw_noise((1, 4, num_frames + 5, *size), generator())
    assert torch.equal(long[:, :, :num_frames], short)


@pytest.mark.parametrize("shape", [(6, 4, 8, 8), (1, 4, 6, 8, 8)])
def test_noise_is_unit_normal_in_float32_and_decided_by_the_seed(shape):
    noise = draw_noise(shape, generator(3))
    assert noise.dtype == torch.float32
    assert abs(noise.mean().item()) < 0.1
    assert abs(noise.std().item() - 1) < 0.1
    assert torch.equal(noise, draw_noise(torch.Size(shape), generator(3)))
    assert not torch.equal(noise, draw_noise(shape, generator(4)))


def test_noise_without_a_generator_follows_torchs_own_seed():
    torch.manual_seed(7)
    assert torch.equal(draw_noise(SHAPE, None), draw_noise(SHAPE, generator(7)))


# eps_of_denoiser


@pytest.mark.parametrize("timestep", [1, 401, 981])
def test_eps_of_a_denoiser_is_the_eps_it_was_made_of(timestep):
    schedule = NoiseSchedule()
    seen: list[Tensor] = []

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append(sigma)
        scale = sigma.view(-1, 1, 1, 1, 1)
        return x - scale * eps_model(x / (1 + scale**2).sqrt(), timestep)

    x = draw_noise((2, *SHAPE[1:]), generator()).double()
    eps = eps_of_denoiser(denoiser, schedule)(x, timestep)
    torch.testing.assert_close(eps, eps_model(x, timestep), rtol=0, atol=1e-12)
    assert seen[0].tolist() == [schedule.sigma(timestep)] * 2
