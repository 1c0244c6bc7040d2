"""Numbers of a run: gradients, speeds, captions and noise are what the options say; files hold what was trained."""

import inspect
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from sdvideo_core import cli, cli_training
from sdvideo_core.lora import kohya_name
from sdvideo_core.lora_layers import adaptable
from sdvideo_core.training import SDVideoTrainer
from sdvideo_core.training import trainer as trainer_module
from sdvideo_core.training.batches import Batches
from sdvideo_core.training.loss_plot import plot_loss
from tests.unit.small_training import collate, differing, loader, make_clips, make_trainer, train, weights

STILL = {"lr": 0.0, "weight_decay": 0.0, "betas": (0.0, 0.0)}  # the first moment is then the last step's gradient


def gradients(out, step):
    state = torch.load(out / f"vid_states/step-{step:08}/optimizer.bin", weights_only=True)["state"]
    return torch.cat([kept["exp_avg"].flatten() for kept in state.values()])


def test_a_step_takes_the_mean_gradient_of_its_batches(new_model, tmp_path):
    single = train(make_trainer(new_model(), tmp_path / "1", max_grad_norm=None, **STILL), 2, save_every=1)
    both = train(make_trainer(new_model(), tmp_path / "2", max_grad_norm=None, gradient_accumulation=2, **STILL), 1)
    assert both.losses == pytest.approx([sum(single.losses) / 2])
    expected = (gradients(tmp_path / "1", 1) + gradients(tmp_path / "1", 2)) / 2
    torch.testing.assert_close(gradients(tmp_path / "2", 1), expected, rtol=1e-4, atol=1e-7)


def test_gradients_are_cut_to_max_grad_norm(new_model, tmp_path):
    train(make_trainer(new_model(), tmp_path, max_grad_norm=0.01, **STILL), 1)
    assert gradients(tmp_path, 1).norm().item() == pytest.approx(0.01, rel=1e-3)


def test_a_lora_trains_every_linear_layer_and_convolution(model, tmp_path):
    layers = adaptable(model.unet)
    assert {layer.weight.ndim for layer in layers.values()} == {2, 4, 5}
    train(make_trainer(model, tmp_path, lora_rank=2, save_dtype=torch.float32), 3)
    saved = load_file(tmp_path / "vid_lora.safetensors")
    ups = {name.removesuffix(".lora_up.weight") for name in saved if name.endswith("lora_up.weight")}
    assert ups == {kohya_name(path) for path in layers}
    assert all(value.any() for name, value in saved.items() if name.endswith("lora_up.weight"))


def test_captions_are_dropped_at_the_asked_rate():
    batches = object.__new__(Batches)
    batches.trainer = SimpleNamespace(unconditional_ratio=0.3)
    batches.accelerator = SimpleNamespace(device=torch.device("cpu"))
    batches.__dict__["empty"] = torch.zeros(1, 1, 1)
    context = batches._context(torch.ones(4000, 1, 1), torch.Generator().manual_seed(0))
    assert (context == 0).float().mean().item() == pytest.approx(0.3, abs=0.03)


def test_samples_are_drawn_by_the_average(model, tmp_path, monkeypatch):
    drawn = []

    def draw(model, *_):
        drawn.append({name: parameter.clone() for name, parameter in model.unet.named_parameters()})

    monkeypatch.setattr(trainer_module, "save_samples", draw)
    train(make_trainer(model, tmp_path, ema=0.5), 2, sample_every=2, sample_prompts=["a"])
    average = load_file(tmp_path / "vid_states/step-00000002/ema.safetensors")
    assert all(torch.equal(value, average[f"unet.{name}"]) for name, value in drawn[0].items())
    assert any(not torch.equal(p, drawn[0][n]) for n, p in model.unet.named_parameters())


def test_the_plot_shows_the_losses():
    def heights(losses):
        pixels = np.asarray(plot_loss(losses)).astype(int)
        rows, columns = np.nonzero((abs(pixels - (0x1F, 0x5F, 0x99)) < 12).all(axis=2))
        order = np.argsort(columns)
        return rows[order][0], rows[order][-1]

    first, last = heights([2.0 - k / 60 for k in range(100)])
    assert last > first + 100  # it falls, to the right, across most of the picture
    first, last = heights([0.3 + k / 60 for k in range(100)])
    assert last < first - 100


def test_speed_is_clips_per_second(model, tmp_path, monkeypatch):
    clock, told = iter(range(0, 1000, 4)), []
    monkeypatch.setattr(trainer_module.time, "perf_counter", lambda: next(clock))
    log = "accelerate.Accelerator.log"
    monkeypatch.setattr(log, lambda _self, values, step: told.append(values["samples_per_second"]))
    train(make_trainer(model, tmp_path, loader(batch_size=2), gradient_accumulation=3), 2, log_every=1)
    assert told == pytest.approx([6 * 1 / 4, 6 * 2 / 8])


def test_each_process_draws_its_own_noise(model, tmp_path):
    def first(index):
        batches = object.__new__(Batches)
        batches.trainer = SimpleNamespace(seed=5, preencoded_img=True, preencoded_txt=True, unconditional_ratio=0)
        batches.accelerator = SimpleNamespace(process_index=index, device=torch.device("cpu"))
        batches._read = lambda _n: {"pixel_values": torch.zeros(1, 2, 4, 4, 4), "text": torch.zeros(1, 3, 8)}
        return torch.rand((), generator=batches.get(0)[2]).item()

    assert first(0) == first(0) != first(1)


class Stopped(Exception):
    pass


def test_every_option_of_train_reaches_the_trainer(tmp_path, monkeypatch):
    given = {
        **{"seed": 3, "epochs": 2, "gradient_accumulation": 4, "lora_rank": 5, "train_only": "temporal", "lr": 0.5},
        **{"scale_lr": True, "lr_delay": 6, "lr_warmup": 7, "lr_decay": 8, "lr_min": 0.25, "weight_decay": 0.125},
        **{"max_grad_norm": 9.0, "adam8bit": True, "mixed_precision": "bf16", "gradient_checkpointing": True},
        **{"xformers": True, "compile": True, "ema": 0.75, "unconditional_ratio": 0.2, "noise_offset": 0.1},
        **{"min_snr_gamma": 5.0, "snr_floor": 0.3, "start_noise": 0.4, "log_with": "tensorboard"},
    }
    seen = {}

    def record(*_args, **kwargs):
        seen.update(kwargs)
        raise Stopped

    monkeypatch.setattr("sdvideo_core.training.SDVideoTrainer", record)
    monkeypatch.setattr(cli_training, "_load", lambda _args: None)
    monkeypatch.setattr(cli_training, "_clips", lambda _args: ([1], {}))
    words = []
    for name, value in given.items():
        words += [f"--{name.replace('_', '-')}"] + ([] if value is True else [str(value)])
    with pytest.raises(Stopped):
        cli.main(["train", "--model", "m", "--data", str(tmp_path), "--out", "o", "--resume", *words])
    assert {name: seen[name] for name in given} == given
    assert seen["load_state"] is True


def test_the_bar_tells_the_time_left(model, tmp_path, capsys):
    make_trainer(model, tmp_path).train(steps=3, log_every=1)
    assert re.search(r"\| [12]/3 \[\d\d:\d\d<\d\d:\d\d", capsys.readouterr().err)


# The order that the documents give; what came later stands behind.
ORDER = (
    *("model", "dataloader", "output_dir", "lr", "scale_lr", "lr_warmup", "lr_decay", "lr_min", "epochs"),
    *("gradient_accumulation", "unconditional_ratio", "xformers", "load_state", "log_with", "seed"),
    *("preencoded_img", "preencoded_txt", "adam8bit", "gradient_checkpointing", "mixed_precision", "ema"),
    *("max_grad_norm", "noise_offset", "min_snr_gamma"),
)


def test_arguments_by_place_are_the_documented_ones():
    assert tuple(inspect.signature(SDVideoTrainer).parameters)[: len(ORDER)] == ORDER


def test_the_last_step_is_told_whatever_log_every_is(model, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr("accelerate.Accelerator.log", lambda _self, values, step: told.append((step, values["loss"])))
    trainer = train(make_trainer(model, tmp_path), 5, log_every=3)
    expected = [(3, sum(trainer.losses[:3]) / 3), (5, sum(trainer.losses[3:]) / 2)]
    assert told == [(step, pytest.approx(loss)) for step, loss in expected]


def test_the_rate_scales_with_the_size_of_a_batch_sampler_s_batches(model, tmp_path):
    batches = BatchSampler(SequentialSampler(range(6)), 2, drop_last=False)
    data = DataLoader(make_clips(), batch_sampler=batches, collate_fn=collate)
    trainer = make_trainer(model, tmp_path, data, lr=1e-3, scale_lr=True, lora_rank=1)
    train(trainer, 1)
    groups = torch.load(tmp_path / "vid_states/step-00000001/optimizer.bin", weights_only=True)["param_groups"]
    assert groups[0]["lr"] == pytest.approx(2e-3)


def test_a_state_by_its_path_is_resumed_exactly(new_model, tmp_path):
    whole = train(make_trainer(new_model(), tmp_path / "whole"), 4, save_every=2)
    state = str(tmp_path / "whole/vid_states/step-00000002")
    resumed = train(make_trainer(new_model(), tmp_path / "resumed", load_state=state), 4)
    assert resumed.losses == whole.losses
    assert not differing(weights(whole.model), weights(resumed.model))


def test_a_finished_run_that_is_resumed_leaves_its_state_where_it_is(new_model, tmp_path):
    train(make_trainer(new_model(), tmp_path, lora_rank=1), 2)
    state = tmp_path / "vid_states/step-00000002"
    before = state.stat().st_ino
    train(make_trainer(new_model(), tmp_path, lora_rank=1, load_state=True), 2)
    assert state.stat().st_ino == before


def test_what_a_killed_process_left_of_a_file_is_removed(model, tmp_path):
    left, other = (tmp_path / f".{name}.0123.tmp" for name in ("vid_lora.safetensors", "other_lora.safetensors"))
    for path in (left, other):
        path.write_bytes(b"half a file")
    train(make_trainer(model, tmp_path, lora_rank=1), 1)
    assert (left.exists(), other.exists()) == (False, True)
