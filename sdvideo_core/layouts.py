"""Layouts: where the networks of a model lie, in every form that models of this family come in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .config import ModelConfig
from .configuration import CONFIG_NAME, CheckpointError, read_config, read_json
from .part_config import SCHEDULER_FILE, STEMS, config_beside, schedule_beside
from .state_dict import WEIGHT_SUFFIXES, read_state_dict

PARTS = {"unet": "UNet", "vae": "autoencoder", "text encoder": "OpenCLIP text tower"}


class Kind(NamedTuple):
    mark: str  # a part of the names of its tensors
    name: str  # what it is, in words
    part: str = ""  # of PARTS, if it can serve as that


# They hold names of our networks, and yet nothing that can serve as one: XL's autoencoder scales latents otherwise.
FOREIGN = (
    Kind("lora", "a LoRA"),
    Kind("motion_modules.", "an AnimateDiff motion module"),
    Kind("temporal_transformer.", "an AnimateDiff motion module"),
    Kind("time_stack.", "a Stable Video Diffusion checkpoint"),
    Kind("conditioner.embedders.", "a Stable Diffusion XL checkpoint (an image model)"),
)
# What a file is, by a part of its keys; the first match counts.
KINDS = (
    *FOREIGN,
    Kind("input_blocks.0.1.proj_in.", "a ModelScope UNet", "unet"),
    Kind("transformer_in.", "a UNet in diffusers' format", "unet"),
    Kind("model.diffusion_model.input_blocks.", "a Stable Diffusion checkpoint (an image model)"),
    Kind("decoder.up_blocks.", "an autoencoder in diffusers' format", "vae"),
    Kind("down_blocks.0.", "an image UNet in diffusers' format"),
    Kind("first_stage_model.decoder.", "a checkpoint with an autoencoder", "vae"),
    Kind("decoder.up.0.", "an autoencoder", "vae"),
    Kind("resblocks.", "an OpenCLIP model", "text encoder"),
    Kind("encoder.layers.0.", "a CLIP text model in transformers' format", "text encoder"),
    Kind("input_blocks.", "an image UNet"),
)

# What to do about a part that is not there; there is no model without its UNet.
ELSEWHERE = {
    "unet": "",
    "vae": ", or take the autoencoder from another file or model: "
    "vae=PATH in Python, --vae PATH on the command line, vae in the node",
    "text encoder": ", or take the text encoder from another file or model: "
    "text_encoder=PATH in Python, --clip PATH on the command line, clip in the node",
}

DIFFUSERS_INDEX = "model_index.json"
DIFFUSERS_FOLDERS = {"unet": "unet", "vae": "vae", "text encoder": "text_encoder"}
# Endings of weights in a folder of diffusers, best first, where float16 is wanted; and where anything else is.
HALF_FIRST = (
    ".fp16.safetensors",
    ".safetensors.index.fp16.json",
    ".safetensors",
    ".safetensors.index.json",
    ".fp16.bin",
    ".bin.index.fp16.json",
    ".bin",
    ".bin.index.json",
)
FULL_FIRST = tuple(sorted(HALF_FIRST, key=lambda ending: "fp16" in ending))

SHARD = re.compile(r"(.+-)(\d{5})-of-(\d{5})(\..+)")  # one of several files that hold a network

ORIGINAL, DIFFUSERS, SINGLE = "modelscope", "diffusers", "file"
LORA_FOLDER = "lora"  # where Text-To-Video-Finetuning puts a LoRA within a checkpoint-N


@dataclass(frozen=True)
class Part:
    """The weights of one network: a file or the shards of one, and what the JSON beside them says.

    In a folder of diffusers that JSON is theirs; of other files it may be a stranger's, of another size.
    """

    files: tuple[Path, ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    half_files: tuple[Path, ...] = ()  # the float16 variant of a folder of diffusers
    schedule: Mapping[str, Any] = field(default_factory=dict)  # a UNet's scheduler_config.json

    def files_for(self, dtype: torch.dtype | None) -> tuple[Path, ...]:
        """The files to read for weights of a precision: the variant for float16, the whole ones for any other."""
        return self.half_files if dtype is torch.float16 and self.half_files else self.files


@dataclass(frozen=True)
class Layout:
    """A model as it lies on the disk, possibly without some of its parts."""

    name: str  # ORIGINAL, DIFFUSERS or SINGLE
    path: Path
    parts: Mapping[str, Part]
    missing: Mapping[str, str]  # part -> an error that says where it was looked for
    config: ModelConfig | None = None  # what configuration.json says, where there is one
    based_on: str = ""  # the model that this one was made of, if its JSON says so
    files: tuple[Path, ...] = ()  # of a SINGLE one, the file or its shards, whatever they hold

    def part(self, name: str) -> Part:
        """One of PARTS; FileNotFoundError or CheckpointError, which says what to do, where it is not there."""
        if name in self.parts:
            return self.parts[name]
        raise self.error(self.absence(name))

    @property
    def error(self) -> type[CheckpointError | FileNotFoundError]:
        return CheckpointError if self.name == SINGLE else FileNotFoundError

    def absence(self, name: str) -> str:
        """Where one of PARTS was looked for, and what to do."""
        return self.missing[name] + ELSEWHERE[name]


def check_complete(places: Mapping[str, Layout]) -> None:
    """Raises what `Layout.part` does unless each of PARTS is where it is to come from, and tells all that are not."""
    if missing := [part for part in PARTS if part in places[part].missing]:
        raise places[missing[0]].error(". ".join(places[part].absence(part) for part in missing))


def what_is(keys: Iterable[str]) -> str:
    """A file's kind in words, from the names of its tensors."""
    keys = list(keys)
    for kind in KINDS:
        if any(kind.mark in key for key in keys):
            return kind.name
    return f"unknown (its first tensor is {keys[0]})" if keys else "empty"


def parts_in(keys: Iterable[str]) -> list[str]:
    """The parts of a model that a file can serve as; several for a whole checkpoint."""
    keys = list(keys)
    found = [kind for kind in KINDS if any(kind.mark in key for key in keys)]
    is_foreign = any(kind in FOREIGN for kind in found)
    return [] if is_foreign else [part for part in PARTS if any(kind.part == part for kind in found)]


def find_layout(path: str | Path) -> Layout:
    """What lies at a path: a model folder of any known layout, one part's folder, or a file of weights.

    Raises FileNotFoundError or CheckpointError, which say what is expected, where it is none of these.
    """
    path = Path(path)
    if path.is_file():
        return _single(path, _files_of(path))
    if not path.is_dir():
        raise FileNotFoundError(f"{path} does not exist; give a model folder or a file of weights")
    if layout := _folder_of(path):
        return _diffusers(path) if layout == DIFFUSERS else _original(path)
    if files := find_diffusers_weights(path):
        return _single(path, files, find_diffusers_weights(path, torch.float16))
    others = sorted(file for file in path.iterdir() if file.suffix.lower() in WEIGHT_SUFFIXES and file.is_file())
    near = _near(path)
    if len(others) == 1 and not near:
        return _single(path, (others[0],))
    names = ", ".join(file.name for file in others)
    several = f". It holds {names}: give the path of one of these files" if others else ""
    raise CheckpointError(
        f"{path} holds no model; expected {CONFIG_NAME} and weights, or a folder of diffusers{several}{near}"
    )


def _folder_of(path: Path) -> str | None:
    """DIFFUSERS or ORIGINAL, where a folder is a model in one of these layouts."""
    if (path / DIFFUSERS_INDEX).is_file() or (path / "unet" / "config.json").is_file():
        return DIFFUSERS
    is_original = (path / CONFIG_NAME).is_file() or any(map(find_twin, _original_files(path, ModelConfig()).values()))
    return ORIGINAL if is_original else None


def _near(path: Path) -> str:
    names = sorted(below.name for below in path.iterdir() if _folder_of(below))
    return f". There is one in {', '.join(names)}" if names else ""


def _files_of(path: Path) -> tuple[Path, ...]:
    """What is to be read for a file: all the shards that an index names, or that one of them is of."""
    if path.suffix.lower() == ".json":
        if "weight_map" in read_json(path):
            return _shards(path)
        raise CheckpointError(f"{path} is JSON, not weights; give the folder that it lies in, or a file of weights")
    if not (shard := SHARD.fullmatch(path.name)):
        return (path,)
    start, number, total, ending = shard.groups()
    files = tuple(path.with_name(f"{start}{i:05}-of-{total}{ending}") for i in range(1, int(total) + 1))
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(
                f"{path} is shard {int(number)} of {int(total)}, and {file.name} is missing beside it. Put it there"
            )
    return files or (path,)


def find_twin(named: Path) -> Path | None:
    """The file of weights that a configuration names, or its .safetensors twin; the twin wins."""
    return next((path for path in (named.with_suffix(".safetensors"), named) if path.is_file()), None)


def _original_files(path: Path, config: ModelConfig) -> dict[str, Path]:
    return {"unet": path / config.unet_file, "vae": path / config.vae_file, "text encoder": path / config.text_file}


def _original(path: Path) -> Layout:
    config = read_config(path) if (path / CONFIG_NAME).is_file() else None
    parts, missing = {}, {}
    for part, named in _original_files(path, config or ModelConfig()).items():
        if found := find_twin(named):
            parts[part] = Part((found,))
        else:
            looked = f"looked for {named} and its .safetensors twin"
            missing[part] = f"{named.name} is missing; {looked}. Put the file there"
    if "unet" in missing:
        missing["unet"] += _near(path)
    return Layout(ORIGINAL, path, parts, missing, config)


def _diffusers(path: Path) -> Layout:
    parts, missing = {}, {}
    for part, name in DIFFUSERS_FOLDERS.items():
        folder = path / name
        if files := find_diffusers_weights(folder):
            half_files = find_diffusers_weights(folder, torch.float16)
            schedule = _json(path / SCHEDULER_FILE) if part == "unet" else {}
            parts[part] = Part(files, _json(folder / "config.json"), half_files, schedule)
        else:
            missing[part] = f"{folder} holds no weights, such as {_stem(part)}.safetensors. Put the file there"
    based_on = _json(path / DIFFUSERS_INDEX).get("_name_or_path")
    if "unet" in parts:
        based_on = based_on or parts["unet"].config.get("_name_or_path")
    return Layout(DIFFUSERS, path, parts, missing, None, str(based_on or ""))


def _stem(part: str) -> str:
    return "model" if part == "text encoder" else "diffusion_pytorch_model"


def find_diffusers_weights(folder: Path, dtype: torch.dtype | None = None) -> tuple[Path, ...]:
    """The best file of weights in a folder of one part, or its shards; none where there is none.

    dtype: what is wanted. The float16 variant is taken for float16, for any other only where it is all there is.
    """
    for ending in HALF_FIRST if dtype is torch.float16 else FULL_FIRST:
        for stem in STEMS:
            file = folder / (stem + ending)
            if file.is_file():
                return _shards(file) if ending.endswith(".json") else (file,)
    return ()


def _shards(index: Path) -> tuple[Path, ...]:
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise CheckpointError(f"{index} has no weight_map, the list of its shards; download it again")
    files = tuple(index.parent / Path(str(name)).name for name in sorted(set(map(str, names.values()))))
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing; {index.name} names it as a shard. Put the file there")
    return files


def _single(path: Path, files: tuple[Path, ...], half_files: tuple[Path, ...] = ()) -> Layout:
    keys = [key for file in files for key in read_state_dict(file)]
    found = parts_in(keys)
    configs = {part: config_beside(files[0], part) for part in found}
    missing = {
        part: f"{path} is {what_is(keys)}; expected a ModelScope {name}"
        for part, name in PARTS.items()
        if part not in found
    }
    based_on = next((str(name) for config in configs.values() if (name := config.get("_name_or_path"))), "")
    schedules = {"unet": schedule_beside(files[0])}
    parts = {part: Part(files, configs[part], half_files, schedules.get(part, {})) for part in found}
    return Layout(SINGLE, path, parts, missing, None, based_on, files)


def _json(path: Path) -> Mapping[str, Any]:
    return read_json(path) if path.is_file() else {}


def names_of(layout: Layout) -> list[str]:
    """What may tell which model this is: its name, those of a file and its folder, and of the model it was made of."""
    path = layout.path.absolute()
    names = [path.name]
    if layout.name == SINGLE:
        names += [file.name for file in layout.files[:1] if path.is_dir()] + [path.parent.name]
    if path.parent.name == "snapshots":  # huggingface_hub keeps a repository's files in models--NAME/snapshots/REVISION
        names.append(path.parent.parent.name)
    return [*names, *([layout.based_on] if layout.based_on else [])]
