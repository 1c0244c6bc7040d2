"""Cache: clips and captions encoded once into files, and the dataset that reads these files.

A cache is a folder: clips/NAME.safetensors for each clip, and index.json, which is written last: a folder without it is
a cache that was not finished.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypedDict

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Dataset, Subset
from tqdm import tqdm

from ..vae import AutoencoderKL
from ..video_io import StrPath
from ..whole_file import whole_file
from .collate import check_options, collate_fn
from .datasets import ClipDataset

if TYPE_CHECKING:
    from ..text_encoder import TextEncoder

FORMAT = "sdvideo-cache-1"
INDEX_NAME = "index.json"
CLIPS_NAME = "clips"
SAMPLES = 16  # values of each weight that tell one model from another

Header = dict[str, str]
ClipCallback = Callable[[int, int], object]  # (clips done, clips in all); may raise to stop


class CacheError(ValueError):
    """A cache that is missing, unfinished, damaged or of two kinds; the message names the file and the remedy."""


class Encoders(Protocol):
    """What encodes: SDVideo, or anything that has these three."""

    device: torch.device
    vae: AutoencoderKL
    text_encoder: TextEncoder


class Clips(Protocol):
    """A dataset of items {"name", "frames", "text"}; names are unique."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...


class CachedItem(TypedDict):
    """pixel_values: latents (F, 4, h, w). text: the encoded caption (77, D)."""

    pixel_values: Tensor
    text: Tensor
    name: str


@torch.no_grad()
def encode_dataset(  # noqa: PLR0913 - all but three have defaults
    model: Encoders,
    dataset: Clips,
    directory: StrPath,
    num_frames: int = 16,
    image_size: tuple[int, int] = (256, 256),
    dtype: torch.dtype = torch.float32,
    stride: int = 1,
    bar: bool = False,
    callback: ClipCallback | None = None,
) -> Path:
    """Encode every clip and caption of a dataset into a cache, and return its folder.

    num_frames, image_size, stride: as in collate_fn; a dataset with a stride of its own needs none here.
    dtype: of the stored tensors; the model computes in its own.
    bar: show a progress bar. callback: called after each clip.
    Files that the same pixels, caption, settings and weights made are kept, so an interrupted run goes on.

    Raises CacheError for an empty dataset and for names that cannot be file names or are not unique,
    FloatingPointError where the model gives NaN or infinity, OSError where a file cannot be written.
    """
    directory = Path(directory)
    check_options(num_frames, image_size, dtype, stride)
    if directory.exists() and not directory.is_dir():
        raise CacheError(f"{directory} is a file, expected a folder for the cache; give another name")
    if not len(dataset):
        raise CacheError(f"the dataset for the cache {directory} is empty, expected at least 1 clip; add clips")
    settings = {
        **{"num_frames": num_frames, "width": image_size[0], "height": image_size[1]},
        "stride": stride * _stride_of(dataset),  # of the clip's own frames
        **{"dtype": str(dtype).removeprefix("torch."), **_maker(model)},
    }
    common = _common_header(settings)
    (directory / INDEX_NAME).unlink(missing_ok=True)
    names: dict[Any, None] = {}  # a set that keeps its order
    for index in tqdm(range(len(dataset)), desc="Caching", unit="clip", disable=not bar):
        item = dataset[index]
        name = item.get("name")
        path = _clip_path(directory, name)
        if name in names:
            raise CacheError(f"two clips are named {name}, the second is clip {index}; give each its own name")
        pixels = collate_fn([item], num_frames, image_size, torch.float32, stride)["pixel_values"][0]
        header = common | {"text": item["text"], "pixels": hashlib.sha256(pixels.numpy().tobytes()).hexdigest()}
        if _read_header(path) != header:
            _write_tensors(path, _encode_clip(model, item, pixels, dtype), header)
        names[name] = None
        if callback:
            callback(index + 1, len(dataset))
    index_text = json.dumps({"format": FORMAT, "settings": settings, "clips": list(names)}, indent=1)
    with whole_file(directory / INDEX_NAME) as temporary:
        temporary.write_text(index_text, encoding="utf-8")
    return directory


def _stride_of(dataset: object) -> int:
    """Of the frames that a dataset gives."""
    if isinstance(dataset, Subset):
        return _stride_of(dataset.dataset)
    return dataset.stride if isinstance(dataset, ClipDataset) else 1


class CachedDataset(Dataset[CachedItem]):
    """The items of a cache, in the order of the dataset that was encoded.

    settings: what the cache was made with.
    Raises CacheError for a folder without a finished cache, missing or damaged files, and files of other settings.
    """

    def __init__(self, directory: StrPath):
        self.directory = Path(directory)
        self.settings, self.names = _read_index(self.directory)
        self.paths = [_clip_path(self.directory, name) for name in self.names]
        for path in self.paths:
            _check_header(path, _common_header(self.settings))

    def check_model(self, model: Encoders) -> None:
        """Raise CacheError if another autoencoder or text encoder than the model's wrote the cache.

        Only weights of one precision can be compared; others pass.
        """
        made, given = {key: self.settings.get(key) for key in ("precision", "weights")}, _maker(model)
        if made["precision"] == given["precision"] and made != given:
            raise CacheError(
                f"{self.directory} was encoded by another model's autoencoder or text encoder; "
                "train that model, or encode again with this one"
            )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> CachedItem:
        latents, context = _read_tensors(self.paths[index], "latents", "context")
        return {"pixel_values": latents, "text": context, "name": self.names[index]}


def collate_cached(items: Sequence[Mapping[str, Any]], num_frames: int | None = None) -> dict[str, Tensor]:
    """b cached items -> {"pixel_values": (b, f, 4, h, w), "text": (b, 77, D)}; f is num_frames, by default all.

    Raises ValueError when items differ in shape or have fewer than num_frames frames.
    """
    for item in items:
        for key in ("pixel_values", "text"):
            shape, first = tuple(item[key].shape), tuple(items[0][key].shape)
            if shape != first:
                raise ValueError(
                    f"{key} of {item['name']} has shape {shape}, of {items[0]['name']} {first}; "
                    "a batch needs one shape, encode all clips with the same settings"
                )
    latents = torch.stack([item["pixel_values"] for item in items])
    available = latents.shape[1]
    if num_frames is not None and not 1 <= num_frames <= available:
        raise ValueError(
            f"num_frames is {num_frames}, but the cache has {available} frames a clip; "
            f"choose 1..{available} or encode again with more"
        )
    return {"pixel_values": latents[:, :num_frames], "text": torch.stack([item["text"] for item in items])}


def _encode_clip(model: Encoders, item: Mapping[str, Any], pixels: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    precision = next(model.vae.parameters()).dtype
    latents = model.vae.encode(pixels.to(model.device, precision)).to("cpu", dtype).contiguous()
    tensors = {"latents": latents, "context": _encode_text(model, item["text"], dtype)}
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise FloatingPointError(
                f"the {name} of {item['name']} hold NaN or infinity, computed in {precision}; "
                "load the model in torch.float32 or torch.bfloat16"
            )
    return tensors


def _encode_text(model: Encoders, text: str, dtype: torch.dtype) -> Tensor:
    return model.text_encoder([text])[0].to("cpu", dtype).contiguous()


def _maker(model: Encoders) -> dict[str, str]:
    precision = str(next(model.vae.parameters()).dtype).removeprefix("torch.")
    return {"precision": precision, "weights": fingerprint(model.vae.state_dict(), model.text_encoder.state_dict())}


def fingerprint(*states: Mapping[str, Tensor]) -> str:
    """A hash over some values of every weight."""
    digest = hashlib.sha256()
    for state in states:
        for name, tensor in state.items():
            sample = tensor.flatten()[:: max(1, tensor.numel() // SAMPLES)].cpu().double()  # Apple's GPUs lack float64
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode() + sample.numpy().tobytes())
    return digest.hexdigest()


def _clip_path(directory: Path, name: Any) -> Path:
    if not isinstance(name, str) or {"", ".", ".."} & set(re.split(r"[/\\]", name)):
        raise CacheError(f"a clip is named {name!r}, expected a name such as 0001 or folder/0001; rename the clip")
    return directory / CLIPS_NAME / f"{name}.safetensors"


def _write_tensors(path: Path, tensors: dict[str, Tensor], header: Header) -> None:
    with whole_file(path) as temporary:
        save_file(tensors, temporary, metadata=header)


def _read_index(directory: Path) -> tuple[dict[str, Any], list[str]]:
    """The settings and the names of the clips."""
    path = directory / INDEX_NAME
    if not path.is_file():
        raise CacheError(
            f"{directory} holds no finished cache ({INDEX_NAME} is missing); run encode_dataset, which also goes on "
            "where it was interrupted"
        )
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        kind, settings, names = index["format"], dict(index["settings"]), list(index["clips"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CacheError(f"{path} is damaged or no index of a cache; run encode_dataset again") from error
    if kind != FORMAT:
        raise CacheError(f"{path} has format {kind}, expected {FORMAT}; run encode_dataset again")
    return settings, names


def _common_header(settings: dict[str, Any]) -> Header:
    return {"format": FORMAT, "settings": json.dumps(settings, sort_keys=True)}


def _check_header(path: Path, common: Header) -> None:
    header = _read_header(path)
    if header is None:
        what = "is damaged or cut short" if path.exists() else "is missing"
        raise CacheError(f"{path} {what}; run encode_dataset again, which makes only such files anew")
    found = {key: header.get(key) for key in common}
    if found != common:
        raise CacheError(
            f"{path} was made with {found['settings']}, but the cache with {common['settings']}; "
            "the folder mixes two caches, run encode_dataset again or use another folder"
        )


def _read_header(path: Path) -> Header | None:
    try:
        with safetensors.safe_open(path, framework="pt") as file:  # pyright: ignore[reportPrivateImportUsage]
            return file.metadata() or {}
    except (OSError, safetensors.SafetensorError):
        return None


def _read_tensors(path: Path, *names: str) -> list[Tensor]:
    try:
        tensors = load_file(path)
        return [tensors[name] for name in names]
    except (OSError, KeyError, safetensors.SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise CacheError(f"cannot read {path}: {reason}; run encode_dataset again") from error
