"""Small clips: a few frames that can be told apart, and the files that videos and datasets of them are."""

from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from sdvideo_core.frames import frames_to_video, images_to_frames
from sdvideo_core.training.datasets import ClipDataset
from sdvideo_core.video_io import save_video

SIZE = (32, 16)  # width, height


def grey_images(num_frames: int, size: tuple[int, int] = SIZE, first: int = 0) -> list[Image.Image]:
    """Frame k is plain grey of level 10 * (first + k), so that a pixel tells which frame it came from."""
    return [Image.new("RGB", size, (10 * (first + index),) * 3) for index in range(num_frames)]


def frame_numbers(images: list[Image.Image]) -> list[int]:
    """Which frames of `grey_images` these are."""
    return [round(np.asarray(image).mean() / 10) for image in images]


def noise_images(num_frames: int, size: tuple[int, int] = SIZE, seed: int = 0) -> list[Image.Image]:
    pixels = np.random.default_rng(seed).integers(0, 256, (num_frames, size[1], size[0], 3), np.uint8)
    return [Image.fromarray(frame) for frame in pixels]


def smooth_images(num_frames: int, size: int) -> list[Image.Image]:
    """Soft gradients in all three colours that drift from frame to frame: far more than 256 colours."""
    y, x = np.mgrid[0:size, 0:size] / size
    waves = [
        np.stack([0.5 + 0.4 * np.sin(4 * x + t / 3), 0.5 + 0.4 * np.cos(3 * y - t / 4), 0.3 + 0.5 * x * y], -1)
        for t in range(num_frames)
    ]
    return [Image.fromarray(np.rint(255 * wave).astype(np.uint8)) for wave in waves]


def to_video(images: list[Image.Image]) -> Tensor:
    return frames_to_video(images_to_frames(images))


def pixels(images: list[Image.Image]) -> np.ndarray:
    """(F, H, W, 3) in 0..255, as integers that may be subtracted."""
    return np.stack([np.asarray(image.convert("RGB")) for image in images]).astype(int)


def save_clip(path: Path, text: str | bytes | None = "a caption", num_frames: int = 3, first: int = 0) -> None:
    """A video file of `grey_images` with its caption beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_video(to_video(grey_images(num_frames, first=first)), path)
    if text is not None:
        path.with_name(f"{path.name}.txt").write_bytes(text if isinstance(text, bytes) else text.encode())


def save_sequence(folder: Path, name: str, extension: str = "png", text: str | None = "a caption") -> None:
    """Three `grey_images` as pictures in folder/frames/name, with their caption in folder/text."""
    for part in (folder / "frames" / name, folder / "text"):
        part.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(grey_images(3)):
        image.save(folder / "frames" / name / f"{index}.{extension}")
    if text is not None:
        (folder / "text" / f"{name}.txt").write_text(text)


def names(dataset: ClipDataset) -> list[str]:
    return [dataset[index]["name"] for index in range(len(dataset))]
