"""Layers: torch.nn's by name, with a convolution that is faster on small pictures."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import GroupNorm, LayerNorm, Linear

__all__ = ["Conv2d", "Conv3d", "GroupNorm", "LayerNorm", "Linear"]

# Up to this many pixels a convolution on a CPU spends more time on rearranging its weights than on products.
FEW_PIXELS = 64
MANY_CHANNELS = 1280  # from here on float32 kernels for channels_last lose more than two conversions cost
FEW_PIXELS_OF_VIDEO = 16  # the same for convolutions along time


class Conv2d(nn.Conv2d):
    """torch.nn.Conv2d; on a CPU, a small picture is one matrix product on the weights as they lie."""

    def forward(self, input: Tensor) -> Tensor:
        # Gradients of a product over patches cost more than the convolution's own.
        if input.device.type != "cpu" or self.stride != (1, 1) or torch.is_grad_enabled():
            return super().forward(input)
        if input.shape[2] * input.shape[3] <= FEW_PIXELS:
            return product_conv(input, self.weight, self.bias)
        if self.in_channels >= MANY_CHANNELS and input.dtype is torch.float32:
            return super().forward(input.contiguous()).contiguous(memory_format=torch.channels_last)
        return super().forward(input)


class Conv3d(nn.Conv3d):
    """torch.nn.Conv3d of kernel (k, 1, 1), computed like Conv2d over frames and pixels: on a CPU where there are few.

    On a GPU always: torch 2.9 has no cuDNN kernel for Conv3d in half (pytorch issue 166643).
    """

    def forward(self, input: Tensor) -> Tensor:
        height, width = input.shape[3:]
        if input.device.type != "cpu":
            return conv_along_time(input.flatten(3), self.weight.squeeze(4), self.bias).unflatten(3, (height, width))
        if height * width > FEW_PIXELS_OF_VIDEO or torch.is_grad_enabled():
            return super().forward(input)
        return product_conv(input.flatten(3), self.weight.squeeze(4), self.bias).unflatten(3, (height, width))


def conv_along_time(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A convolution of x (N, C, F, H*W) along its frames, with weights (O, C, k, 1); it keeps their number."""
    return F.conv2d(x, weight, bias, padding=(weight.shape[2] // 2, 0))


def product_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A convolution that keeps the size of x (N, C, H, W): a product of its patches and the weights (O, C, k, k)."""
    (batch, _, height, width), (kernel_h, kernel_w) = x.shape, weight.shape[2:]
    pad_h, pad_w = kernel_h // 2, kernel_w // 2
    x = F.pad(x, (pad_w, pad_w, pad_h, pad_h))
    windows = x.unfold(2, kernel_h, 1).unfold(3, kernel_w, 1)  # (N, C, H, W, k, k)
    patches = windows.permute(0, 2, 3, 1, 4, 5).reshape(batch * height * width, -1)
    h = F.linear(patches, weight.flatten(1), bias)
    return h.view(batch, height, width, -1).permute(0, 3, 1, 2)
