"""Training inside ComfyUI: outside its inference mode, on its device, with its progress bar and interrupts."""

from __future__ import annotations

import gc
import math
import shutil
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
from ...sdvideo_core.frames import images_to_frames
from ...sdvideo_core.layouts import check_complete, find_layout
from ...sdvideo_core.training import (
    CachedDataset,
    SDVideoTrainer,
    collate_cached,
    collate_fn,
    encode_dataset,
    open_dataset,
)
from ...sdvideo_core.training.collate import check_options
from ...sdvideo_core.training.datasets import ClipDataset
from ...sdvideo_core.training.loss_plot import plot_loss
from ...sdvideo_core.whole_file import whole_file
from .browser import Reports
from .folders import OWN, clips_folder, lora_file, model_directory, part_path, temporary_folder
from .progress import node_progress

EVENT = "sdvideo.training"
SAMPLES = "training_samples"
MOST_POINTS = 300
# A LoRA is float32 whatever it adapts, so the model itself is held in the precision it computes in.
WEIGHTS = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Clips:
    """What SDVIDEO_DATASET is: a dataset, and how its clips become batches."""

    dataset: ClipDataset
    num_frames: int
    image_size: tuple[int, int]  # width, height

    def options(self) -> dict[str, Any]:
        return {"num_frames": self.num_frames, "image_size": self.image_size}

    def loader(self, batch_size: int) -> DataLoader[Any]:
        return DataLoader(self.dataset, batch_size, shuffle=True, collate_fn=partial(collate_fn, **self.options()))

    def encoded_loader(self, batch_size: int, model: SDVideo, folder: Path) -> DataLoader[Any]:
        """The same batches, of clips that are encoded now, into files in a folder."""
        encode_dataset(model, self.dataset, folder, **self.options(), callback=node_progress())
        return DataLoader(CachedDataset(folder), batch_size, shuffle=True, collate_fn=collate_cached)


@dataclass(frozen=True)
class TrainedLoRA:
    weights: dict[str, Tensor]  # those of the file
    loss_curve: Tensor  # IMAGE
    name: str  # as Load LoRA lists it


def open_clips(directory: str, num_frames: int, image_size: tuple[int, int], stride: int, skip_bad: bool) -> Clips:
    check_options(num_frames, image_size, torch.float32, stride)
    return Clips(open_dataset(clips_folder(directory), skip_bad, num_frames, stride), num_frames, image_size)


def train_lora(
    model: str,
    clips: Clips,
    steps: int,
    filename_prefix: str,
    metadata: dict[str, str],
    vae: str = OWN,
    clip: str = OWN,
    **settings: Any,
) -> TrainedLoRA:
    """Trains a LoRA for a listed model; its file in models/loras appears at the end, whole, or not at all."""
    places, (path, name) = _find_parts(model, vae, clip), lora_file(filename_prefix)
    comfy.model_management.unload_all_models()
    try:
        with (
            tempfile.TemporaryDirectory(dir=temporary_folder(), ignore_cleanup_errors=True) as folder,
            # ComfyUI runs nodes in inference mode, whose tensors never get gradients.
            torch.inference_mode(False),
            torch.enable_grad(),
        ):
            file, losses = _train(places, clips, steps, Path(folder), **settings)
            weights = _publish(file, path, metadata)
    finally:
        gc.collect()  # modules and their hooks refer to each other, and would stay in the GPU's memory
        comfy.model_management.soft_empty_cache()
    curve = images_to_frames([plot_loss(losses, name)]).add(1).div(2).movedim(1, 3)
    return TrainedLoRA(weights, curve.contiguous(), name)


def _find_parts(model: str, vae: str, clip: str) -> dict[str, Any]:
    """Where a listed model and its parts lie, as SDVideo takes them; raises, before any is read, if one is nowhere."""
    directory = model_directory(model)
    places = {"vae": part_path(vae, "vae", directory), "text encoder": part_path(clip, "clip", directory)}
    check_complete({part: find_layout(place) for part, place in {"unet": directory, **places}.items()})
    return {"model_path": directory, "vae": places["vae"], "text_encoder": places["text encoder"]}


def _best_precision(device: torch.device) -> str:
    management = comfy.model_management
    if device.type != "cuda":  # accelerate has half precision on others in some versions only
        return "no"
    if management.should_use_bf16(device):
        return "bf16"
    return "fp16" if management.should_use_fp16(device) else "no"


def _train(
    places: dict[str, Any],
    clips: Clips,
    steps: int,
    folder: Path,
    batch_size: int,
    mixed_precision: str,
    sample_prompt: str = "",
    sample_every: int = 100,
    **settings: Any,
) -> tuple[Path, list[float]]:
    """The file that holds the trained LoRA, and the loss of each step."""
    device = comfy.model_management.get_torch_device()
    mixed_precision = _best_precision(device) if mixed_precision == "auto" else mixed_precision
    model = SDVideo(device=device, dtype=WEIGHTS[mixed_precision], **places)
    trainer = SDVideoTrainer(
        model,
        clips.loader(batch_size),
        folder,
        mixed_precision=mixed_precision,
        save_states=False,
        before_pass=comfy.model_management.throw_exception_if_processing_interrupted,
        **settings,
    )
    if steps * batch_size * trainer.gradient_accumulation > len(clips.dataset):  # clips are seen again
        trainer.dataloader = clips.encoded_loader(batch_size, model, folder / "encoded")
        trainer.preencoded_img = trainer.preencoded_txt = True
    file = trainer.train(
        "trained",
        steps=steps,
        save_every=steps,
        sample_every=sample_every,
        sample_prompts=[sample_prompt] if sample_prompt.strip() else [],
        bar=comfy.utils.PROGRESS_BAR_ENABLED,
        callback=_reporter(steps, trainer, folder),
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
    """Where ComfyUI serves the newest sample clip: a copy, for the page may ask after the training's folder is gone."""
    newest = max(folder.glob("*_samples/*.gif"), default=None)
    if newest is None:
        return None
    kept = temporary_folder() / SAMPLES / folder.name / newest.name
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(newest, kept)
    return {"filename": kept.name, "subfolder": f"{SAMPLES}/{folder.name}", "type": "temp"}


def _publish(trained: Path, path: Path, metadata: dict[str, str]) -> dict[str, Tensor]:
    """Copies a LoRA to where ComfyUI lists it, with metadata added, and returns its tensors."""
    with safetensors.safe_open(trained, "pt") as file:  # pyright: ignore[reportPrivateImportUsage]
        metadata = {**(file.metadata() or {}), **metadata}
    weights = safetensors.torch.load(trained.read_bytes())
    with whole_file(path) as temporary:
        safetensors.torch.save_file(weights, temporary, metadata)
    return weights
