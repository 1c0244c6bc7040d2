"""UNetSD against diffusers' UNet3DConditionModel holding the same weights."""

import pytest
import torch
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
from diffusers.models.unets.unet_3d_condition import UNet3DConditionModel
from torch import Tensor

from sdvideo_core.config import UNetConfig
from sdvideo_core.key_maps import diffusers_key, diffusers_modules
from sdvideo_core.unet import UNetSD
from tests.numerics import relative_error

# 64 channels and not 32: a group of GroupNorm(32, 32) is one channel, from which it would remove the timestep.
CONFIGS = {
    "three levels": UNetConfig(dim=64, context_dim=24, dim_mult=(1, 2, 2), head_dim=16, attn_scales=(1, 0.5)),
    "attention everywhere": UNetConfig(dim=64, context_dim=40, dim_mult=(1, 2), head_dim=32, res_blocks=1),
    "attention in the middle only": UNetConfig(
        dim=64, context_dim=24, dim_mult=(1, 1, 2), head_dim=8, res_blocks=1, attn_scales=()
    ),
    "attention at half resolution only": UNetConfig(
        dim=64, context_dim=24, dim_mult=(1, 2, 1), head_dim=64, res_blocks=1, attn_scales=(0.5,)
    ),
    "four levels": UNetConfig(dim=64, context_dim=32, dim_mult=(1, 1, 2, 2), head_dim=16, res_blocks=1),
    "five channels in, three out, three heads": UNetConfig(
        in_dim=5, out_dim=3, dim=64, context_dim=24, dim_mult=(1, 2), num_heads=3, head_dim=16, res_blocks=1
    ),
}
SHAPES = [(1, 1, 8, 8), (2, 2, 9, 7), (1, 16, 10, 12), (2, 3, 5, 16)]  # (batch, frames, height, width)


def diffusers_unet(config: UNetConfig) -> UNet3DConditionModel:
    attention = [0.5**level in config.attn_scales for level in range(len(config.dim_mult))]
    unet = UNet3DConditionModel(
        in_channels=config.in_dim,
        out_channels=config.out_dim,
        down_block_types=tuple("CrossAttnDownBlock3D" if a else "DownBlock3D" for a in attention),
        up_block_types=tuple("CrossAttnUpBlock3D" if a else "UpBlock3D" for a in reversed(attention)),
        block_out_channels=tuple(config.dim * mult for mult in config.dim_mult),
        layers_per_block=config.res_blocks,
        cross_attention_dim=config.context_dim,
        attention_head_dim=config.head_dim,
    )
    unet.transformer_in = TransformerTemporalModel(  # diffusers fixes its number of heads to 8
        config.num_heads, config.head_dim, in_channels=config.dim, num_layers=1, norm_num_groups=32
    )
    return unet


def to_diffusers(state: dict[str, Tensor], config: UNetConfig) -> dict[str, Tensor]:
    """ModelScope's names and shapes to diffusers', whose temporal projections are not convolutions."""
    modules = diffusers_modules(config)
    return {diffusers_key(key, modules): value.squeeze(2) if value.ndim == 3 else value for key, value in state.items()}


def pair(config: UNetConfig) -> tuple[UNetSD, UNet3DConditionModel]:
    torch.manual_seed(0)
    unet = UNetSD(config).eval()
    with torch.no_grad():
        for weight in unet.parameters():
            if weight.ndim == 1:  # norms start as the identity, which would hide one taken for another
                weight.add_(0.1 * torch.randn_like(weight))
    reference = diffusers_unet(config).eval()
    reference.load_state_dict(to_diffusers(unet.state_dict(), config), strict=True)
    return unet, reference


@pytest.fixture(scope="module", params=CONFIGS.values(), ids=CONFIGS.keys())
def unets(request: pytest.FixtureRequest) -> tuple[UNetSD, UNet3DConditionModel]:
    return pair(request.param)


def inputs(config: UNetConfig, batch: int, *size: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, config.in_dim, *size, generator=generator)
    timesteps = torch.tensor([981, 20])[:batch]
    return x, timesteps, torch.randn(batch, 7, config.context_dim, generator=generator)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@torch.no_grad()
def test_output(unets, shape):
    unet, reference = unets
    x, timesteps, context = inputs(unet.config, *shape)
    expected = reference(x, timesteps, context).sample
    assert relative_error(unet(x, timesteps, context), expected) <= 1e-5


@pytest.mark.parametrize("timestep", [0, 1, 500, 999])
@torch.no_grad()
def test_output_over_timesteps(unets, timestep):
    unet, reference = unets
    x, _, context = inputs(unet.config, 1, 2, 6, 6)
    timesteps = torch.tensor([timestep])
    expected = reference(x, timesteps, context).sample
    assert relative_error(unet(x, timesteps, context), expected) <= 1e-5


def test_gradients_of_input_and_of_every_weight():
    config = CONFIGS["three levels"]
    unet, reference = pair(config)
    x, timesteps, context = inputs(config, 2, 3, 9, 7)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    # The same random weighting of every output: a plain sum would pass over what cancels in it.
    weighting = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    (unet(ours, timesteps, context) * weighting).sum().backward()
    (reference(theirs, timesteps, context).sample * weighting).sum().backward()

    assert relative_error(ours.grad, theirs.grad) <= 1e-4
    expected = {name: weight.grad for name, weight in reference.named_parameters()}
    modules = diffusers_modules(config)
    errors = {
        name: relative_error(weight.grad, expected[diffusers_key(name, modules)])
        for name, weight in unet.named_parameters()
    }
    assert {name: error for name, error in errors.items() if not error <= 1e-4} == {}
    assert len(errors) == len(expected)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_key_map_is_a_bijection_onto_the_keys_and_shapes_of_diffusers(config):
    with torch.device("meta"):
        state, reference = UNetSD(config).state_dict(), diffusers_unet(config).state_dict()
    renamed = to_diffusers(state, config)
    assert len(renamed) == len(state)
    assert {k: v.shape for k, v in renamed.items()} == {k: v.shape for k, v in reference.items()}


def test_full_size_key_map_covers_the_1480_tensors_of_diffusers_own_default_unet():
    with torch.device("meta"):
        reference, state = UNet3DConditionModel().state_dict(), UNetSD(UNetConfig()).state_dict()
    renamed = to_diffusers(state, UNetConfig())
    assert len(reference) == 1480
    assert {k: v.shape for k, v in renamed.items()} == {k: v.shape for k, v in reference.items()}


@pytest.mark.parametrize(
    "key",
    [
        "input_blocks.12.0.weight",
        "output_blocks.0.1.norm.weight",
        "down_blocks.0.resnets.0.norm1.weight",
        "out",
    ],
)
def test_key_map_refuses_what_is_not_in_the_unet(key):
    with pytest.raises(KeyError, match=f"{key} is in none of the modules of this UNet"):
        diffusers_key(key, diffusers_modules(UNetConfig()))
