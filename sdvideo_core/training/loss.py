"""Loss: how far the UNet's noise is from the noise that was added, over random timesteps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..ddim import draw_noise
from ..schedule import NoiseSchedule

EpsNetwork = Callable[[Tensor, Tensor], Tensor]  # (x (B, 4, F, h, w), timesteps (B,)) -> eps

# What `start_noise` replaces: the noisiest timesteps, with none of the signal for some and little for the others.
START_FROM = 0.88  # of all timesteps
WITHOUT_SIGNAL = 0.4  # of these samples
START_WEIGHT, MAX_START_WEIGHT = 0.25, 40.0


@dataclass(frozen=True)
class Noised:
    """A batch on its way to the network: what it sees, what it should answer, and how much each answer counts."""

    x: Tensor  # (B, 4, F, h, w)
    timesteps: Tensor  # (B,)
    eps: Tensor  # (B, 4, F, h, w)
    weights: Tensor  # (B,)


@dataclass(frozen=True)
class DiffusionLoss:
    """Mean squared error of eps (Ho et al. 2020, eq. 14).

    noise_offset: standard deviation of a constant added to each frame's noise, 0..0.2, for darker and brighter videos.
    min_snr_gamma: weight of easy timesteps, min(snr, gamma) / snr (Hang et al. 2023); 5 is usual, None is no weighting.
    snr_floor: weight of noisy timesteps, max(snr, floor) / snr: a small error of eps is a large one of the clean video
    there, where it is decided what the video shows (Salimans & Ho 2022, with 1); 0 is no weighting.
    start_noise: share of samples, 0..1, that see the pure noise sampling starts from. The schedule's noisiest timestep
    still shows the video, sampling's does not (Lin et al. 2024); a network that relies on it starts wrong.
    """

    schedule: NoiseSchedule
    noise_offset: float = 0.0
    min_snr_gamma: float | None = None
    snr_floor: float = 0.0
    start_noise: float = 0.0

    def __call__(self, network: EpsNetwork, latents: Tensor, generator: torch.Generator) -> Tensor:
        """Loss of one batch of clean latents (B, 4, F, h, w); all randomness comes from the generator."""
        noised = self.add_noise(latents, generator)
        eps = network(noised.x, noised.timesteps).float()
        per_sample = ((eps - noised.eps) ** 2).flatten(1).mean(1)
        return (per_sample * noised.weights).mean()

    def add_noise(self, latents: Tensor, generator: torch.Generator) -> Noised:
        batch, device = len(latents), latents.device
        latents = latents.float()
        timesteps, signal = self._timesteps(batch, generator), torch.ones(batch)
        if self.start_noise:
            timesteps, signal = self._at_the_start(timesteps, generator)
        alphas = self.schedule.alphas_cumprod[timesteps]
        noise = self._noise(latents.shape, generator).to(device)
        a, s, kept = (per_sample(t, latents) for t in (alphas.sqrt(), (1 - alphas).sqrt(), signal))
        x = a * kept * latents + s * noise
        eps = (x - a * latents) / s  # the noise itself where the signal is whole
        weights = self._weights(alphas, signal)
        return Noised(x, timesteps.to(device), eps, weights.float().to(device))

    def _timesteps(self, batch: int, generator: torch.Generator) -> Tensor:
        return spread(batch, self.schedule.num_timesteps, generator)

    def _at_the_start(self, timesteps: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        signal = signal_left(len(timesteps), self.start_noise, generator)
        places = START_FROM + (1 - START_FROM) * torch.rand(len(timesteps), generator=generator)
        return torch.where(signal < 1, _index(places, self.schedule.num_timesteps), timesteps), signal

    def _noise(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        noise = draw_noise(shape, generator)
        if self.noise_offset:
            batch, channels, frames = shape[:3]
            noise = noise + self.noise_offset * draw_noise((batch, channels, frames, 1, 1), generator)
        return noise

    def _weights(self, alphas: Tensor, signal: Tensor) -> Tensor:
        snr = alphas / (1 - alphas)
        weights = snr.clamp(min=self.snr_floor, max=self.min_snr_gamma) / snr
        start = (START_WEIGHT / snr).clamp(max=MAX_START_WEIGHT)  # an error of the clean video, not of eps
        return torch.where(signal < 1, start, weights)


def spread(count: int, below: int, generator: torch.Generator) -> Tensor:
    """Random numbers (count,) of 0..below-1, one from each of `count` equal parts: evener than independent ones.

    In random order, for a place in a batch may always hold the same kind of clip.
    """
    numbers = _index((torch.arange(count) + torch.rand(count, generator=generator)) / count, below)
    return numbers[torch.randperm(count, generator=generator)]


def signal_left(count: int, start_noise: float, generator: torch.Generator) -> Tensor:
    """Share (count,) of the video that samples show: 1, or for a `start_noise` of them none or little of it."""
    chosen, without, amount = torch.rand((3, count), generator=generator)
    reduced = torch.where(without < WITHOUT_SIGNAL, torch.zeros_like(amount), amount**2)
    return torch.where(chosen < start_noise, reduced, torch.ones_like(reduced))


def _index(places: Tensor, below: int) -> Tensor:
    """Places 0..1 -> 0..below-1; float32 rounds the last places up to 1."""
    return (places * below).long().clamp(max=below - 1)


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    return values.float().to(like.device)[:, None, None, None, None]
