"""Trainer on CUDA: mixed precisions without NaN, 8-bit AdamW, and the numbers of the CPU."""

import pytest
import torch
from torch.utils.data import DataLoader

from sdvideo_core import SDVideo
from sdvideo_core.training import SDVideoTrainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def clips():
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(3, 4, 8, 8, generator=generator), f"clip {index}") for index in range(6)]


def collate(items):
    return {"pixel_values": torch.stack([clip for clip, _ in items]), "text": [text for _, text in items]}


def losses(directory, out, device="cuda", **options) -> list[float]:
    data = DataLoader(clips(), 2, shuffle=True, collate_fn=collate)
    trainer = SDVideoTrainer(SDVideo(directory, device, amp=False), data, out, lr=1e-3, preencoded_img=True, **options)
    trainer.train(steps=20, bar=False)
    return trainer.losses


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("options", [{}, {"lora_rank": 4}, {"gradient_checkpointing": True}])
def test_half_precision_is_finite_and_learns(demo_model_dir, tmp_path, precision, options):
    values = losses(demo_model_dir, tmp_path, mixed_precision=precision, **options)
    assert torch.tensor(values).isfinite().all()
    assert sum(values[-5:]) < sum(values[:5])


def test_the_first_loss_is_that_of_the_cpu(demo_model_dir, tmp_path):
    first = losses(demo_model_dir, tmp_path / "gpu")[0]
    assert first == pytest.approx(losses(demo_model_dir, tmp_path / "cpu", "cpu")[0], rel=1e-3)


def test_8_bit_adamw_learns(demo_model_dir, tmp_path):
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes")
    values = losses(demo_model_dir, tmp_path, adam8bit=True)
    assert sum(values[-5:]) < sum(values[:5])
