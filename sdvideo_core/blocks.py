"""Building blocks of the 3-D UNet: residual blocks, spatial and temporal transformers, down- and upsampling.

Every block maps (B*F, C, H, W) to the same kind of tensor, in channels_last. In memory that is (B, F, H, W, C), so a
video (B, C, F, H, W), the tokens of a frame (B*F, H*W, C) and those of a pixel (B, F, H*W, C) are views of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import Attention, AttentionFunction, KeyValue, TransformerBlock

ProjectedContext = Mapping[Attention, KeyValue]


@dataclass(frozen=True)
class Conditioning:
    """What every block of one forward sees beside its input."""

    emb: Tensor  # (B*F, 4 * dim), embedded timesteps
    context: Tensor | ProjectedContext  # text tokens (B or B*F, N, D), or their keys and values by layer
    videos: tuple[int, int]  # B, F
    attention: AttentionFunction

    def key_value(self, layer: Attention) -> KeyValue:
        """The context's keys and values for one cross-attention layer."""
        return layer.project(self.context) if isinstance(self.context, Tensor) else self.context[layer]


def to_video(x: Tensor, videos: tuple[int, int]) -> Tensor:
    """(B*F, C, H, W) -> (B, C, F, H, W), a view. videos: B, F."""
    return x.unflatten(0, videos).transpose(1, 2)


def to_frames(video: Tensor) -> Tensor:
    """(B, C, F, H, W) -> (B*F, C, H, W), a view when the memory is channels_last."""
    return video.transpose(1, 2).flatten(0, 1)


def timestep_embedding(timesteps: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding, (B,) -> (B, dim) in float32: cosines, then sines (Ho et al. 2020)."""
    half = dim // 2
    frequencies = 10000.0 ** (-torch.arange(half, dtype=torch.float32, device=timesteps.device) / half)
    angles = timesteps.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class TemporalConv(nn.Module):
    """Four residual convolutions along time (Wang et al. 2023, ModelScopeT2V, sec. 3.2)."""

    def __init__(self, dim: int, dropout: float, operations: Any = nn, **factory: Any):
        super().__init__()

        def layer(*dropouts: nn.Module) -> nn.Sequential:
            conv = operations.Conv3d(dim, dim, (3, 1, 1), padding=(1, 0, 0), **factory)
            return nn.Sequential(operations.GroupNorm(32, dim, **factory), nn.SiLU(inplace=True), *dropouts, conv)

        self.conv1 = layer()
        self.conv2 = layer(nn.Dropout(dropout))
        self.conv3 = layer(nn.Dropout(dropout))
        self.conv4 = layer(nn.Dropout(dropout))

    def forward(self, x: Tensor, videos: tuple[int, int]) -> Tensor:
        video = to_video(x, videos)
        h = self.conv4(self.conv3(self.conv2(self.conv1(video))))
        return to_frames(h).add_(x)


class ResBlock(nn.Module):
    """Two convolutions in space, conditioned on the timestep, then the temporal convolutions."""

    def __init__(self, dim: int, emb_dim: int, out_dim: int, dropout: float, operations: Any = nn, **factory: Any):
        super().__init__()

        def conv(channels: int) -> nn.Module:
            return operations.Conv2d(channels, out_dim, 3, padding=1, **factory)

        self.in_layers = nn.Sequential(operations.GroupNorm(32, dim, **factory), nn.SiLU(inplace=True), conv(dim))
        self.emb_layers = nn.Sequential(nn.SiLU(), operations.Linear(emb_dim, out_dim, **factory))
        self.out_layers = nn.Sequential(
            operations.GroupNorm(32, out_dim, **factory),
            nn.SiLU(inplace=True),
            nn.Dropout(dropout),
            conv(out_dim),
        )
        same = dim == out_dim
        self.skip_connection = nn.Identity() if same else operations.Conv2d(dim, out_dim, 1, **factory)
        self.temopral_conv = TemporalConv(out_dim, dropout, operations, **factory)  # sic: the checkpoints' name

    def forward(self, x: Tensor, cond: Conditioning) -> Tensor:
        emb = self.emb_layers(cond.emb)[:, :, None, None]  # (B*F, C, 1, 1)
        h = self.in_layers(x).add_(emb)
        h = self.out_layers(h).add_(self.skip_connection(x))
        return self.temopral_conv(h, cond.videos)


class SpatialTransformer(nn.Module):
    """Attention within each frame, and from each frame to the text."""

    def __init__(self, dim: int, context_dim: int, head_dim: int, operations: Any = nn, **factory: Any):
        super().__init__()
        self.norm = operations.GroupNorm(32, dim, eps=1e-6, **factory)
        self.proj_in = operations.Linear(dim, dim, **factory)
        block = TransformerBlock(dim, context_dim, head_dim, dim // head_dim, operations, **factory)
        self.transformer_blocks = nn.ModuleList([block])
        self.proj_out = operations.Linear(dim, dim, **factory)

    def forward(self, x: Tensor, cond: Conditioning) -> Tensor:
        h = self.norm(x).flatten(2).transpose(1, 2)  # (B*F, H*W, C)
        h = self.proj_in(h)
        for block in cast("list[TransformerBlock]", self.transformer_blocks):
            h = self.transform(block, h, cond)
        h = self.proj_out(h)
        return h.transpose(1, 2).unflatten(2, x.shape[2:]).add_(x)

    def transform(self, block: TransformerBlock, tokens: Tensor, cond: Conditioning) -> Tensor:
        """One transformer block on the tokens (B*F, H*W, C) of frames."""
        return block(tokens, cond.attention, cond.key_value(block.attn2))


class TemporalTransformer(nn.Module):
    """Attention along time at every pixel; both of its attentions are self-attention.

    The projections are Linear layers, but state dicts hold them as the Conv1d of kernel size 1 that the checkpoints
    were saved from: (out, in, 1). Loading takes either.
    """

    def __init__(self, dim: int, heads: int, head_dim: int, operations: Any = nn, **factory: Any):
        super().__init__()
        inner = heads * head_dim
        self.norm = operations.GroupNorm(32, dim, eps=1e-6, **factory)
        self.proj_in = operations.Linear(dim, inner, **factory)
        block = TransformerBlock(inner, inner, head_dim, heads, operations, **factory)
        self.transformer_blocks = nn.ModuleList([block])
        self.proj_out = operations.Linear(inner, dim, **factory)
        self.register_load_state_dict_pre_hook(_drop_kernel_axes)
        self.register_state_dict_post_hook(_add_kernel_axes)

    def forward(self, x: Tensor, cond: Conditioning) -> Tensor:
        h = self.norm(to_video(x, cond.videos))  # its statistics span the frames
        h = h.permute(0, 2, 3, 4, 1).flatten(2, 3)  # (B, F, H*W, C)
        h = self.proj_in(h)
        for block in self.transformer_blocks:
            h = block(h, cond.attention)
        h = self.proj_out(h).flatten(0, 1)  # (B*F, H*W, C)
        return h.transpose(1, 2).unflatten(2, x.shape[2:]).add_(x)


def _kernel_keys(state_dict: dict[str, Tensor], prefix: str) -> list[str]:
    return [k for k in (f"{prefix}proj_in.weight", f"{prefix}proj_out.weight") if k in state_dict]


def _drop_kernel_axes(_module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    for key in _kernel_keys(state_dict, prefix):
        if state_dict[key].ndim == 3 and state_dict[key].shape[2] == 1:
            state_dict[key] = state_dict[key].squeeze(2)


def _add_kernel_axes(_module: nn.Module, state_dict: dict[str, Tensor], prefix: str, _metadata: Any) -> None:
    for key in _kernel_keys(state_dict, prefix):
        state_dict[key] = state_dict[key].unsqueeze(2)


class Downsample(nn.Module):
    """Halves height and width by a strided convolution."""

    def __init__(self, dim: int, operations: Any = nn, **factory: Any):
        super().__init__()
        self.op = operations.Conv2d(dim, dim, 3, stride=2, padding=1, **factory)

    def forward(self, x: Tensor, _cond: Conditioning) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Grows to the size of the next skip connection, so that sides need not be divisible by 64 pixels."""

    def __init__(self, dim: int, operations: Any = nn, **factory: Any):
        super().__init__()
        self.conv = operations.Conv2d(dim, dim, 3, padding=1, **factory)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        return self.conv(F.interpolate(x, size=size, mode="nearest"))
