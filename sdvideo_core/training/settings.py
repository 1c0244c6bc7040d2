"""Settings: arguments of a trainer that cannot be, refused at once, and those that a resumed run must keep."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import asdict
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast

import torch
from accelerate import Accelerator

from ..arguments import NUMBER, WHOLE
from ..precision import warn_of_emulation
from .sharding import is_sharded

if TYPE_CHECKING:
    from .trainer import SDVideoTrainer

# Arguments that are no others; of those that may be left out, None is neither.
WHOLE_NUMBERS = ("lr_warmup", "lr_decay", "lr_delay", "epochs", "gradient_accumulation", "seed", "lora_rank")
NUMBERS = ("lr", "lr_min", "unconditional_ratio", "ema", "max_grad_norm", "noise_offset", "min_snr_gamma")
NUMBERS += ("snr_floor", "start_noise", "weight_decay")

SAME_IN_A_RUN = (
    *("seed", "gradient_accumulation", "lora_rank", "train_only", "ema"),
    *("mixed_precision", "compile", "adam8bit"),  # which decide what a state holds
)


def check_settings(t: SDVideoTrainer) -> None:
    for name in WHOLE_NUMBERS:
        WHOLE.or_none().check(name, getattr(t, name))
    for name in NUMBERS:
        NUMBER.or_none().check(name, getattr(t, name))
    _check_precision(t)
    if t.distillation and t.lora_rank is None:
        raise ValueError("distillation makes a LoRA and lora_rank is None; set lora_rank, such as 64")
    for name in ("noise_offset", "min_snr_gamma", "snr_floor"):
        if t.distillation and getattr(t, name):
            raise ValueError(f"{name}={getattr(t, name)} has no part in distillation; leave it out")
    check_counts(epochs=t.epochs, gradient_accumulation=t.gradient_accumulation)
    _check_ranges(t)
    if not len(t.dataloader):
        raise ValueError("the dataloader has no batches; the dataset is empty, or smaller than one with drop_last")


def _check_ranges(t: SDVideoTrainer) -> None:
    if t.max_grad_norm is not None and not t.max_grad_norm >= 0:
        raise ValueError(f"max_grad_norm={t.max_grad_norm}; it must be above 0, or 0 for gradients as they are")
    if t.min_snr_gamma is not None and not t.min_snr_gamma > 0:
        raise ValueError(f"min_snr_gamma={t.min_snr_gamma}; it must be above 0, or None for no weighting")
    for name in ("lr_delay", "lr_warmup", "lr_decay"):
        if getattr(t, name) < 0:
            raise ValueError(f"{name}={getattr(t, name)} steps; it must be 0 or more")
    for name in ("noise_offset", "snr_floor"):
        if getattr(t, name) < 0:
            raise ValueError(f"{name}={getattr(t, name)}; it must be 0 or more")
    for name in ("unconditional_ratio", "start_noise"):
        if not 0 <= getattr(t, name) <= 1:
            raise ValueError(f"{name}={getattr(t, name)}; it is a share of the samples, 0..1")


def _check_precision(t: SDVideoTrainer) -> None:
    if t.mixed_precision not in ("no", "bf16", "fp16"):
        raise ValueError(f"mixed_precision={t.mixed_precision!r}; expected no, bf16 or fp16")
    if t.mixed_precision == "fp16" and torch.device(t.model.device).type == "cpu":
        raise ValueError("mixed_precision='fp16' needs a GPU and the model is on the CPU; use 'bf16' or 'no'")
    if t.mixed_precision == "bf16":
        remedies = "mixed_precision='no'", "mixed_precision='fp16'"
        warn_of_emulation("mixed_precision='bf16'", torch.bfloat16, t.model.device, *remedies)
    if t.lora_rank is None and t.model.dtype is not torch.float32:
        raise ValueError(
            f"the model's weights are {t.model.dtype}, too coarse for small steps; "
            "load it with dtype=torch.float32 and set mixed_precision, or set lora_rank"
        )
    if t.mixed_precision == "no" and t.model.dtype is not torch.float32:
        raise ValueError(f"the model's weights are {t.model.dtype}; set mixed_precision to bf16 or fp16 with them")
    if t.xformers and torch.device(t.model.device).type == "cpu":
        raise ValueError("xformers=True needs a GPU and the model is on the CPU; leave it out")
    if t.xformers and find_spec("xformers") is None:
        raise ImportError("xformers=True needs the package xformers, which is missing; pip install xformers")


def settings_of_run(t: SDVideoTrainer, accelerator: Accelerator, base_model: str) -> dict[str, Any]:
    """What a run must be resumed with; base_model: the fingerprint of the weights that it does not train."""
    dataset = t.dataloader.dataset
    return {
        "batches": len(t.dataloader),
        "batch_size": t.dataloader.batch_size,
        "clips": len(cast(Sized, dataset)) if hasattr(dataset, "__len__") else None,
        "processes": accelerator.num_processes,
        "fsdp": is_sharded(accelerator) or None,
        **{name: getattr(t, name) for name in SAME_IN_A_RUN},
        "distillation": asdict(t.distillation) if t.distillation else None,
        "base_model": base_model[:12],
    }


def check_counts(**counts: int | None) -> None:
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ValueError(f"{name}={value}; it must be at least 1")
