"""RescaleCFG, dynamic thresholding, guidance that changes over the steps, and a distilled guidance scale."""

import math

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor

from sdvideo_core.config import UNetConfig
from sdvideo_core.guidance import (
    cfg,
    cosine_guidance,
    dynamic_thresholding,
    guidance_interval,
    guidance_wrappers,
    guided_eps,
    rescale_cfg,
    scale_over_steps,
    threshold,
)
from sdvideo_core.lcm import guidance_embedding
from sdvideo_core.schedule import NoiseSchedule
from sdvideo_core.unet import UNetSD

CONFIG = UNetConfig(dim=64, context_dim=16, dim_mult=(1,), head_dim=16, res_blocks=1)
SCHEDULE = NoiseSchedule()
TIMESTEPS = (1, 401, 981)
SCALE = 9.0


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


VIDEOS = (2, 4, 3, 6, 5)
EPS, EPS_NEG, X = (random(*VIDEOS, seed=seed) for seed in (1, 2, 3))
EPS_NEG = EPS + 0.3 * EPS_NEG  # predictions differ by a part of themselves
CONTEXT, CONTEXT_NEG = (random(2, 7, 16, seed=seed) for seed in (4, 5))
GUIDED = EPS_NEG + SCALE * (EPS - EPS_NEG)


def combine(wrapper, timestep: int) -> Tensor:
    return wrapper(cfg(lambda _: SCALE))(EPS, EPS_NEG, X, timestep)


@pytest.fixture
def unet() -> UNetSD:
    torch.manual_seed(0)
    return UNetSD(CONFIG, dtype=torch.float64).eval()


def comfyui_rescale(amount: float, timestep: int) -> np.ndarray:
    """The formula of ComfyUI's RescaleCFG: in velocities of x / sqrt(alpha-bar), frame by frame."""
    sigma = SCHEDULE.sigma(timestep)
    x = X.numpy() * math.sqrt(1 + sigma**2)
    clean, clean_neg = x - sigma * EPS.numpy(), x - sigma * EPS_NEG.numpy()
    v, v_neg = ((x / (sigma**2 + 1) - x0) * math.sqrt(sigma**2 + 1) / sigma for x0 in (clean, clean_neg))
    guided = v_neg + SCALE * (v - v_neg)
    spread = v.std(axis=(1, 3, 4), keepdims=True) / guided.std(axis=(1, 3, 4), keepdims=True)
    final = amount * guided * spread + (1 - amount) * guided
    x0 = x / (sigma**2 + 1) - final * sigma / math.sqrt(sigma**2 + 1)
    return (x - x0) / sigma


@pytest.mark.parametrize("timestep", TIMESTEPS)
@pytest.mark.parametrize("amount", [0.3, 0.7, 1.0])
def test_rescale_cfg_equals_the_formula_of_comfyuis_node(amount, timestep):
    found = combine(rescale_cfg(amount, SCHEDULE), timestep)
    torch.testing.assert_close(found, torch.from_numpy(comfyui_rescale(amount, timestep)), rtol=0, atol=1e-9)
    assert (found - GUIDED).abs().max() > 1e-3


@pytest.mark.parametrize("timestep", TIMESTEPS)
def test_a_full_rescale_gives_each_frame_the_spread_of_the_prompts_own_velocity(timestep):
    found = combine(rescale_cfg(1.0, SCHEDULE), timestep)
    spreads = [SCHEDULE.velocity(X, eps, timestep).std((1, 3, 4)) for eps in (found, EPS)]
    torch.testing.assert_close(*spreads, rtol=1e-9, atol=0)


@pytest.mark.parametrize("percentile", [0.5, 0.9, 0.995])
def test_threshold_equals_that_of_diffusers(percentile):
    """With 1 for the limit it is Imagen's; both videos exceed it, one by little and one by far."""
    video = torch.stack([3 * X[0], 20 * X[1]])
    scheduler = DDIMScheduler(thresholding=True, dynamic_thresholding_ratio=percentile, sample_max_value=1e9)
    torch.testing.assert_close(threshold(video, percentile, 1.0), scheduler._threshold_sample(video))


@pytest.mark.parametrize("timestep", TIMESTEPS)
def test_thresholding_brings_each_video_to_the_magnitude_of_the_prompts_own(timestep):
    found = combine(dynamic_thresholding(1.0, SCHEDULE), timestep)
    sizes = [SCHEDULE.remove_noise(X, eps, timestep).abs().amax((1, 2, 3, 4)) for eps in (found, EPS, GUIDED)]
    torch.testing.assert_close(sizes[0], torch.minimum(sizes[1], sizes[2]), rtol=1e-9, atol=0)
    assert (sizes[2] > sizes[1]).any()


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_thresholding_leaves_alone_what_is_within_the_limit(share):
    x0 = share * SCHEDULE.remove_noise(X, EPS, 401)
    alpha = SCHEDULE.alpha_cumprod(401)
    within = EPS if share == 1 else (X - math.sqrt(alpha) * x0) / math.sqrt(1 - alpha)
    wrapped = dynamic_thresholding(0.9, SCHEDULE)(lambda *_: within)
    assert torch.equal(wrapped(EPS, EPS_NEG, X, 401), within)


def test_wrappers_compose_in_their_order():
    rescale, clip = rescale_cfg(0.7, SCHEDULE), dynamic_thresholding(0.9, SCHEDULE)
    both = guidance_wrappers(SCHEDULE, 0.7, 0.9)
    expected = combine(lambda inner: clip(rescale(inner)), 401)
    assert torch.equal(combine(lambda inner: both[1](both[0](inner)), 401), expected)
    assert len(guidance_wrappers(SCHEDULE, 0.7, None)) == len(guidance_wrappers(SCHEDULE, 0.0, 0.9)) == 1
    assert guidance_wrappers(SCHEDULE, 0.0, None) == []


@torch.no_grad()
def test_wrappers_change_what_guided_eps_predicts(unet):
    x = X.float().double()
    plain, rescaled, clipped = (
        guided_eps(unet, CONTEXT, CONTEXT_NEG, SCALE, wrappers=guidance_wrappers(SCHEDULE, *options))(x, 401)
        for options in ((0.0, None), (0.7, None), (0.0, 0.9))
    )
    eps, eps_neg = (guided_eps(unet, context, CONTEXT_NEG, 1.0)(x, 401) for context in (CONTEXT, CONTEXT_NEG))
    for found, wrapper in ((rescaled, rescale_cfg(0.7, SCHEDULE)), (clipped, dynamic_thresholding(0.9, SCHEDULE))):
        expected = wrapper(cfg(lambda _: SCALE))(eps, eps_neg, x, 401)
        torch.testing.assert_close(found.double(), expected.double(), rtol=0, atol=1e-4)
        assert not torch.equal(found, plain)


# Over the steps


def test_scales_are_spread_evenly_over_the_timesteps():
    falling, triangle = scale_over_steps((12, 4)), scale_over_steps((1, 9, 3))
    assert (falling(999), falling(0)) == (12, 4)
    assert falling(333) == pytest.approx(4 + 8 / 3)
    assert (triangle(999), triangle(0)) == (1, 3)
    assert triangle(250) == pytest.approx(6, abs=0.01)
    assert scale_over_steps([7.5])(500) == 7.5


def test_cosine_and_interval_follow_the_progress():
    cosine = scale_over_steps(cosine_guidance(12, 4))
    assert (cosine(999), cosine(0)) == (12, 4)
    assert cosine(749) == pytest.approx(8 + 4 * math.cos(math.pi / 4), abs=0.02)
    inner = scale_over_steps(guidance_interval(9.0, 0.25, 0.75))
    assert [inner(t) for t in (999, 760, 740, 500, 260, 240, 0)] == [1, 1, 9, 9, 9, 1, 1]


@pytest.mark.parametrize("batched", [True, False])
@torch.no_grad()
def test_guided_eps_takes_each_steps_scale_and_runs_once_where_it_is_1(unet, batched):
    sizes: list[int] = []
    unet.register_forward_pre_hook(lambda _module, args: sizes.append(len(args[0])))
    changing = guided_eps(unet, CONTEXT, CONTEXT_NEG, {981: 9.0, 401: 3.0, 1: 1.0}.__getitem__, batched)
    for timestep, scale in ((981, 9.0), (401, 3.0), (1, 1.0)):
        fixed = guided_eps(unet, CONTEXT, CONTEXT_NEG, scale, batched)
        sizes.clear()
        found = changing(X, timestep)
        assert sum(sizes) == (2 if scale == 1 else 4)
        assert torch.equal(found, fixed(X, timestep))


# A distilled guidance scale


@torch.no_grad()
def test_an_embedded_scale_is_added_to_the_timesteps_sinusoids(unet):
    """Against diffusers' order: the projection joins the sinusoids before the first layer of the time embedding."""
    emb = guidance_embedding(7.5)
    weight = random(64, 256, seed=6)
    unet.add_guidance_embedding().weight.copy_(weight)
    inputs: list[Tensor] = []
    unet.time_embed.register_forward_pre_hook(lambda _module, args: inputs.append(args[0]))
    for guidance_emb in (None, emb):
        guided_eps(unet, CONTEXT, CONTEXT_NEG, 1.0, guidance_emb=guidance_emb)(X, 401)
    expected = torch.from_numpy(weight.numpy() @ emb.double().numpy())
    torch.testing.assert_close(inputs[1] - inputs[0], expected.expand(2, 64), rtol=0, atol=1e-9)


@torch.no_grad()
def test_a_new_guidance_layer_changes_nothing_and_then_the_video(unet):
    eps = guided_eps(unet, CONTEXT, CONTEXT_NEG, SCALE)(X, 401)
    layer = unet.add_guidance_embedding()
    assert (layer.weight.shape, layer.weight.dtype) == ((64, 256), torch.float64)
    model = guided_eps(unet, CONTEXT, CONTEXT_NEG, SCALE, guidance_emb=guidance_embedding(7.5))
    assert torch.equal(model(X, 401), eps)
    layer.weight.copy_(random(64, 256, seed=6))
    assert not torch.allclose(model(X, 401), eps)


def test_a_unet_without_that_layer_says_what_it_lacks(unet):
    with pytest.raises(ValueError, match=r"guidance_embed needs a UNet distilled .* this one has no cond_proj"):
        guided_eps(unet, CONTEXT, CONTEXT_NEG, 1.0, guidance_emb=guidance_embedding(7.5))(X, 401)


BAD = [
    (lambda: rescale_cfg(1.1, SCHEDULE), r"guidance_rescale=1\.1; it must be from 0 \(off\) to 1"),
    (lambda: rescale_cfg(-0.1, SCHEDULE), r"guidance_rescale=-0\.1; it must"),
    (lambda: dynamic_thresholding(0.0, SCHEDULE), r"dynamic_thresholding=0\.0; it must be above 0 and at most 1"),
    (lambda: dynamic_thresholding(99.5, SCHEDULE), r"dynamic_thresholding=99\.5; it must"),
    (lambda: scale_over_steps([]), "guidance_schedule is empty; give scales"),
    (lambda: guidance_interval(9.0, 0.8, 0.2), r"guidance interval 0\.8\.\.0\.2; it must lie in 0\.\.1"),
]


@pytest.mark.parametrize(("make", "message"), BAD)
def test_impossible_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
