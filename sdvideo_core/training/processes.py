"""Processes: how accelerate and the optimizer are set up for a run, in one process or several."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DataLoaderConfiguration,
    DistributedDataParallelKwargs,
    DynamoBackend,
    InitProcessGroupKwargs,
    TorchDynamoPlugin,
    patch_environment,
)
from torch import Tensor, nn
from torch.torch_version import TorchVersion

from .sharding import shard_on_cpu

if TYPE_CHECKING:
    from .trainer import SDVideoTrainer

# While the first process draws samples the others wait for it, by default no longer than 10 minutes on GPUs.
TIMEOUT = timedelta(days=1)
FUSED_TAKES_ALL = TorchVersion(torch.__version__) >= "2.5"


def accelerator_for(trainer: SDVideoTrainer, output: Path) -> Accelerator:
    device = torch.device(trainer.model.device)
    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    # One process may train with other settings and on another device than before, as ComfyUI's does.
    AcceleratorState._reset_state(reset_partial_state=alone)
    output.mkdir(parents=True, exist_ok=True)
    with patch_environment(**({"ACCELERATE_TORCH_DEVICE": str(device)} if alone else {})):
        accelerator = Accelerator(
            cpu=device.type == "cpu",
            mixed_precision=trainer.mixed_precision,
            dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=trainer.seed),
            log_with=trainer.log_with,
            project_dir=output,
            dynamo_plugin=TorchDynamoPlugin(backend=DynamoBackend.INDUCTOR, dynamic=False) if trainer.compile else None,
            # DDP's buckets are the gradients, which would lie there twice.
            kwargs_handlers=[
                InitProcessGroupKwargs(timeout=TIMEOUT),
                DistributedDataParallelKwargs(gradient_as_bucket_view=True),
            ],
        )
    shard_on_cpu(accelerator)
    return accelerator


def optimizer_for(parameters: list[nn.Parameter], lr: float, trainer: SDVideoTrainer) -> torch.optim.Optimizer:
    options: dict[str, Any] = {"lr": lr, "betas": trainer.betas, "weight_decay": trainer.weight_decay}
    if trainer.adam8bit:
        return _adamw_8bit(torch.device(trainer.model.device))(parameters, **options)
    # Without it torch takes as much again as the gradients for what it computes on the way. torch 2.4's refuses
    # gradients of 1x1 convolutions, whose strides say the same in another way.
    fused = True if torch.device(trainer.model.device).type == "cuda" and FUSED_TAKES_ALL else None
    return torch.optim.AdamW(parameters, fused=fused, **options)


def adopt_state(optimizer: torch.optim.Optimizer, fused: bool | None) -> None:
    """Makes what was loaded this device's: the kernels of its own, and moments laid out as the weights are.

    A state of another device brings both along, and fused kernels go through memory without a look at strides.
    """
    for group in optimizer.param_groups:
        if "fused" in group:
            group["fused"] = fused
    for parameter, state in optimizer.state.items():
        if fused:
            state["step"] = state["step"].to(parameter.device)
        for name, value in state.items():
            is_moment = isinstance(value, Tensor) and value.shape == parameter.shape and value.is_floating_point()
            if is_moment and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _adamw_8bit(device: torch.device) -> Any:
    try:
        from bitsandbytes import __version__ as version  # pyright: ignore[reportMissingImports]
        from bitsandbytes.optim.adamw import AdamW8bit  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            "adam8bit needs the package bitsandbytes, which is missing; pip install bitsandbytes"
        ) from error
    if device.type == "cpu" and [int(part) for part in version.split(".")[:2]] < [0, 50]:
        raise ImportError(
            f"adam8bit on a CPU needs bitsandbytes 0.50 or newer, and {version} is installed; "
            "pip install --upgrade bitsandbytes"
        )
    return AdamW8bit
