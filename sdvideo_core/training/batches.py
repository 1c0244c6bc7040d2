"""Batches: what the n-th batch of a run holds, encoded, and the randomness that goes with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator, skip_first_batches
from torch import Tensor

from ..families import Family
from ..schedule import NoiseSchedule
from ..text_encoder import TextEncoder
from ..unet import UNetSD
from ..vae import AutoencoderKL
from .collate import check_batch

if TYPE_CHECKING:
    from .trainer import SDVideoTrainer


ORDER, READING, NOISE = range(3)  # what generators are for
ASIDE = torch.device("cpu")  # where encoders wait while there is nothing to encode


class Model(Protocol):
    """What a trainer needs of a model; SDVideo has it."""

    unet: UNetSD
    vae: AutoencoderKL
    text_encoder: TextEncoder
    schedule: NoiseSchedule
    family: Family | None
    device: Any
    dtype: torch.dtype

    def __call__(
        self,
        text: str,
        *,
        guidance_scale: float = ...,
        timesteps: int = ...,
        sampler: Any = ...,
        image_size: tuple[int, int],
        num_frames: int,
        seed: int,
    ) -> Tensor: ...


def samples_per_step(trainer: SDVideoTrainer, accelerator: Accelerator) -> int:
    loader = trainer.dataloader
    batch_size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None) or 1
    return batch_size * trainer.gradient_accumulation * accelerator.num_processes


class Batches:
    """The batches of a run by number. Number and seed decide them, so a resumed run sees what an unbroken one does."""

    def __init__(self, trainer: SDVideoTrainer, loader: Any, accelerator: Accelerator):
        self.trainer, self.loader, self.accelerator = trainer, loader, accelerator
        self.model = trainer.model
        self._place_encoders(accelerator.device)  # which differs from the model's where there are several processes
        if self._come_encoded:
            _ = self.empty  # while its encoder is there
            self._place_encoders(ASIDE)
        self.video_size = (0, 0, 0)  # frames, height and width of the last batch's latents
        self._iterator: Iterator[dict[str, Any]] = iter(())
        self._next = -1

    def get(self, number: int) -> tuple[Tensor, Tensor, torch.Generator]:
        """Latents (B, 4, F, h, w), context (B, N, D) and the generator of batch 0, 1, ... of this process."""
        batch = self._read(number)
        check_batch(batch, preencoded_img=self.trainer.preencoded_img, preencoded_txt=self.trainer.preencoded_txt)
        generator = self._generator(number, NOISE, self.accelerator.process_index)
        latents = self._latents(batch["pixel_values"])
        self.video_size = (latents.shape[2], latents.shape[3], latents.shape[4])
        return latents, self._context(batch["text"], generator), generator

    def close(self) -> None:
        """Ends the processes that read ahead; left to the garbage collector, each holds it up for 5 s."""
        self._iterator = iter(())
        self._place_encoders(self.accelerator.device)

    @contextmanager
    def encoders(self) -> Iterator[None]:
        """Within, the encoders are on the device; clips that come encoded leave their memory to the network."""
        self._place_encoders(self.accelerator.device)
        try:
            yield
        finally:
            if self._come_encoded:
                self._place_encoders(ASIDE)

    @property
    def _come_encoded(self) -> bool:
        return self.trainer.preencoded_img and self.trainer.preencoded_txt

    def _place_encoders(self, device: torch.device) -> None:
        for encoder in (self.model.vae, self.model.text_encoder):
            encoder.to(device)

    @contextmanager
    def randomness(self, generator: torch.Generator) -> Iterator[None]:
        """Within, torch's own generators, for dropout, follow the batch's; afterwards they go on as before."""
        devices = [self.accelerator.device] if self.accelerator.device.type == "cuda" else []
        seed = int(torch.randint(2**62, (), generator=generator))
        with torch.random.fork_rng(devices=devices):
            self._seed(seed)
            yield

    def _seed(self, seed: int) -> None:
        if (device := self.accelerator.device).type != "cuda":
            torch.manual_seed(seed)
            return
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach other GPUs, too
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)

    def _read(self, number: int) -> dict[str, Any]:
        epoch, place = divmod(number, len(self.loader))
        starts = number != self._next or place == 0
        # What a sampler draws at its start is the epoch's, wherever in the epoch a run begins, and in every process.
        generator = self._generator(epoch, ORDER) if starts else self._generator(number, READING)
        with self.randomness(generator):
            if starts:
                self.loader.set_epoch(epoch)
                self._iterator = iter(skip_first_batches(self.loader, place) if place else self.loader)
            self._next = number + 1
            return next(self._iterator)

    def _generator(self, *parts: int) -> torch.Generator:
        seed = np.random.SeedSequence([self.trainer.seed, *parts]).generate_state(1, np.uint64)[0]
        return torch.Generator().manual_seed(int(seed >> np.uint64(1)))

    @cached_property
    @torch.no_grad()
    def empty(self) -> Tensor:
        """The encoded empty caption (1, N, D)."""
        return self.model.text_encoder([""])

    @torch.no_grad()
    def _latents(self, pixel_values: Tensor) -> Tensor:
        """Clip by clip, as the cache encodes them: in larger batches the last bits differ."""
        clips = pixel_values.to(self.accelerator.device)
        if not self.trainer.preencoded_img:
            clips = torch.stack([self.model.vae.encode(clip) for clip in clips.to(self.model.dtype)])
        return clips.float().transpose(1, 2)

    @torch.no_grad()
    def _context(self, text: list[str] | Tensor, generator: torch.Generator) -> Tensor:
        dropped = torch.rand(len(text), generator=generator) < self.trainer.unconditional_ratio
        if isinstance(text, Tensor):
            captions = list(text.to(self.accelerator.device).split(1))
        else:
            captions = [self.model.text_encoder([caption]) for caption in text]
        if dropped.any():
            captions = [self.empty if drop else caption for caption, drop in zip(captions, dropped, strict=True)]
        return torch.cat([caption.float() for caption in captions])
