"""Attention patches: what nodes such as ToMe, HyperTile, PAG and SAG change within the transformers of a frame."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import comfy.ldm.modules.attention
import torch
from torch import Tensor

from ...sdvideo_core.attention import Attention, TransformerBlock
from ...sdvideo_core.blocks import Conditioning, SpatialTransformer

# Fields of transformer_options, which patches do not see, and what they hold for attention.
PATCHES, REPLACEMENTS = "patches", "patches_replace"
PATCH_POINTS = ("attn1_patch", "attn1_output_patch", "middle_patch", "attn2_patch", "attn2_output_patch")
ATTENTIONS = ("attn1", "attn2")
PRECISION = torch.float32


@dataclass(frozen=True)
class ComfyAttention:
    """ComfyUI's attention, with the transformer_options of the call that it is part of."""

    options: dict[str, Any]

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        attention = comfy.ldm.modules.attention.optimized_attention
        return attention(q, k, v, heads, attn_precision=PRECISION, transformer_options=self.options)

    def is_patched(self, points: Iterable[str], replaced: Iterable[str]) -> bool:
        """Whether anything acts at some of the points, or takes the place of some attention, of the present block."""
        return any(map(self.patches, points)) or any(map(self.replacement, replaced))

    def patches(self, name: str) -> list[Callable[..., Any]]:
        return self.options.get(PATCHES, {}).get(name, [])

    def replacement(self, name: str) -> Callable[..., Tensor] | None:
        """What takes the place of one attention: of this very transformer, or of any in its block."""
        replaced: Mapping[Any, Any] = self.options.get(REPLACEMENTS, {}).get(name, {})
        block = self.options["block"]
        return replaced.get((*block, self.options["block_index"]), replaced.get(block))


class PatchedSpatialTransformer(SpatialTransformer):
    """SpatialTransformer whose attention nodes may patch, at the points and with the arguments of ComfyUI's own.

    Layers in time have none of these points: patches take tokens for those of a picture.
    """

    def forward(self, x: Tensor, cond: Conditioning) -> Tensor:
        options = cast(ComfyAttention, cond.attention).options
        options |= {"activations_shape": list(x.shape), "block_index": 0}
        x = super().forward(x, cond)
        options["transformer_index"] += 1
        return x

    def transform(self, block: TransformerBlock, tokens: Tensor, cond: Conditioning) -> Tensor:
        attention = cast(ComfyAttention, cond.attention)
        if not attention.is_patched(PATCH_POINTS, ATTENTIONS):
            return super().transform(block, tokens, cond)
        options = _seen_by_patches(block.attn1, tokens, attention)
        x = _attend("attn1", block.attn1, block.norm1(tokens), None, attention, options) + tokens
        for patch in attention.patches("middle_patch"):
            x = patch(x, options)
        h = block.norm2(x)
        if attention.is_patched(("attn2_patch",), ("attn2",)):
            context = cast(Tensor, cond.context)
            context = context.repeat_interleave(len(h) // len(context), dim=0)  # patches look for a row per frame
            h = _attend("attn2", block.attn2, h, context, attention, options)
        else:
            h = _patched_output("attn2", block.attn2(h, attention, cond.key_value(block.attn2)), attention, options)
        x = h + x
        return block.ff(block.norm3(x)) + x


def _attend(
    name: str, layer: Attention, x: Tensor, context: Tensor | None, attention: ComfyAttention, options: dict[str, Any]
) -> Tensor:
    """One attention of tokens (B*F, N, C) over a context, or over themselves, with the patches on its way."""
    keys = values = x if context is None else context
    for patch in attention.patches(f"{name}_patch"):
        x, keys, values = patch(x, keys, values, options)
    q, k, v = layer.to_q(x), layer.to_k(keys), layer.to_v(keys if values is None else values)
    replacement = attention.replacement(name)
    x = layer.to_out(replacement(q, k, v, options) if replacement else attention(q, k, v, options["n_heads"]))
    return _patched_output(name, x, attention, options)


def _patched_output(name: str, x: Tensor, attention: ComfyAttention, options: dict[str, Any]) -> Tensor:
    for patch in attention.patches(f"{name}_output_patch"):
        x = patch(x, options)
    return x


def _seen_by_patches(layer: Attention, x: Tensor, attention: ComfyAttention) -> dict[str, Any]:
    """What the patches of one block are told; one may leave a note there for the next."""
    options = {key: value for key, value in attention.options.items() if key not in (PATCHES, REPLACEMENTS)}
    heads = x.shape[-1] // layer.head_dim
    return options | {"n_heads": heads, "dim_head": layer.head_dim, "attn_precision": PRECISION}
