"""EMA: a running average of the trained weights, which draws better than the last of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .sharding import copy_whole, whole

NamedParameters = dict[str, nn.Parameter]


class EMA:
    """Exponential moving average of parameters, in float32, by name.

    decay: 0..1, share of the average kept at each step; it grows from 0.1 to this while there is little to average.
    """

    def __init__(self, parameters: NamedParameters, decay: float):
        if not 0 <= decay < 1:
            raise ValueError(f"ema={decay}; expected the share kept at each step, 0 up to but not 1, such as 0.999")
        self.decay, self.num_updates = decay, 0
        self.average = {name: p.detach().float().clone() for name, p in parameters.items()}

    @torch.no_grad()
    def update(self, parameters: NamedParameters) -> None:
        """Takes in the weights after one optimizer step."""
        self.num_updates += 1
        decay = min(self.decay, self.num_updates / (9 + self.num_updates))
        for name, parameter in parameters.items():
            self.average[name].lerp_(parameter.detach().float(), 1 - decay)

    @contextmanager
    def applied(self, parameters: NamedParameters) -> Iterator[None]:
        """The parameters hold their average within, and their own values again afterwards."""
        kept = {name: p.detach().clone() for name, p in parameters.items()}
        try:
            self.copy_to(parameters)
            yield
        finally:
            _copy(kept, parameters)

    def copy_to(self, parameters: NamedParameters) -> None:
        """Overwrites the parameters with their average."""
        _copy(self.average, parameters)

    def state_dict(self) -> dict[str, Tensor]:
        """Whole averages, also where the parameters are split; then every process must call this."""
        # safetensors writes no other layout, and on a GPU convolutions have one.
        average = {name: whole(value).contiguous() for name, value in self.average.items()}
        return average | {"num_updates": torch.tensor(self.num_updates)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.num_updates = int(state["num_updates"])
        for name, average in self.average.items():
            copy_whole(state[name], average)


@torch.no_grad()
def _copy(values: dict[str, Tensor], parameters: NamedParameters) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(values[name])
