"""Layers: the fast ways to compute give what torch.nn gives."""

import pytest
import torch
from torch import nn

from sdvideo_core import attention, layers


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("size", [(1, 1), (4, 4), (7, 9), (8, 8), (9, 9)])
def test_conv2d_equals_torch(size, kernel):
    torch.manual_seed(0)
    theirs = nn.Conv2d(5, 6, kernel, padding=kernel // 2, dtype=torch.float64)
    ours = layers.Conv2d(5, 6, kernel, padding=kernel // 2, dtype=torch.float64)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(3, 5, *size, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-12)


def test_conv2d_of_many_channels_equals_torch(monkeypatch):
    monkeypatch.setattr(layers, "MANY_CHANNELS", 5)
    torch.manual_seed(0)
    theirs, ours = (m.Conv2d(5, 6, 3, padding=1) for m in (nn, layers))
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(3, 5, 9, 9).contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-6)
    assert ours(x).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (5, 3), (5, 5)])
def test_conv3d_equals_torch(size):
    torch.manual_seed(0)
    theirs, ours = (m.Conv3d(5, 6, (3, 1, 1), padding=(1, 0, 0), dtype=torch.float64) for m in (nn, layers))
    ours.load_state_dict(theirs.state_dict())
    video = torch.randn(2, 5, 7, *size, dtype=torch.float64).contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(ours(video), theirs(video), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layout", [torch.channels_last_3d, torch.contiguous_format])
def test_conv3d_of_a_gpu_equals_torch_and_reads_the_video_where_it_lies(layout):
    torch.manual_seed(0)
    layer = nn.Conv3d(5, 6, (3, 1, 1), padding=(1, 0, 0), dtype=torch.float64)
    video = torch.randn(2, 5, 7, 4, 3, dtype=torch.float64).contiguous(memory_format=layout)
    rows = video.flatten(3)
    assert rows.data_ptr() == video.data_ptr()
    found = layers.conv_along_time(rows, layer.weight[..., 0], layer.bias).unflatten(3, (4, 3))
    torch.testing.assert_close(found, layer(video), rtol=1e-12, atol=1e-12)


def test_conv2d_has_the_gradients_of_torch():
    torch.manual_seed(0)
    layer = layers.Conv2d(3, 4, 3, padding=1, dtype=torch.float64)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))


def test_a_strided_conv2d_stays_torchs():
    torch.manual_seed(0)
    theirs, ours = (m.Conv2d(4, 4, 3, stride=2, padding=1) for m in (nn, layers))
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 4, 8, 8)
    assert torch.equal(ours(x), theirs(x))


def test_a_small_picture_stays_channels_last():
    y = layers.Conv2d(4, 8, 3, padding=1)(torch.randn(2, 4, 4, 4).contiguous(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_feed_forward_in_parts_equals_whole(monkeypatch):
    torch.manual_seed(0)
    layer = attention.FeedForward(8, dtype=torch.float64)
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    whole = layer(x)
    calls = []
    layer.net.register_forward_hook(lambda _module, args, _out: calls.append(len(args[0])))
    monkeypatch.setattr(attention, "CPU_PART", 8 * 8 * 7)
    with torch.no_grad():
        parts = layer(x)
    assert calls == [7, 7, 7, 7, 2]
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("tokens", "most"), [(1000, 1000), (2**28 // (8 * 64) + 1, 2**28 // (8 * 64))])
def test_feed_forward_runs_a_long_video_in_parts_on_other_devices(tokens, most):
    layer, calls = attention.FeedForward(64, device="meta"), []
    layer.net.register_forward_hook(lambda _module, args, _out: calls.append(args[0].numel() // 64))
    with torch.no_grad():
        assert layer(torch.empty(1, tokens, 64, device="meta")).shape == (1, tokens, 64)
    assert (max(calls), sum(calls)) == (most, tokens)
