"""LoRA files: read in any of the six formats of `lora_formats`, and fitted to a model's layers."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from .configuration import CheckpointError
from .layouts import what_is
from .lora_formats import ALPHA, ENDINGS, FORMATS, LORALIB, SIGNS, Pair, Stored, check_pairs, refuse
from .lora_layers import COND_PROJ, Layers, places_by_name, places_by_shape
from .state_dict import StateDict, read_state_dict

# What LoRAs of other models are told by.
OTHERS = (
    ("motion_modules", "AnimateDiff"),
    (r"double_blocks|single_blocks|single_transformer_blocks", "Flux or HunyuanVideo"),
    (r"blocks[._]\d+[._](cross|self)_attn", "Wan"),
    (r"(input_blocks[._]\d+[._]1|down_blocks[._]\d[._]attentions[._]\d)[._]transformer_blocks[._][1-9]", "SDXL"),
)

# The files of a LoRA's folder, and the subfolder that may hold the text tower's part.
FOLDER_FILES = tuple(
    f"{stem}.{kind}" for stem in ("adapter_model", "pytorch_lora_weights") for kind in ("safetensors", "bin")
)
TEXT_FOLDER = "text_encoder"
PEFT_CONFIG = "adapter_config.json"
DIFFUSERS_CONFIG = "lora_adapter_metadata"  # a key of the metadata of a .safetensors file


@dataclass(frozen=True)
class LoRAReport:
    """What of a LoRA's file a model uses."""

    path: str
    format: str  # of FORMATS
    applied: list[str]  # module paths: UNetSD's, and transformers' of the text tower
    unused: list[str]  # names of tensors; in a list without names, of layers

    def __str__(self) -> str:
        unused = f"; not used ({len(self.unused)}): {', '.join(self.unused)}" if self.unused else ""
        return f"{self.path}, {FORMATS[self.format]}: {len(self.applied)} layers applied{unused}"


@dataclass(frozen=True)
class Match:
    """The part of a LoRA that fits a model, by module path."""

    unet: dict[str, Pair]
    text: dict[str, Pair]
    report: LoRAReport


@dataclass(frozen=True)
class LoRAFile:
    """A LoRA as it was read, with the names that its format has."""

    path: Path
    format: str
    layers: dict[str, Stored]
    others: list[str]  # names of tensors that belong to no layer

    def places(self, layers: Layers) -> dict[str, str]:
        """Name in the file -> module path, where there is one."""
        if self.format != "positional":
            return places_by_name(self.layers, layers)
        shapes = [(len(stored.up), *stored.down.shape[1:]) for stored in self.layers.values()]
        places, names = places_by_shape(shapes, layers), list(self.layers)
        return {names[index]: path for index, path in places.items()}

    def match(self, layers: Layers) -> Match:
        """The pairs for a model's layers. CheckpointError where none is for it, or one does not fit it."""
        places, shapes = self.places(layers), layers.shapes
        names = {path: name for name, path in places.items() if path in shapes}
        pairs = {path: self.layers[names[path]].fit(path, shapes[path]) for path in shapes if path in names}
        if not pairs:
            raise CheckpointError(self._why_not_ours())
        check_pairs(pairs, shapes, self.path)
        left = [name for name in self.layers if name not in names.values()]
        report = LoRAReport(str(self.path), self.format, list(pairs), [*self._labels(left, places), *self.others])
        unet, text = (
            {path: pair for path, pair in pairs.items() if path in part} for part in (layers.unet, layers.text)
        )
        return Match(unet, text, report)

    def _labels(self, names: list[str], places: Mapping[str, str]) -> list[str]:
        if self.format != "positional":
            return [key for name in names for key in self.layers[name].keys]
        shapes = {name: (len(self.layers[name].up), *self.layers[name].down.shape[1:]) for name in names}
        return [COND_PROJ.get(places.get(name, ""), f"{name} {shape}") for name, shape in shapes.items()]

    def _why_not_ours(self) -> str:
        names = list(self.layers)
        other = next((model for sign, model in OTHERS if any(re.search(sign, name) for name in names)), None)
        whose = f"for {other}" if other else "of another model"
        examples = ", ".join([*names[:2], "..."] if len(names) > 2 else names)
        return (
            f"{self.path} is {FORMATS[self.format]} {whose}: none of its {len(names)} layers ({examples}) is one of "
            "this model's; expected a LoRA for ModelScope, ZeroScope or a relative"
        )


def read_lora(path: str | Path) -> LoRAFile:
    """Reads a LoRA, a file or a folder of PEFT's or diffusers', in any of FORMATS.

    Tensors stay as the file has them. Raises FileNotFoundError, or CheckpointError where it is no LoRA or damaged.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; expected a LoRA")
    tensors, metadata = _read(path)
    form = _format(tensors)
    config = _peft_config(path, metadata) if form in ("peft", "diffusers") else {}
    layers = dict(_layers(tensors, config, path))
    if not layers:
        raise CheckpointError(
            f"{path} is {what_is(tensors)}, without pairs of low-rank weights; expected a LoRA, "
            "with names such as lora_unet_input_blocks_0_0.lora_down.weight"
        )
    used = {key for stored in layers.values() for key in stored.keys}
    return LoRAFile(path, form, layers, [key for key in tensors if key not in used])


def _read_folder(folder: Path) -> LoRAFile:
    """One LoRA of the UNet's part and the text tower's."""
    parts: dict[str, LoRAFile] = {}
    for prefix in ("", TEXT_FOLDER):
        if file := next((folder / prefix / name for name in FOLDER_FILES if (folder / prefix / name).is_file()), None):
            parts[prefix] = read_lora(file)
    if not parts:
        raise FileNotFoundError(f"{folder} holds no LoRA; expected one of {', '.join(FOLDER_FILES)} in it")
    layers = {f"{prefix}.{name}".lstrip("."): s for prefix, part in parts.items() for name, s in part.layers.items()}
    others = [key for part in parts.values() for key in part.others]
    return LoRAFile(folder, next(iter(parts.values())).format, layers, others)


def describe_lora(path: str | Path, layers: Layers | None = None) -> dict[str, Any]:
    """What a LoRA is, as plain values: its format, ranks, and how many layers of a model, full-size by default, it has.

    Raises as `read_lora` does.
    """
    file, layers = read_lora(path), layers or Layers.full_size()
    places = file.places(layers).values()
    ranks = {len(stored.down) for stored in file.layers.values() if stored.ending != LORALIB}
    ranks = ranks or {min(len(stored.down) for stored in file.layers.values())}  # loralib's grow with the kernel
    counts = {
        "layers": len(file.layers),
        "unet layers": sum(path in layers.unet for path in places),
        "text encoder layers": sum(path in layers.text for path in places),
    }
    return {"path": str(path), "is": FORMATS[file.format], "ranks": sorted(ranks), **counts}


def _format(tensors: StateDict) -> str:
    return next((name for name, sign in SIGNS if any(re.search(sign, key) for key in tensors)), "")


def _read(path: Path) -> tuple[StateDict, dict[str, str]]:
    """The tensors of a file by name, those of a list as `layer 1` and so on; and the file's metadata."""
    metadata: dict[str, str] = {}
    if path.suffix == ".safetensors":
        with (
            suppress(safetensors.SafetensorError),  # read_state_dict says more of what is wrong
            safetensors.safe_open(path, framework="pt") as file,  # pyright: ignore[reportPrivateImportUsage]
        ):
            metadata = file.metadata() or {}
            if not file.keys():
                raise CheckpointError(_nothing_in(path))
    elif tensors := _read_list(path):
        return tensors, metadata
    return read_state_dict(path), metadata


def _peft_config(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """What PEFT says of ranks and alphas: in a file beside the weights, or, where diffusers wrote it, within."""
    beside = path.with_name(PEFT_CONFIG)
    is_beside = beside.is_file() and DIFFUSERS_CONFIG not in metadata
    text = beside.read_text(encoding="utf-8") if is_beside else metadata.get(DIFFUSERS_CONFIG, "{}")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{beside if is_beside else path} has a broken configuration ({error})") from error


def _read_list(path: Path) -> StateDict | None:
    """What a list [up, down, up, down, ...] holds; None where the file is anything else."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # on broken bytes an unpickler raises nearly anything; read_state_dict says what is wrong
        return None
    if isinstance(content, list | dict) and not content:
        raise CheckpointError(_nothing_in(path))
    if not isinstance(content, list):
        return None
    if len(content) % 2 or not all(isinstance(item, Tensor) and item.ndim > 1 for item in content):
        raise CheckpointError(
            f"{path} is a list of {len(content)}; expected up and down weights in turn. Download it again."
        )
    ups, downs = content[::2], content[1::2]
    down_end, up_end = ENDINGS[0]
    named = {f"layer {i}{down_end}": down for i, down in enumerate(downs, 1)}
    return named | {f"layer {i}{up_end}": up for i, up in enumerate(ups, 1)}


def _nothing_in(path: Path) -> str:
    return f"{path}: this LoRA contains no tensors; download it again, or get another file"


def _layers(tensors: StateDict, config: dict[str, Any], source: Path) -> Iterator[tuple[str, Stored]]:
    """Name -> what is stored under it, in the order of the file."""
    found: dict[str, tuple[str, str]] = {}
    for key in tensors:
        if ending := next((ending for ending in ENDINGS if key.endswith(ending)), None):
            found.setdefault(key.removesuffix(ending[0]).removesuffix(ending[1]), ending)
    keys = [name + part for name, ending in found.items() for part in ending]
    problems = [f"{key} is missing" for key in keys if key not in tensors]
    alphas = {name: tensors[name + ALPHA] for name in found if name + ALPHA in tensors}
    problems += [f"{name}{ALPHA} is not one number" for name, alpha in alphas.items() if alpha.numel() != 1]
    refuse(source, problems, "download it again")
    for name, ending in found.items():
        down, up = (tensors[name + part] for part in ending)
        used = (name + ending[0], name + ending[1])
        if name in alphas:
            yield name, Stored(down, up, float(alphas[name].item()), ending, (*used, name + ALPHA))
        else:
            yield name, Stored(down, up, _alpha(config, name, down.shape[:1].numel()), ending, used)


def _alpha(config: Mapping[str, Any], name: str, rank: int) -> float:
    """What PEFT's configuration says of a layer, or its rank, a scale of 1. diffusers puts the network's name first."""
    prefix = next((prefix for prefix in ("unet.", "text_encoder.") if name.startswith(prefix)), "")
    patterns = config.get(f"{prefix}alpha_pattern") or config.get("alpha_pattern") or {}
    alpha = config.get(f"{prefix}lora_alpha", config.get("lora_alpha"))
    rank_stabilized = config.get(f"{prefix}use_rslora", config.get("use_rslora"))
    alpha = next((value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", name)), alpha)
    if alpha is None:
        return float(rank)
    return alpha * math.sqrt(rank) if rank_stabilized else float(alpha)
