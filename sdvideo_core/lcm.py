"""LCM sampling of few-step models (Luo et al. 2023, "Latent Consistency Models"), such as MCM and T2V-Turbo.

A consistency function maps x at any timestep to the clean video: f(x, t) = c_skip(t) * x + c_out(t) * x0(x, t), where
x0 is what the predicted noise implies. Sampling applies it, adds fresh noise down to the next timestep, and so on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Generator, Tensor

from .guidance import EpsModel, ScaleAt
from .sampler import Sampler, Steps, draw_noise
from .schedule import NoiseSchedule, last_steps

SIGMA_DATA = 0.5
USUAL_STEPS = 8  # few-step models are made for 4 to so many
Number = TypeVar("Number", float, Tensor)

# Key of a few-step LoRA's metadata -> field of LCM, and what reads its text.
METADATA: dict[str, tuple[str, Callable[[str], Any]]] = {
    "sdvideo.lcm_timestep_scaling": ("timestep_scaling", float),
    "sdvideo.lcm_timesteps": ("original_steps", int),
    "sdvideo.lcm_grid": ("grid", str),
}


def c_skip(timestep: Number, timestep_scaling: float) -> Number:
    """Share of x itself in the consistency function: 1 at timestep 0, where x is the clean video."""
    return SIGMA_DATA**2 / ((timestep * timestep_scaling) ** 2 + SIGMA_DATA**2)


def c_out(timestep: Number, timestep_scaling: float) -> Number:
    """Share of the predicted clean video in the consistency function: 0 at timestep 0."""
    scaled = timestep * timestep_scaling
    length: Any = (scaled**2 + SIGMA_DATA**2) ** 0.5
    return scaled / length


def consistency(x: Tensor, x0: Tensor, timestep: Number, timestep_scaling: float) -> Tensor:
    """f(x, t), where x0 is the clean video that the predicted noise implies.

    timestep: that of x, or a tensor of those of its videos, shaped to broadcast over x.
    """
    return c_skip(timestep, timestep_scaling) * x + c_out(timestep, timestep_scaling) * x0


def guidance_embedding(guidance_scale: float, dim: int = 256) -> Tensor:
    """The embedding (dim,) of a distilled guidance scale (Meng et al. 2023), float32: sines, then cosines.

    T2V-Turbo's: of 1000 * guidance_scale, with dim / 2 frequencies from 1 down to 1 / 10000, both included.
    """
    half = dim // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float64) / (half - 1))
    angles = 1000 * guidance_scale * frequencies
    return torch.cat([angles.sin(), angles.cos()]).float()


@dataclass(frozen=True)
class LCM(Sampler):
    """Consistency, then fresh noise down to the next timestep.

    timestep_scaling: 4 as MCM was trained, 10 for T2V-Turbo; from timestep 19 on, videos of the two differ by less than
    rounding to half precision does. original_steps: number of timesteps that the model was distilled at. grid: which
    of them are visited, "strided" (T2V-Turbo; 4 steps are 999, 759, 519, 279) or "even" (diffusers' LCMScheduler, as
    MCM uses it; 999, 759, 499, 259).
    """

    timestep_scaling: float = 4.0
    original_steps: int = 50
    grid: Literal["strided", "even"] = "strided"

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> LCM | None:
        """What a few-step LoRA was made for, from its file's metadata; None where that does not say.

        Only SDVideo's trainer writes it. Raises ValueError where what it says is no number.
        """
        fields = {}
        for key, (field, read) in METADATA.items():
            try:
                fields |= {field: read(metadata[key])} if key in metadata else {}
            except ValueError as error:
                raise ValueError(f"{key} is {metadata[key]!r} in a LoRA's metadata; expected a number") from error
        return cls(**fields) if fields else None

    def metadata(self) -> dict[str, str]:
        """What `from_metadata` reads, to be written with a LoRA."""
        return {key: str(getattr(self, field)) for key, (field, _) in METADATA.items()}

    def timesteps(self, schedule: NoiseSchedule, num_steps: int, t_start: int | None = None) -> list[int]:
        """num_steps timesteps, 1..original_steps, noisiest first; only the last t_start of them."""
        if not 1 <= self.original_steps <= schedule.num_timesteps // 2:
            raise ValueError(
                f"original_steps={self.original_steps}; expected 1..{schedule.num_timesteps // 2}, and 50 is usual"
            )
        if not 1 <= num_steps <= self.original_steps:
            raise ValueError(
                f"timesteps={num_steps}; LCM takes 1..{self.original_steps} steps, those that the model was distilled "
                "at; few-step models are made for 4 to 8"
            )
        if self.grid not in ("strided", "even"):
            raise ValueError(f"grid={self.grid!r}; expected 'strided' or 'even'")
        stride = schedule.num_timesteps // self.original_steps
        skip = self.original_steps // num_steps if self.grid == "strided" else self.original_steps / num_steps
        indices = [self.original_steps - int(k * skip) for k in range(num_steps)]
        return last_steps([index * stride - 1 for index in indices], t_start)

    def steps(
        self, eps_model: EpsModel, x: Tensor, schedule: NoiseSchedule, timesteps: list[int], generator: Generator | None
    ) -> Steps:
        for t, t_next in zip(timesteps, [*timesteps[1:], None], strict=True):
            x0 = schedule.remove_noise(x, eps_model(x, t), t)
            clean = x = consistency(x, x0, float(t), self.timestep_scaling)
            if t_next is not None:
                x = schedule.add_noise(clean, draw_noise(x.shape, generator).to(x), t_next)
            yield x, clean


def misuses(
    sampler: object, num_steps: int, guidance_scale: float | ScaleAt, guidance_embed: float | None, is_embedded: bool
) -> Iterator[str]:
    """What of a user's settings few-step models are not made for, a line each.

    is_embedded: whether the network was distilled with an embedded guidance scale.
    """
    scale = "a guidance_schedule" if callable(guidance_scale) else f"guidance_scale={guidance_scale:g}"
    is_guided = callable(guidance_scale) or guidance_scale != 1
    if isinstance(sampler, LCM) and (is_guided or num_steps > USUAL_STEPS):
        yield (
            f"sampler 'lcm' with timesteps={num_steps} and {scale}; few-step models are made for 4 to {USUAL_STEPS} "
            "steps without guidance: use timesteps=4 and guidance_scale=1"
        )
    if guidance_embed is None and is_embedded:
        yield (
            "this model was distilled with an embedded guidance scale, as T2V-Turbo was, and runs without it; "
            "use guidance_embed=7.5 (5 to 15) and guidance_scale=1"
        )
    if guidance_embed is not None and is_embedded and is_guided:
        yield f"guidance_embed={guidance_embed:g} with {scale} guides twice; use guidance_scale=1"
