"""LoRA files: read in any of the six formats of `lora_formats`, and fitted to a model's layers."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from .config import TextConfig
from .configuration import CheckpointError
from .layouts import what_is
from .lora_formats import ALPHA, ENDINGS, FORMATS, LORALIB, SIGNS, Pair, Stored, check_pairs, fits, refuse, some_of
from .lora_layers import COND_PROJ, Layers, places_by_name
from .lora_lists import Placement, place
from .lora_others import check_kind, other_model
from .lora_peft import FOLDER_STEMS, PeftConfig, read_peft_config
from .state_dict import StateDict, check_pickle, read_state_dict

# The files of a LoRA's folder, and the subfolder that may hold the text tower's part.
FOLDER_FILES = tuple(f"{stem}.{kind}" for stem in FOLDER_STEMS for kind in ("safetensors", "bin"))
TEXT_FOLDER = "text_encoder"

# How the names of a text encoder's layers begin, also of one of another size.
TEXT_SIGN = re.compile(r"(^|[._])(te\d?|text_model|text_encoders?|resblocks)[._]")
FEW_STEPS = 4  # what few-step LoRAs are made for
MOST_DETAILED = 20  # names in details
OWN_METADATA = "sdvideo."  # what SDVideo says of a LoRA in a .safetensors file begins so


@dataclass(frozen=True)
class LoRAReport:
    """What of a LoRA's file a model uses."""

    path: str
    format: str  # of FORMATS
    applied: list[str]  # module paths: UNetSD's, and transformers' of the text tower
    unused: list[str]  # names of tensors; in a list without names, of layers
    idle: int = 0  # how many unused layers are of the text encoder's last block
    placement: Placement | None = None  # of a list without names

    def __str__(self) -> str:
        said = f"{self.path}, {FORMATS[self.format]}: {len(self.applied)} layers applied"
        if self.placement:
            said += f", {self.placement}"
        if self.unused:
            said += f"; not used ({len(self.unused)}): {some_of(self.unused)}"
        if self.idle:
            said += f"; {self.idle} layers are of the text encoder's last block, which these models never run"
        return said

    @property
    def is_doubtful(self) -> bool:
        """Whether weights may act on layers that they were not made for."""
        return self.placement is not None and self.placement.is_doubtful

    def details(self) -> str:
        """The same, followed by the first names of what was applied and of what was not."""
        named = {"applied": self.applied, "not used": self.unused}
        lines = [f"{what}: {some_of(names, most=MOST_DETAILED)}" for what, names in named.items() if names]
        return "\n".join([str(self), *lines])


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
    metadata: Mapping[str, str] = field(default_factory=dict)  # SDVideo's own, such as how to sample with it

    def places(self, layers: Layers) -> tuple[dict[str, str], Placement | None]:
        """Name in the file -> module path, where there is one; and of a list without names, how they were found."""
        if self.format != "positional":
            return places_by_name(self.layers, layers), None
        placement = place([(len(stored.up), *stored.down.shape[1:]) for stored in self.layers.values()], layers)
        names = list(self.layers)
        return {names[index]: path for index, path in placement.places.items()}, placement

    def match(self, layers: Layers) -> Match:
        """The pairs for a model's layers.

        CheckpointError where it is for another model, or none is for this one, or one does not fit it, or too many of
        a list without names may be for other layers as well.
        """
        if self.other_model:
            raise CheckpointError(self._why_not_ours(layers))
        (places, placement), shapes = self.places(layers), layers.shapes
        if placement and placement.is_refused:
            raise CheckpointError(
                f"{self.path} is {FORMATS[self.format]}: {placement}. Its shapes do not tell which layers it is for; "
                "expected one with names, such as the same LoRA in kohya's or PEFT's format"
            )
        names = {path: name for name, path in places.items() if path in shapes}
        pairs = {path: self.layers[names[path]].fit(path, shapes[path]) for path in shapes if path in names}
        if not pairs:
            raise CheckpointError(self._why_not_ours(layers))
        check_pairs(pairs, shapes, self.path)
        left = [name for name in self.layers if name not in names.values()]
        unused = [*self._labels(left, places), *self.others]
        idle = sum(places.get(name) in layers.idle for name in left)
        report = LoRAReport(str(self.path), self.format, list(pairs), unused, idle, placement)
        unet, text = (
            {path: pair for path, pair in pairs.items() if path in part} for part in (layers.unet, layers.text)
        )
        return Match(unet, text, report)

    def _labels(self, names: list[str], places: Mapping[str, str]) -> list[str]:
        if self.format != "positional":
            return [key for name in names for key in self.layers[name].keys]
        shapes = {name: (len(self.layers[name].up), *self.layers[name].down.shape[1:]) for name in names}
        return [COND_PROJ.get(places.get(name, ""), f"{name} {shape}") for name, shape in shapes.items()]

    @property
    def other_model(self) -> str | None:
        """The other model that the names are of."""
        return other_model(self.layers)

    def _why_not_ours(self, layers: Layers) -> str:
        names, kind = list(self.layers), FORMATS[self.format]
        examples = ", ".join([*names[:2], "..."] if len(names) > 2 else names)
        if not layers.text and self._is_for_text(layers):
            return (
                f"{self.path} is {kind} for the text encoder only, and there is none here to apply its {len(names)} "
                f"layers ({examples}) to; connect clip in ComfyUI, or use SDVideo.load_lora in Python"
            )
        if self.other_model:
            return (
                f"{self.path} is {kind} for {self.other_model}, by the names of its {len(names)} layers ({examples}); "
                "expected a LoRA for ModelScope, ZeroScope or a relative"
            )
        return (
            f"{self.path} is {kind} of another model: none of its {len(names)} layers ({examples}) is one of "
            "this model's; expected a LoRA for ModelScope, ZeroScope or a relative"
        )

    def _is_for_text(self, layers: Layers) -> bool:
        places, _ = self.places(layers.with_text_tower(TextConfig()))
        return len(places) == len(self.layers) and layers.unet.keys().isdisjoint(places.values())


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
    check_kind(tensors, path)
    form = _format(tensors)
    config = read_peft_config(path, metadata) if form in ("peft", "diffusers") else PeftConfig({})
    layers = dict(_layers(tensors, config, path))
    if not layers:
        raise CheckpointError(
            f"{path} is {what_is(tensors)}, without pairs of low-rank weights; expected a LoRA, "
            "with names such as lora_unet_input_blocks_0_0.lora_down.weight"
        )
    used = {key for stored in layers.values() for key in stored.keys}
    own = {key: text for key, text in metadata.items() if key.startswith(OWN_METADATA)}
    return LoRAFile(path, form, layers, [key for key in tensors if key not in used], own)


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
    metadata = {key: text for part in parts.values() for key, text in part.metadata.items()}
    return LoRAFile(folder, next(iter(parts.values())).format, layers, others, metadata)


def describe_lora(
    path: str | Path, layers: Layers | None = None, others: Mapping[str, Layers] | None = None
) -> dict[str, Any]:
    """What a LoRA is, as plain values: its format, ranks, and how many layers of a model, full-size by default, it has.

    `for` says whose it is where it is not for that model: the first of `others`, by name, that it fits; where it fits
    none, its layers are counted by their names alone. `metadata` is what SDVideo wrote into it, and `sample with` the
    options that a few-step LoRA wants. Raises as `read_lora` does.
    """
    file, layers = read_lora(path), layers or Layers.full_size()
    ranks = {len(stored.down) for stored in file.layers.values() if stored.ending != LORALIB}
    ranks = ranks or {min(len(stored.down) for stored in file.layers.values())}  # loralib's grow with the kernel
    report = {"path": str(path), "is": FORMATS[file.format], "ranks": sorted(ranks), "layers": len(file.layers)}
    return report | _parts(file, layers, others or {}) | _settings(file.metadata)


def _parts(file: LoRAFile, layers: Layers, others: Mapping[str, Layers]) -> dict[str, Any]:
    if not file.other_model:
        if parts := _fitting_parts(file, layers):
            return parts
        for name, other in others.items():
            if parts := _fitting_parts(file, other):
                return {"for": name, **parts}
    text = sum(bool(TEXT_SIGN.search(name)) for name in file.layers)
    size = "a model of another size" if file.places(layers)[0] else "another model, or one of another size"
    return {"for": file.other_model or size, "unet layers": len(file.layers) - text, "text encoder layers": text}


def _fitting_parts(file: LoRAFile, layers: Layers) -> dict[str, Any] | None:
    """How many layers of a model a LoRA has, None where it has none or one does not fit."""
    (places, placement), shapes = file.places(layers), layers.known
    pairs = {path: file.layers[name].fit(path, shapes[path]) for name, path in places.items()}
    if not pairs or not all(fits(pair, shapes[path]) for path, pair in pairs.items()):
        return None
    unet, text = (sum(path in part for path in pairs) for part in ({**layers.unet, **COND_PROJ}, layers.text))
    parts = {"unet layers": unet, "text encoder layers": text, "unused layers": len(file.layers) - unet - text}
    return parts | ({"layers by shape": str(placement)} if placement else {})


def _settings(metadata: Mapping[str, str]) -> dict[str, Any]:
    report: dict[str, Any] = {"metadata": dict(metadata)} if metadata else {}
    points = metadata.get(f"{OWN_METADATA}lcm_timesteps", "")
    if re.fullmatch("[1-9][0-9]{0,2}", points):
        steps = min(FEW_STEPS, int(points))
        report["sample with"] = f"--sampler lcm --steps {steps} --cfg 1 --lcm-original-steps {points}"
    return report


def _format(tensors: StateDict) -> str:
    return next((name for name, sign in SIGNS if any(re.search(sign, key) for key in tensors)), "")


def _read(path: Path) -> tuple[StateDict, dict[str, str]]:
    """The tensors of a file by name, those of a list as `layer 1` and so on; and the file's metadata."""
    if path.suffix != ".safetensors":
        return _read_pickle(path), {}
    metadata: dict[str, str] = {}
    with (
        suppress(safetensors.SafetensorError),  # read_state_dict says more of what is wrong
        safetensors.safe_open(path, framework="pt") as file,  # pyright: ignore[reportPrivateImportUsage]
    ):
        metadata = file.metadata() or {}
        if not file.keys():
            raise CheckpointError(_nothing_in(path))
    return read_state_dict(path), metadata


def _read_pickle(path: Path) -> StateDict:
    try:
        return read_state_dict(path)
    except CheckpointError:
        if (tensors := _read_list(path)) is None:
            raise
        return tensors


def _read_list(path: Path) -> StateDict | None:
    """What a list [up, down, up, down, ...] holds; None where the file is anything else."""
    check_pickle(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception:  # on broken bytes an unpickler raises nearly anything; read_state_dict said what is wrong
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


def _layers(tensors: StateDict, config: PeftConfig, source: Path) -> Iterator[tuple[str, Stored]]:
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
        down, up = (_readable(tensors[name + part]) for part in ending)
        used = (name + ending[0], name + ending[1])
        if name in alphas:
            yield name, Stored(down, up, float(alphas[name].item()), ending, (*used, name + ALPHA))
        else:
            yield name, Stored(down, up, config.alpha_of(name, down.shape[:1].numel()), ending, used)


def _readable(weights: Tensor) -> Tensor:
    """In float32 where they are of one byte each, in which torch does not compute."""
    return weights.float() if weights.is_floating_point() and weights.element_size() == 1 else weights
