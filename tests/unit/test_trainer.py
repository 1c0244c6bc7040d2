"""Trainer: what a run changes and leaves, what it writes, and that a resumed run is the unbroken one."""

from functools import partial
from itertools import chain

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader, WeightedRandomSampler

from sdvideo_core import SDVideo
from sdvideo_core.attention import sdpa
from sdvideo_core.blocks import TemporalConv, TemporalTransformer
from sdvideo_core.training import SDVideoTrainer


class Latents(torch.utils.data.Dataset):
    """Clips as latents, each with its caption."""

    def __init__(self, count: int = 6, frames: int = 3, size: int = 4):
        generator = torch.Generator().manual_seed(0)
        self.clips = torch.randn(count, frames, 4, size, size, generator=generator)

    def __len__(self):
        return len(self.clips)

    def __getitem__(self, index):
        return self.clips[index], f"clip {index}"


def collate(items, key="text"):
    return {"pixel_values": torch.stack([clip for clip, _ in items]), key: [text for _, text in items]}


@pytest.fixture
def model(demo_model_dir) -> SDVideo:
    return SDVideo(demo_model_dir, amp=False)


def loader(batch_size=2, **options):
    return DataLoader(Latents(), batch_size, shuffle=True, collate_fn=collate, **options)


def trainer(model, out, dataloader=None, **options) -> SDVideoTrainer:
    defaults = {"lr": 1e-3, "preencoded_img": True, "seed": 5}
    return SDVideoTrainer(model, dataloader or loader(), out, **defaults | options)


def weights(model):
    return {name: value.clone() for name, value in model.unet.state_dict().items()}


def differing(first, second):
    return {name for name in first if not torch.equal(first[name], second[name])}


QUIET = {"bar": False}


def test_loss_falls(model, tmp_path):
    run = trainer(model, tmp_path, lr=3e-3, min_snr_gamma=1.0)
    run.train(steps=40, **QUIET)
    assert sum(run.losses[-10:]) < 0.8 * sum(run.losses[:10])


def test_a_seed_is_one_run_and_leaves_torchs_generator_alone(demo_model_dir, tmp_path):
    runs = []
    for index, seed in enumerate((1, 1, 2)):
        model = SDVideo(demo_model_dir, amp=False)
        before = torch.get_rng_state()
        run = trainer(model, tmp_path / str(index), seed=seed)
        run.train(steps=4, **QUIET)
        runs.append((run.losses, weights(model)))
    assert runs[0][0] == runs[1][0] != runs[2][0]
    assert not differing(runs[0][1], runs[1][1])
    assert torch.equal(torch.get_rng_state(), before)


MODES = [
    {},
    {"ema": 0.9, "gradient_accumulation": 2, "lr_warmup": 2, "lr_decay": 3},
    {"lora_rank": 2, "ema": 0.9},
    {"train_only": "temporal", "noise_offset": 0.1, "start_noise": 0.5, "gradient_checkpointing": True},
    {"mixed_precision": "bf16", "epochs": 2},
]


class Stopped(Exception):
    pass


@pytest.mark.parametrize("options", MODES, ids=lambda options: "-".join(options) or "plain")
def test_resumed_is_uninterrupted(demo_model_dir, tmp_path, options):
    def stop(done, _total, _loss):
        if done == 3:
            raise Stopped

    def start(folder, **more):
        model = SDVideo(demo_model_dir, amp=False)
        return trainer(model, tmp_path / folder, **options, **more)

    whole = start("whole")
    file = whole.train(save_every=2, steps=7, **QUIET)
    broken = start("broken")
    with pytest.raises(Stopped):
        broken.train(save_every=2, steps=7, callback=stop, **QUIET)
    resumed, generators = start("broken", load_state=True), torch.get_rng_state()
    assert resumed.train(save_every=2, steps=7, **QUIET) == tmp_path / "broken" / file.name
    assert resumed.losses == whole.losses
    assert not differing(weights(whole.model), weights(resumed.model))
    assert torch.equal(torch.get_rng_state(), generators)
    saved = [load_file(tmp_path / folder / file.name) for folder in ("whole", "broken")]
    assert not differing(*saved)


def test_a_run_killed_after_its_last_state_gets_its_file(demo_model_dir, tmp_path):
    file = trainer(SDVideo(demo_model_dir, amp=False), tmp_path).train(steps=2, **QUIET)
    expected = load_file(file)
    file.unlink()
    trainer(SDVideo(demo_model_dir, amp=False), tmp_path, load_state=True).train(steps=2, **QUIET)
    assert not differing(load_file(file), expected)


def test_a_sampler_that_draws_is_resumed_too(demo_model_dir, tmp_path):
    seen = []

    def start(folder, **options):
        def watching(items):
            seen.append([text for _, text in items])
            return collate(items)

        sampler = WeightedRandomSampler([1.0] * 6, 6)
        data = DataLoader(Latents(), 2, sampler=sampler, collate_fn=watching)
        return trainer(SDVideo(demo_model_dir, amp=False), tmp_path / folder, data, **options)

    start("whole").train(steps=5, **QUIET)
    whole = seen[:5]
    seen.clear()
    start("broken").train(steps=2, **QUIET)
    seen.clear()
    start("broken", load_state=True).train(steps=5, **QUIET)
    assert seen[:3] == whole[2:]


def test_reading_in_workers_changes_nothing(demo_model_dir, tmp_path):
    losses = []
    for workers in (0, 2):
        run = trainer(SDVideo(demo_model_dir, amp=False), tmp_path / str(workers), loader(num_workers=workers))
        run.train(steps=5, **QUIET)
        losses.append(run.losses)
    assert losses[0] == losses[1]


def test_every_epoch_shows_every_clip_in_another_order(model, tmp_path):
    seen = []

    def watching(items):
        seen.append([text for _, text in items])
        return collate(items)

    dataloader = DataLoader(Latents(), 2, shuffle=True, collate_fn=watching)
    trainer(model, tmp_path, dataloader, epochs=2).train(**QUIET)
    first, second = (list(chain(*epoch)) for epoch in (seen[:3], seen[3:6]))
    assert sorted(first) == sorted(second) == [f"clip {index}" for index in range(6)]
    assert first != second


def test_gradient_checkpointing_changes_no_number(demo_model_dir, tmp_path):
    runs = []
    for checkpointing in (False, True):
        model = SDVideo(demo_model_dir, amp=False)
        run = trainer(model, tmp_path / str(checkpointing), gradient_checkpointing=checkpointing)
        run.train(steps=3, **QUIET)
        runs.append((run.losses, weights(model)))
    assert runs[0][0] == runs[1][0]
    assert not differing(runs[0][1], runs[1][1])


def test_temporal_only_trains_the_layers_that_mix_frames(model, tmp_path):
    temporal = {
        f"{path}.{name}"
        for path, module in model.unet.named_modules()
        if isinstance(module, TemporalConv | TemporalTransformer)
        for name, _ in module.named_parameters()
    }
    before = weights(model)
    trainer(model, tmp_path, train_only="temporal").train(steps=2, **QUIET)
    assert differing(before, weights(model)) == temporal


def test_full_training_changes_every_weight(model, tmp_path):
    before = weights(model)
    trainer(model, tmp_path).train(steps=3, **QUIET)
    assert differing(before, weights(model)) == before.keys()


def test_lora_trains_a_half_precision_model(demo_model_dir, tmp_path):
    model = SDVideo(demo_model_dir, dtype=torch.bfloat16)
    run = trainer(model, tmp_path, lora_rank=2, mixed_precision="bf16")
    run.train(steps=2, **QUIET)
    assert model.unet.out[-1].weight.dtype is torch.bfloat16
    assert torch.tensor(run.losses).isfinite().all()
    saved = load_file(tmp_path / "vid_lora.safetensors")
    assert any(value.any() for name, value in saved.items() if "lora_up" in name)


def test_the_model_is_left_as_it_was(model, tmp_path):
    model.unet.eval().requires_grad_(False)
    for options in ({}, {"lora_rank": 2}):
        trainer(model, tmp_path / str(len(options)), gradient_checkpointing=True, **options).train(steps=1, **QUIET)
        assert not model.unet.training
        assert model.unet.attention is sdpa
        assert not model.unet.gradient_checkpointing
        assert all(p.grad is None and not p.requires_grad for p in model.unet.parameters())
        assert not any(module._forward_hooks for module in model.unet.modules())


def test_no_captions_is_training_on_empty_ones(demo_model_dir, tmp_path):
    def empty(items):
        return collate(items) | {"text": [""] * len(items)}

    losses = []
    for name, make in {"dropped": collate, "empty": empty}.items():
        data = DataLoader(Latents(), 2, shuffle=True, collate_fn=make)
        run = trainer(SDVideo(demo_model_dir, amp=False), tmp_path / name, data, unconditional_ratio=1.0)
        run.train(steps=2, **QUIET)
        losses.append(run.losses)
    with_captions = trainer(SDVideo(demo_model_dir, amp=False), tmp_path / "said", unconditional_ratio=0.0)
    with_captions.train(steps=2, **QUIET)
    assert losses[0] == losses[1] != with_captions.losses


def test_encoded_captions_are_the_captions(demo_model_dir, tmp_path):
    def encoded(items, encoder):
        batch = collate(items)
        with torch.no_grad():
            return batch | {"text": encoder(batch["text"])}

    losses = []
    for as_text in (True, False):
        model = SDVideo(demo_model_dir, amp=False)
        make = collate if as_text else partial(encoded, encoder=model.text_encoder)
        data = DataLoader(Latents(), 2, shuffle=True, collate_fn=make)
        run = trainer(model, tmp_path / str(as_text), data, unconditional_ratio=0.5, preencoded_txt=not as_text)
        run.train(steps=3, **QUIET)
        losses.append(run.losses)
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_pixels_are_encoded(demo_model_dir, tmp_path):
    class Pixels(Latents):
        def __init__(self):
            self.clips = torch.rand(4, 3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1

    model = SDVideo(demo_model_dir, amp=False)
    with torch.no_grad():
        latents = Latents(4)
        latents.clips = torch.stack([model.vae.encode(clip) for clip in Pixels().clips])
    losses = []
    for data in (Pixels(), latents):
        model = SDVideo(demo_model_dir, amp=False)
        dataloader = DataLoader(data, 1, shuffle=True, collate_fn=collate)
        run = trainer(model, tmp_path / str(len(losses)), dataloader, preencoded_img=data is latents)
        run.train(steps=3, **QUIET)
        losses.append(run.losses)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_bfloat16_is_close_to_float32(demo_model_dir, tmp_path):
    losses = []
    for precision in ("no", "bf16"):
        run = trainer(SDVideo(demo_model_dir, amp=False), tmp_path / precision, mixed_precision=precision)
        run.train(steps=3, **QUIET)
        losses.append(run.losses)
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    assert losses[0] != losses[1]


def test_scaled_rate_is_the_product(demo_model_dir, tmp_path):
    results = []
    for index, options in enumerate(({"lr": 4e-4}, {"lr": 1e-4, "scale_lr": True})):
        model = SDVideo(demo_model_dir, amp=False)
        trainer(model, tmp_path / str(index), gradient_accumulation=2, **options).train(steps=2, **QUIET)
        results.append(weights(model))
    assert not differing(*results)


def test_a_finished_run_resumed_trains_nothing_more(demo_model_dir, tmp_path):
    first = SDVideo(demo_model_dir, amp=False)
    trainer(first, tmp_path).train(steps=2, **QUIET)
    again = SDVideo(demo_model_dir, amp=False)
    run = trainer(again, tmp_path, load_state=True)
    assert run.train(steps=2, **QUIET).is_file()
    assert len(run.losses) == 2
    assert not differing(weights(first), weights(again))
