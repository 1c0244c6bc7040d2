"""Classifier-free guidance: its scale and its two ways to run."""

import pytest
import torch
from torch import Tensor

from sdvideo_core.config import UNetConfig
from sdvideo_core.guidance import guided_eps
from sdvideo_core.unet import UNetSD
from tests.numerics import relative_error

CONFIG = UNetConfig(dim=64, context_dim=16, dim_mult=(1,), head_dim=16, res_blocks=1)
VIDEOS = 2
TIMESTEP = 401


@pytest.fixture(scope="module")
def unet() -> UNetSD:
    # In float64: guidance multiplies the rounding of the network, which is not what is tested here.
    torch.manual_seed(0)
    return UNetSD(CONFIG, dtype=torch.float64).eval()


@pytest.fixture
def calls(unet: UNetSD):
    """Batch sizes that the network is run with."""
    seen: list[int] = []
    hook = unet.register_forward_pre_hook(lambda _module, args: seen.append(len(args[0])))
    yield seen
    hook.remove()


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X = random(VIDEOS, 4, 3, 6, 5)
CONTEXT, CONTEXT_NEG, CONTEXT_OTHER = (random(VIDEOS, 7, 16, seed=seed) for seed in (2, 3, 4))


def direct(unet: UNetSD, context: Tensor) -> Tensor:
    return unet(X, torch.full((VIDEOS,), TIMESTEP), context).float()


@pytest.mark.parametrize("scale", [1, 1.0])
@pytest.mark.parametrize("batched", [True, False])
@torch.no_grad()
def test_scale_1_is_the_prompt_alone_bit_for_bit_in_one_run(unet, calls, scale, batched):
    eps = guided_eps(unet, CONTEXT, CONTEXT_NEG, scale, batched)(X, TIMESTEP)
    assert calls == [VIDEOS]
    assert torch.equal(eps, direct(unet, CONTEXT))


@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.5, 9.0])
@pytest.mark.parametrize(("batched", "runs"), [(True, [2 * VIDEOS]), (False, [VIDEOS, VIDEOS])])
@torch.no_grad()
def test_guidance_goes_from_the_negative_prompt_through_the_prompt(unet, calls, scale, batched, runs):
    eps = guided_eps(unet, CONTEXT, CONTEXT_NEG, scale, batched)(X, TIMESTEP)
    assert calls == runs
    negative, positive = direct(unet, CONTEXT_NEG).double(), direct(unet, CONTEXT).double()
    assert relative_error(eps.double(), (1 - scale) * negative + scale * positive) <= 1e-5


@pytest.mark.parametrize("scale", [0.5, 9.0, 17.0])
@torch.no_grad()
def test_batched_equals_one_after_the_other(unet, scale):
    batched, sequential = (guided_eps(unet, CONTEXT, CONTEXT_NEG, scale, flag)(X, TIMESTEP) for flag in (True, False))
    assert relative_error(batched, sequential) <= 1e-5


@pytest.mark.parametrize("batched", [True, False])
@torch.no_grad()
def test_the_negative_prompt_and_the_prompt_matter(unet, batched):
    eps, other_negative, other_positive = (
        guided_eps(unet, context, context_neg, 9.0, batched)(X, TIMESTEP)
        for context, context_neg in (
            (CONTEXT, CONTEXT_NEG),
            (CONTEXT, CONTEXT_OTHER),
            (CONTEXT_OTHER, CONTEXT_NEG),
        )
    )
    assert relative_error(other_negative, eps) > 1e-2
    assert relative_error(other_positive, eps) > 1e-2


@pytest.mark.parametrize("batched", [True, False])
@torch.no_grad()
def test_each_video_has_its_own_prompts(unet, batched):
    swapped = guided_eps(unet, CONTEXT.flip(0), CONTEXT_NEG.flip(0), 9.0, batched)(X.flip(0), TIMESTEP).flip(0)
    assert relative_error(swapped, guided_eps(unet, CONTEXT, CONTEXT_NEG, 9.0, batched)(X, TIMESTEP)) <= 1e-5


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("scale", [1.0, 9.0])
@torch.no_grad()
def test_prompts_are_projected_before_the_first_step_only(unet, scale, batched):
    runs: list[str] = []
    hooks = [
        module.register_forward_hook(lambda *_, name=name: runs.append(name))
        for name, module in unet.named_modules()
        if name.endswith(("to_k", "to_v")) and module.in_features == CONFIG.context_dim
    ]
    eps_model = guided_eps(unet, CONTEXT, CONTEXT_NEG, scale, batched)
    before = len(runs)
    eps_model(X, 401)
    eps_model(X, 1)
    for hook in hooks:
        hook.remove()
    assert before == len(runs) == len(hooks) * (1 if batched or scale == 1 else 2)
    assert len(hooks) == 2 * 4


@pytest.mark.parametrize("scale", [1.0, 9.0])
@torch.no_grad()
def test_eps_is_float32_whatever_the_precision_of_the_network(scale):
    torch.manual_seed(0)
    unet = UNetSD(CONFIG, dtype=torch.bfloat16).eval()
    eps = guided_eps(unet, CONTEXT.bfloat16(), CONTEXT_NEG.bfloat16(), scale)(X, TIMESTEP)
    assert (eps.dtype, eps.shape) == (torch.float32, X.shape)
    assert eps.isfinite().all()
