"""Learning rate and EMA: their values by step, against torch and float64."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from sdvideo_core.training.ema import EMA
from sdvideo_core.training.lr_schedule import LRSchedule


def test_delay_attack_hold_decay():
    rate = LRSchedule(1.0, delay=2, attack=4, hold=3, decay=4, lr_min=0.2)
    values = [rate(step) for step in range(16)]
    assert values[:2] == [0.2, 0.2]
    assert values[2:6] == pytest.approx([0.4, 0.6, 0.8, 1.0])
    assert values[6:9] == [1.0, 1.0, 1.0]
    assert values[9] == 1.0
    assert values[13:] == [0.2] * 3
    assert all(a > b for a, b in pairwise(values[9:14]))


def test_decay_is_torchs_cosine():
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.7)
    peer = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10, eta_min=0.1)
    rate = LRSchedule(0.7, hold=0, decay=10, lr_min=0.1)
    for step in range(10):
        assert rate(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        optimizer.step()
        peer.step()


def test_without_a_hold_it_stays():
    rate = LRSchedule(0.5, attack=2, decay=5)
    assert [rate(step) for step in (0, 1, 2, 10**6)] == [0.25, 0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attack": -1}, "attack=-1 steps; it must be 0 or more"),
        ({"hold": -5}, "hold=-5 steps"),
        ({"lr_min": 2.0}, "lr_min=2.0; it must be 0..lr, and lr is 1.0"),
    ],
)
def test_impossible_schedules_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LRSchedule(1.0, **options)


def parameters(value: float) -> dict[str, nn.Parameter]:
    return {"a": nn.Parameter(torch.full((3,), value)), "b": nn.Parameter(torch.tensor([-value]))}


def test_average_is_that_of_float64():
    weights, values = parameters(1.0), np.random.default_rng(0).normal(size=50)
    ema, expected = EMA(weights, 0.9), 1.0
    for count, value in enumerate(values, 1):
        with torch.no_grad():
            weights["a"].fill_(value)
        ema.update(weights)
        decay = min(0.9, count / (9 + count))
        expected = decay * expected + (1 - decay) * value
    assert ema.average["a"][0].item() == pytest.approx(expected, rel=1e-6)


def test_average_is_in_float32_for_half_weights():
    weights = {"a": nn.Parameter(torch.ones(1, dtype=torch.bfloat16))}
    ema = EMA(weights, 0.999)
    ema.num_updates = 10**6
    with torch.no_grad():
        weights["a"].fill_(2.0)
    ema.update(weights)
    assert ema.average["a"].item() == pytest.approx(1.001, abs=1e-6)


def test_applied_gives_the_weights_back_even_after_an_error():
    weights = parameters(1.0)
    ema = EMA(weights, 0.5)
    with torch.no_grad():
        weights["a"].fill_(7.0)
    with pytest.raises(RuntimeError, match="stop"), ema.applied(weights):
        assert weights["a"].tolist() == [1.0] * 3
        raise RuntimeError("stop")
    assert weights["a"].tolist() == [7.0] * 3


def test_a_loaded_average_goes_on_as_the_saved_one():
    first, second = EMA(parameters(1.0), 0.9), EMA(parameters(5.0), 0.9)
    for value in (2.0, 3.0):
        first.update(parameters(value))
    second.load_state_dict({name: value.clone() for name, value in first.state_dict().items()})
    for ema in (first, second):
        ema.update(parameters(4.0))
    assert torch.equal(first.average["a"], second.average["a"])


@pytest.mark.parametrize("decay", [1.0, -0.1])
def test_decay_outside_0_to_1_is_refused(decay):
    with pytest.raises(ValueError, match=f"ema={decay}; expected the share kept"):
        EMA(parameters(1.0), decay)
