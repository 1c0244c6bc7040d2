"""Samplers by name: their arguments and errors, and what all of them have in common."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from sdvideo_core.ddim import DDIM
from sdvideo_core.lcm import LCM, c_out, c_skip, consistency, guidance_embedding
from sdvideo_core.sampler import draw_noise
from sdvideo_core.samplers import SAMPLERS, find_sampler
from sdvideo_core.schedule import NoiseSchedule

SHAPE = (1, 4, 3, 8, 4)  # (B, C, F, h, w)
SCHEDULE = NoiseSchedule()
CLEAN = torch.full(SHAPE, 0.5)
ALL = pytest.mark.parametrize("name", SAMPLERS)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def perfect_eps(x: Tensor, timestep: int) -> Tensor:
    alpha = SCHEDULE.alpha_cumprod(timestep)
    return (x - math.sqrt(alpha) * CLEAN) / math.sqrt(1 - alpha)


def wavy_eps(x: Tensor, timestep: int) -> Tensor:
    return torch.tanh(x + timestep / 1000)


def sample(name: str, eps_model=wavy_eps, num_steps: int = 8, **options) -> Tensor:
    x = draw_noise(SHAPE, generator())
    return find_sampler(name).sample(eps_model, x, SCHEDULE, num_steps, **options)


@ALL
@pytest.mark.parametrize("t_start", [None, 3])
def test_a_perfect_model_gives_its_video(name, t_start):
    """DDIM as the published models use it stops at index 0 of the schedule, with 3 % of noise left."""
    sampler = find_sampler(name)
    noise = draw_noise(SHAPE, generator())
    x = SCHEDULE.add_noise(CLEAN, noise, sampler.timesteps(SCHEDULE, 8, t_start)[0])
    video = sampler.sample(perfect_eps, x, SCHEDULE, 8, t_start, generator(1))
    expected = CLEAN if name != "ddim" else SCHEDULE.add_noise(CLEAN, noise, 0)
    torch.testing.assert_close(video, expected, rtol=0, atol=1e-5)
    assert video.dtype == torch.float32


@ALL
@pytest.mark.parametrize("t_start", [None, 3])
def test_callback_reports_every_step_with_the_clean_video(name, t_start):
    calls, videos = [], []

    def callback(index: int, num_steps: int, x0: Tensor) -> None:
        calls.append((index, num_steps))
        videos.append(x0)

    sample(name, perfect_eps, t_start=t_start, generator=generator(1), callback=callback)
    count = t_start or 8
    assert calls == [(index, count) for index in range(count)]
    torch.testing.assert_close(torch.stack(videos), CLEAN.expand(count, *SHAPE), rtol=0, atol=1e-4)


@ALL
def test_the_network_sees_the_timesteps_once_each(name):
    seen: list[int] = []

    def eps_model(x: Tensor, timestep: int) -> Tensor:
        seen.append(timestep)
        return wavy_eps(x, timestep)

    sample(name, eps_model, num_steps=7, t_start=4)
    assert seen == find_sampler(name).timesteps(SCHEDULE, 7, 4) == find_sampler(name).timesteps(SCHEDULE, 7)[-4:]
    assert seen == sorted(seen, reverse=True)


@ALL
@pytest.mark.parametrize("t_start", [-1, 0, 9])
def test_t_start_outside_the_steps_is_refused(name, t_start):
    with pytest.raises(ValueError, match=rf"t_start={t_start}; with 8 timesteps it must be 1\.\.8"):
        sample(name, t_start=t_start)


@ALL
@pytest.mark.parametrize("num_steps", [0, 1000])
def test_impossible_step_counts_are_refused(name, num_steps):
    with pytest.raises(ValueError, match=rf"timesteps={num_steps}; .* takes 1\.\.(999|50) steps"):
        sample(name, num_steps=num_steps)


@pytest.mark.parametrize("name", ["dpm++2m", "unipc"])
def test_solvers_draw_no_noise(name):
    assert torch.equal(sample(name, generator=generator(1)), sample(name, generator=generator(2)))


def test_lcm_draws_its_noise_from_the_generator():
    assert torch.equal(sample("lcm", generator=generator(1)), sample("lcm", generator=generator(1)))
    assert not torch.equal(sample("lcm", generator=generator(1)), sample("lcm", generator=generator(2)))


def test_one_step_of_lcm_is_the_consistency_function_and_draws_nothing():
    x, source = draw_noise(SHAPE, generator()), generator(1)
    state = source.get_state()
    found = LCM().sample(wavy_eps, x, SCHEDULE, 1, generator=source)
    assert torch.equal(found, consistency(x, SCHEDULE.remove_noise(x, wavy_eps(x, 999), 999), 999.0, 4.0))
    assert torch.equal(source.get_state(), state)


@pytest.mark.parametrize("scaling", [4.0, 10.0])
def test_the_consistency_function_is_the_identity_at_timestep_0(scaling):
    assert (c_skip(0.0, scaling), c_out(0.0, scaling)) == (1.0, 0.0)
    timesteps = torch.arange(1.0, 1000.0)
    assert c_skip(timesteps, scaling).max() < 0.016
    assert (1 - c_out(timesteps, scaling)).max() < 0.008


@pytest.mark.parametrize("scaling", [4.0, 0.001])
def test_the_consistency_function_takes_the_timesteps_of_each_video(scaling):
    x, x0 = (torch.randn(3, *SHAPE[1:], generator=generator(seed)) for seed in (1, 2))
    timesteps = [19, 500, 999]
    each = [consistency(x[i], x0[i], float(t), scaling) for i, t in enumerate(timesteps)]
    together = consistency(x, x0, torch.tensor(timesteps, dtype=torch.float32).view(3, 1, 1, 1, 1), scaling)
    torch.testing.assert_close(together, torch.stack(each), rtol=0, atol=1e-6)


@pytest.mark.parametrize("said", [LCM(), LCM(10.0, 20, "even")])
def test_a_lora_says_how_it_is_sampled(said):
    assert LCM.from_metadata(said.metadata() | {"other": "1"}) == said


def test_metadata_without_a_word_of_it_says_nothing():
    assert LCM.from_metadata({"step": "7"}) is None


def test_a_number_that_is_none_is_named():
    with pytest.raises(ValueError, match=r"^sdvideo.lcm_timesteps is 'many' in a LoRA's metadata; expected a number$"):
        LCM.from_metadata({"sdvideo.lcm_timesteps": "many"})


def test_unknown_grids_and_samplers_are_refused_with_what_there_is():
    with pytest.raises(ValueError, match="grid='odd'; expected 'strided' or 'even'"):
        LCM(grid="odd").timesteps(SCHEDULE, 4)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"sampler='euler'; expected one of ddim, dpm\+\+2m, unipc, lcm"):
        find_sampler("euler")


@pytest.mark.parametrize("sampler", ["dpm++2m", "unipc", "lcm", LCM(10.0)])
def test_eta_is_refused_where_it_means_nothing(sampler):
    with pytest.raises(ValueError, match=r"eta=0\.5 with sampler=.*; eta belongs to 'ddim'"):
        find_sampler(sampler, eta=0.5)


def test_a_sampler_with_options_is_taken_as_it_is():
    sampler = LCM(10.0)
    assert find_sampler(sampler) is sampler
    assert find_sampler("ddim", eta=0.5) == DDIM(0.5)


@pytest.mark.parametrize("scale", [5.0, 7.5, 15.0])
def test_guidance_embedding_is_its_formula(scale):
    angles = scale * 1000 * np.exp(-np.log(10000) * np.arange(128) / 127)
    expected = torch.from_numpy(np.concatenate([np.sin(angles), np.cos(angles)]))
    found = guidance_embedding(scale)
    assert (found.dtype, found.shape) == (torch.float32, (256,))
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)
