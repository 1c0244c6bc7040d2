"""Processes: how accelerate and the optimizer are set up for a run, in one process or several."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DataLoaderConfiguration,
    DistributedType,
    DynamoBackend,
    TorchDynamoPlugin,
    patch_environment,
)
from torch import nn

if TYPE_CHECKING:
    from .trainer import SDVideoTrainer

SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED)


def accelerator_for(trainer: SDVideoTrainer, output: Path) -> Accelerator:
    device = torch.device(trainer.model.device)
    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    # One process may train with other settings and on another device than before, as ComfyUI's does.
    AcceleratorState._reset_state(reset_partial_state=alone)
    output.mkdir(parents=True, exist_ok=True)
    with patch_environment(**({"ACCELERATE_TORCH_DEVICE": str(device)} if alone else {})):
        return Accelerator(
            cpu=device.type == "cpu",
            mixed_precision=trainer.mixed_precision,
            dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=trainer.seed),
            log_with=trainer.log_with,
            project_dir=output,
            dynamo_plugin=TorchDynamoPlugin(backend=DynamoBackend.INDUCTOR, dynamic=False) if trainer.compile else None,
        )


def check_sharding(trainer: SDVideoTrainer, accelerator: Accelerator) -> None:
    """Averages and LoRA need whole weights in every process."""
    option = "ema" if trainer.ema is not None else "lora_rank" if trainer.lora_rank is not None else None
    if option and accelerator.distributed_type in SHARDED:
        kind = accelerator.distributed_type.value
        raise ValueError(f"{option}={getattr(trainer, option)} with {kind}, which splits the weights; launch with DDP")


def optimizer_for(parameters: list[nn.Parameter], lr: float, trainer: SDVideoTrainer) -> torch.optim.Optimizer:
    options: dict[str, Any] = {"lr": lr, "betas": trainer.betas, "weight_decay": trainer.weight_decay}
    if not trainer.adam8bit:
        return torch.optim.AdamW(parameters, **options)
    try:
        from bitsandbytes.optim import AdamW8bit  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            "adam8bit needs the package bitsandbytes, which is missing; pip install bitsandbytes"
        ) from error
    return AdamW8bit(parameters, **options)
