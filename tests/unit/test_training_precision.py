"""Precision in training: a model held in half encodes as exactly as its type can, and float16 trains without NaN."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from sdvideo_core import SDVideo, demo_model
from sdvideo_core.demo.clips import SIZE, caption, draw_clip, scenes
from sdvideo_core.training import CachedDataset, collate_cached, collate_fn, encode_dataset
from sdvideo_core.training.loss import DiffusionLoss
from sdvideo_core.training.network import Network
from tests.numerics import relative_error
from tests.unit.small_training import make_clips, make_trainer, train

OPTIONS: dict[str, Any] = {"num_frames": 4, "image_size": (SIZE, SIZE)}

Clips = list[dict[str, Any]]


@pytest.fixture(scope="module")
def clips() -> Clips:
    """Moving shapes, such as the demo model was trained on."""
    rng, every = np.random.default_rng(0), scenes()
    chosen = [every[index] for index in rng.choice(len(every), 3, replace=False)]
    frames = [[Image.fromarray(frame) for frame in draw_clip(scene, rng, num_frames=4)] for scene in chosen]
    captions = [caption(scene, rng) for scene in chosen]
    return [{"name": text, "frames": clip, "text": text} for clip, text in zip(frames, captions, strict=True)]


def demo(dtype: torch.dtype) -> SDVideo:
    return SDVideo(demo_model(), dtype=dtype, amp=False)


def encoded(clips: Clips, dtype: torch.dtype, folder: Path) -> CachedDataset:
    return CachedDataset(encode_dataset(demo(dtype), clips, folder / str(dtype), **OPTIONS))


@pytest.fixture(scope="module")
def exact(clips: Clips, tmp_path_factory: pytest.TempPathFactory) -> CachedDataset:
    return encoded(clips, torch.float32, tmp_path_factory.mktemp("exact"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_half_encodes_is_within_an_eps_of_what_float32_does(clips, exact, tmp_path, dtype):
    half = encoded(clips, dtype, tmp_path)
    for index in range(len(clips)):
        for name in ("pixel_values", "text"):
            error = relative_error(half[index][name], exact[index][name])
            assert 0 < error <= torch.finfo(dtype).eps


def test_a_half_model_encodes_for_a_step_what_it_encodes_for_a_cache(clips, tmp_path):
    loaders = {
        "clips": DataLoader(clips, shuffle=True, collate_fn=partial(collate_fn, **OPTIONS)),
        "cache": DataLoader(encoded(clips, torch.bfloat16, tmp_path), shuffle=True, collate_fn=collate_cached),
    }
    losses = []
    for name, data in loaders.items():
        is_cache = name == "cache"
        options = {"lora_rank": 1, "mixed_precision": "bf16", "preencoded_img": is_cache, "preencoded_txt": is_cache}
        losses.append(train(make_trainer(demo(torch.bfloat16), tmp_path / name, data, **options), steps=2).losses)
    assert losses[0] == losses[1]


@pytest.mark.parametrize(("lora_rank", "gradient_checkpointing"), [(None, False), (4, True)])
def test_float16_mixed_precision_has_the_losses_of_float32(new_model, lora_rank, gradient_checkpointing):
    # With torch's own autocast and scaler, as accelerate has them for fp16 on a GPU; on a CPU it refuses.
    latents = torch.stack([clip for clip, _ in make_clips(2)]).transpose(1, 2)
    losses: dict[bool, list[float]] = {}
    for half in (False, True):
        model = new_model()
        context, loss = model.text_encoder(["a clip"] * len(latents)).detach(), DiffusionLoss(model.schedule)
        network = Network(model.unet, lora_rank)
        network.begin(gradient_checkpointing=gradient_checkpointing, dropout=False)
        optimizer = torch.optim.AdamW(network.trainable().values(), lr=1e-3)
        scaler, generator = torch.amp.GradScaler("cpu"), torch.Generator().manual_seed(0)
        losses[half] = []
        for _ in range(12):
            with torch.autocast("cpu", torch.float16, enabled=half):
                value = loss(partial(apply, network, context), latents, generator)
            scaler.scale(value).backward()
            scaler.step(optimizer)  # but where a gradient is not finite
            scaler.update()
            optimizer.zero_grad()
            losses[half].append(value.item())
        assert scaler.get_scale() >= 2**13  # halved at every step left out, from 2**16
    assert losses[True] == pytest.approx(losses[False], rel=0.001)  # an eps of float16
    assert losses[True] != losses[False]


def apply(network: Network, context: Tensor, x: Tensor, timesteps: Tensor) -> Tensor:
    return network(x, timesteps, context)
