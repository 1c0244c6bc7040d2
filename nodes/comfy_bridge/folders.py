"""ComfyUI's folders: where models, inputs and outputs are, and what an output may say of its making."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import folder_paths
from comfy.cli_args import args

from ...sdvideo_core.configuration import CONFIG_NAME
from ...sdvideo_core.video_io import is_sequence

MODEL_FOLDER = "text2video"


def register_model_folder() -> None:
    """Adds models/text2video to the folders of that name that extra_model_paths.yaml may have set up."""
    folder_paths.add_model_folder_path(MODEL_FOLDER, str(Path(folder_paths.models_dir) / MODEL_FOLDER))


def model_directories() -> dict[str, Path]:
    """Name -> directory of every model, by its configuration.json up to two folders deep."""
    found = {}
    for root in map(Path, reversed(folder_paths.get_folder_paths(MODEL_FOLDER))):
        for pattern in (
            CONFIG_NAME,
            f"*/{CONFIG_NAME}",
            f"*/*/{CONFIG_NAME}",
        ):
            found |= {path.parent.relative_to(root).as_posix(): path.parent for path in root.glob(pattern)}
    return dict(sorted(found.items()))


def model_directory(name: str) -> Path:
    """The directory of a listed model; a name that is not listed is refused, whatever path it spells."""
    directories = model_directories()
    if name not in directories:
        raise FileNotFoundError(
            f"model {name!r} is not in {' or '.join(folder_paths.get_folder_paths(MODEL_FOLDER))}; "
            f"found {', '.join(directories) or 'none'}. Put its folder, with {CONFIG_NAME}, there."
        )
    return directories[name]


def input_sequences() -> list[str]:
    """What Load Frame Sequence can read in the input folder: folders with pictures, animations and videos."""
    root = Path(folder_paths.get_input_directory())
    found = (path for pattern in ("*", "*/*") for path in root.glob(pattern) if is_sequence(path))
    return sorted(path.relative_to(root).as_posix() for path in found)


def stamp(path: Path) -> list[tuple[str, int, int]]:
    """Changes whenever a file, or a file of a folder, does."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [(file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files]


def input_path(name: str) -> Path:
    """A file or folder inside ComfyUI's input folder; a path that leaves it is an error."""
    return Path(folder_paths.get_annotated_filepath(name))


def output_file(prefix: str, suffix: str, width: int, height: int) -> tuple[Path, str]:
    """The next numbered file for a prefix inside the output folder, and its subfolder."""
    directory = folder_paths.get_output_directory()
    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, directory, width, height)
    return Path(folder) / f"{name}_{counter:05}_{suffix}", subfolder


def workflow_comment(prompt: Any, extra: dict[str, Any] | None) -> str | None:
    """Prompt and workflow as JSON to store in an output, nothing under --disable-metadata."""
    if args.disable_metadata:
        return None
    return json.dumps({"prompt": prompt, **(extra or {})})
