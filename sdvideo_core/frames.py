"""Frames: layout, value range and size of pictures, between PIL, pixels and video tensors.

Three forms of the same clip: a list of PIL images; `frames` (F, 3, H, W) in -1..1, which the autoencoder
takes and gives; `video` (1, 3, F, H, W) in 0..1, which users get and files are written from.
"""

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from .arguments import WHOLE, Kind

SIZE_MULTIPLE = 8  # the autoencoder halves each side three times
TENSOR = Kind(
    lambda value: isinstance(value, Tensor),
    "a tensor (1, 3, F, H, W) in 0..1; frames_to_video(images_to_frames(images)) makes one of PIL images",
)
TRANSPARENT_MODES = ("RGBA", "LA", "PA", "RGBa")


def check_size(width: int, height: int) -> None:
    """Raise ValueError unless both sides are positive multiples of 8."""
    for name, value in (("width", width), ("height", height)):
        if value < 1 or value % SIZE_MULTIPLE:
            nearest = max(SIZE_MULTIPLE, (value + SIZE_MULTIPLE // 2) // SIZE_MULTIPLE * SIZE_MULTIPLE)
            raise ValueError(
                f"{name} {value} is not usable: the model needs a positive multiple of {SIZE_MULTIPLE}; try {nearest}"
            )


def resize_image(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Fill `size` (width, height) exactly: scale by Lanczos until both sides are covered, crop the centre.

    The result is an upright RGB image, see `to_rgb`; one that has this size already keeps its pixels.
    Raises ValueError for a size below 1 and for pictures `to_rgb` refuses.
    """
    if min(size) < 1:
        raise ValueError(f"cannot resize to {_by(size)}: both sides must be at least 1; give (width, height)")
    rgb = to_rgb(image)
    return rgb if rgb.size == size else ImageOps.fit(rgb, size, Image.Resampling.LANCZOS)


def to_rgb(image: Image.Image) -> Image.Image:
    """Turn any picture into 8-bit RGB: upright by its EXIF, transparency laid on black, 16 bits scaled to 8.

    Raises ValueError for floating-point pictures (mode F), which have no agreed white.
    """
    if image.mode == "F":
        raise ValueError("the picture has floating-point pixels (mode F), expected 8 or 16 bits; convert it")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        # Pillow's own conversion clips these at 255, which turns nearly every 16-bit picture white.
        levels = np.asarray(image).astype(np.float64).clip(0, 65535)
        return Image.fromarray(np.rint(levels / 257).astype(np.uint8)).convert("RGB")
    if image.mode in TRANSPARENT_MODES or "transparency" in image.info:
        # Before any resize: colours hidden under full transparency would otherwise bleed into visible edges.
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "black"), rgba).convert("RGB")
    return image.convert("RGB")


def images_to_frames(images: list[Image.Image]) -> Tensor:
    """Stack PIL images of one size into frames (F, 3, H, W), float32 in -1..1.

    Raises ValueError when the list is empty or an image differs in size from the first.
    """
    if not images:
        raise ValueError("the list of images is empty, expected at least 1; check where they come from")
    pixels: list[Tensor] = []
    size = to_rgb(images[0]).size
    for index, image in enumerate(images):
        rgb = to_rgb(image)
        if rgb.size != size:
            raise ValueError(
                f"image {index} is {_by(rgb.size)}, but image 0 is {_by(size)}; "
                "all frames must have one size, resize them first"
            )
        pixels.append(torch.from_numpy(np.array(rgb)))
    return torch.stack(pixels).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


def video_to_images(video: Tensor) -> list[Image.Image]:
    """Turn a video (1, 3, F, H, W) or (3, F, H, W), values 0..1, into F RGB images.

    Values outside 0..1 are clamped, values between two of the 256 levels go to the nearest.
    Raises ValueError for another shape, more than one video, integer values, NaN and infinity.
    """
    video = _single_video(video)
    if not video.is_floating_point():
        raise ValueError(f"video holds {video.dtype}, expected floating point in 0..1; divide by 255 first")
    bad_frames = (~torch.isfinite(video)).any(dim=(0, 2, 3)).nonzero().flatten().tolist()
    if bad_frames:
        raise ValueError(
            f"video has NaN or infinite values in {len(bad_frames)} of {video.shape[1]} frames, the first is "
            f"frame {bad_frames[0]}; this is how float16 overflows, run model and VAE in float32 or bfloat16"
        )
    levels = (video.float().clamp(0, 1) * 255).round().to(torch.uint8)
    pixels = levels.permute(1, 2, 3, 0).contiguous().cpu().numpy()  # (F, H, W, 3)
    return [Image.fromarray(frame) for frame in pixels]


def check_selection(frames: int | None, offset: int, stride: int) -> None:
    """Raise ValueError unless frames >= 1 (or None, for all), offset >= 0 and stride >= 1; TypeError for no integer."""
    some = 1 if frames is None else frames
    for name, value, least in (("num_frames", some, 1), ("offset", offset, 0), ("stride", stride, 1)):
        WHOLE.check(name, value)
        if value < least:
            raise ValueError(f"{name} is {value}, expected at least {least}; raise {name}")


def frame_indices(available: int, frames: int | None, offset: int, stride: int, name: str) -> list[int]:
    """List the positions of `frames` of the `available` frames of `name`, `stride` apart from `offset` on.

    `frames=None` takes all there are from `offset` on.
    Raises ValueError when the clip is too short or an argument is out of range.
    """
    check_selection(frames, offset, stride)
    remedy = "Take fewer frames, lower offset or stride." if offset else "Take fewer frames or a lower stride."
    if frames is None:
        if offset >= available:
            raise ValueError(f"{name} has {_count(available)}; offset {offset} is past the end. Lower offset.")
        return list(range(offset, available, stride))
    needed = offset + (frames - 1) * stride + 1
    if needed > available:
        raise ValueError(
            f"{name} has {_count(available)}; {_count(frames)} from offset {offset} with stride {stride} "
            f"need {needed}. {remedy}"
        )
    return list(range(offset, needed, stride))


def frames_to_video(frames: Tensor) -> Tensor:
    """Turn frames (F, 3, H, W) in -1..1 into a video (1, 3, F, H, W) in 0..1; values beyond are clamped.

    Raises ValueError for another shape.
    """
    if frames.ndim != 4 or frames.shape[1] != 3:
        raise ValueError(
            f"frames have shape {tuple(frames.shape)}, expected (F, 3, H, W); "
            "a video (1, 3, F, H, W) goes through video_to_frames first"
        )
    return (frames.permute(1, 0, 2, 3).contiguous().unsqueeze(0) / 2 + 0.5).clamp(0, 1)


def video_to_frames(video: Tensor) -> Tensor:
    """Turn a video (1, 3, F, H, W) or (3, F, H, W) in 0..1 into frames (F, 3, H, W) in -1..1.

    Raises ValueError for another shape or more than one video.
    """
    return _single_video(video).permute(1, 0, 2, 3).contiguous() * 2 - 1


def _single_video(video: Tensor) -> Tensor:
    """Drop the batch axis: (1, 3, F, H, W) or (3, F, H, W) to (3, F, H, W)."""
    TENSOR.check("video", video)
    shape = tuple(video.shape)
    if video.ndim == 5 and shape[1] == 3 and shape[0] != 1:
        raise ValueError(f"video {shape} is a batch of {shape[0]}, expected 1; pass video[i : i + 1] in turn")
    if video.ndim not in (4, 5) or shape[-4] != 3 or 0 in shape:
        raise ValueError(
            f"video has shape {shape}, expected (1, 3, F, H, W) or (3, F, H, W) with at least one frame; "
            "frames (F, 3, H, W) go through frames_to_video first"
        )
    return video.reshape(shape[-4:])


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _count(frames: int) -> str:
    return f"{frames} frame" if frames == 1 else f"{frames} frames"
