"""Training memory benchmark: what each way of training takes, measured on the demo model, estimated at full size.

python benchmarks/training_memory.py    writes results/training-memory.json and prints its table

The estimate counts, without computing, weights, gradients, AdamW's two moments, and the tensors that the forward pass
keeps for the backward pass (on torch's fake tensors: meta tensors that autocast applies to). With checkpointing, those
of the largest stage are kept once more while it is computed again. The measurement is the growth of a fresh process's
memory over two steps. Linux only, for memory is read from /proc.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from sdvideo_core.attention import AttentionFunction, products, sdpa
from sdvideo_core.config import UNetConfig
from sdvideo_core.demo.recipe import CONFIG
from sdvideo_core.training.network import Network
from sdvideo_core.unet import UNetSD

RESULT = Path(__file__).parent / "results" / "training-memory.json"
GIB, MIB = 2**30, 2**20


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
        what = (
            f"LoRA, rank {self.lora_rank}" if self.lora_rank else "time layers" if self.train_only != "all" else "all"
        )
        return f"{what}{', 16-bit weights' if self.half_weights else ''}"


WAYS = [
    Way(),
    Way(train_only="temporal"),
    Way(lora_rank=16),
    Way(lora_rank=16, half_weights=True),
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


DEMO = CONFIG.unet, Batch(32, 16, 12, 12, 64)
FULL = UNetConfig(), Batch(1, 16, 32, 32, 1024)


class Kept:
    """Bytes of the tensors that a forward pass keeps, each memory counted once, parameters not at all."""

    def __init__(self, network: Network):
        self.seen = {p.untyped_storage()._cdata for p in network.parameters()}
        self.alive: list[Tensor] = []  # so that no memory is used, and counted, twice
        self.bytes = 0

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.seen:
            self.seen.add(storage._cdata)
            self.alive.append(tensor)
            self.bytes += storage.nbytes()
        return tensor


def network(config: UNetConfig, way: Way) -> Network:
    dtype = torch.bfloat16 if way.half_weights else torch.float32
    made = Network(UNetSD(config, dtype=dtype), way.lora_rank, way.train_only)
    made.begin(xformers=False, gradient_checkpointing=way.gradient_checkpointing)
    return made


def forward(made: Network, batch: Batch, way: Way) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=way.mixed_precision == "bf16"):
        return made(*batch.tensors())


def estimate(config: UNetConfig, batch: Batch, way: Way, attention: AttentionFunction) -> dict[str, int]:
    """Bytes by what they are for."""
    with FakeTensorMode():
        return _estimate(config, batch, way, attention)


def _estimate(config: UNetConfig, batch: Batch, way: Way, attention: AttentionFunction) -> dict[str, int]:
    made = network(config, way)
    made.unet.attention = attention
    trained = sum(p.numel() for p in made.trainable().values())
    parts = {
        "weights": sum(p.numel() * p.element_size() for p in made.parameters()),
        "gradients": 4 * trained,
        "optimizer": 8 * trained,
        "activations": activations(made, batch, way),
    }
    return parts | {"total": sum(parts.values())}


def activations(made: Network, batch: Batch, way: Way) -> int:
    kept, largest, before = Kept(made), 0, 0

    def enter(*_: object) -> None:
        nonlocal before
        before = kept.bytes

    def leave(*_: object) -> None:
        nonlocal largest
        largest = max(largest, kept.bytes - before)

    unet = made.unet
    for stage in (*unet.input_blocks, unet.middle_block, *unet.output_blocks):
        stage.register_forward_pre_hook(enter)
        stage.register_forward_hook(leave)
    unet.gradient_checkpointing = False
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda tensor: tensor):
        forward(made, batch, way)
    if not way.gradient_checkpointing:
        return kept.bytes
    unet.gradient_checkpointing, kept = True, Kept(made)
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda tensor: tensor):
        forward(made, batch, way)
    return kept.bytes + largest


def memory(field: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(f"{field}:"))


def measure(config: UNetConfig, batch: Batch, way: Way) -> int:
    """Growth of the peak of memory over two steps, after a small one has loaded what libraries load."""
    forward(network(config, way), replace(batch, videos=1, frames=2), way).sum().backward()
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM counts from here
    made = network(config, way)
    optimizer = torch.optim.AdamW(made.trainable().values())
    for _ in range(2):
        forward(made, batch, way).float().pow(2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return memory("VmHWM") - before


def measure_in_child(way: Way) -> int:
    command = [sys.executable, __file__, "--measure", json.dumps(asdict(way))]
    return int(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        sys.stdout.write(str(measure(*DEMO, Way(**json.loads(options.measure)))))
        return
    rows = []
    for kind in WAYS:
        for checkpointing in (False, True):
            for precision in ("no", "bf16"):
                way = replace(kind, gradient_checkpointing=checkpointing, mixed_precision=precision)
                demo, full = estimate(*DEMO, way, products), estimate(*FULL, way, sdpa)  # as on a CPU, as on a GPU
                rows.append({"way": asdict(way), "demo": demo, "demo_measured": measure_in_child(way), "full": full})
                measured, guessed = rows[-1]["demo_measured"] / MIB, demo["total"] / MIB
                sys.stdout.write(
                    f"| {way.name} | {'yes' if checkpointing else 'no'} | {precision} "
                    f"| {measured:.0f} MiB | {guessed:.0f} MiB | {full['total'] / GIB:.1f} GiB |\n"
                )
    content = {
        "demo_batch": asdict(DEMO[1]),
        "full_batch": asdict(FULL[1]),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "rows": rows,
    }
    RESULT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
