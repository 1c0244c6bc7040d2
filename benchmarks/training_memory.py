"""Training memory benchmark: the peak of each way of training, measured on the demo model, estimated at full size.

python benchmarks/training_memory.py                writes results/training-memory.json and prints its table
python benchmarks/training_memory.py --full-size    estimates that part of it anew, and measures nothing

Both take one step, forward, backward and AdamW, whose moments are there before. The measurement is the growth of a
fresh process's memory: as it is, with the gaps that the C library's allocator leaves, and where that returns freed
memory at once. The estimate computes nothing: it follows how many bytes of torch's fake tensors are alive, which are
tensors on `meta` that autograd and autocast treat as those of a CPU. Its error, in the result, is that against the
measurement without gaps. Linux only, for memory is read from /proc.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from sdvideo_core.attention import products, sdpa
from sdvideo_core.config import UNetConfig
from sdvideo_core.demo.recipe import CONFIG
from sdvideo_core.training.network import Network
from sdvideo_core.unet import UNetSD

RESULT = Path(__file__).parent / "results" / "training-memory.json"
GIB, MIB = 2**30, 2**20
# What the C library is told in a measurement with gaps and in one without.
ALLOCATORS: dict[str, dict[str, str]] = {"default": {}, "returned": {"MALLOC_MMAP_THRESHOLD_": "65536"}}


@dataclass(frozen=True)
class Way:
    """A way of training, named as the trainer's arguments."""

    train_only: str = "all"
    lora_rank: int | None = None
    gradient_checkpointing: bool = False
    mixed_precision: str = "no"
    half_weights: bool = False  # frozen weights in 16 bits

    @property
    def name(self) -> str:
        if self.lora_rank:
            return f"LoRA of rank {self.lora_rank}{', model in 16 bits' if self.half_weights else ''}"
        return "everything" if self.train_only == "all" else "layers that mix frames"


KINDS = (Way(), Way(train_only="temporal"), Way(lora_rank=16), Way(lora_rank=16, half_weights=True))
WAYS = [
    replace(kind, gradient_checkpointing=checkpointing, mixed_precision=precision)
    for kind in KINDS
    for checkpointing in (False, True)
    for precision in ("no", "bf16")
    if precision == "bf16" or not kind.half_weights  # which the trainer refuses
]


@dataclass(frozen=True)
class Batch:
    videos: int
    frames: int
    height: int
    width: int
    context_dim: int

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        x = torch.zeros(self.videos, 4, self.frames, self.height, self.width)
        return x, torch.zeros(self.videos, dtype=torch.long), torch.zeros(self.videos, 77, self.context_dim)


DEMO = CONFIG.unet, Batch(16, 16, 12, 12, 64)
FULL = UNetConfig(), Batch(1, 16, 32, 32, 1024)


class Alive(TorchDispatchMode):
    """Bytes of the tensors alive that were made within it, each memory counted once, and the most there were.

    device: counts what is on it; None: all.
    """

    def __init__(self, device: torch.device | None = None):
        super().__init__()
        self.device = device
        self.bytes = self.peak = 0
        self._known = WeakIdKeyDictionary()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if not isinstance(tensor, Tensor) or self.device not in (None, tensor.device):
                continue
            if (storage := tensor.untyped_storage()) not in self._known:
                self._known[storage] = True
                self._add(storage.nbytes())
                weakref.finalize(storage, self._add, -storage.nbytes())
        return result

    def _add(self, size: int) -> None:
        self.bytes += size
        self.peak = max(self.peak, self.bytes)


def make_network(config: UNetConfig, way: Way) -> Network:
    dtype = torch.bfloat16 if way.half_weights else torch.float32
    network = Network(UNetSD(config, dtype=dtype), way.lora_rank, way.train_only)
    network.begin(gradient_checkpointing=way.gradient_checkpointing)
    return network


def loss_of(network: Network, batch: Batch, way: Way) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=way.mixed_precision == "bf16"):
        eps = network(*batch.tensors())
    return eps.float().pow(2).mean()


def train(network: Network, batch: Batch, way: Way, fused: bool = False) -> None:
    """One step, after one on no gradients has made the optimizer's moments."""
    optimizer = torch.optim.AdamW(network.trainable().values(), foreach=False, fused=fused)
    for parameter in network.trainable().values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    loss_of(network, batch, way).backward()
    optimizer.step()


@contextmanager
def norms_in_float32() -> Iterator[None]:
    """Within, normalizations compute in float32, as autocast lets them on a GPU and not on a CPU."""

    def in_float32(norm: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *args: norm(*(arg.float() if isinstance(arg, Tensor) else arg for arg in args))

    with (
        patch.object(functional, "group_norm", in_float32(functional.group_norm)),
        patch.object(functional, "layer_norm", in_float32(functional.layer_norm)),
    ):
        yield


def estimate(config: UNetConfig, batch: Batch, way: Way, gpu: bool) -> dict[str, int]:
    """Bytes in all at the peak, and of parts that are there for certain; gpu: with what is chosen on one."""
    is_autocast = gpu and way.mixed_precision == "bf16"
    with FakeTensorMode(), Alive() as alive, norms_in_float32() if is_autocast else nullcontext():
        network = make_network(config, way)
        network.unet.attention = sdpa if gpu else products
        train(network, batch, way, fused=gpu)
    trained = sum(p.numel() for p in network.trainable().values())
    weights = sum(p.numel() * p.element_size() for p in network.parameters())
    return {"weights": weights, "gradients": 4 * trained, "optimizer": 8 * trained, "peak": alive.peak}


def memory(field: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(f"{field}:"))


def measure(config: UNetConfig, batch: Batch, way: Way) -> int:
    """Growth of the peak of memory in bytes, after a small step has loaded what libraries load."""
    train(make_network(config, way), replace(batch, videos=1, frames=2), way)
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM counts from here
    train(make_network(config, way), batch, way)
    return memory("VmHWM") - before


def start_measuring(way: Way, allocator: str) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--measure", json.dumps(asdict(way))]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | ALLOCATORS[allocator]
    return subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True)


def row(way: Way) -> dict[str, Any]:
    children = {name: start_measuring(way, name) for name in ALLOCATORS}
    demo, full = estimate(*DEMO, way, gpu=False), estimate(*FULL, way, gpu=True)
    measured = {name: int(child.communicate()[0]) for name, child in children.items()}
    return {
        "name": way.name,
        "way": asdict(way),
        "demo_measured": measured,
        "demo_estimated": demo,
        "demo_error": round(demo["peak"] / measured["returned"] - 1, 4),
        "full_estimated": full,
    }


def line(row: Mapping[str, Any]) -> str:
    way, full = row["way"], row["full_estimated"]["peak"]
    demo = " | ".join(f"{size / MIB:.0f} MiB" for size in row["demo_measured"].values())
    checkpointing = "yes" if way["gradient_checkpointing"] else "no"
    return f"| {row['name']} | {checkpointing} | {way['mixed_precision']} | {demo} | {full / GIB:.1f} GiB |\n"


def estimate_full_size() -> None:
    content = json.loads(RESULT.read_text(encoding="utf-8"))
    for row in content["rows"]:
        row["full_estimated"] = estimate(*FULL, Way(**row["way"]), gpu=True)
        sys.stdout.write(line(row))
        sys.stdout.flush()
    RESULT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--only", type=int, nargs="*", default=range(len(WAYS)), help="rows to print, without a result")
    parser.add_argument("--full-size", action="store_true", help="estimate the full size anew, in the result")
    options = parser.parse_args()
    if options.measure:
        sys.stdout.write(str(measure(*DEMO, Way(**json.loads(options.measure)))))
        return
    if options.full_size:
        estimate_full_size()
        return
    rows = []
    for index in options.only:
        rows.append(row(WAYS[index]))
        sys.stdout.write(line(rows[-1]))
        sys.stdout.flush()
    errors = [row["demo_error"] for row in rows]
    content = {
        "demo_batch": asdict(DEMO[1]),
        "full_batch": asdict(FULL[1]),
        "estimate_error_at_demo_size": {"least": min(errors), "most": max(errors)},
        **{"python": platform.python_version(), "torch": torch.__version__},
        "rows": rows,
    }
    if len(rows) == len(WAYS):
        RESULT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
