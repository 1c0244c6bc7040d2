"""The autoencoder against diffusers' AutoencoderKL holding the same weights."""

import re

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL as DiffusersAutoencoderKL
from torch import Tensor

from sdvideo_core.config import VAEConfig
from sdvideo_core.vae import AutoencoderKL
from tests.numerics import relative_error

CONFIGS = {
    "two blocks a level": VAEConfig(ch=32, ch_mult=(1, 2, 4, 4), num_res_blocks=2),
    "one block a level, three latent channels": VAEConfig(ch=64, ch_mult=(1, 1, 2, 1), num_res_blocks=1, z_channels=3),
}
SIZES = [(8, 8), (40, 24), (16, 72)]  # (height, width) of frames
LATENT_SCALE = 0.18215

# Names of latent diffusion -> names of diffusers, applied one after the other.
RENAMES = [
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.", ".mid_block.attentions.0."),
    (r"\.attentions\.0\.norm\.", ".attentions.0.group_norm."),
    (r"\.attentions\.0\.([qkv])\.", r".attentions.0.to_\1."),
    (r"\.attentions\.0\.proj_out\.", ".attentions.0.to_out.0."),
    (r"\.down\.(\d)\.", r".down_blocks.\1."),
    (r"\.block\.(\d)\.", r".resnets.\1."),
    (r"\.(up|down)sample\.", r".\1samplers.0."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"\.norm_out\.", ".conv_norm_out."),
]


def to_diffusers(state: dict[str, Tensor], config: VAEConfig) -> dict[str, Tensor]:
    last, renamed = len(config.ch_mult) - 1, {}
    for key, value in state.items():
        # diffusers numbers the decoder's levels in the order they run, latent diffusion by resolution.
        name = re.sub(r"\.up\.(\d)\.", lambda match: f".up_blocks.{last - int(match[1])}.", key)
        for pattern, replacement in RENAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value.flatten(1) if ".attentions." in name and value.ndim == 4 else value
    return renamed


@pytest.fixture(scope="module", params=CONFIGS.values(), ids=CONFIGS.keys())
def vaes(request: pytest.FixtureRequest) -> tuple[AutoencoderKL, DiffusersAutoencoderKL]:
    config: VAEConfig = request.param
    torch.manual_seed(0)
    vae = AutoencoderKL(config).eval()
    with torch.no_grad():
        for weight in vae.parameters():
            if weight.ndim == 1:  # norms start as the identity, which would hide one taken for another
                weight.add_(0.1 * torch.randn_like(weight))
    levels = len(config.ch_mult)
    reference = DiffusersAutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(config.ch * mult for mult in config.ch_mult),
        layers_per_block=config.num_res_blocks,
        latent_channels=config.z_channels,
    ).eval()
    reference.load_state_dict(to_diffusers(vae.state_dict(), config), strict=True)
    return vae, reference


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", SIZES, ids=str)
@torch.no_grad()
def test_encode(vaes, size):
    vae, reference = vaes
    frames = random(3, 3, *size).clamp(-1, 1)
    expected = reference.encode(frames).latent_dist.mean * LATENT_SCALE
    assert relative_error(vae.encode(frames), expected) <= 1e-5


@pytest.mark.parametrize("size", SIZES, ids=str)
@torch.no_grad()
def test_decode(vaes, size):
    vae, reference = vaes
    latents = random(3, vae.config.z_channels, *(side // 8 for side in size))
    expected = reference.decode(latents / LATENT_SCALE).sample
    assert relative_error(vae.decode(latents), expected) <= 1e-5


@pytest.mark.parametrize(("frames_at_once", "largest"), [(1, 1), (3, 3), (16, 7)])
@torch.no_grad()
def test_frames_in_parts_equal_all_at_once(frames_at_once, largest):
    # In float64, where the order in which a convolution of another batch size adds up does not show.
    vae = AutoencoderKL(VAEConfig(ch=32, ch_mult=(1, 1, 1, 2), num_res_blocks=1)).double()
    frames, latents = random(7, 3, 16, 24).double(), random(7, 4, 2, 3).double()
    whole = vae.encode(frames, frames_at_once=7), vae.decode(latents, frames_at_once=7)
    sizes: list[int] = []
    for layer in (vae.encoder.conv_in, vae.decoder.conv_in):
        layer.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    parts = (
        vae.encode(frames, frames_at_once=frames_at_once),
        vae.decode(latents, frames_at_once=frames_at_once),
    )
    assert (max(sizes), sum(sizes)) == (largest, 2 * 7)
    assert [relative_error(a, b) <= 1e-12 for a, b in zip(parts, whole, strict=True)] == [True, True]


@pytest.mark.parametrize(("size", "most"), [((64, 64), 4), ((320, 576), 4), ((384, 672), 2), ((576, 1024), 1)], ids=str)
@torch.no_grad()
def test_the_larger_frames_are_the_fewer_are_encoded_and_decoded_at_once(size, most):
    with torch.device("meta"):
        vae = AutoencoderKL(VAEConfig(ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1))
        latents = vae.encode(torch.empty(5, 3, *size), progress=(done := []).append)
        vae.decode(latents, progress=done.append)
    assert (max(done), sum(done)) == (most, 2 * 5)


@pytest.mark.parametrize(("height", "width"), [(31, 32), (32, 36), (12, 20), (1, 8)])
def test_encode_refuses_sides_that_are_not_multiples_of_8(vaes, height, width):
    vae, _ = vaes
    with pytest.raises(ValueError, match=f"frames are {width}x{height}; both sides must be multiples of 8"):
        vae.encode(torch.zeros(1, 3, height, width))


def test_full_size_autoencoder_has_the_keys_and_shapes_of_diffusers():
    with torch.device("meta"):
        state = AutoencoderKL(VAEConfig()).state_dict()
        reference = DiffusersAutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
        ).state_dict()
    renamed = to_diffusers(state, VAEConfig())
    assert {k: v.shape for k, v in renamed.items()} == {k: v.shape for k, v in reference.items()}
    assert len(state) == 248
