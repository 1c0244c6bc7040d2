"""Attention: the one function that every backend implements, and the transformer layers that call it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# (query, key, value, heads) with (B, N, heads * dim) each -> (B, N of the query, heads * dim)
AttentionFunction = Callable[[Tensor, Tensor, Tensor, int], Tensor]
KeyValue = tuple[Tensor, Tensor]

# CUDA attention kernels put heads on a grid axis of 16 bits.
MAX_HEADS = 2**16 - 1

SHORT = 256  # tokens

# Elements of the widest activation at a time. On a CPU larger ones are returned to the system and cleared anew at every
# layer; elsewhere, of which 2**28 are half a gigabyte in half, they are what a long video needs most memory for.
CPU_PART, PART = 2**22, 2**28


def sdpa(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Scaled dot-product attention by torch (Vaswani et al. 2017, eq. 1); heads are split and joined by views."""
    q, k, v = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (q, k, v))  # (B, heads, N, dim)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def products(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """The same as two matrix products where sequences are short: on a CPU its gradients then cost far less."""
    if max(q.shape[1], k.shape[1]) > SHORT:
        return sdpa(q, k, v, heads)
    q, k, v = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (q, k, v))  # (B, heads, N, dim)
    weights = (q * q.shape[3] ** -0.5 @ k.transpose(2, 3)).softmax(3)
    return (weights @ v).transpose(1, 2).flatten(2)


def xformers_attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Memory-efficient attention by xformers, on the same layout as `sdpa`."""
    from xformers.ops import memory_efficient_attention  # pyright: ignore[reportMissingImports]

    q, k, v = (t.unflatten(2, (heads, -1)) for t in (q, k, v))  # (B, N, heads, dim)
    return memory_efficient_attention(q, k, v).flatten(2)


class Attention(nn.Module):
    """Multi-head attention along axis 1.

    Axes between it and the channels do not mix: (B, F, HW, C) attends along frames at every pixel, because a pixel
    is then one more group of heads. This keeps pixels and frames in one memory layout.
    """

    def __init__(self, dim: int, context_dim: int, head_dim: int, heads: int, operations: Any = nn, **factory: Any):
        super().__init__()
        inner = heads * head_dim
        self.head_dim = head_dim
        self.to_q = operations.Linear(dim, inner, bias=False, **factory)
        self.to_k = operations.Linear(context_dim, inner, bias=False, **factory)
        self.to_v = operations.Linear(context_dim, inner, bias=False, **factory)
        self.to_out = nn.Sequential(operations.Linear(inner, dim, **factory), nn.Identity())

    def project(self, context: Tensor) -> KeyValue:
        """Keys and values of the tokens attended to."""
        return self.to_k(context), self.to_v(context)

    def forward(self, x: Tensor, attention: AttentionFunction, context: KeyValue | None = None) -> Tensor:
        """x (B, N, ..., C); context from `project`, x's own when None. A context may serve several rows of x."""
        k, v = (t.flatten(2) for t in context or self.project(x))
        q = self.to_q(x)
        h = attend(q.reshape(len(k), -1, k.shape[2]), k, v, self.head_dim, attention)
        return self.to_out(h.reshape(q.shape))


def attend(q: Tensor, k: Tensor, v: Tensor, head_dim: int, attention: AttentionFunction) -> Tensor:
    """Attention over (B, N, heads * head_dim) in as few calls as the kernels' limit on heads allows."""
    heads = q.shape[2] // head_dim
    if heads <= MAX_HEADS:
        return attention(q, k, v, heads)
    parts = zip(*(t.split(MAX_HEADS * head_dim, dim=2) for t in (q, k, v)), strict=True)
    return torch.cat([attention(q, k, v, q.shape[2] // head_dim) for q, k, v in parts], dim=2)


class GEGLU(nn.Module):
    """Linear layer gated by a GELU of itself (Shazeer 2020)."""

    def __init__(self, dim: int, inner: int, operations: Any = nn, **factory: Any):
        super().__init__()
        self.proj = operations.Linear(dim, 2 * inner, **factory)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return F.gelu(gate).mul_(x)


class FeedForward(nn.Module):
    """Gated feed-forward layer on every token (..., C), in parts where there are many, which gives the same numbers."""

    def __init__(self, dim: int, operations: Any = nn, **factory: Any):
        super().__init__()
        gated = GEGLU(dim, 4 * dim, operations, **factory)
        self.net = nn.Sequential(gated, nn.Identity(), operations.Linear(4 * dim, dim, **factory))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, -2)
        most = CPU_PART if x.device.type == "cpu" else PART
        parts = tokens.split(max(1, most // (8 * x.shape[-1])))
        if torch.is_grad_enabled() or len(parts) == 1:
            return self.net(x)
        first = self.net(parts[0])
        out = first.new_empty(tokens.shape)
        out[: len(first)] = first
        for part, target in zip(parts[1:], out[len(first) :].split(len(first)), strict=True):
            target.copy_(self.net(part))
        return out.view(x.shape)


class TransformerBlock(nn.Module):
    """Self-attention, a second attention over a context (over x itself without one), feed-forward."""

    def __init__(self, dim: int, context_dim: int, head_dim: int, heads: int, operations: Any = nn, **factory: Any):
        super().__init__()
        self.attn1 = Attention(dim, dim, head_dim, heads, operations, **factory)
        self.ff = FeedForward(dim, operations, **factory)
        self.attn2 = Attention(dim, context_dim, head_dim, heads, operations, **factory)
        self.norm1 = operations.LayerNorm(dim, **factory)
        self.norm2 = operations.LayerNorm(dim, **factory)
        self.norm3 = operations.LayerNorm(dim, **factory)

    def forward(self, x: Tensor, attention: AttentionFunction, context: KeyValue | None = None) -> Tensor:
        # A layer's fresh output may be added to in place; its input may not, autograd needs it.
        x = self.attn1(self.norm1(x), attention).add_(x)
        x = self.attn2(self.norm2(x), attention, context).add_(x)
        return self.ff(self.norm3(x)).add_(x)
