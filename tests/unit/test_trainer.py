"""Trainer: what a run changes and leaves, what it writes, and that a resumed run is the unbroken one."""

import json
import multiprocessing
from functools import partial
from itertools import chain
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import WeightedRandomSampler

from sdvideo_core.attention import sdpa
from sdvideo_core.blocks import TemporalConv, TemporalTransformer
from sdvideo_core.checkpoint import use_channels_last
from sdvideo_core.training import SDVideoTrainer
from sdvideo_core.training.processes import optimizer_for
from tests.unit.small_training import collate, differing, loader, make_trainer, train, weights


class Watched:
    """A collate function that notes the captions of every batch."""

    def __init__(self):
        self.seen = []

    def __call__(self, items):
        batch = collate(items)
        self.seen.append(batch["text"])
        return batch


def test_loss_falls(model, tmp_path):
    losses = train(make_trainer(model, tmp_path, lr=3e-3, min_snr_gamma=1.0), steps=40).losses
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_a_seed_is_one_run_and_leaves_torchs_generator_alone(new_model, tmp_path):
    runs = [make_trainer(new_model(), tmp_path / str(n), seed=seed) for n, seed in enumerate((1, 1, 2))]
    before = torch.get_rng_state()
    for run in runs:
        train(run, steps=2)
    assert runs[0].losses == runs[1].losses != runs[2].losses
    assert not differing(weights(runs[0].model), weights(runs[1].model))
    assert torch.equal(torch.get_rng_state(), before)


MODES = [
    {},
    {"ema": 0.9, "gradient_accumulation": 2, "lr_warmup": 2, "lr_decay": 3},
    {"lora_rank": 2, "ema": 0.9},
    {"train_only": "temporal", "noise_offset": 0.1, "start_noise": 0.5, "gradient_checkpointing": True},
    {"mixed_precision": "bf16", "epochs": 2},
    {"adam8bit": True},
]


class Stopped(Exception):
    pass


@pytest.mark.parametrize("options", MODES, ids=lambda options: "-".join(options) or "plain")
def test_resumed_is_uninterrupted(new_model, tmp_path, options):
    def stop(done, _total, _loss):
        if done == 3:
            raise Stopped

    def start(folder, **more):
        return make_trainer(new_model(), tmp_path / folder, **options, **more)

    whole = start("whole")
    file = whole.train(save_every=2, steps=5, bar=False)
    with pytest.raises(Stopped):
        train(start("broken"), steps=5, save_every=2, callback=stop)
    resumed, generators = start("broken", load_state=True), torch.get_rng_state()
    assert resumed.train(save_every=2, steps=5, bar=False) == tmp_path / "broken" / file.name
    assert resumed.losses == whole.losses
    assert not differing(weights(whole.model), weights(resumed.model))
    assert torch.equal(torch.get_rng_state(), generators)
    assert not differing(*(load_file(tmp_path / folder / file.name) for folder in ("whole", "broken")))


@pytest.mark.parametrize("options", [{"ema": 0.9}, {"adam8bit": True}])
def test_weights_that_lie_as_on_a_gpu_are_saved_and_resumed(new_model, tmp_path, options):
    def run(folder, steps, **more):
        model = new_model()
        use_channels_last(model.unet)
        trainer = make_trainer(model, tmp_path / folder, **options, **more)
        return train(trainer, steps, save_every=2)

    whole, _, resumed = run("whole", 3), run("parts", 2), run("parts", 3, load_state=True)
    assert resumed.losses == whole.losses
    assert not differing(weights(whole.model), weights(resumed.model))
    assert not differing(*(load_file(tmp_path / folder / "vid_unet.safetensors") for folder in ("whole", "parts")))


def test_a_state_of_a_gpu_goes_on_on_a_cpu(new_model, tmp_path):
    def run(folder, steps, **more):
        return train(make_trainer(new_model(), tmp_path / folder, **more), steps, save_every=2)

    whole, _ = run("whole", 3), run("parts", 2)
    file = tmp_path / "parts/vid_states/step-00000002/optimizer.bin"
    state = torch.load(file, weights_only=True)
    state["param_groups"][0]["fused"] = True
    for moments in state["state"].values():
        for name in ("exp_avg", "exp_avg_sq"):
            layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(moments[name].ndim, torch.preserve_format)
            moments[name] = torch.empty_like(moments[name], memory_format=layout).copy_(moments[name])
    torch.save(state, file)
    resumed = run("parts", 3, load_state=True)
    assert resumed.losses == whole.losses
    assert not differing(weights(whole.model), weights(resumed.model))


def test_a_run_may_be_stopped_between_the_passes_of_a_step(model, tmp_path):
    passes, before = [], weights(model)

    def before_pass():
        passes.append(len(trainer.losses))
        if len(passes) == 7:
            raise KeyboardInterrupt

    trainer = make_trainer(model, tmp_path, gradient_accumulation=4, before_pass=before_pass)
    with pytest.raises(KeyboardInterrupt):
        train(trainer, steps=3)
    assert passes == [0, 0, 0, 0, 1, 1, 1]
    assert differing(before, weights(model))  # one step was taken
    assert all(parameter.grad is None for parameter in model.unet.parameters())
    assert not list(tmp_path.iterdir())


def test_a_run_may_be_stopped_while_a_sample_is_drawn(model, tmp_path):
    passes = []

    def before_pass():
        passes.append(model.unet.training)
        if len(passes) == 5:
            raise KeyboardInterrupt

    trainer = make_trainer(model, tmp_path, before_pass=before_pass)
    with pytest.raises(KeyboardInterrupt):
        train(trainer, steps=1, sample_every=1, sample_prompts=["a"])
    assert passes == [True] + [False] * 4
    assert not model.unet._forward_pre_hooks
    assert not list(tmp_path.rglob("*.gif"))


def test_weight_decay_and_betas_may_change_on_resume_and_do(new_model, tmp_path):
    train(make_trainer(new_model(), tmp_path, lora_rank=2), 1)
    resumed = make_trainer(new_model(), tmp_path, lora_rank=2, weight_decay=0.5, betas=(0.5, 0.6), load_state=True)
    train(resumed, 2)
    saved = torch.load(tmp_path / "vid_states/step-00000002/optimizer.bin", weights_only=True)["param_groups"][0]
    assert (saved["weight_decay"], saved["betas"]) == (0.5, (0.5, 0.6))


def test_a_lora_is_not_resumed_on_another_model(new_model, tmp_path):
    train(make_trainer(new_model(), tmp_path, lora_rank=2), 1)
    other = new_model()
    with torch.no_grad():
        other.unet.out[-1].bias.add_(1)
    with pytest.raises(
        ValueError,
        match=r"was saved with base_model=\w{12}, this run starts with base_model=\w{12}; resume with the same",
    ):
        train(make_trainer(other, tmp_path, lora_rank=2, load_state=True), 2)


def test_states_of_before_a_setting_was_kept_are_resumed_and_then_hold_it(new_model, tmp_path):
    train(make_trainer(new_model(), tmp_path), 1)
    states = tmp_path / "vid_states"
    file = states / "step-00000001" / "progress.json"
    progress = json.loads(file.read_text())
    settings = dict(progress["settings"])
    for name in ("base_model", "batch_size", "clips"):
        del progress["settings"][name]
    file.write_text(json.dumps(progress))
    train(make_trainer(new_model(), tmp_path, load_state=True), 2)
    assert json.loads((states / "step-00000002" / "progress.json").read_text())["settings"] == settings


def test_a_finished_run_resumed_trains_nothing_more_but_gets_its_file(new_model, tmp_path):
    first = make_trainer(new_model(), tmp_path)
    file = first.train(steps=2, bar=False)
    expected = load_file(file)
    file.unlink()  # as if killed after its last state
    again = train(make_trainer(new_model(), tmp_path, load_state=True), steps=2)
    assert again.losses == first.losses
    assert not differing(weights(first.model), weights(again.model))
    assert not differing(load_file(file), expected)


def test_a_sampler_that_draws_is_resumed_too(new_model, tmp_path):
    def captions(folder, steps, **options):
        data = loader(sampler=WeightedRandomSampler([1.0] * 6, 6), collate_fn=(watched := Watched()))
        train(make_trainer(new_model(), tmp_path / folder, data, **options), steps)
        return watched.seen

    whole = captions("whole", 5)[:5]
    captions("broken", 2)
    assert captions("broken", 5, load_state=True)[:3] == whole[2:]


def test_every_epoch_shows_every_clip_in_another_order(model, tmp_path):
    watched = Watched()
    make_trainer(model, tmp_path, loader(collate_fn=watched), epochs=2).train(bar=False)
    first, second = (list(chain(*epoch)) for epoch in (watched.seen[:3], watched.seen[3:6]))
    assert sorted(first) == sorted(second) == [f"clip {index}" for index in range(6)]
    assert first != second


# Options that change no number, one number, or some


def test_reading_in_workers_changes_nothing_and_leaves_none(new_model, tmp_path):
    data = {str(workers): loader(num_workers=workers) for workers in (0, 2)}
    losses = [train(make_trainer(new_model(), tmp_path / name, data[name]), steps=4).losses for name in data]
    assert losses[0] == losses[1]
    assert not multiprocessing.active_children()  # though the run stops in the middle of an epoch


def test_gradient_checkpointing_computes_twice_and_changes_no_number(new_model, tmp_path):
    runs, calls = [], []
    for on in (False, True):
        model = new_model()
        model.unet.middle_block[0].register_forward_hook(lambda *_, on=on: calls.append(on))
        runs.append(train(make_trainer(model, tmp_path / str(on), gradient_checkpointing=on), steps=3))
    plain, checkpointed = runs
    assert (calls.count(False), calls.count(True)) == (3, 6)
    assert plain.losses == checkpointed.losses
    assert not differing(weights(plain.model), weights(checkpointed.model))


@pytest.mark.parametrize(("norm", "same"), [(0.0, True), (1e9, True), (1e-3, False)])
def test_a_max_grad_norm_of_0_cuts_nothing(new_model, tmp_path, norm, same):
    runs = {value: make_trainer(new_model(), tmp_path / str(value), max_grad_norm=value) for value in (None, norm)}
    kept = [torch.load(moments_of(run), weights_only=True)["state"][0]["exp_avg"] for run in runs.values()]
    assert torch.equal(*kept) == same


def moments_of(trainer):
    train(trainer, steps=1)
    return trainer.output_dir / "vid_states/step-00000001/optimizer.bin"


def test_scaled_rate_is_the_product(new_model, tmp_path):
    rates = {"product": {"lr": 4e-4}, "scaled": {"lr": 1e-4, "scale_lr": True}}
    runs = [make_trainer(new_model(), tmp_path / name, gradient_accumulation=2, **rates[name]) for name in rates]
    assert not differing(*(weights(train(run, steps=2).model) for run in runs))


@pytest.mark.parametrize(("device", "fused"), [("cuda", True), ("cpu", None)])
def test_on_a_gpu_the_optimizer_computes_in_place(small_model, device, fused):
    trainer = SimpleNamespace(model=SimpleNamespace(device=device), betas=(0.9, 0.99), weight_decay=0, adam8bit=False)
    optimizer = optimizer_for(list(small_model.unet.out.parameters()), 1e-3, cast(SDVideoTrainer, trainer))
    assert optimizer.defaults["fused"] is fused


def test_bfloat16_is_close_to_float32(new_model, tmp_path):
    runs = [make_trainer(new_model(), tmp_path / kind, mixed_precision=kind) for kind in ("no", "bf16")]
    losses = [train(run, steps=3).losses for run in runs]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    assert losses[0] != losses[1]


def test_no_captions_is_training_on_empty_ones(new_model, tmp_path):
    def empty(items):
        return collate(items) | {"text": [""] * len(items)}

    def losses(name, ratio, make=collate):
        data = loader(collate_fn=make)
        return train(make_trainer(new_model(), tmp_path / name, data, unconditional_ratio=ratio), steps=2).losses

    assert losses("dropped", 1.0) == losses("empty", 1.0, empty) != losses("said", 0.0)


def test_encoded_captions_are_the_captions(new_model, tmp_path):
    def encoded(items, encoder):
        batch = collate(items)
        with torch.no_grad():
            return batch | {"text": encoder(batch["text"])}

    losses = []
    for as_text in (True, False):
        model = new_model()
        data = loader(collate_fn=collate if as_text else partial(encoded, encoder=model.text_encoder))
        options = {"unconditional_ratio": 0.5, "preencoded_txt": not as_text}
        losses.append(train(make_trainer(model, tmp_path / str(as_text), data, **options), steps=3).losses)
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_pixels_are_encoded(new_model, tmp_path):
    pixels = torch.rand(4, 3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        latents = torch.stack([new_model().vae.encode(clip) for clip in pixels])
    losses = []
    for encoded, clips in enumerate((pixels, latents)):
        data = loader([(clip, "a clip") for clip in clips], batch_size=1)
        run = make_trainer(new_model(), tmp_path / str(encoded), data, preencoded_img=bool(encoded))
        losses.append(train(run, steps=3).losses)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


# What is trained, and what is left


def test_temporal_only_trains_the_layers_that_mix_frames(model, tmp_path):
    temporal = {
        f"{path}.{name}"
        for path, module in model.unet.named_modules()
        if isinstance(module, TemporalConv | TemporalTransformer)
        for name, _ in module.named_parameters()
    }
    before = weights(model)
    train(make_trainer(model, tmp_path, train_only="temporal"), steps=2)
    assert differing(before, weights(model)) == temporal


def test_full_training_changes_every_weight(model, tmp_path):
    before = weights(model)
    train(make_trainer(model, tmp_path), steps=3)
    assert differing(before, weights(model)) == before.keys()


def test_lora_trains_a_half_precision_model(new_model, tmp_path):
    model = new_model(dtype=torch.bfloat16)
    run = train(make_trainer(model, tmp_path, lora_rank=2, mixed_precision="bf16"), steps=2)
    assert model.unet.out[-1].weight.dtype is torch.bfloat16
    assert torch.tensor(run.losses).isfinite().all()
    saved = load_file(tmp_path / "vid_lora.safetensors")
    assert any(value.any() for name, value in saved.items() if "lora_up" in name)


@pytest.mark.parametrize("options", [{}, {"lora_rank": 2}], ids=["whole", "lora"])
def test_the_model_is_left_as_it_was(model, tmp_path, options):
    model.unet.eval().requires_grad_(False)
    train(make_trainer(model, tmp_path, gradient_checkpointing=True, **options), steps=1)
    assert not model.unet.training
    assert model.unet.attention is sdpa
    assert not model.unet.gradient_checkpointing
    assert all(p.grad is None and not p.requires_grad for p in model.unet.parameters())
    assert not any(module._forward_hooks for module in model.unet.modules())
