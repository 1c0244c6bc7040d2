"""UNetSD's memory: one layout from the first layer to the last, without copies between layers."""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sdvideo_core import layers
from sdvideo_core.config import UNetConfig
from sdvideo_core.unet import UNetSD

CONFIG = UNetConfig(dim=64, context_dim=16, dim_mult=(1, 2), head_dim=16, res_blocks=1)


class CopyRecorder(TorchDispatchMode):
    """Shapes of the tensors that torch copies."""

    def __init__(self):
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if any(word in str(function) for word in ("clone", "copy", "contiguous")):
            self.shapes.append(tuple(args[0].shape))
        return function(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def unet_float32() -> UNetSD:
    torch.manual_seed(0)
    return UNetSD(CONFIG).eval()


@pytest.fixture(scope="module")
def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """16 videos: of fewer, a process of one thread would compute Conv3d by code that knows no channels_last."""
    generator = torch.Generator().manual_seed(1)
    x, context = torch.randn(16, 4, 2, 6, 8, generator=generator), torch.randn(16, 7, 16, generator=generator)
    return x, torch.arange(16), context


@torch.no_grad()
def test_activations_stay_in_channels_last(unet_float32, inputs):
    checked: list[str] = []
    wrong: list[str] = []

    def check(name: str, output: Tensor) -> None:
        tokens = "transformer_blocks" in name or "proj_" in name  # (B, F, H*W, C)
        formats = {4: torch.contiguous_format if tokens else torch.channels_last, 5: torch.channels_last_3d}
        if output.ndim in formats:
            checked.append(name)
            if not output.is_contiguous(memory_format=formats[output.ndim]):
                wrong.append(name)

    hooks = [
        module.register_forward_hook(lambda _module, _args, output, name=name: check(name, output))
        for name, module in unet_float32.named_modules()
        if name
    ]
    unet_float32(*inputs)
    for hook in hooks:
        hook.remove()
    assert wrong == []
    assert {"input_blocks.0.1", "middle_block.0.temopral_conv.conv1.2", "output_blocks.1.3", "out.2"} <= set(checked)


@torch.no_grad()
def test_no_activation_is_copied_but_the_input_and_the_embedded_timesteps(unet_float32, inputs, monkeypatch):
    for limit in ("FEW_PIXELS", "FEW_PIXELS_OF_VIDEO"):
        monkeypatch.setattr(layers, limit, 0)  # gathering patches is a copy, for another end
    with CopyRecorder() as recorder:
        unet_float32(*inputs)
    x, timesteps, _ = inputs
    batch, channels, num_frames, *size = x.shape
    layouts = [(batch, num_frames, channels, *size), (batch * num_frames, channels, *size)]
    embedding = [tuple(timesteps.shape), (batch, num_frames, 4 * CONFIG.dim)]
    assert sorted(recorder.shapes) == sorted(layouts + embedding)
