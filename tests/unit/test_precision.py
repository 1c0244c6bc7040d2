"""Precision: what a device computes in, and what is told where a CPU would emulate it."""

import warnings

import pytest
import torch

from sdvideo_core import SDVideo
from sdvideo_core.precision import amp_dtype, computes_in


def let(monkeypatch: pytest.MonkeyPatch, bf16: bool, fp16: bool) -> None:
    """Lets oneDNN say what the CPU has kernels for."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", lambda: fp16)


@pytest.mark.parametrize("bf16", [True, False])
@pytest.mark.parametrize("fp16", [True, False])
def test_a_cpu_computes_in_what_it_has_kernels_for_and_a_gpu_in_all(monkeypatch, bf16, fp16):
    let(monkeypatch, bf16, fp16)
    types = torch.float32, torch.bfloat16, torch.float16
    assert [computes_in(dtype, "cpu") for dtype in types] == [True, bf16, fp16]
    assert all(computes_in(dtype, "cuda:1") for dtype in types)
    assert amp_dtype("cpu") == (torch.bfloat16 if bf16 else None)
    assert amp_dtype("cuda:1") is torch.float16


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("can", [True, False])
def test_a_precision_that_the_cpu_would_emulate_is_told(demo_model_dir, monkeypatch, dtype, can):
    let(monkeypatch, can, can)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        SDVideo(demo_model_dir)
        SDVideo(demo_model_dir, dtype=dtype)
    emulated = (
        "this CPU does not compute in it and emulates it, many times slower than float32; use dtype=torch.float32"
    )
    assert [str(warning.message) for warning in told] == ([] if can else [f"dtype={dtype}: {emulated}"])
    assert all(warning.filename == __file__ for warning in told)
