"""Convert: a model of any known layout, written as a ModelScope directory, a folder of diffusers, or safetensors.

Networks are read and written one after the other and tensor by tensor, so that memory never holds more than one
network's file. Nothing appears under the target's name before all of it is there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from .checkpoint import check_network, check_parts, read_network
from .config import ModelConfig
from .configuration import CONFIG_NAME, configuration
from .diffusers_folder import SCHEDULER, model_index, text_encoder_config, tokenizer_files, unet_config, vae_config
from .diffusers_format import text_to_transformers, unet_to_diffusers, vae_to_diffusers
from .layouts import DIFFUSERS, DIFFUSERS_FOLDERS, DIFFUSERS_INDEX, ORIGINAL, PARTS, Layout, find_layout
from .part_config import head_width
from .state_dict import (
    SAFETENSORS_DTYPES,
    WEIGHT_SUFFIXES,
    StateDict,
    read_files,
    read_state_dict,
    write_safetensors,
)
from .weights import open_clip_weights
from .whole_file import whole_file, whole_folder

SAFETENSORS = "safetensors"
FORMATS = (ORIGINAL, DIFFUSERS, SAFETENSORS)
SUFFIX = ".safetensors"
PRECISIONS = tuple(dtype for dtype in SAFETENSORS_DTYPES if dtype.is_floating_point)
# Where a Stable Diffusion checkpoint, as VQGAN_autoencoder.pth is, has its autoencoder.
FIRST_STAGE = "first_stage_model."

Places = Mapping[str, Layout]  # part -> the model that it is taken from
Configs = Mapping[str, Any]  # part -> UNetConfig, VAEConfig or TextConfig
Rename = Callable[[StateDict, Any], StateDict]


# What an OpenCLIP model holds beside the text tower that runs here, by how its tensors' names begin.
CLIP_EXTRAS = {"visual.": "image tower", "text_projection": "text_projection", "logit_scale": "logit_scale"}


@dataclass(frozen=True)
class Conversion:
    """What was written."""

    parts: list[str]
    notes: list[str]  # what the target lacks that other tools may look for, a line each


@dataclass(frozen=True)
class Plan:
    """What a folder will hold, by names in it."""

    weights: Mapping[str, str]  # part -> file; what does not end in .safetensors is a pickle
    texts: Mapping[str, Any]  # file -> text, or what JSON is made of
    renames: Mapping[str, Rename]  # part -> from the names of ModelScope's files; none keeps them


def convert(
    source: str | Path,
    target: str | Path,
    layout: str,
    dtype: torch.dtype | None = None,
    vae: str | Path | None = None,
    text_encoder: str | Path | None = None,
) -> Conversion:
    """Writes a model in another layout; tells the parts it has there. Those that the source lacks are left out.

    layout: `modelscope`, configuration.json and three pickles of the original names;
    `safetensors`, the same with safetensors files in place of pickles, or the UNet alone as one file where the
    target's name ends in .safetensors; `diffusers`, a folder for its TextToVideoSDPipeline. dtype: of the weights, one
    of PRECISIONS; None keeps each as it is. vae, text_encoder: models or files to take these parts from.

    Weights come through bit for bit where dtype is None, between OpenCLIP's files the whole CLIP model with its image
    tower. A folder of diffusers has no place for that, nor for the text tower's last block; on the way back that is
    zeros, for what is read is the block before it. The notes say so. Tools that load the whole OpenCLIP model strictly,
    as ModelScope's and A1111's do, need a file that was one. Raises FileExistsError rather than overwrite, and
    CheckpointError, before anything is written, for weights that do not fit their model.
    """
    if layout not in FORMATS:
        raise ValueError(f"format {layout!r}; expected {', '.join(FORMATS)}")
    if dtype not in (None, *PRECISIONS):
        raise ValueError(f"dtype {dtype}; expected one of {', '.join(map(str, PRECISIONS))}, or None to keep each")
    target = Path(target).absolute()
    if target.exists():
        raise FileExistsError(f"{target} is there already; give another name, or remove it first")
    places = _places(find_layout(source), vae, text_encoder)
    alone = layout == SAFETENSORS and target.suffix == SUFFIX
    _check_name(target, layout, alone, has_parts=bool(vae or text_encoder))
    if alone:
        places = {"unet": places["unet"]}
    configs = {part: _checked_config(place, part, dtype) for part, place in places.items()}
    if len(configs) == len(PARTS):
        check_parts(configs["unet"], configs["vae"], configs["text encoder"], source)
    if alone:
        with whole_file(target, exclusive=True) as file:
            _write_weights(places["unet"], "unet", file, dtype)
        return Conversion(list(places), [])
    plan = _diffusers_plan(configs) if layout == DIFFUSERS else _original_plan(places["unet"], configs, layout)
    with whole_folder(target, exclusive=True) as folder:
        for name, content in plan.texts.items():
            _write_text(folder / name, content)
        for part, name in plan.weights.items():
            (folder / name).parent.mkdir(exist_ok=True)
            write = _write_weights if name.endswith(SUFFIX) else _write_pickle
            write(places[part], part, folder / name, dtype, plan.renames.get(part))
    notes = _text_notes(places["text encoder"], layout, dtype) if "text encoder" in places else []
    return Conversion(list(places), notes)


def _check_name(target: Path, layout: str, alone: bool, has_parts: bool) -> None:
    if alone and has_parts:
        raise ValueError(
            f"{target} is one file, which holds a UNet; write it with vae=None and text_encoder=None, or name a folder"
        )
    if not alone and target.suffix in WEIGHT_SUFFIXES:
        raise ValueError(
            f"{target.name} is a file's name, but {layout} is a folder; name a folder, or for the UNet alone a file of "
            f"{SAFETENSORS} that ends in {SUFFIX}"
        )


def _places(main: Layout, vae: str | Path | None, text_encoder: str | Path | None) -> Places:
    main.part("unet")
    named = {"vae": vae, "text encoder": text_encoder}
    others = {part: find_layout(path) for part, path in named.items() if path}
    for part, layout in others.items():
        layout.part(part)
    places = {part: others.get(part, main) for part in PARTS}
    return {part: layout for part, layout in places.items() if part in layout.parts}


def _checked_config(place: Layout, part: str, dtype: torch.dtype | None) -> Any:
    network = read_network(place, part, "meta", dtype)
    check_network(part, network)
    return network.config


def _text_notes(place: Layout, layout: str, dtype: torch.dtype | None) -> list[str]:
    """What of a whole CLIP model is not in the target."""
    source = open_clip_weights(read_files(place.part("text encoder").files_for(dtype), "meta"))
    held = [name for start, name in CLIP_EXTRAS.items() if any(key.startswith(start) for key in source)]
    lacking = [name for name in CLIP_EXTRAS.values() if name not in held]
    if layout == DIFFUSERS and source:
        lost = ", ".join(["its last block, which never runs", *held])
        return [f"a folder of diffusers has no place for all of the text encoder; left out: {lost}"]
    if layout == DIFFUSERS or not lacking:
        return []
    zeros = "" if source else ", and its last block, which never runs, may be zeros"
    return [
        f"the text encoder's file lacks {', '.join(lacking)}, as its source does{zeros}. SDVideo needs none of that; "
        f"tools that load the whole OpenCLIP model strictly need the published {ModelConfig.text_file}"
    ]


def _original_plan(main: Layout, configs: Configs, layout: str) -> Plan:
    config = replace(main.config or ModelConfig(), unet=configs["unet"])
    names = {"unet": "unet_file", "vae": "vae_file", "text encoder": "text_file"}
    suffix = SUFFIX if layout == SAFETENSORS else None
    files = {field: _renamed(getattr(ModelConfig, field), suffix) for field in names.values()}
    content = configuration(replace(config, **files))
    return Plan({part: files[names[part]] for part in configs}, {CONFIG_NAME: content}, {})


def _renamed(name: str, suffix: str | None) -> str:
    return str(Path(name).with_suffix(suffix)) if suffix else name


def _diffusers_plan(configs: Configs) -> Plan:
    texts = {DIFFUSERS_INDEX: model_index(configs), "scheduler/scheduler_config.json": SCHEDULER}
    weights = {}
    for part, config in configs.items():
        folder = DIFFUSERS_FOLDERS[part]
        weights[part] = f"{folder}/{'model' if part == 'text encoder' else 'diffusion_pytorch_model'}{SUFFIX}"
        texts[f"{folder}/config.json"] = COMPONENT_CONFIGS[part](config)
    if text := configs.get("text encoder"):
        texts |= {f"tokenizer/{name}": content for name, content in tokenizer_files(text.context_length).items()}
    return Plan(weights, texts, RENAMES)


RENAMES: dict[str, Rename] = {
    "unet": unet_to_diffusers,
    "vae": vae_to_diffusers,
    "text encoder": text_to_transformers,
}
COMPONENT_CONFIGS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "unet": unet_config,
    "vae": vae_config,
    "text encoder": text_encoder_config,
}


def _write_text(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")


def _write_weights(
    place: Layout, part: str, path: Path, dtype: torch.dtype | None, rename: Rename | None = None
) -> None:
    config, weights, _ = read_network(place, part, dtype=dtype)
    if rename:
        weights = rename(weights, config)
    elif part == "text encoder":  # other tools load all of it, the image tower too
        weights = open_clip_weights(read_files(place.part(part).files_for(dtype))) or weights
    write_safetensors(path, weights, dtype, head_width(config) if part == "unet" else {})


def _write_pickle(
    place: Layout, part: str, path: Path, dtype: torch.dtype | None, rename: Rename | None = None
) -> None:
    """Through a safetensors file, as torch writes memory-mapped tensors without holding them, but converts none."""
    temporary = path.with_suffix(f".tmp{SUFFIX}")
    _write_weights(place, part, temporary, dtype, rename)
    weights = read_state_dict(temporary)
    wrapped = {"state_dict": {FIRST_STAGE + key: value for key, value in weights.items()}}
    problem = _problem_of_saving(wrapped if part == "vae" else weights, path)
    del weights, wrapped  # Windows deletes no file that is mapped
    temporary.unlink()
    if problem:
        raise OSError(f"not all of {path.name} could be written ({problem})")


def _problem_of_saving(content: Any, path: Path) -> str:
    """Empty where it went well; text, as an exception would hold on to the content."""
    try:
        torch.save(content, path)
    except RuntimeError as error:  # torch's own writer raises it whatever the system says
        return str(error).partition("\n")[0]
    return ""
