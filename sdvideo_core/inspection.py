"""Inspection: what a file or a folder is, and of a model in what precision, what it lacks, and how it is used."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from .checkpoint import check_network, check_parts, read_network
from .config import UNetConfig
from .configuration import CheckpointError
from .families import FAMILIES, Family, family_of
from .layouts import (
    DIFFUSERS,
    ELSEWHERE,
    LORA_FOLDER,
    ORIGINAL,
    PARTS,
    SINGLE,
    Layout,
    find_layout,
    names_of,
    what_is,
)
from .lora_files import describe_lora
from .lora_layers import Layers
from .state_dict import read_files

Report = dict[str, Any]

PLAIN = re.compile(r"[\w-]+")

LORA = what_is(["lora"])
# As Pillow has it -> as it is written.
NAMES = {"WEBP": "WebP"}
CLIP_USE = ", to start from in vid2vid or, with a caption, to train on; no model"
FOLDER_USE = ", to start from in vid2vid or, as frames/ID beside text/ID.txt, to train on; no model"
KINDS = {ORIGINAL: "a ModelScope model folder", DIFFUSERS: "a model folder in diffusers' format"}


def inspect(path: str | Path) -> Report:
    """A report of plain values (str, int, list, dict); of weights only headers are read.

    Always: `path`, `is` (in words), `layout` (modelscope, diffusers or file; None of what is no model), `family` (the
    known model that it is by its size or its name, or None), `parts` (unet, vae, text encoder: files, config, tensors,
    parameters, bytes, dtypes), `missing` (part -> where it was looked for), `problems` and `warnings` (a line each).
    With a family: `trained` and `suggested`, from `families.FAMILIES`. Of a file also tensors, parameters, bytes and
    dtypes in all. Of a LoRA what `lora_files.describe_lora` says. Of a clip num_frames, width, height and fps,
    and what it says of how it was made.

    Raises FileNotFoundError, CheckpointError or OSError where there is nothing to report of.
    """
    path = Path(path)
    try:
        layout = find_layout(path)
    except CheckpointError as error:
        return empty_report(path) | _no_model(path, error)
    tensors = read_files(layout.files, "meta")
    report = empty_report(path) | {"is": KINDS.get(layout.name) or what_is(tensors)}
    report["layout"] = layout.name if layout.parts else None
    unet = _add_parts(report, layout)
    if family := family_of(names_of(layout), unet) if layout.parts else None:
        report |= {"family": family.name, "trained": _trained(family), "suggested": _suggested(family)}
    report |= {"max_frames": layout.config.max_frames} if layout.config else {}
    report |= {} if layout.parts else _lora(layout, report["is"])
    return report | (_measure(tensors) if layout.name == SINGLE else {})


def empty_report(path: Path) -> Report:
    """What every report has, before anything is known."""
    lists: Report = {"parts": {}, "missing": {}, "problems": [], "warnings": []}
    return {"path": str(path), "is": "", "layout": None, "family": None, **lists}


def _no_model(path: Path, error: CheckpointError) -> Report:
    """What there is to say of a LoRA in a folder or a list, of pictures and videos; raises of anything else."""
    try:
        return _describe_lora(path)
    except (CheckpointError, FileNotFoundError) as problem:
        if found := _clip(path):
            return found
        if isinstance(problem, FileNotFoundError):
            raise error from None
        raise


def _lora(layout: Layout, what: str) -> Report:
    """What there is to say of a LoRA, or what is wrong with it; nothing of anything else."""
    try:
        try:
            return _describe_lora(layout.path)
        except FileNotFoundError:  # a folder of no known kind, with one file
            return _describe_lora(layout.files[0])
    except CheckpointError as error:
        return {"problems": [str(error)]} if what == LORA else {}


def _describe_lora(path: Path) -> Report:
    """What there is to say of a LoRA, also of one for a family that has a size of its own."""
    return describe_lora(path, others=known_sizes())


def known_sizes() -> dict[str, Layers]:
    """The layers of the families that have a size of their own, by name."""
    return {f.name: Layers.of_size(f.unet, f.text) for f in FAMILIES if f.unet and f.text}


def _clip(path: Path) -> Report | None:
    """What there is to say of pictures and videos, None of anything else."""
    from .video_io import ANIMATION_EXTENSIONS, PICTURE_EXTENSIONS, VIDEO_EXTENSIONS  # which takes a while to import

    extension = path.suffix.lower()
    try:
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if not file.name.startswith("."))
            is_sequence = files and all(file.suffix.lower() in PICTURE_EXTENSIONS for file in files)
            return _folder(files) | _made_with(path) if is_sequence else None
        if extension in VIDEO_EXTENSIONS:
            return _video(path) | _made_with(path)
        is_picture = extension in ANIMATION_EXTENSIONS + PICTURE_EXTENSIONS
        return _pictures(path) | _made_with(path) if is_picture else None
    except (OSError, ValueError, SyntaxError) as error:  # Pillow raises the last on a broken PNG
        raise OSError(f"cannot read {path}: {error}; replace or remove the file") from error


def _made_with(path: Path) -> Report:
    from .video_metadata import SETTINGS, read_metadata

    found = read_metadata(path)
    settings = {"made_with": found[SETTINGS]} if SETTINGS in found else {}
    return settings | ({"workflow": "ComfyUI's, drop it on the canvas"} if "workflow" in found else {})


def _folder(pictures: Sequence[Path]) -> Report:
    return {
        **_pictures(pictures[0]),
        "is": f"a folder of pictures{FOLDER_USE}",
        "num_frames": len(pictures),
        "fps": None,
    }


def _pictures(path: Path) -> Report:
    with Image.open(path) as image:
        num_frames = getattr(image, "n_frames", 1)
        milliseconds = 0.0
        for index in range(num_frames):
            image.seek(index)
            image.load()  # only then a WebP tells how long a frame is shown, and a broken file that it is broken
            milliseconds += image.info.get("duration", 0)
        name = NAMES.get(image.format or "", image.format)
        what = f"an animated {name}{CLIP_USE}" if num_frames > 1 else f"a picture ({name})"
        fps = round(1000 * num_frames / milliseconds, 2) if milliseconds else None
        return {"is": what, "num_frames": num_frames, "width": image.width, "height": image.height, "fps": fps}


def _video(path: Path) -> Report:
    import av

    with av.open(path) as container:
        if not container.streams.video:
            raise ValueError("it has no video stream")
        stream = container.streams.video[0]
        rate = float(stream.average_rate or 0)
        seconds = (container.duration or 0) / av.time_base
        size = {"num_frames": stream.frames or round(seconds * rate), "width": stream.width, "height": stream.height}
        return {"is": f"a video ({stream.codec_context.name}){CLIP_USE}", **size, "fps": round(rate, 2) or None}


def _add_parts(report: Report, layout: Layout) -> UNetConfig | None:
    """Measures the parts, and returns the UNet's shape if it can be read."""
    shapes: dict[str, Any] = {}
    for part in layout.parts:
        try:
            network = read_network(layout, part, "meta")
            check_network(part, network)
            shapes[part] = network.config
        except ValueError as error:
            report["problems"].append(str(error))
        else:
            files = [str(file) for file in layout.parts[part].files]
            report["parts"][part] = {"files": files, **_measure(network.weights), "config": asdict(network.config)}
    if shapes.keys() == PARTS.keys():
        try:
            check_parts(shapes["unet"], shapes["vae"], shapes["text encoder"], layout.path)
        except ValueError as error:
            report["problems"].append(str(error))
    if layout.name != SINGLE:
        report["missing"] = dict(layout.missing)
    elif "unet" in layout.parts:
        report["warnings"] += [
            f"it has no {PARTS[p]}: put it into a model folder{ELSEWHERE[p]}" for p in layout.missing
        ]
    if loras := sorted(map(str, layout.path.glob(f"{LORA_FOLDER}/*.*"))):
        report["warnings"].append(f"LoRAs lie beside it, and are not part of it: {', '.join(loras)}")
    return shapes.get("unet")


def _trained(family: Family) -> Report:
    return {
        "width": family.width,
        "height": family.height,
        "num_frames": family.num_frames,
        "source": family.source,
    }


def _suggested(family: Family) -> Report:
    settings: Report = {"steps": family.steps, "guidance_scale": family.guidance_scale, "fps": family.fps}
    denoise = {"denoise": list(family.denoise)} if family.denoise else {}
    return settings | denoise | {"source": family.settings_source}


def _measure(weights: dict[str, Tensor]) -> Report:
    dtypes = Counter(str(w.dtype).removeprefix("torch.") for w in weights.values())
    return {
        "tensors": len(weights),
        "parameters": sum(w.numel() for w in weights.values()),
        "bytes": sum(w.numel() * w.element_size() for w in weights.values()),
        "dtypes": dict(dtypes),
    }


def describe(report: Report) -> str:
    """The report as lines for people."""
    lines = [f"{report['path']} is {report['is']}"]
    flat = {**report, **report.get("parts", {})}
    for name, value in flat.items():
        if name not in ("path", "is", "layout", "parts") and value not in (None, [], {}):
            lines.append(f"  {name}: {_quoted(value) if name == 'made_with' else _text(value)}")
    return "\n".join(lines)


def _quoted(texts: Report) -> str:
    """Of anybody's texts, which may hold commas, or codes that a terminal would obey."""
    return ", ".join(f"{key if PLAIN.fullmatch(key) else repr(key)} {text!r}" for key, text in texts.items())


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) if all(isinstance(v, str) for v in value) else str(list(value))
    return f"{value:,}" if isinstance(value, int) and value > 9999 else str(value)
