"""Training a LoRA: gradients, mixed precision, checkpointing, and CUDA."""

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sdvideo_core.lora import LoRA
from sdvideo_core.unet import UNetSD
from tests.numerics import relative_error
from tests.unit.small_lora import (
    BATCH,
    CONV3D,
    DOWNSAMPLE,
    FRAMES,
    LINEAR,
    TEMPORAL_PROJECTION,
    inputs,
    make_lora,
    make_unet,
    merged_unet,
    random,
)

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")


@pytest.fixture(scope="module")
def unet() -> UNetSD:
    return make_unet()


def gradients(unet: UNetSD, lora: LoRA, whole: bool = False) -> list[Tensor]:
    """Of every parameter of the LoRA, from one call; `whole` computes the whole network again for them."""
    lora.zero_grad()
    output = checkpoint(unet, *inputs(), use_reentrant=False) if whole else unet(*inputs())
    output.square().mean().backward()
    return [parameter.grad for parameter in lora.parameters()]


def test_gradients_reach_every_adapter_and_nothing_else():
    unet = make_unet()
    with make_lora(unet) as lora:
        found = gradients(unet, lora)
    assert all(gradient.count_nonzero() > 0 for gradient in found)
    assert all(weight.grad is None for weight in unet.parameters())


def test_gradients_are_those_of_the_merged_weights():
    unet = make_unet()
    lora = make_lora(unet, alpha=2.0, targets=[LINEAR, TEMPORAL_PROJECTION, DOWNSAMPLE, CONV3D])
    with lora:
        gradients(unet, lora)
    merged = merged_unet(unet, lora).requires_grad_(True)
    merged(*inputs()).square().mean().backward()
    for path in lora.paths:
        adapter = lora.adapter(path)
        of_weight = adapter.scale * merged.get_submodule(path).weight.grad.flatten(1)
        down, up = adapter.down.double().flatten(1), adapter.up.double().flatten(1)
        # The adapter's gradients are in float32.
        assert relative_error(adapter.down.grad.flatten(1), up.T @ of_weight) <= 1e-6
        assert relative_error(adapter.up.grad.flatten(1), of_weight @ down.T) <= 1e-6


@pytest.mark.parametrize("whole", [True, False], ids=["the whole network", "stages"])
def test_checkpointing_gives_the_same_gradients(whole, monkeypatch):
    unet = make_unet()
    with make_lora(unet) as lora:
        expected = [gradient.clone() for gradient in gradients(unet, lora)]
        monkeypatch.setattr(unet, "gradient_checkpointing", not whole)
        found = gradients(unet, lora, whole)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("targets", ["all", "attention", "temporal"])
def test_training_lowers_the_loss_and_leaves_the_unet_alone(targets):
    unet = make_unet(torch.float32).train()
    before = {key: weight.clone() for key, weight in unet.state_dict().items()}
    target, losses = random(BATCH, 4, FRAMES, 6, 5, seed=5, dtype=torch.float32), []
    with LoRA(unet, 4, targets=targets) as lora:
        optimizer = torch.optim.AdamW(lora.parameters(), lr=1e-2)
        for _ in range(12):
            torch.manual_seed(0)  # one dropout mask
            loss = (unet(*inputs(torch.float32)) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert all(torch.equal(weight, before[key]) for key, weight in unet.state_dict().items())


def test_autocast_computes_the_adapters_in_its_precision():
    unet = make_unet(torch.float32)
    seen: list[torch.dtype] = []
    lora = make_lora(unet)
    merged = merged_unet(unet, lora)
    for path in lora.paths:
        lora.adapter(path).register_forward_hook(lambda _adapter, _inputs, change: seen.append(change.dtype))
    with lora, torch.autocast("cpu", torch.bfloat16):
        output, expected = unet(*inputs(torch.float32)), merged(*inputs(torch.float32))
    output.float().square().mean().backward()
    assert set(seen) == {torch.bfloat16}
    assert relative_error(output.detach(), expected) <= 0.05
    assert {parameter.grad.dtype for parameter in lora.parameters()} == {torch.float32}


@pytest.mark.parametrize("half", [None, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_cuda)])
def test_on_a_device_in_half_it_is_what_float64_says(unet, device, half):
    exact = make_lora(unet)
    with exact:
        expected = unet(*inputs()).detach()
    moved = make_unet(torch.float32)
    moved.load_state_dict({key: weight.float() for key, weight in unet.state_dict().items()})
    lora = LoRA(moved.to(device), 4)
    lora.load_state_dict(exact.state_dict())
    with lora, torch.autocast(device, half, enabled=half is not None):
        output = moved(*(value.to(device) for value in inputs(torch.float32)))
    output.float().square().mean().backward()
    assert {parameter.grad.device.type for parameter in lora.parameters()} == {device}
    assert relative_error(output.detach().cpu(), expected) <= (1e-2 if half is None else 0.1)
