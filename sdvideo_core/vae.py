"""Autoencoder: the KL-f8 VAE of latent diffusion (Rombach et al. 2022) between frames and latents.

Module names are those of the checkpoints' `first_stage_model`. The latent scale is applied here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import VAEConfig

Progress = Callable[[int], object]

LATENT_SCALE = 0.18215  # 1 / standard deviation of the latents of Stable Diffusion's training images
# At a time, so that large frames take no more memory than these do: with more than one, no more pixels than that.
FRAMES_AT_ONCE, PIXELS_AT_ONCE = 4, 4 * 576 * 320


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResnetBlock(nn.Module):
    def __init__(self, dim: int, out_dim: int):
        super().__init__()
        self.norm1 = norm(dim)
        self.conv1 = nn.Conv2d(dim, out_dim, 3, padding=1)
        self.norm2 = norm(out_dim)
        self.conv2 = nn.Conv2d(out_dim, out_dim, 3, padding=1)
        self.nin_shortcut = nn.Identity() if dim == out_dim else nn.Conv2d(dim, out_dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x), inplace=True))
        h = self.conv2(F.silu(self.norm2(h), inplace=True))
        return h.add_(self.nin_shortcut(x))


class AttnBlock(nn.Module):
    """Single-head attention over the pixels of one frame."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = norm(dim)
        self.q = nn.Conv2d(dim, dim, 1)
        self.k = nn.Conv2d(dim, dim, 1)
        self.v = nn.Conv2d(dim, dim, 1)
        self.proj_out = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        # CUDA's GroupNorm leaves channels_last, and fused attention takes tokens whose channels are neighbours.
        h = self.norm(x).contiguous(memory_format=torch.channels_last)
        q, k, v = (layer(h).flatten(2).transpose(1, 2) for layer in (self.q, self.k, self.v))  # (N, H*W, C)
        h = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        return self.proj_out(h.transpose(1, 2).unflatten(2, x.shape[2:])).add_(x)


class Downsample(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # right and bottom only, which Conv2d's padding cannot say


class Upsample(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """Residual blocks at one resolution and, except at the last level, the change to the next."""

    def __init__(self, widths: list[int], sampler: tuple[str, nn.Module] | None):
        super().__init__()
        self.block = nn.ModuleList(ResnetBlock(a, b) for a, b in pairwise(widths))
        self.sampler = sampler[0] if sampler else None
        if sampler:
            self.add_module(*sampler)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        return self.get_submodule(self.sampler)(x) if self.sampler else x


class Middle(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.block_1 = ResnetBlock(dim, dim)
        self.attn_1 = AttnBlock(dim)
        self.block_2 = ResnetBlock(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    """Frames (N, 3, H, W) -> mean and log-variance of the latents (N, 2 * z_channels, H/8, W/8)."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        widths = [config.ch * mult for mult in config.ch_mult]
        self.conv_in = nn.Conv2d(3, config.ch, 3, padding=1)
        self.down = nn.ModuleList()
        for index, (dim, width) in enumerate(zip([config.ch, *widths], widths, strict=False)):
            sampler = ("downsample", Downsample(width)) if index < len(widths) - 1 else None
            self.down.append(Level([dim] + [width] * config.num_res_blocks, sampler))
        self.mid = Middle(widths[-1])
        self.norm_out = norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h)), inplace=True))


class Decoder(nn.Module):
    """Latents (N, z_channels, h, w) -> frames (N, 3, 8h, 8w)."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        widths = [config.ch * mult for mult in config.ch_mult]
        self.conv_in = nn.Conv2d(config.z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1])
        self.up = nn.ModuleList()  # numbered from full resolution upwards, run from the last to the first
        for index, (dim, width) in enumerate(zip([*widths[1:], widths[-1]], widths, strict=True)):
            sampler = ("upsample", Upsample(width)) if index > 0 else None
            self.up.append(Level([dim] + [width] * (config.num_res_blocks + 1), sampler))
        self.norm_out = norm(config.ch * config.ch_mult[0])
        self.conv_out = nn.Conv2d(config.ch * config.ch_mult[0], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(h), inplace=True))


class AutoencoderKL(nn.Module):
    """Encodes and decodes frames independently of each other.

    frames_at_once bounds memory; by default 4, or fewer where frames are larger than 576x320.
    """

    def __init__(self, config: VAEConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * config.z_channels, 2 * config.z_channels, 1)
        self.post_quant_conv = nn.Conv2d(config.z_channels, config.z_channels, 1)

    def encode(self, frames: Tensor, frames_at_once: int | None = None, progress: Progress | None = None) -> Tensor:
        """Frames (N, 3, H, W) in -1..1, sides divisible by 8 -> latents (N, 4, H/8, W/8): scaled posterior mean.

        progress: called with the number of frames done after every `frames_at_once` of them.
        """
        height, width = frames.shape[2:]
        if height % 8 or width % 8:
            raise ValueError(f"frames are {width}x{height}; both sides must be multiples of 8 to be encoded")

        def encode_part(part: Tensor) -> Tensor:
            mean, _logvar = self.quant_conv(self.encoder(part)).chunk(2, dim=1)
            return mean * LATENT_SCALE

        return _in_parts(encode_part, frames, frames_at_once or _at_once(height * width), progress)

    def decode(self, latents: Tensor, frames_at_once: int | None = None, progress: Progress | None = None) -> Tensor:
        """Latents (N, 4, h, w) -> frames (N, 3, 8h, 8w), about -1..1. progress: as in `encode`."""

        def decode_part(part: Tensor) -> Tensor:
            return self.decoder(self.post_quant_conv(part / LATENT_SCALE))

        pixels = 64 * latents.shape[2] * latents.shape[3]
        return _in_parts(decode_part, latents, frames_at_once or _at_once(pixels), progress)


def _at_once(pixels: int) -> int:
    """How many frames of so many pixels."""
    return max(1, min(FRAMES_AT_ONCE, PIXELS_AT_ONCE // pixels))


def _in_parts(
    function: Callable[[Tensor], Tensor], frames: Tensor, frames_at_once: int, progress: Progress | None
) -> Tensor:
    frames = frames.contiguous(memory_format=torch.channels_last)
    done = []
    for part in frames.split(frames_at_once):
        done.append(function(part))
        if progress:
            progress(len(part))
    return torch.cat(done)
