"""Trainer errors: what cannot be trained, said before the work starts or with the remedy."""

import sys
from types import SimpleNamespace
from typing import cast

import bitsandbytes
import pytest
import torch
from accelerate import Accelerator, DistributedType

from sdvideo_core import SDVideo
from sdvideo_core.attention import sdpa
from sdvideo_core.training import SDVideoTrainer
from sdvideo_core.training.sharding import shard_on_cpu
from tests.unit.small_training import collate, differing, loader, train, weights

CLIPS = [(torch.zeros(2, 4, 4, 4), "a clip")] * 2


def trainer(model, out, data=CLIPS, make=collate, batch_size=1, **options) -> SDVideoTrainer:
    batches = loader(data, batch_size, collate_fn=make, shuffle=False)
    return SDVideoTrainer(model, batches, out, preencoded_img=True, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixed_precision": "fp8"}, "mixed_precision='fp8'; expected no, bf16 or fp16"),
        ({"mixed_precision": "fp16"}, "needs a GPU and the model is on the CPU; use 'bf16'"),
        ({"xformers": True}, "xformers=True needs a GPU"),
        ({"epochs": 0}, "epochs=0; it must be at least 1"),
        ({"noise_offset": -0.1}, "noise_offset=-0.1; it must be 0 or more"),
        ({"snr_floor": -1.0}, "snr_floor=-1.0; it must be 0 or more"),
        ({"gradient_accumulation": 0}, "gradient_accumulation=0; it must be at least 1"),
        ({"unconditional_ratio": 1.5}, "unconditional_ratio=1.5; it is a share of the samples, 0..1"),
        ({"start_noise": -0.5}, "start_noise=-0.5; it is a share"),
        ({"lr_warmup": -1}, "lr_warmup=-1 steps; it must be 0 or more"),
        ({"max_grad_norm": -1.0}, "max_grad_norm=-1.0; it must be above 0, or 0 for gradients as they are"),
        ({"max_grad_norm": float("nan")}, "max_grad_norm=nan; it must be"),
        ({"min_snr_gamma": 0.0}, "min_snr_gamma=0.0; it must be above 0, or None"),
        ({"data": []}, "the dataloader has no batches"),
    ],
)
def test_settings_are_checked_at_once(small_model, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        trainer(small_model, tmp_path, **options)


@pytest.mark.parametrize("can", [True, False])
def test_a_precision_that_the_cpu_would_emulate_is_told(small_model, tmp_path, monkeypatch, recwarn, can):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: can)
    trainer(small_model, tmp_path, mixed_precision="bf16")
    emulated = "this CPU does not compute in it and emulates it, many times slower than float32; use "
    expected = [] if can else [f"mixed_precision='bf16': {emulated}mixed_precision='no'"]
    assert [str(warning.message) for warning in recwarn] == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_only": "spatially"}, "train_only='spatially'; expected one of all, temporal"),
        ({"ema": 1.0}, "ema=1.0; expected the share kept"),
        ({"lora_rank": 0}, "rank=0; expected 1 or more"),
        ({"lr_min": 1.0}, "lr_min=1.0; it must be 0..lr"),
        (
            {"lr_delay": 1, "lr_decay": 1},
            "lr_delay=1, lr_warmup=0 and lr_decay=1 are 2 steps together, and the run has 1",
        ),
    ],
)
def test_settings_of_parts_are_checked_before_a_step(small_model, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        train(trainer(small_model, tmp_path, **options), steps=1)
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("name", ["lr_warmup", "lr_decay", "epochs", "seed", "lora_rank"])
def test_numbers_of_steps_are_whole(small_model, tmp_path, name):
    with pytest.raises(TypeError, match=rf"^{name} is 0.05, expected a whole number \(int\)"):
        trainer(small_model, tmp_path, **{name: 0.05})


@pytest.mark.parametrize("name", ["steps", "log_every", "save_every", "sample_every"])
def test_counts_of_a_run_are_checked(small_model, tmp_path, name):
    with pytest.raises(ValueError, match=f"^{name}=0; it must be at least 1$"):
        trainer(small_model, tmp_path).train(bar=False, **{name: 0})


def test_half_weights_are_refused_unless_for_a_lora(new_model, tmp_path):
    model = new_model(dtype=torch.float16)
    with pytest.raises(
        ValueError, match=r"torch.float16, too coarse for small steps; load it with dtype=torch.float32"
    ):
        trainer(model, tmp_path)


def test_a_bad_batch_is_named(small_model, tmp_path):
    def wrong(items):
        return collate(items) | {"text": "one string"}

    with pytest.raises(ValueError, match="text is "):
        train(trainer(small_model, tmp_path, make=wrong), steps=1)


def test_a_loss_of_nan_stops_the_run(model, tmp_path):
    with torch.no_grad():
        model.unet.out[-1].bias.fill_(float("nan"))
    message = "the loss of step 1 is nan with lr=0.0001 and mixed_precision=no; use a lower lr, with which .* resumed$"
    with pytest.raises(FloatingPointError, match=message):
        train(trainer(model, tmp_path), steps=1)
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("max_grad_norm", [1.0, 0.0])
def test_a_gradient_of_nan_stops_the_run_before_it_reaches_a_weight(model, tmp_path, max_grad_norm):
    model.unet.out[-1].weight.register_hook(lambda gradient: gradient * float("nan"))
    before = weights(model)
    options = {"max_grad_norm": max_grad_norm, "mixed_precision": "bf16", "save_states": False}
    message = "the gradient's norm of step 1 is nan .* use a lower lr, or start a new run with mixed_precision=no$"
    with pytest.raises(FloatingPointError, match=message):
        train(trainer(model, tmp_path, **options), steps=1)
    assert not list(tmp_path.rglob("*.safetensors"))
    assert not differing(before, weights(model))


@pytest.fixture(scope="module")
def stopped(small_model_dir, tmp_path_factory):
    """The folder of a run of one step."""
    out = tmp_path_factory.mktemp("stopped")
    train(trainer(SDVideo(small_model_dir, amp=False), out), steps=1)
    return out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 1}, "was saved with seed=0, this run starts with seed=1; resume with the same settings"),
        ({"lora_rank": 2}, "was saved with lora_rank=None, this run starts with lora_rank=2"),
        (
            {"gradient_accumulation": 2},
            "was saved with gradient_accumulation=1, this run starts with gradient_accumulation=2",
        ),
        ({"mixed_precision": "bf16"}, "was saved with mixed_precision=no, this run starts with mixed_precision=bf16"),
        ({"data": CLIPS * 2}, "was saved with batches=2, this run starts with batches=4"),
        ({"data": CLIPS * 2, "batch_size": 2}, "was saved with batch_size=1, this run starts with batch_size=2"),
    ],
)
def test_a_state_of_another_run_is_refused(small_model, stopped, options, message):
    with pytest.raises(ValueError, match=message):
        train(trainer(small_model, stopped, load_state=True, **options), steps=2)


def test_a_folder_that_is_no_state_is_refused(small_model, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is no state of a training run.*name a step-\* folder"):
        train(trainer(small_model, tmp_path, load_state=tmp_path), steps=1)


def test_missing_xformers_is_named(tmp_path):
    model = cast(SDVideo, SimpleNamespace(device="cuda", dtype=torch.float32))
    with pytest.raises(ImportError, match="xformers=True needs the package xformers, which is missing; pip install"):
        trainer(model, tmp_path, xformers=True)


def test_missing_bitsandbytes_is_named(small_model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim.adamw", None)
    with pytest.raises(ImportError, match="adam8bit needs the package bitsandbytes, which is missing; pip install"):
        train(trainer(small_model, tmp_path, adam8bit=True), steps=1)


def test_a_bitsandbytes_without_cpu_kernels_is_named(small_model, tmp_path, monkeypatch):
    monkeypatch.setattr(bitsandbytes, "__version__", "0.49.2")
    message = "adam8bit on a CPU needs bitsandbytes 0.50 or newer, and 0.49.2 is installed; pip install --upgrade"
    with pytest.raises(ImportError, match=message):
        train(trainer(small_model, tmp_path, adam8bit=True), steps=1)


def test_a_missing_tracker_is_named(small_model, tmp_path):
    message = "log_with='comet_ml' is not installed; pip install comet_ml"
    with pytest.warns(UserWarning, match="comet_ml"), pytest.raises(ImportError, match=message):
        train(trainer(small_model, tmp_path, log_with="comet_ml"), steps=1)


def test_a_new_run_does_not_mix_with_an_old_one(model, tmp_path):
    train(trainer(model, tmp_path), steps=3)
    before = sorted((tmp_path / "vid_states").iterdir())
    with pytest.raises(
        ValueError, match="has step-00000003 of an earlier run, and this one starts at step 0; resume it"
    ):
        train(trainer(model, tmp_path), steps=1)
    assert sorted((tmp_path / "vid_states").iterdir()) == before


@pytest.mark.parametrize(("kind", "name"), [("FSDP", "FSDP 1"), ("DEEPSPEED", "DEEPSPEED")])
def test_other_ways_to_split_weights_are_refused(model, tmp_path, monkeypatch, kind, name):
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType(kind))
    message = f"the launcher asked for {name}, which .*; launch with --use_fsdp --fsdp_version 2, or with DDP"
    with pytest.raises(ValueError, match=message):
        train(trainer(model, tmp_path), steps=1)


def test_split_weights_on_the_cpu_of_a_machine_with_a_gpu_are_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    processes = cast(Accelerator, SimpleNamespace(device=torch.device("cpu"), num_processes=2))
    with pytest.raises(ValueError, match="FSDP takes the GPU where there is one; load the model with device='cuda'"):
        shard_on_cpu(processes)


def test_a_run_that_cannot_begin_leaves_the_model_as_it_was(model, tmp_path):
    with pytest.raises(FileNotFoundError):
        train(trainer(model, tmp_path, lora_rank=2, load_state=tmp_path), steps=1)
    assert all(p.requires_grad for p in model.unet.parameters())
    assert model.unet.attention is sdpa


def test_a_stopped_run_leaves_the_model_usable(model, tmp_path):
    class Stopped(Exception):
        pass

    def stop(*_):
        raise Stopped

    with pytest.raises(Stopped):
        train(trainer(model, tmp_path, lora_rank=2), steps=2, callback=stop)
    assert not model.unet.training
    assert not any(module._forward_hooks for module in model.unet.modules())
    assert all(p.requires_grad for p in model.unet.parameters())
