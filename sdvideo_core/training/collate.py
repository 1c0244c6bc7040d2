"""Collate: clips of any length and size to one batch, and the check that a batch is what the trainer takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..arguments import SIZE
from ..frames import SIZE_MULTIPLE, check_selection, check_size, images_to_frames, resize_image

LATENT_CHANNELS = 4
WIDEST_RANGE = 1.5  # of pixels in -1..1; a resize that overshoots edges stays within it
KEYS = ("pixel_values", "text")


def ping_pong(length: int, num_frames: int) -> list[int]:
    """Positions 0..length-1 played forwards and backwards in turn until there are num_frames: 0 1 2 1 0 1 2 ...

    A length of 1 repeats. Raises ValueError unless both are at least 1.
    """
    if length < 1:
        raise ValueError(f"the clip has {length} frames, expected at least 1; leave the clip out")
    check_selection(num_frames, 0, 1)
    period = max(1, 2 * (length - 1))
    return [min(step, period - step) for step in (index % period for index in range(num_frames))]


def collate_fn(
    items: Sequence[Mapping[str, Any]],
    num_frames: int = 16,
    image_size: tuple[int, int] = (256, 256),
    dtype: torch.dtype = torch.float32,
    stride: int = 1,
) -> dict[str, Any]:
    """b items {"frames": PIL images, "text": str} -> {"pixel_values": (b, f, 3, h, w) in -1..1, "text": b captions}.

    Takes every `stride`-th frame of a clip from its first on, `num_frames` of them; where there are fewer, they play
    forwards and backwards in turn. image_size: (width, height) in pixels, multiples of 8; frames are scaled to cover
    it and their centre is cropped. dtype: of the pixels, floating point.
    """
    check_options(num_frames, image_size, dtype, stride)
    clips = [_to_frames(item, num_frames, image_size, stride) for item in items]
    return {"pixel_values": torch.stack(clips).to(dtype), "text": [item["text"] for item in items]}


def check_options(num_frames: int, image_size: tuple[int, int], dtype: torch.dtype, stride: int) -> None:
    """Raise ValueError or TypeError where `collate_fn` would for these options, before there are clips."""
    SIZE.check("image_size", image_size)
    check_size(*image_size)
    check_selection(num_frames, 0, stride)
    if not dtype.is_floating_point:
        raise ValueError(f"dtype is {dtype}, expected floating point for values in -1..1; use torch.float32")


def _to_frames(item: Mapping[str, Any], num_frames: int, image_size: tuple[int, int], stride: int) -> Tensor:
    if missing := [key for key in ("frames", "text") if key not in item]:
        raise ValueError(f"a clip of the dataset lacks {' and '.join(missing)}, it has {list(item)}; see ClipItem")
    if not item["frames"]:
        raise ValueError(f"clip {item.get('name', '')} has no frames, expected at least 1; leave the clip out")
    picked = item["frames"][::stride][:num_frames]
    order = ping_pong(len(picked), num_frames)
    return images_to_frames([resize_image(image, image_size) for image in picked])[order]


def check_batch(
    batch: object,
    channels: int | None = None,
    preencoded_img: bool = False,
    preencoded_txt: bool = False,
) -> None:
    """Raise ValueError, saying what was found and what to do, unless a batch is one that can be trained on.

    That is {"pixel_values": (b, f, channels, h, w), floating point and finite, "text": list of b captions}. Pixels are
    in -1..1 with sides that are multiples of 8 and have 3 channels. preencoded_img: pixel_values are latents, with 4
    channels and any range and size. preencoded_txt: text is (b, N, D), floating point and finite.
    """
    if not isinstance(batch, Mapping) or not all(key in batch for key in KEYS):
        found = f"the keys {list(batch)}" if isinstance(batch, Mapping) else type(batch).__name__
        raise ValueError(f"a batch has {found}, expected a dict with {' and '.join(KEYS)}; see collate_fn")
    pixels, text = batch["pixel_values"], batch["text"]
    if channels is None:
        channels = LATENT_CHANNELS if preencoded_img else 3
    size = _check_shape(pixels, channels)
    _check_floats("pixel_values", pixels)
    if not preencoded_img:
        _check_pixels(pixels)
    if preencoded_txt:
        _check_context(text, size)
    else:
        _check_captions(text, size)


def _check_shape(pixels: Any, channels: int) -> int:
    if not isinstance(pixels, Tensor):
        raise ValueError(
            f"pixel_values is {type(pixels).__name__}, expected a tensor (b, f, {channels}, h, w); see collate_fn"
        )
    shape = tuple(pixels.shape)
    if pixels.ndim == 5 and shape[2] == channels and 0 not in shape:
        return shape[0]
    remedy = "put frames before channels with .transpose(1, 2)" if pixels.ndim == 5 and shape[1] == channels else ""
    if pixels.ndim == 4:
        remedy = "add the missing axis, with .unsqueeze(0) for a batch of one clip or .unsqueeze(1) for single frames"
    if pixels.ndim == 5 and {shape[2], channels} == {3, LATENT_CHANNELS}:
        remedy = "latents need preencoded_img=True, pixels preencoded_img=False"
    raise ValueError(
        f"pixel_values has shape {shape}, expected (b, f, {channels}, h, w); {remedy or 'change the collate function'}"
    )


def _check_floats(name: str, values: Tensor) -> None:
    if not values.is_floating_point():
        raise ValueError(f"{name} holds {values.dtype}, expected floating point; convert with .float(), see collate_fn")
    if not torch.isfinite(values).all():
        raise ValueError(f"{name} has NaN or infinite values, expected finite ones; look for the clip that gives them")


def _check_pixels(pixels: Tensor) -> None:
    height, width = pixels.shape[3:]
    if height % SIZE_MULTIPLE or width % SIZE_MULTIPLE:
        raise ValueError(
            f"pixel_values are {width}x{height} pixels, expected multiples of {SIZE_MULTIPLE}; "
            "set collate_fn's image_size"
        )
    low, high = (float(value) for value in torch.aminmax(pixels))
    if low < -WIDEST_RANGE or high > WIDEST_RANGE:
        raise ValueError(
            f"pixel_values are in {low:.4g}..{high:.4g}, expected -1..1; turn 0..255 into it with x / 127.5 - 1, "
            "0..1 with x * 2 - 1"
        )


def _check_captions(text: Any, size: int) -> None:
    if isinstance(text, Tensor):
        raise ValueError(
            f"text is a tensor, expected a list of {size} captions; encoded text needs preencoded_txt=True"
        )
    if not isinstance(text, list | tuple):
        raise ValueError(f"text is {type(text).__name__}, expected a list of {size} captions; put captions in a list")
    for index, caption in enumerate(text):
        if not isinstance(caption, str):
            raise ValueError(f"text[{index}] is {type(caption).__name__}, expected str; give captions as plain text")
    if len(text) != size:
        raise ValueError(f"text has {len(text)} captions, expected {size}; give one for each clip of pixel_values")


def _check_context(text: Any, size: int) -> None:
    if not isinstance(text, Tensor):
        found = type(text).__name__
        raise ValueError(f"text is {found}, expected a tensor ({size}, N, D); captions need preencoded_txt=False")
    if text.ndim != 3 or len(text) != size:
        raise ValueError(
            f"text has shape {tuple(text.shape)}, expected ({size}, N, D); give one encoded caption for each clip"
        )
    _check_floats("text", text)
