"""Sampling memory benchmark: what a video takes on a GPU beside the weights, ours against diffusers' UNet.

python benchmarks/sampling_memory.py    writes results/sampling-memory.json and prints its table

An estimate: the full-size networks run in float16 on torch's fake tensors of a GPU, which have shapes and layouts but
no values, and the bytes alive at once are counted. What kernels take to work in comes on top, and what the allocator
loses between tensors. Attention is the kernel that torch takes for any width of head, which stores no scores.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import diffusers
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from training_memory import Alive
from unet import diffusers_twin

from sdvideo_core.checkpoint import use_channels_last
from sdvideo_core.config import TextConfig, UNetConfig, VAEConfig
from sdvideo_core.text_encoder import TextEncoder
from sdvideo_core.unet import UNetSD
from sdvideo_core.vae import AutoencoderKL

RESULT = Path(__file__).parent / "results" / "sampling-memory.json"
GIB = 2**30
# Frames, width and height in pixels that models of the family are made for.
SIZES = ((16, 256, 256), (16, 384, 384), (30, 448, 256), (24, 576, 320), (16, 512, 512), (24, 1024, 576))


def memory_efficient(q: Tensor, k: Tensor, v: Tensor, **_: Any) -> Tensor:
    return torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, False)[0]


class Networks:
    """The full-size networks in float16, and how much more than their weights is alive in a call."""

    def __init__(self, alive: Alive):
        self.alive = alive
        with torch.device("cuda:0"):
            self.unet, self.vae, self.text = UNetSD(UNetConfig()), AutoencoderKL(VAEConfig()), TextEncoder(TextConfig())
        self.diffusers = diffusers_twin(self.unet)
        for network in (self.unet, self.vae, self.text, self.diffusers):
            use_channels_last(network.eval())

    def weights(self) -> dict[str, int]:
        parts = {"unet": self.unet, "autoencoder": self.vae, "text_encoder": self.text}
        return {name: sum(w.nbytes for w in part.parameters()) for name, part in parts.items()}

    def peak(self, call: Callable[..., Any], *shapes: tuple[int, ...]) -> int:
        """Bytes, those of the inputs and of the result among them."""
        before = self.alive.peak = self.alive.bytes
        call(*(torch.zeros(shape, dtype=torch.float16, device="cuda:0") for shape in shapes))
        return self.alive.peak - before


def measure(networks: Networks, frames: int, width: int, height: int) -> dict[str, Any]:
    side = height // 8, width // 8

    def inputs(prompts: int) -> tuple[tuple[int, ...], ...]:
        return (prompts, 4, frames, *side), (prompts,), (prompts, 77, 1024)

    return {
        "frames": frames,
        "width": width,
        "height": height,
        "one_prompt": networks.peak(networks.unet, *inputs(1)),
        "two_prompts": networks.peak(networks.unet, *inputs(2)),
        "two_prompts_diffusers": networks.peak(networks.diffusers, *inputs(2)),
        "decode": networks.peak(networks.vae.decode, (frames, 4, *side)),
    }


def line(row: dict[str, Any]) -> str:
    peaks = [row[name] / GIB for name in ("one_prompt", "two_prompts", "two_prompts_diffusers", "decode")]
    size = f"{row['width']}x{row['height']}, {row['frames']} frames"
    return f"| {size} | {' | '.join(f'{peak:.1f}' for peak in peaks)} |\n"


def main() -> None:
    rows = []
    torch.set_default_dtype(torch.float16)
    with (
        patch.object(functional, "scaled_dot_product_attention", memory_efficient),
        FakeTensorMode(),
        torch.no_grad(),
        Alive() as alive,
    ):
        networks = Networks(alive)
        for size in SIZES:
            rows.append(measure(networks, *size))
            sys.stdout.write(line(rows[-1]))
    versions = {"torch": torch.__version__, "diffusers": diffusers.__version__}
    content = {"unit": "bytes", "dtype": "float16", **versions, "weights": networks.weights(), "beside_weights": rows}
    RESULT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
