"""Precision: what a device computes in, and what is told where it does not."""

from __future__ import annotations

import warnings

import torch

AMPERE = (8, 0)  # compute capability
FLOAT_TYPES = (torch.float32, torch.float16, torch.bfloat16)


def computes_in(dtype: torch.dtype, device: torch.device | str) -> bool:
    """Whether a device has arithmetic for one of FLOAT_TYPES.

    CPUs need it in oneDNN's kernels (AVX-512 or AMX). Without, torch computes number by number, slower than in float32.
    NVIDIA's GPUs have bfloat16 from Ampere on (RTX 30xx); before, torch has no attention for it but the one that
    stores all scores, many times the memory.
    """
    device = torch.device(device)
    if device.type == "cuda" and dtype is torch.bfloat16 and torch.version.hip is None:
        return torch.cuda.get_device_capability(device) >= AMPERE
    if device.type != "cpu" or dtype is torch.float32:
        return True
    if not torch.backends.mkldnn.is_available():
        return False
    kernels = torch.ops.mkldnn
    can = kernels._is_mkldnn_bf16_supported if dtype is torch.bfloat16 else kernels._is_mkldnn_fp16_supported
    return can()


def amp_dtype(device: torch.device | str) -> torch.dtype | None:
    """What mixed precision computes in: float16 on CUDA, elsewhere bfloat16; None on CPUs that would emulate it."""
    if torch.device(device).type == "cuda":
        return torch.float16
    return torch.bfloat16 if computes_in(torch.bfloat16, device) else None


def warn_of_emulation(given: str, dtype: torch.dtype, device: torch.device | str, on_cpu: str, on_gpu: str) -> None:
    """Warns where a device was asked for what it does not compute in. given: the argument, as it was written.

    on_cpu, on_gpu: what to ask for instead.
    """
    if computes_in(dtype, device):
        return
    if torch.device(device).type == "cpu":
        why = f"this CPU does not compute in it and emulates it, many times slower than float32; use {on_cpu}"
    else:
        why = f"this GPU is older than those that compute in it, and takes many times the memory; use {on_gpu}"
    warnings.warn(f"{given}: {why}", stacklevel=3)
