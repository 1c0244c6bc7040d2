"""Learning-rate schedule: delay, attack, hold, decay."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class LRSchedule:
    """The rate by optimizer step: lr_min for `delay` steps, a rise of `attack`, lr for `hold`, a fall of `decay`.

    It rises on a line, falls on half a cosine (Loshchilov & Hutter 2017) and stays at lr_min after that. hold None is
    "for ever". Lengths are in optimizer steps, 0 or more.
    """

    lr: float
    delay: int = 0
    attack: int = 0
    hold: int | None = None
    decay: int = 0
    lr_min: float = 0.0

    def __post_init__(self) -> None:
        for name in ("delay", "attack", "hold", "decay"):
            if (value := getattr(self, name)) is not None and value < 0:
                raise ValueError(f"learning-rate schedule: {name}={value} steps; it must be 0 or more")
        if not 0 <= self.lr_min <= self.lr:
            raise ValueError(f"learning-rate schedule: lr_min={self.lr_min}; it must be 0..lr, and lr is {self.lr}")

    def __call__(self, step: int) -> float:
        """The rate of step 0, 1, ..."""
        if step < self.delay:
            return self.lr_min
        step -= self.delay
        if step < self.attack:
            return self.lr_min + (self.lr - self.lr_min) * (step + 1) / self.attack
        step -= self.attack
        if self.hold is None or step < self.hold:
            return self.lr
        step -= self.hold
        if step >= self.decay:
            return self.lr_min
        return self.lr_min + (self.lr - self.lr_min) * 0.5 * (1 + math.cos(math.pi * step / self.decay))
