"""Sharding: weights that FSDP splits over the processes of a run, each of which keeps a part."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor, nn

if TYPE_CHECKING:
    from .trainer import SDVideoTrainer

SPLITTING = (DistributedType.FSDP, DistributedType.DEEPSPEED)


def is_sharded(accelerator: Accelerator) -> bool:
    return accelerator.distributed_type in SPLITTING


def shard_on_cpu(accelerator: Accelerator) -> None:
    """Turns on the FSDP that a launcher asked for: accelerate has it on GPUs alone, torch on CPUs too.

    Without this the processes would quietly hold whole weights. Raises ValueError where torch would choose a GPU.
    """
    asked = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if not asked or accelerator.device.type != "cpu" or accelerator.num_processes == 1:
        return
    if torch.cuda.is_available():
        raise ValueError(
            "the model is on the CPU and FSDP takes the GPU where there is one; "
            "load the model with device='cuda', or hide the GPU with CUDA_VISIBLE_DEVICES="
        )
    plugin = FullyShardedDataParallelPlugin()
    if accelerator.mixed_precision != "no":
        plugin.set_mixed_precision(accelerator.mixed_precision)
    accelerator.state.fsdp_plugin = plugin
    accelerator.state.distributed_type = PartialState().distributed_type = DistributedType.FSDP


def check_sharding(trainer: SDVideoTrainer, accelerator: Accelerator, samples: bool = False) -> None:
    """Refuses what splits the weights in other ways than FSDP 2, and options that need them whole."""
    if not is_sharded(accelerator):
        return
    if not getattr(accelerator, "is_fsdp2", False):
        kind = accelerator.distributed_type.value
        raise ValueError(
            f"the launcher asked for {kind}{' 1' if kind == 'FSDP' else ''}, which joins weights of several layers "
            "to one; launch with --use_fsdp --fsdp_version 2, or with DDP"
        )
    options = {"adam8bit=True": trainer.adam8bit, "compile=True": trainer.compile, "sample_every": samples}
    for option in (option for option, is_on in options.items() if is_on):
        raise ValueError(f"{option} does not go with weights split by FSDP; leave it out, or launch with DDP")


def use_plain_layout(module: nn.Module) -> None:
    """Lays weights out row by row, without the channels_last that convolutions have on a GPU and FSDP refuses."""
    for parameter in module.parameters():
        parameter.data = parameter.data.contiguous()


@contextmanager
def no_warning_of_views() -> Iterator[None]:
    """Within, torch does not warn that blocks return views: a write into one would lose its hook, and none writes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        yield


def whole(tensor: Tensor) -> Tensor:
    """A tensor; one that is split is gathered, on the CPU, and then every process must call this."""
    return cast(Any, tensor).full_tensor().cpu() if hasattr(tensor, "full_tensor") else tensor


@torch.no_grad()
def copy_whole(tensor: Tensor, target: Tensor) -> None:
    """Copies a whole tensor, which every process has, into one that may be split."""
    if hasattr(target, "full_tensor"):
        from torch.distributed.tensor import distribute_tensor

        split = cast(Any, target)
        tensor = distribute_tensor(tensor.to(target.device), split.device_mesh, split.placements)
    target.copy_(tensor)
