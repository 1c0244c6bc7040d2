"""Options of the trainer: each reaches what it is an option of, and changes that."""

import operator
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sdvideo_core.blocks import TemporalConv, TemporalTransformer
from sdvideo_core.lora_layers import joined
from sdvideo_core.training import Distillation
from sdvideo_core.training.processes import accelerator_for
from tests.unit.small_training import collate, differing, loader, make_trainer, train, weights

LCM: dict[str, Any] = {"lora_rank": 2, "distillation": Distillation(2.0, 10)}


@pytest.mark.parametrize(
    ("options", "differs"),
    [
        ({"noise_offset": 0.5}, operator.gt),
        ({"min_snr_gamma": 1.0}, operator.lt),  # which only takes weight away
        ({"snr_floor": 1.0}, operator.gt),  # which only adds weight
        ({"start_noise": 1.0}, operator.ne),
        ({"start_noise": 1.0, **LCM}, operator.ne),
    ],
    ids=["noise offset", "min snr", "snr floor", "start noise", "start noise of lcm"],
)
def test_options_of_the_loss_change_it(new_model, tmp_path, options, differs):
    plain = {name: value for name, value in options.items() if name in LCM}
    losses = []
    for name, chosen in {"with": options, "without": plain}.items():
        data = loader(batch_size=6)  # timesteps of every part of the schedule
        losses += train(make_trainer(new_model(), tmp_path / name, data, **chosen), steps=1).losses
    assert differs(*losses)


def test_ddp_is_told_to_keep_gradients_in_its_buckets(model, tmp_path):
    handler = accelerator_for(make_trainer(model, tmp_path), tmp_path).ddp_handler
    assert handler is not None
    assert handler.gradient_as_bucket_view


@pytest.mark.parametrize(("epochs", "accumulation", "steps"), [(1, 1, 3), (2, 1, 6), (2, 2, 3), (1, 2, 2), (1, 4, 1)])
def test_epochs_are_so_many_steps(model, tmp_path, epochs, accumulation, steps):
    trainer = make_trainer(model, tmp_path, epochs=epochs, gradient_accumulation=accumulation, lora_rank=1)
    trainer.train(bar=False)
    assert len(trainer.losses) == steps


def test_a_seed_decides_the_lora_and_the_order_of_clips(new_model, tmp_path):
    def start(folder, seed):
        seen = []

        def watching(items):
            seen.extend(caption for _, caption in items)
            return collate(items)

        # Without a rate, what is saved is what training starts from.
        options = {"lora_rank": 2, "lr": 0.0, "save_dtype": torch.float32, "save_states": False, "seed": seed}
        trainer = train(make_trainer(new_model(), tmp_path / folder, loader(collate_fn=watching), **options), steps=3)
        return seen, load_file(trainer.output_dir / "vid_lora.safetensors")

    (order, lora), again, (other_order, other) = start("first", 1), start("again", 1), start("other", 2)
    assert again[0] == order != other_order
    assert not differing(again[1], lora)
    down = {name for name in lora if name.endswith("lora_down.weight")}
    assert differing(other, lora) == down
    assert {lora[name].shape[0] for name in down} == {2}


def test_a_seed_decides_the_noise(new_model, tmp_path):
    losses = []
    for run, seed in enumerate((1, 1, 2)):
        data = loader(batch_size=6, shuffle=False)
        losses += train(make_trainer(new_model(), tmp_path / str(run), data, seed=seed), steps=1).losses
    assert losses[0] == losses[1] != losses[2]


def test_a_lora_of_the_layers_that_mix_frames_has_no_others(model, tmp_path):
    temporal = tuple(
        f"lora_unet_{joined(path)}_"
        for path, module in model.unet.named_modules()
        if isinstance(module, TemporalConv | TemporalTransformer)
    )
    train(make_trainer(model, tmp_path, lora_rank=1, train_only="temporal"), steps=1)
    names = load_file(tmp_path / "vid_lora.safetensors").keys()
    assert names
    assert all(name.startswith(temporal) for name in names)


@pytest.mark.parametrize(("decay", "is_last"), [(0.0, True), (0.9, False)])
def test_an_average_that_keeps_nothing_is_the_last_weights(model, tmp_path, decay, is_last):
    train(make_trainer(model, tmp_path, ema=decay, save_dtype=torch.float32), steps=2)
    assert (not differing(load_file(tmp_path / "vid_unet.safetensors"), weights(model))) == is_last


def test_without_states_there_are_weights_and_a_plot(model, tmp_path):
    train(make_trainer(model, tmp_path, save_states=False), steps=2, save_every=1)
    assert {path.name for path in tmp_path.iterdir()} == {"vid_unet.safetensors", "vid_loss.png"}


@pytest.mark.parametrize("compile_it", [False, True])
def test_compile_compiles_the_network(model, tmp_path, monkeypatch, compile_it):
    compiled = []

    def note(module, **options):
        compiled.append(options["backend"])
        return module

    monkeypatch.setattr(torch, "compile", note)  # which itself takes minutes
    train(make_trainer(model, tmp_path, compile=compile_it), steps=1)
    assert compiled == ["inductor"] * compile_it


@pytest.mark.parametrize(("options", "drops"), [({}, True), (LCM, False)], ids=["as usual", "lcm"])
def test_each_step_is_told_and_nothing_else(model, tmp_path, capsys, options, drops):
    told, modes = [], set()

    def callback(*step):
        told.append(step)
        modes.add(model.unet.training)

    trainer = train(make_trainer(model, tmp_path, **options), steps=2, callback=callback)
    assert told == [(1, 2, trainer.losses[0]), (2, 2, trainer.losses[1])]
    assert modes == {drops}
    assert capsys.readouterr().err == ""
