"""Samples: GIFs that show what a model in training draws by now."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..video_io import save_gif
from .batches import Model

STEPS, GUIDANCE_SCALE, SEED = 25, 7.5, 0


def save_samples(
    model: Model, prompts: Sequence[str], folder: Path, step: int, size: tuple[int, int, int]
) -> list[Path]:
    """One GIF of each prompt, always from the same noise; size: frames, height and width in latents."""
    num_frames, height, width = size
    training = model.unet.training
    paths = [folder / f"{step:08d}_{index}.gif" for index in range(len(prompts))]
    model.unet.eval()
    try:
        for prompt, path in zip(prompts, paths, strict=True):
            video = model(
                prompt,
                guidance_scale=GUIDANCE_SCALE,
                timesteps=STEPS,
                image_size=(8 * width, 8 * height),
                num_frames=num_frames,
                seed=SEED,
            )
            save_gif(video, path)
    finally:
        model.unet.train(training)
    return paths
