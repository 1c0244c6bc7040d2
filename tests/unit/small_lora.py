"""A small UNet, LoRAs for it with random weights, and what tests of them ask for."""

import copy
import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sdvideo_core.config import UNetConfig
from sdvideo_core.lora import LoRA, save_lora
from sdvideo_core.unet import UNetSD

CONFIG = UNetConfig(dim=32, context_dim=16, dim_mult=(1, 2), head_dim=16, res_blocks=1)
BATCH, FRAMES = 2, 3
TIMESTEPS = torch.tensor([981, 20])

LINEAR = "input_blocks.1.1.transformer_blocks.0.attn2.to_k"
TEMPORAL_PROJECTION = "input_blocks.0.1.proj_in"
DOWNSAMPLE = "input_blocks.2.op"
CONV3D = "input_blocks.1.0.temopral_conv.conv2.3"
LAST = "out.2"  # a convolution to 4 channels


def random(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def inputs(dtype: torch.dtype = torch.float64, size: tuple[int, int] = (6, 5)) -> tuple[Tensor, Tensor, Tensor]:
    x, context = random(BATCH, 4, FRAMES, *size), random(BATCH, 7, CONFIG.context_dim, seed=2)
    return x.to(dtype), TIMESTEPS, context.to(dtype)


def make_unet(dtype: torch.dtype = torch.float64) -> UNetSD:
    """Frozen, and in float64, where what is equal in theory is equal to 1e-12."""
    torch.manual_seed(0)
    return UNetSD(CONFIG, dtype=dtype).eval().requires_grad_(False)


def make_lora(unet: UNetSD, rank: int = 4, seed: int = 3, **options) -> LoRA:
    """A LoRA with random weights, as if trained."""
    generator = torch.Generator().manual_seed(seed)
    lora = LoRA(unet, rank, generator=generator, **options)
    for path in lora.paths:
        up = lora.adapter(path).up
        up.data.copy_(0.3 * torch.randn(up.shape, generator=generator))
    return lora


def merged_unet(unet: UNetSD, lora: LoRA, strength: float | None = None) -> UNetSD:
    other = copy.deepcopy(unet)
    other.load_state_dict(lora.merge_into(unet.state_dict(), strength))
    return other


def save_three_layers(folder: Path, unet: UNetSD) -> Path:
    """A LoRA of three kinds of layers, one of a rank that is cut."""
    path = folder / "lora.safetensors"
    save_lora(make_lora(unet, targets=[LINEAR, CONV3D, LAST], rank=6, alpha=3.0), path)
    return path


def exactly(text: str) -> str:
    return f"^{re.escape(text)}$"


def rewrite(path: Path, **changes: Tensor | None) -> None:
    """Changes tensors of a file, with `__` for the dots in their names; None takes one out."""
    tensors = load_file(path) | {key.replace("__", "."): tensor for key, tensor in changes.items()}
    save_file({key: tensor for key, tensor in tensors.items() if tensor is not None}, path)
