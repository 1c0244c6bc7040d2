"""Attention: against float64 arithmetic."""

import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor

from sdvideo_core import attention
from sdvideo_core.attention import Attention, attend, products, sdpa, xformers_attention
from tests.numerics import relative_error

# (batch, queries, keys, heads, head_dim)
SHAPES = [(1, 1, 1, 1, 8), (2, 9, 9, 3, 16), (3, 10, 77, 8, 64), (1, 40, 2, 5, 4)]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def naive(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """softmax(q k / sqrt(dim)) v of each head (Vaswani et al. 2017, eq. 1), in float64."""
    outputs = []
    for qh, kh, vh in zip(*(t.double().chunk(heads, dim=2) for t in (q, k, v)), strict=True):
        weights = torch.einsum("bqd,bkd->bqk", qh, kh) / qh.shape[2] ** 0.5
        outputs.append(torch.einsum("bqk,bkd->bqd", weights.softmax(dim=2), vh))
    return torch.cat(outputs, dim=2)


def qkv(batch: int, queries: int, keys: int, heads: int, head_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    inner = heads * head_dim
    return (
        2 * random(batch, queries, inner, seed=1),
        2 * random(batch, keys, inner, seed=2),
        random(batch, keys, inner, seed=3),
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sdpa_is_attention(shape, dtype, tolerance):
    q, k, v = (t.to(dtype) for t in qkv(*shape))
    heads = shape[3]
    output = sdpa(q, k, v, heads)
    assert output.dtype == dtype
    assert relative_error(output.double(), naive(q, k, v, heads)) <= tolerance


@pytest.mark.parametrize("shape", [*SHAPES, (1, attention.SHORT + 1, 3, 2, 4)], ids=str)
def test_products_are_attention_with_its_gradients(shape):
    inputs = [t.requires_grad_() for t in qkv(*shape)]
    heads = shape[3]
    outputs = [function(*inputs, heads) for function in (products, naive)]
    assert relative_error(*outputs) <= 1e-12
    gradients = [torch.autograd.grad(output.sin().sum(), inputs, retain_graph=True) for output in outputs]
    for gradient, expected_gradient in zip(*gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_xformers_is_called_in_its_own_layout(shape, monkeypatch):
    def memory_efficient_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        assert q.shape[2:] == k.shape[2:] == v.shape[2:] == shape[3:]  # (B, N, heads, dim)
        return naive(q.flatten(2), k.flatten(2), v.flatten(2), shape[3]).reshape(q.shape)

    ops = ModuleType("xformers.ops")
    ops.memory_efficient_attention = memory_efficient_attention
    monkeypatch.setitem(sys.modules, "xformers", ModuleType("xformers"))
    monkeypatch.setitem(sys.modules, "xformers.ops", ops)
    q, k, v = qkv(*shape)
    assert relative_error(xformers_attention(q, k, v, shape[3]), naive(q, k, v, shape[3])) <= 1e-12


@pytest.mark.parametrize(("limit", "calls"), [(1, [1] * 7), (3, [3, 3, 1]), (6, [6, 1]), (7, [7]), (2**16 - 1, [7])])
def test_more_heads_than_a_kernel_takes_are_split_among_calls(limit, calls, monkeypatch):
    monkeypatch.setattr(attention, "MAX_HEADS", limit)
    seen: list[int] = []

    def recorder(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        seen.append(heads)
        return sdpa(q, k, v, heads)

    q, k, v = qkv(2, 5, 6, 7, 8)
    assert relative_error(attend(q, k, v, 8, recorder), naive(q, k, v, 7)) <= 1e-12
    assert seen == calls


@pytest.fixture
def layer() -> Attention:
    torch.manual_seed(0)
    return Attention(dim=12, context_dim=10, head_dim=4, heads=5, dtype=torch.float64)


def expected(layer: Attention, x: Tensor, context: Tensor) -> Tensor:
    """x (B, N, 12) attends to context (B, M, 10 or 12)."""
    q, k, v = x @ layer.to_q.weight.T, context @ layer.to_k.weight.T, context @ layer.to_v.weight.T
    out = layer.to_out[0]
    return naive(q, k, v, 5) @ out.weight.T + out.bias


@torch.no_grad()
def test_attention_to_a_context(layer):
    x, context = random(3, 6, 12), random(3, 4, 10, seed=1)
    assert relative_error(layer(x, sdpa, layer.project(context)), expected(layer, x, context)) <= 1e-12


@torch.no_grad()
def test_a_context_serves_several_rows(layer):
    x, context = random(6, 5, 12), random(2, 4, 10, seed=1)
    output = layer(x, sdpa, layer.project(context))
    assert relative_error(output, expected(layer, x, context.repeat_interleave(3, dim=0))) <= 1e-12


@torch.no_grad()
def test_attention_to_itself_along_axis_1_apart_for_every_place_on_the_axes_after_it():
    torch.manual_seed(0)
    layer = Attention(dim=12, context_dim=12, head_dim=4, heads=5, dtype=torch.float64)
    x = random(2, 3, 7, 12)  # (B, F, H*W, C)
    pixels = torch.stack([expected(layer, x[:, :, i], x[:, :, i]) for i in range(7)], dim=2)
    assert relative_error(layer(x, sdpa), pixels) <= 1e-12
