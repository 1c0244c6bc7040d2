"""Trainer with bitsandbytes' 8-bit AdamW, on a CPU: it learns as torch's AdamW does and keeps far less."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.unit.small_training import make_trainer, train

LEAST = 4096  # elements of what bitsandbytes keeps in 8 bits
STEPS = 40


@pytest.fixture(scope="module")
def runs(small_model_dir, tmp_path_factory):
    """adam8bit -> losses and the optimizer's state of a run."""
    from sdvideo_core import SDVideo

    def run(adam8bit: bool) -> tuple[list[float], dict[str, Any]]:
        out = tmp_path_factory.mktemp("out")
        trainer = make_trainer(SDVideo(small_model_dir, amp=False), out, adam8bit=adam8bit, lr=3e-3, min_snr_gamma=1.0)
        losses = train(trainer, STEPS).losses
        return losses, torch.load(out / f"vid_states/step-{STEPS:08}/optimizer.bin", weights_only=True)

    return {adam8bit: run(adam8bit) for adam8bit in (True, False)}


def tensors(state: Any) -> Iterator[Tensor]:
    """What an optimizer keeps of a parameter, without the table of 8-bit numbers, which all of them share."""
    for name, value in state.items():
        if isinstance(value, dict):
            yield from tensors(value)
        elif isinstance(value, Tensor) and value.ndim and "qmap" not in name:
            yield value


def test_it_learns_as_the_one_of_32_bits(runs):
    (losses, _), (expected, _) = runs[True], runs[False]
    assert losses != expected
    assert losses[0] == expected[0]
    assert losses == pytest.approx(expected, rel=0.1)
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_its_moments_take_a_byte_each(runs):
    kept8, kept32 = (
        {index: list(tensors(kept)) for index, kept in state["state"].items()} for _, state in runs.values()
    )
    assert kept8.keys() == kept32.keys()
    large = [index for index, (moment, _) in kept32.items() if moment.numel() >= LEAST]
    assert len(large) > 30
    for index, kept in kept32.items():
        size8, size32 = (sum(tensor.nbytes for tensor in tensors) for tensors in (kept8[index], kept))
        assert size8 < 0.26 * size32 if index in large else size8 == size32
    assert {tensor.dtype for index in large for tensor in kept8[index] if tensor.numel() >= LEAST} == {torch.uint8}
