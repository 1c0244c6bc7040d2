"""Precision: what a device computes in, and what is told where it does not."""

import warnings
from types import SimpleNamespace

import pytest
import torch

from sdvideo_core import SDVideo, pipeline
from sdvideo_core.precision import amp_dtype, computes_in, warn_of_emulation


def let(monkeypatch: pytest.MonkeyPatch, bf16: bool, fp16: bool) -> None:
    """Lets oneDNN say what the CPU has kernels for."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", lambda: fp16)


def let_gpu(monkeypatch: pytest.MonkeyPatch, *capability: int) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)


@pytest.mark.parametrize("bf16", [True, False])
@pytest.mark.parametrize("fp16", [True, False])
def test_a_cpu_computes_in_what_it_has_kernels_for_and_a_gpu_in_all(monkeypatch, bf16, fp16):
    let(monkeypatch, bf16, fp16)
    let_gpu(monkeypatch, 8, 0)
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


def test_gpus_older_than_ampere_do_not_compute_in_bfloat16_which_is_told(monkeypatch):
    let_gpu(monkeypatch, 7, 5)
    types = torch.float32, torch.float16, torch.bfloat16
    assert [computes_in(dtype, "cuda") for dtype in types] == [True, True, False]
    message = "dtype=bf16: this GPU is older than those that compute in it, and takes many times the memory; use fp16"
    with pytest.warns(UserWarning, match=f"^{message}$"):
        warn_of_emulation("dtype=bf16", torch.bfloat16, "cuda", "fp32", "fp16")


def test_each_process_of_a_launcher_loads_onto_its_own_gpu(demo_model_dir, monkeypatch):
    used = []
    monkeypatch.setattr(pipeline, "load_unet", lambda _layout, _dtype, device, _done: used.append(device))
    monkeypatch.setattr(torch, "empty", lambda *_, device: SimpleNamespace(device=torch.device(device)))
    monkeypatch.setenv("LOCAL_RANK", "1")
    for gpus in (2, 1):  # one, where the launcher shows each process its own
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        for device in ("cuda", "cuda:0", "cpu"):
            with pytest.raises(AttributeError):  # of the network that is not loaded
                SDVideo(demo_model_dir, device)
    assert list(map(str, used)) == ["cuda:1", "cuda:0", "cpu", "cuda:0", "cuda:0", "cpu"]
