"""UNetSD: the 3-D UNet of ModelScope text-to-video (Wang et al. 2023), with the checkpoints' module names."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from . import layers
from .attention import AttentionFunction, TransformerBlock, sdpa
from .blocks import (
    Conditioning,
    Downsample,
    ProjectedContext,
    ResBlock,
    SpatialTransformer,
    TemporalTransformer,
    Upsample,
    timestep_embedding,
    to_frames,
    to_video,
)
from .config import UNetConfig

GUIDANCE_DIM = 256  # of the sinusoids of a guidance scale


class Stage(nn.ModuleList):
    """Blocks that run one after the other at one resolution."""

    def forward(self, x: Tensor, cond: Conditioning, size: tuple[int, int] = (0, 0)) -> Tensor:
        """size (height, width) is what an Upsample at the end grows to."""
        for block in self:
            x = block(x, size) if isinstance(block, Upsample) else block(x, cond)
        return x


class InputStage(nn.ModuleList):
    """The first convolution, and the temporal transformer at full resolution."""

    def forward(self, x: Tensor, cond: Conditioning) -> Tensor:
        conv, temporal = self
        return temporal(conv(x), cond)


class UNetSD(nn.Module):
    """Predicts the noise in a latent video.

    `operations` is the namespace that its layers come from, `layers` or another with torch.nn's names; `attention` is
    a function (q, k, v, heads) such as `attention.sdpa`, read at every forward, and may be exchanged between them.
    """

    spatial_transformer = SpatialTransformer  # a subclass may bring one of its own

    def __init__(
        self,
        config: UNetConfig,
        operations: Any = layers,
        attention: AttentionFunction = sdpa,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        super().__init__()
        self.config = config
        self.attention = attention
        self.gradient_checkpointing = False  # compute each stage again for its gradients, to hold less in memory
        make = _Maker(config, operations, {"dtype": dtype, "device": device}, self.spatial_transformer)
        widths = [config.dim * mult for mult in config.dim_mult]
        self.time_embed = make.time_embed()
        self.cond_proj: nn.Module | None = None  # see add_guidance_embedding
        self.input_blocks, skips = make.encoder(widths)
        self.middle_block = make.middle(widths[-1])
        self.output_blocks = make.decoder(widths, skips)
        self.out = make.head()

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor | ProjectedContext,
        guidance_emb: Tensor | None = None,
    ) -> Tensor:
        """Noise eps in x.

        x: (B, in_dim, F, h, w), any h and w. timesteps: (B,), or (B*F,) for one per frame, 0..999.
        context: (B, N, context_dim) or one per frame (B*F, N, context_dim), or what `project_context` made of it.
        guidance_emb: (256,) or one per row of timesteps, after `add_guidance_embedding` (`lcm.guidance_embedding`).
        """
        videos = x.shape[0], x.shape[2]
        h = to_frames(x).contiguous(memory_format=torch.channels_last)  # (B*F, in_dim, h, w)
        cond = self.condition(h, timesteps, context, videos, self.attention, guidance_emb)
        h = self.run(h, cond)
        return to_video(h, videos)

    def run(self, h: Tensor, cond: Conditioning) -> Tensor:
        """The network itself on frames (B*F, in_dim, h, w) in channels_last -> (B*F, out_dim, h, w)."""
        skips = []
        for stage in self.input_blocks:
            h = self._call(stage, h, cond)
            skips.append(h)
        h = self._call(self.middle_block, h, cond)
        for stage in self.output_blocks:
            h = torch.cat([h, skips.pop()], dim=1)
            h = self._call(stage, h, cond, skips[-1].shape[2:] if skips else (0, 0))
        return self.out(h)

    def _call(self, stage: nn.Module, *inputs: Any) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(stage, *inputs, use_reentrant=False)
        return stage(*inputs)

    def condition(
        self,
        frames: Tensor,
        timesteps: Tensor,
        context: Tensor | ProjectedContext,
        videos: tuple[int, int],
        attention: AttentionFunction,
        guidance_emb: Tensor | None = None,
    ) -> Conditioning:
        """Embeds timesteps (B,) or (B*F,) for frames (B*F, C, h, w) of videos, and gathers what the blocks share."""
        emb = timestep_embedding(timesteps, self.config.dim).to(frames.dtype)
        if guidance_emb is not None:
            emb = emb + self._project_guidance(guidance_emb.to(frames))
        emb = self.time_embed(emb)  # (B or B*F, 4 * dim)
        if len(emb) != len(frames):
            emb = emb.repeat_interleave(videos[1], dim=0)
        return Conditioning(emb, context, videos, attention)

    def add_guidance_embedding(self) -> nn.Linear:
        """Adds the layer of models distilled with an embedded guidance scale (T2V-Turbo), `cond_proj`, and returns it.

        Its weight (dim, 256) is zero, so nothing changes until a file brings one; diffusers calls it
        `time_embedding.cond_proj`.
        """
        like = next(self.time_embed.parameters())
        self.cond_proj = nn.Linear(GUIDANCE_DIM, self.config.dim, bias=False, dtype=like.dtype, device=like.device)
        nn.init.zeros_(self.cond_proj.weight)
        return self.cond_proj

    def _project_guidance(self, guidance_emb: Tensor) -> Tensor:
        if self.cond_proj is None:
            raise ValueError(
                "guidance_embed needs a UNet distilled with an embedded guidance scale, such as T2V-Turbo's; "
                "this one has no cond_proj: leave guidance_embed out, or load the files that bring it"
            )
        return self.cond_proj(guidance_emb)

    def project_context(self, context: Tensor) -> ProjectedContext:
        """Keys and values of the text for each cross-attention: what a fixed prompt need compute only once."""
        spatial = [module for module in self.modules() if isinstance(module, SpatialTransformer)]
        blocks = [cast(TransformerBlock, block) for module in spatial for block in module.transformer_blocks]
        return {block.attn2: block.attn2.project(context) for block in blocks}


class _Maker:
    """Builds the parts of a UNetSD, in the order they run."""

    def __init__(self, config: UNetConfig, operations: Any, factory: dict[str, Any], spatial: type[SpatialTransformer]):
        self.config, self.ops, self.factory, self.spatial = config, operations, factory, spatial
        self.emb_dim = 4 * config.dim

    def time_embed(self) -> nn.Sequential:
        first = self.ops.Linear(self.config.dim, self.emb_dim, **self.factory)
        return nn.Sequential(first, nn.SiLU(), self.ops.Linear(self.emb_dim, self.emb_dim, **self.factory))

    def res(self, dim: int, out_dim: int) -> ResBlock:
        return ResBlock(dim, self.emb_dim, out_dim, self.config.dropout, self.ops, **self.factory)

    def transformers(self, dim: int) -> list[nn.Module]:
        c = self.config
        return [
            self.spatial(dim, c.context_dim, c.head_dim, self.ops, **self.factory),
            TemporalTransformer(dim, dim // c.head_dim, c.head_dim, self.ops, **self.factory),
        ]

    def attention_at(self, level: int) -> bool:
        return 0.5**level in self.config.attn_scales

    def encoder(self, widths: list[int]) -> tuple[nn.ModuleList, list[int]]:
        """The input blocks, and the channels that each of them leaves for the decoder."""
        c = self.config
        conv = self.ops.Conv2d(c.in_dim, c.dim, 3, padding=1, **self.factory)
        temporal = TemporalTransformer(c.dim, c.num_heads, c.head_dim, self.ops, **self.factory)
        stages: list[nn.Module] = [InputStage([conv, temporal])]
        skips = [c.dim]
        for level, width in enumerate(widths):
            for _ in range(c.res_blocks):
                attention = self.transformers(width) if self.attention_at(level) else []
                stages.append(Stage([self.res(skips[-1], width), *attention]))
                skips.append(width)
            if level < len(widths) - 1:
                stages.append(Downsample(width, self.ops, **self.factory))
                skips.append(width)
        return nn.ModuleList(stages), skips

    def middle(self, width: int) -> Stage:
        return Stage([self.res(width, width), *self.transformers(width), self.res(width, width)])

    def decoder(self, widths: list[int], skips: list[int]) -> nn.ModuleList:
        skips, stages, dim = list(skips), [], widths[-1]
        for level in reversed(range(len(widths))):
            for index in range(self.config.res_blocks + 1):
                attention = self.transformers(widths[level]) if self.attention_at(level) else []
                blocks = [self.res(dim + skips.pop(), widths[level]), *attention]
                dim = widths[level]
                if level > 0 and index == self.config.res_blocks:
                    blocks.append(Upsample(dim, self.ops, **self.factory))
                stages.append(Stage(blocks))
        return nn.ModuleList(stages)

    def head(self) -> nn.Sequential:
        c = self.config
        norm = self.ops.GroupNorm(32, c.dim, **self.factory)
        conv = self.ops.Conv2d(c.dim, c.out_dim, 3, padding=1, **self.factory)
        return nn.Sequential(norm, nn.SiLU(inplace=True), conv)
