"""Samples: GIFs that show what a model in training draws by now."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..families import MODELSCOPE
from ..video_io import save_gif
from .batches import Model

STEPS = 25
SEED = 0


def save_samples(
    model: Model,
    prompts: Sequence[str],
    folder: Path,
    step: int,
    size: tuple[int, int, int],
    sampling: Mapping[str, Any] | None = None,
    before_pass: Callable[[], object] | None = None,
) -> list[Path]:
    """One GIF of each prompt, always from the same noise.

    size: frames, height and width in latents. sampling: arguments for the model, by default 25 steps with the
    guidance that the model's authors suggest. before_pass: called before each pass of the UNet; may raise to stop.
    """
    sampling = sampling or {"guidance_scale": (model.family or MODELSCOPE).guidance_scale, "timesteps": STEPS}
    num_frames, height, width = size
    training = model.unet.training

    def check(*_: object) -> None:
        if before_pass:
            before_pass()

    paths = [folder / f"{step:08d}_{index}.gif" for index in range(len(prompts))]
    model.unet.eval()
    hook = model.unet.register_forward_pre_hook(check)
    try:
        for prompt, path in zip(prompts, paths, strict=True):
            video = model(
                prompt,
                image_size=(8 * width, 8 * height),
                num_frames=num_frames,
                seed=SEED,
                **sampling,
            )
            save_gif(video, path)
    finally:
        hook.remove()
        model.unet.train(training)
    return paths
