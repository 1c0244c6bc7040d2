"""ComfyUI's folders: where models, inputs and outputs are, and what an output may say of its making."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import folder_paths
from comfy.cli_args import args

from ...sdvideo_core.config import ModelConfig
from ...sdvideo_core.configuration import CONFIG_NAME
from ...sdvideo_core.demo import EXAMPLES, demo_model
from ...sdvideo_core.layouts import DIFFUSERS_INDEX, SHARD
from ...sdvideo_core.part_config import STEMS
from ...sdvideo_core.state_dict import WEIGHT_SUFFIXES
from ...sdvideo_core.video_io import is_sequence, natural_order, sequence_files

MODEL_FOLDER = "text2video"
DEMO_NAME = "demo"

ROOT = "."  # what a model right in models/text2video was called, as older workflows have it
DEPTHS = ("", "*/", "*/*/")
# What a folder holds that is a model as a whole; other files of weights are models of their own.
MODEL_MARKS = (CONFIG_NAME, DIFFUSERS_INDEX, "unet/config.json", "text2video_pytorch_model.*")
SHARD_MARKS = tuple(f"{stem}.*index*.json" for stem in STEMS)  # of a part whose weights are several files
PART_STEMS = {Path(name).stem for name in (ModelConfig.unet_file, ModelConfig.vae_file, ModelConfig.text_file)}

OWN = "the model's own"
PART_FOLDERS = {"vae": ("vae", "checkpoints"), "clip": ("text_encoders", "checkpoints")}


def register_model_folder() -> None:
    """Adds models/text2video to the folders of that name that extra_model_paths.yaml may have set up."""
    folder_paths.add_model_folder_path(MODEL_FOLDER, str(Path(folder_paths.models_dir) / MODEL_FOLDER))


def model_directories() -> dict[str, Path]:
    """Name -> folder or file of every model, up to two folders deep in models/text2video; last the shipped one.

    A model right in models/text2video has that folder's name, unless another has it.
    """
    found, roots = {}, []
    for root in map(Path, reversed(folder_paths.get_folder_paths(MODEL_FOLDER))):
        folders = set(_folders_with(root, MODEL_MARKS))
        sharded = set(_folders_with(root, SHARD_MARKS))
        folders |= {folder for folder in sharded if (folders - {root}).isdisjoint(folder.parents)}
        below = (path for depth in DEPTHS for path in root.glob(f"{depth}*"))
        files = (path for path in below if path.suffix.lower() in WEIGHT_SUFFIXES and path.is_file())
        # A model right in the root owns its three files there, not what else lies beside them.
        alone = {path for path in files if (folders - {root}).isdisjoint(path.parents)}
        alone -= {path for path in alone if root in folders and path.parent == root and _is_part(path)}
        found |= {path.relative_to(root).as_posix(): path for path in (folders | alone) - {root}}
        roots += folders & {root}
    found |= {ROOT if root.name in found else root.name: root for root in roots}
    found = dict(sorted(found.items()))
    with contextlib.suppress(FileNotFoundError):  # installed without it, to save space
        found.setdefault(DEMO_NAME, demo_model())
    return found


def _is_part(path: Path) -> bool:
    return path.stem in PART_STEMS or bool(SHARD.fullmatch(path.name))


def _folders_with(root: Path, marks: tuple[str, ...]) -> Iterator[Path]:
    for depth in DEPTHS:
        for mark in marks:
            yield from (path.parents[mark.count("/")] for path in root.glob(depth + mark))


def model_directory(name: str) -> Path:
    """The path of a listed model; a name that is not listed is refused, whatever path it spells."""
    directories, roots = model_directories(), folder_paths.get_folder_paths(MODEL_FOLDER)
    # Older graphs name the UNet's file of a model right in the root, which is listed as the root.
    for file in (Path(root, name) for root in roots if Path(name).name == name and Path(name).stem in PART_STEMS):
        if name not in directories and file.is_file():
            return file
    if name == ROOT and name not in directories:
        name = next((Path(root).name for root in roots if Path(root) in directories.values()), name)
    if name not in directories:
        raise FileNotFoundError(
            f"model {name!r} is not in {' or '.join(roots)}; "
            f"found {', '.join(directories) or 'none'}. Put its folder, or its file, there."
        )
    return directories[name]


def part_names(part: str, models: list[str]) -> list[str]:
    """What a model's `vae` or `clip` may come from: itself, another model, or a file in ComfyUI's own folders."""
    files = [f"{folder}/{name}" for folder in PART_FOLDERS[part] for name in folder_paths.get_filename_list(folder)]
    return [OWN, *models, *files]


def part_path(name: str, part: str, model: Path) -> Path:
    """The path that a name of `part_names` stands for."""
    folder, _, file = name.partition("/")
    if name == OWN:
        return model
    if folder in PART_FOLDERS[part] and file in folder_paths.get_filename_list(folder):
        return Path(folder_paths.get_full_path_or_raise(folder, file))
    return model_directory(name)


def check_names(model: str | None, **parts: str | None) -> bool | str:
    """Whether a model and the places of its parts are listed, or what is wrong; None is yet to come through a link."""
    try:
        path = model_directory(model) if model else Path()
        for part, name in parts.items():
            part_path(name or OWN, part, path)
    except FileNotFoundError as error:
        return str(error)
    return True


def input_sequences() -> list[str]:
    """What Load Frame Sequence can read in the input folder: folders with pictures, animations and videos."""
    root = Path(folder_paths.get_input_directory())
    found = (path for pattern in ("*", "*/*") for path in root.glob(pattern) if is_sequence(path))
    names = [path.as_posix() for path in sorted((path.relative_to(root) for path in found), key=natural_order)]
    examples = sorted(path.name for path in EXAMPLES.glob("*") if is_sequence(path) and path.name not in names)
    return names + examples


Stamp = list[tuple[str, int, int]]


def stamp(path: Path) -> Stamp:
    """Changes whenever a file, or a file of a folder or its subfolders, does."""
    return _stamp_of(sorted(path.rglob("*")) if path.is_dir() else [path], path)


def sequence_stamp(path: Path) -> Stamp:
    """Changes whenever one of the files does that Load Frame Sequence reads, or which these are."""
    return _stamp_of(sequence_files(path), path)


def _stamp_of(files: list[Path], path: Path) -> Stamp:
    stats = [(file, file.stat()) for file in files]
    return [(file.relative_to(path.parent).as_posix(), stat.st_mtime_ns, stat.st_size) for file, stat in stats]


def input_path(name: str) -> Path:
    """A file or folder inside ComfyUI's input folder, else an example of that name; a path out of it is an error."""
    path = Path(folder_paths.get_annotated_filepath(name))
    example = EXAMPLES / Path(name).name
    return example if not path.exists() and example.name == name and example.is_dir() else path


def stored_file(name: str, subfolder: str, kind: str) -> Path:
    """A file in ComfyUI's input, output or temp folder, which is its kind; a path out of there is an error."""
    root = folder_paths.get_directory_by_type(kind or "output")
    path = Path(root or "", subfolder, name).resolve()
    if not root or not path.is_relative_to(Path(root).resolve()):
        raise ValueError(f"Invalid file path: {name!r} in {subfolder!r} of {kind!r}")
    if not path.is_file():
        raise FileNotFoundError(f"{name!r} is not a file in {kind or 'output'}; save it again")
    return path


def without_folders(message: str) -> str:
    """A message that tells nothing of where the server's folders lie, however it spells their paths."""
    folders = [folder_paths.get_directory_by_type(kind) or "" for kind in ("input", "output", "temp")]
    for folder in filter(None, (*folders, str(EXAMPLES))):
        for spelled in {f"{folder}{os.sep}", f"{Path(folder).resolve()}{os.sep}"}:
            message = message.replace(spelled, "").replace(repr(spelled)[1:-1], "")
    return message


def clips_folder(name: str) -> Path:
    """A folder to train on: any by its absolute path, else one inside ComfyUI's input folder."""
    name = name.strip().strip('"')  # which a path copied on Windows comes in
    path = Path(name) if Path(name).is_absolute() else input_path(name)
    if not name or not path.is_dir():
        inputs = folder_paths.get_input_directory()
        raise FileNotFoundError(
            f"directory {name!r} is not a folder; expected one in {inputs}, or an absolute path. Put your clips there."
        )
    return path


def output_file(prefix: str, suffix: str, width: int, height: int) -> tuple[Path, str]:
    """The next numbered file for a prefix inside the output folder, and its subfolder."""
    directory = folder_paths.get_output_directory()
    try:
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, directory, width, height)
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"cannot write {prefix} in {directory}: {reason}; change filename_prefix or mend that") from error
    return Path(folder) / f"{name}_{counter:05}_{suffix}", subfolder


def lora_file(prefix: str) -> tuple[Path, str]:
    """The next numbered file for a prefix inside models/loras, and its name as Load LoRA lists it."""
    directory = folder_paths.get_folder_paths("loras")[0]
    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, directory)
    path = Path(folder) / f"{name}_{counter:05}_.safetensors"
    return path, str(Path(subfolder) / path.name)


def temporary_folder() -> Path:
    """ComfyUI's folder for what nobody keeps, which it clears when it starts."""
    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def workflow_graphs(prompt: Any, extra: dict[str, Any] | None) -> dict[str, Any]:
    """Prompt and workflow, to be stored in an output under these names, none under --disable-metadata."""
    return {} if args.disable_metadata else {"prompt": prompt, **(extra or {})}


def workflow_metadata(prompt: Any, extra: dict[str, Any] | None) -> dict[str, str]:
    """The same as the texts that ComfyUI looks for in a .safetensors file."""
    return {name: json.dumps(value) for name, value in workflow_graphs(prompt, extra).items()}
