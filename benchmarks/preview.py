"""Preview benchmark: what a live preview costs beside a step of the full-size UNet, in one process.

COMFYUI_PATH=... python benchmarks/preview.py [--dtype bfloat16]    writes results/preview-<device>.json

A step is one forward for the prompt and one for the negative prompt. Random weights: they take as long as any.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from sdvideo_core.checkpoint import use_channels_last
from sdvideo_core.config import UNetConfig
from sdvideo_core.unet import UNetSD

PACK = Path(__file__).resolve().parents[1]
SHAPES = ((16, 32, 32), (24, 40, 72))  # frames, height and width of latents: 256x256 and 576x320 pixels
ROUNDS = 20  # of a preview


def live_preview() -> ModuleType:
    """The module of the nodes that makes previews; it needs ComfyUI's latent formats."""
    # The pack first: ComfyUI has a main.py, and folders are called main, too.
    sys.path[:0] = [str(PACK.parent), os.environ.get("COMFYUI_PATH", str(Path.home() / "comfy" / "ComfyUI"))]
    cli_args = importlib.import_module("comfy.cli_args")
    cli_args.args.cpu = not torch.cuda.is_available()
    cli_args.args.preview_method = cli_args.LatentPreviewMethod.Latent2RGB
    return importlib.import_module(f"{PACK.name}.nodes.comfy_bridge.live_preview")


def timed(call: Callable[[], Any], device: torch.device) -> float:
    wait = partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - start


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    live, dtype, device = live_preview(), getattr(torch, args.dtype), torch.device(args.device)
    unet = UNetSD(UNetConfig(), dtype=dtype, device=device).eval()
    if device.type == "cuda":
        use_channels_last(unet)  # as `load_unet` does
    projected = unet.project_context(torch.randn(1, 77, unet.config.context_dim, dtype=dtype, device=device))
    timesteps = torch.tensor([981], device=device)
    found = []
    for num_frames, height, width in SHAPES:
        x = torch.randn(1, 4, num_frames, height, width, dtype=dtype, device=device)
        latents, colours = x[0].transpose(0, 1).float(), live.SD15()
        unet(x, timesteps, projected)  # warms up
        forwards = [timed(lambda x=x: unet(x, timesteps, projected), device) for _ in range(args.rounds)]
        previews = [timed(lambda x=latents, c=colours: live._clip(x, c), device) for _ in range(ROUNDS)]
        step, preview = 2 * statistics.median(forwards), statistics.median(previews)
        found.append(
            {
                "latents": [num_frames, 4, height, width],
                "seconds_per_step": round(step, 5),
                "seconds_per_preview": round(preview, 5),
                "preview_percent_of_step": round(100 * preview / step, 3),
            }
        )
    return found


def device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.processor() or device


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--rounds", type=int, default=2, help="UNet forwards for each shape")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    with torch.inference_mode():
        found = measure(args)
    result = {
        "what": "a live preview beside a step (two forwards) of the full-size UNet",
        "device": device_name(args.device),
        "threads": torch.get_num_threads(),
        "dtype": args.dtype,
        "torch": torch.__version__,
        "measured": found,
    }
    text = json.dumps(result, indent=2)
    target = Path(__file__).parent / "results" / f"preview-{args.device}.json"
    target.write_text(text + "\n", encoding="utf-8")
    print(text)  # noqa: T201


if __name__ == "__main__":
    main()
