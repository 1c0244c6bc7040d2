"""Loss: what the network sees and should answer, and how timesteps are weighed; against diffusers where it has it."""

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from sdvideo_core.schedule import NoiseSchedule
from sdvideo_core.training.loss import START_FROM, DiffusionLoss, spread
from sdvideo_core.training.network import Network

SCHEDULE = NoiseSchedule()
SHAPE = (8, 4, 3, 4, 6)
PEER = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def latents(shape=SHAPE) -> torch.Tensor:
    return torch.randn(shape, generator=generator(99))


@pytest.mark.parametrize("options", [{}, {"noise_offset": 0.1}, {"start_noise": 0.5}, {"start_noise": 1.0}])
def test_x_is_the_latents_with_eps_at_the_timestep(options):
    x0 = latents()
    noised = DiffusionLoss(SCHEDULE, **options).add_noise(x0, generator())
    expected = PEER.add_noise(x0, noised.eps, noised.timesteps)
    torch.testing.assert_close(noised.x, expected, atol=2e-5, rtol=1e-5)


def test_a_network_that_knows_the_noise_has_no_loss():
    loss = DiffusionLoss(SCHEDULE, start_noise=0.3, min_snr_gamma=5.0, noise_offset=0.1)
    eps = loss.add_noise(latents(), generator()).eps
    assert loss(lambda _x, _t: eps, latents(), generator()).item() == 0
    assert loss(lambda _x, _t: eps + 1, latents(), generator()).item() > 0


def test_the_generator_decides_everything():
    loss, torchs_own = DiffusionLoss(SCHEDULE, noise_offset=0.1, start_noise=0.5), torch.get_rng_state()
    values = [loss(lambda x, _t: x, latents(), generator(seed)).item() for seed in (1, 1, 2)]
    assert values[0] == values[1] != values[2]
    assert torch.equal(torch.get_rng_state(), torchs_own)


def test_each_part_of_the_schedule_gives_one_timestep():
    for seed in range(20):
        timesteps = DiffusionLoss(SCHEDULE).add_noise(latents(), generator(seed)).timesteps
        assert sorted((timesteps // 125).tolist()) == list(range(8))


def test_every_place_in_a_batch_gets_every_part_of_the_schedule():
    drawn = torch.stack([spread(4, 1000, generator(seed)) for seed in range(60)])
    assert ((drawn // 250).sort(dim=0).values[[0, -1]] == torch.tensor([[0], [3]])).all()


def test_without_start_noise_eps_is_unit_noise():
    eps = DiffusionLoss(SCHEDULE).add_noise(latents((8, 4, 8, 16, 16)), generator()).eps
    assert eps.mean().abs() < 0.01
    assert abs(eps.std() - 1) < 0.01


def test_noise_offset_moves_whole_frames():
    noise = DiffusionLoss(SCHEDULE, noise_offset=0.5).add_noise(torch.zeros(8, 4, 8, 32, 32), generator()).eps
    assert abs(noise.mean((3, 4)).std() - 0.5) < 0.1
    assert abs((noise - noise.mean((3, 4), keepdim=True)).std() - 1) < 0.01


def test_min_snr_weights_are_diffusers():
    noised = DiffusionLoss(SCHEDULE, min_snr_gamma=5.0).add_noise(latents(), generator())
    snr = compute_snr(PEER, noised.timesteps)
    torch.testing.assert_close(noised.weights, snr.clamp(max=5.0) / snr, rtol=1e-4, atol=0)
    floored = DiffusionLoss(SCHEDULE, min_snr_gamma=5.0, snr_floor=1.0).add_noise(latents(), generator())
    torch.testing.assert_close(floored.weights, snr.clamp(1.0, 5.0) / snr, rtol=1e-4, atol=0)
    unweighted = DiffusionLoss(SCHEDULE).add_noise(latents(), generator())
    assert torch.equal(unweighted.weights, torch.ones(8))


def test_start_noise_hides_the_video_from_the_noisiest_timesteps():
    x0 = torch.full((4000, 1, 1, 1, 1), 100.0)
    noised = DiffusionLoss(SCHEDULE, start_noise=1.0).add_noise(x0, generator())
    assert noised.timesteps.min() >= START_FROM * 1000
    signal = noised.x.flatten() / 100 / SCHEDULE.alphas_cumprod[noised.timesteps].sqrt()
    assert 0.6 < (signal.abs() < 0.5).float().mean() < 0.9  # in training as usual it is 1 in all of them
    assert (signal.abs() < 0.15).float().mean() > 0.3
    assert (noised.weights > 1).all()


def test_start_noise_is_a_share_of_the_samples():
    timesteps = (
        DiffusionLoss(SCHEDULE, start_noise=0.25).add_noise(torch.zeros(4000, 1, 1, 1, 1), generator()).timesteps
    )
    share = (timesteps >= START_FROM * 1000).float().mean()
    assert abs(share - (0.25 + 0.75 * 0.12)) < 0.03


@pytest.mark.parametrize("options", [{}, {"start_noise": 1.0}])
def test_the_last_place_is_the_last_timestep(options, monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.full(np.atleast_1d(shape).tolist(), 1 - 2**-24))
    monkeypatch.setattr(DiffusionLoss, "_noise", lambda _self, shape, _generator: torch.zeros(shape))
    if options:
        monkeypatch.setattr(DiffusionLoss, "_timesteps", lambda _self, batch, _generator: torch.zeros(batch).long())
    timesteps = DiffusionLoss(SCHEDULE, **options).add_noise(latents(), generator()).timesteps
    assert timesteps.max() <= 999


@pytest.mark.parametrize("lora_rank", [4, None])
def test_float16_gradients_are_finite_and_near_those_of_float32(new_model, lora_rank):
    """What accelerate does on CUDA: autocast of the network, and a loss scaled up."""
    network = Network(new_model().unet, lora_rank)
    network.begin(dropout=False)
    scaler, gradients = torch.amp.GradScaler("cpu"), []
    x0, context = latents((2, 4, 2, 4, 4)), torch.randn(2, 77, 64, generator=generator())
    for half in (False, True):

        def eps(x, timesteps, half=half):
            with torch.autocast("cpu", torch.float16, enabled=half):
                return network(x, timesteps, context)

        loss = DiffusionLoss(SCHEDULE)(eps, x0, generator())
        scaler.scale(loss).backward()
        weights = [weight for weight in network.trainable().values() if weight.grad is not None]
        gradients.append(torch.cat([weight.grad.flatten() for weight in weights]) / scaler.get_scale())
        network.zero_grad()
    exact, rounded = gradients
    assert rounded.isfinite().all()
    assert exact.norm() > 0
    assert 0 < (rounded - exact).norm() < 0.02 * exact.norm()
