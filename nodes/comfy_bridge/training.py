"""Training inside ComfyUI: outside its inference mode, on its device, with its progress bar and interrupts."""

from __future__ import annotations

import gc
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import safetensors
import safetensors.torch
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ...sdvideo_core import SDVideo
from ...sdvideo_core.config import ModelConfig
from ...sdvideo_core.frames import images_to_frames
from ...sdvideo_core.layouts import PARTS, SINGLE, find_layout
from ...sdvideo_core.training import SDVideoTrainer, collate_fn, open_dataset
from ...sdvideo_core.training.collate import check_options
from ...sdvideo_core.training.datasets import ClipDataset
from ...sdvideo_core.training.loss_plot import plot_loss
from ...sdvideo_core.whole_file import whole_file
from .browser import Reports
from .folders import clips_folder, lora_file, model_directory, temporary_folder

PART_FILES = (ModelConfig.unet_file, ModelConfig.vae_file, ModelConfig.text_file)
EVENT = "sdvideo.training"
MOST_POINTS = 300
# A LoRA is float32 whatever it adapts, so the model itself is held in the precision it computes in.
WEIGHTS = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Clips:
    """What SDVIDEO_DATASET is: a dataset, and how its clips become batches."""

    dataset: ClipDataset
    num_frames: int
    image_size: tuple[int, int]  # width, height
    stride: int

    def loader(self, batch_size: int) -> DataLoader[Any]:
        collate = partial(collate_fn, num_frames=self.num_frames, image_size=self.image_size, stride=self.stride)
        return DataLoader(self.dataset, batch_size, shuffle=True, collate_fn=collate)


@dataclass(frozen=True)
class TrainedLoRA:
    weights: dict[str, Tensor]  # those of the file
    loss_curve: Tensor  # IMAGE
    name: str  # as Load LoRA lists it


def open_clips(directory: str, num_frames: int, image_size: tuple[int, int], stride: int, skip_bad: bool) -> Clips:
    check_options(num_frames, image_size, torch.float32, stride)
    needed = (num_frames - 1) * stride + 1
    return Clips(open_dataset(clips_folder(directory), skip_bad, needed), num_frames, image_size, stride)


def train_lora(
    model: str, clips: Clips, steps: int, filename_prefix: str, metadata: dict[str, str], **settings: Any
) -> TrainedLoRA:
    """Trains a LoRA for a listed model; its file in models/loras appears at the end, whole, or not at all."""
    directory, (path, name) = model_directory(model), lora_file(filename_prefix)
    _check_whole(model, directory)
    comfy.model_management.unload_all_models()
    try:
        with (
            tempfile.TemporaryDirectory(dir=temporary_folder()) as folder,
            # ComfyUI runs nodes in inference mode, whose tensors never get gradients.
            torch.inference_mode(False),
            torch.enable_grad(),
        ):
            file, losses = _train(directory, clips, steps, folder, **settings)
            weights = _publish(file, path, metadata)
    finally:
        gc.collect()  # modules and their hooks refer to each other, and would stay in the GPU's memory
        comfy.model_management.soft_empty_cache()
    curve = images_to_frames([plot_loss(losses, name)]).add(1).div(2).movedim(1, 3)
    return TrainedLoRA(weights, curve.contiguous(), name)


def _check_whole(model: str, path: Path) -> None:
    """Raises unless a model has all its parts; unlike the loader, training has no inputs for those of others."""
    layout = find_layout(path)
    if layout.name == SINGLE and "unet" in layout.parts and layout.missing:
        lacking = " and no ".join(PARTS[part] for part in layout.missing)
        raise ValueError(
            f"model {model!r} has no {lacking}, and training takes none from elsewhere; put them with the UNet into "
            f"one folder of models/text2video, named {', '.join(PART_FILES)} (or .safetensors), and choose that folder"
        )
    for missing in layout.missing.values():
        raise FileNotFoundError(f"model {model!r} cannot be trained: {missing}")


def _train(
    directory: Path,
    clips: Clips,
    steps: int,
    folder: str,
    batch_size: int,
    mixed_precision: str,
    sample_prompt: str = "",
    sample_every: int = 100,
    **settings: Any,
) -> tuple[Path, list[float]]:
    """The file that holds the trained LoRA, and the loss of each step."""
    device = comfy.model_management.get_torch_device()
    trainer = SDVideoTrainer(
        SDVideo(directory, device, WEIGHTS[mixed_precision]),
        clips.loader(batch_size),
        folder,
        mixed_precision=mixed_precision,
        save_states=False,
        **settings,
    )
    file = trainer.train(
        "trained",
        steps=steps,
        save_every=steps,
        sample_every=sample_every,
        sample_prompts=[sample_prompt] if sample_prompt.strip() else [],
        bar=comfy.utils.PROGRESS_BAR_ENABLED,
        callback=_reporter(steps, trainer, Path(folder)),
    )
    return file, trainer.losses


def _reporter(steps: int, trainer: SDVideoTrainer, folder: Path) -> Callable[[int, int, float], None]:
    progress, reports = comfy.utils.ProgressBar(steps), Reports(EVENT)

    def report(done: int, total: int, _loss: float) -> None:
        progress.update_absolute(done, total)
        reports.step(done, total, lambda: {"losses": _thinned(trainer.losses), "sample": _newest_sample(folder)})
        comfy.model_management.throw_exception_if_processing_interrupted()

    return report


def _thinned(losses: list[float]) -> list[float]:
    """No more points than a plot in a node shows, each the mean of as many steps."""
    count = math.ceil(len(losses) / MOST_POINTS)
    return [sum(part) / len(part) for part in (losses[i : i + count] for i in range(0, len(losses), count))]


def _newest_sample(folder: Path) -> dict[str, str] | None:
    """Where ComfyUI serves the newest sample clip."""
    newest = max(folder.glob("*_samples/*.gif"), default=None)
    if newest is None:
        return None
    return {
        "filename": newest.name,
        "subfolder": newest.parent.relative_to(temporary_folder()).as_posix(),
        "type": "temp",
    }


def _publish(trained: Path, path: Path, metadata: dict[str, str]) -> dict[str, Tensor]:
    """Copies a LoRA to where ComfyUI lists it, with metadata added, and returns its tensors."""
    with safetensors.safe_open(trained, "pt") as file:  # pyright: ignore[reportPrivateImportUsage]
        metadata = {**(file.metadata() or {}), **metadata}
    weights = safetensors.torch.load(trained.read_bytes())
    with whole_file(path) as temporary:
        safetensors.torch.save_file(weights, temporary, metadata)
    return weights
