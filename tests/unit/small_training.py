"""Small trainings: a trainer of six clips, given as latents, and what its tests ask of weights."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from sdvideo_core import SDVideo
from sdvideo_core.training import SDVideoTrainer

Clip = tuple[Tensor, str]
NewModel = Callable[..., SDVideo]


def make_clips(count: int = 6, num_frames: int = 3, size: int = 4) -> list[Clip]:
    """Latents (F, 4, size, size), each with its caption."""
    latents = torch.randn(count, num_frames, 4, size, size, generator=torch.Generator().manual_seed(0))
    return [(clip, f"clip {index}") for index, clip in enumerate(latents)]


def collate(items: Iterable[Clip]) -> dict[str, Any]:
    clips, captions = zip(*items, strict=True)
    return {"pixel_values": torch.stack(clips), "text": list(captions)}


def loader(clips: list[Clip] | None = None, batch_size: int = 2, **options: Any) -> DataLoader:
    options = {"collate_fn": collate} | ({} if "sampler" in options else {"shuffle": True}) | options
    return DataLoader(make_clips() if clips is None else clips, batch_size, **options)


def encoded_loader(model: SDVideo) -> DataLoader:
    """The same batches with captions encoded by a model."""
    captions = {text: model.text_encoder([text])[0].detach().cpu() for _, text in make_clips()}

    def collate_encoded(items: Iterable[Clip]) -> dict[str, Any]:
        batch = collate(items)
        return batch | {"text": torch.stack([captions[text] for text in batch["text"]])}

    return loader(collate_fn=collate_encoded)


def make_trainer(model: SDVideo, out: Path, data: DataLoader | None = None, **options: Any) -> SDVideoTrainer:
    defaults = {"lr": 1e-3, "preencoded_img": True, "seed": 5}
    return SDVideoTrainer(model, loader() if data is None else data, out, **defaults | options)


def train(trainer: SDVideoTrainer, steps: int, **options: Any) -> SDVideoTrainer:
    """The same trainer, after so many steps."""
    trainer.train(steps=steps, bar=False, **options)
    return trainer


def weights(model: SDVideo) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.unet.state_dict().items()}


def differing(first: dict[str, Tensor], second: dict[str, Tensor]) -> set[str]:
    """Names of the tensors that are not equal bit for bit, or that only one has."""
    same = {name for name in first.keys() & second.keys() if torch.equal(first[name], second[name])}
    return (first.keys() | second.keys()) - same
