"""UNet benchmark: ours against diffusers' UNet3DConditionModel on the same weights, in turn, in one process.

python benchmarks/unet.py [--dtype bfloat16] [--size demo]    writes results/unet-<device>-<dtype>-<size>.json
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import diffusers
import torch
from diffusers.models.unets.unet_3d_condition import UNet3DConditionModel
from torch import Tensor, nn

from sdvideo_core.checkpoint import use_channels_last
from sdvideo_core.config import UNetConfig
from sdvideo_core.key_maps import diffusers_key, diffusers_modules
from sdvideo_core.unet import UNetSD

CONFIGS = {
    "full": UNetConfig(),
    "demo": UNetConfig(dim=64, context_dim=64, dim_mult=(1, 2), head_dim=32, res_blocks=1),
}


def diffusers_twin(unet: UNetSD) -> nn.Module:
    """diffusers' UNet holding the very same tensors."""
    c = unet.config
    levels = [0.5**level in c.attn_scales for level in range(len(c.dim_mult))]
    with torch.device("meta"):
        twin = UNet3DConditionModel(
            in_channels=c.in_dim,
            out_channels=c.out_dim,
            down_block_types=tuple("CrossAttnDownBlock3D" if a else "DownBlock3D" for a in levels),
            up_block_types=tuple("CrossAttnUpBlock3D" if a else "UpBlock3D" for a in reversed(levels)),
            block_out_channels=tuple(c.dim * mult for mult in c.dim_mult),
            layers_per_block=c.res_blocks,
            cross_attention_dim=c.context_dim,
            attention_head_dim=c.head_dim,
        )
    modules = diffusers_modules(c)
    weights = {diffusers_key(k, modules): w.squeeze(2) if w.ndim == 3 else w for k, w in unet.state_dict().items()}
    twin.load_state_dict(weights, strict=True, assign=True)
    return twin.eval()


def timed(call: Callable[[], Tensor], device: torch.device) -> float:
    wait = partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - start


def measure(args: argparse.Namespace) -> dict[str, object]:
    dtype, device = getattr(torch, args.dtype), torch.device(args.device)
    torch.manual_seed(0)
    unet = UNetSD(CONFIGS[args.size], dtype=dtype, device=device).eval()
    twin = diffusers_twin(unet)
    if device.type == "cuda":
        use_channels_last(unet)  # as `load_unet` does; the twin keeps the layout that diffusers loads
    side = args.pixels // 8
    x = torch.randn(1, 4, args.frames, side, side, dtype=dtype, device=args.device)
    context = torch.randn(1, 77, unet.config.context_dim, dtype=dtype, device=args.device)
    timesteps = torch.tensor([981], device=args.device)
    projected = unet.project_context(context)
    y, y_twin = unet(x, timesteps, projected), twin(x, timesteps, context).sample  # warms up, too
    error = ((y - y_twin).float().norm() / y_twin.float().norm()).item()
    calls = {
        "sdvideo": lambda: unet(x, timesteps, projected),
        "sdvideo_and_text": lambda: unet(x, timesteps, context),  # projects the text each time, as diffusers does
        "diffusers": lambda: twin(x, timesteps, context).sample,
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(args.rounds):
        for name, call in calls.items():
            seconds[name].append(timed(call, device))
    return report(args, seconds, error)


def report(args: argparse.Namespace, seconds: dict[str, list[float]], error: float) -> dict[str, object]:
    medians = {name: round(statistics.median(values), 6) for name, values in seconds.items()}
    return {
        "what": f"UNet forward, {args.size} size, 1 x {args.frames} frames at {args.pixels} px",
        "device": device_name(args.device),
        "threads": torch.get_num_threads(),
        "dtype": args.dtype,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "seconds": medians,
        "all_seconds": {name: [round(v, 6) for v in values] for name, values in seconds.items()},
        "speedup": round(medians["diffusers"] / medians["sdvideo"], 3),
        "speedup_and_text": round(medians["diffusers"] / medians["sdvideo_and_text"], 3),
        "relative_difference": error,
    }


def device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.processor() or device


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--size", default="full", choices=CONFIGS)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--pixels", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    with torch.inference_mode():
        result = measure(args)
    text = json.dumps(result, indent=2)
    target = Path(__file__).parent / "results" / f"unet-{args.device.replace(':', '')}-{args.dtype}-{args.size}.json"
    target.write_text(text + "\n", encoding="utf-8")
    print(text)  # noqa: T201


if __name__ == "__main__":
    main()
