"""Inspection: what a file of weights or a model folder is, in what precision, what it lacks, and how it is used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from .checkpoint import LOADERS, check_parts, read_network
from .configuration import CheckpointError
from .families import Family, family_of
from .layouts import (
    DIFFUSERS,
    ELSEWHERE,
    LORA_FOLDER,
    ORIGINAL,
    PARTS,
    SINGLE,
    Layout,
    find_diffusers_weights,
    find_layout,
    names_of,
    what_is,
)
from .lora_files import describe_lora
from .state_dict import read_files

Report = dict[str, Any]

KINDS = {ORIGINAL: "a ModelScope model folder", DIFFUSERS: "a model folder in diffusers' format"}


def inspect(path: str | Path) -> Report:
    """A report of plain values (str, int, list, dict); of weights only headers are read.

    Always: `path`, `is` (in words), `layout` (modelscope, diffusers or file; None of what is no model), `family` (the
    published model that its name says it is, or None), `parts` (unet, vae, text encoder: files, config, tensors,
    parameters, bytes, dtypes), `missing` (part -> where it was looked for), `problems` and `warnings` (a line each).
    With a family: `trained` and `suggested`, from `families.FAMILIES`. Of a file also tensors, parameters, bytes and
    dtypes in all. Of a LoRA what `lora_files.describe_lora` says.

    Raises FileNotFoundError or CheckpointError where there is nothing to report of.
    """
    path = Path(path)
    try:
        layout = find_layout(path)
    except CheckpointError:
        if lora := _lora(path):  # a folder of PEFT's, or a list of tensors
            return {**_empty(path), **lora}
        raise
    tensors = read_files(_single_files(layout), "meta")
    report = _empty(path) | {"is": KINDS.get(layout.name) or what_is(tensors)}
    report["layout"] = layout.name if layout.parts else None
    if family := family_of(names_of(layout)) if layout.parts else None:
        report |= {"family": family.name, "trained": _trained(family), "suggested": _suggested(family)}
    report |= {"max_frames": layout.config.max_frames} if layout.config else {}
    _add_parts(report, layout)
    report |= (not layout.parts and _lora(path)) or {}
    return report | (_measure(tensors) if layout.name == SINGLE else {})


def _empty(path: Path) -> Report:
    lists: Report = {"parts": {}, "missing": {}, "problems": [], "warnings": []}
    return {"path": str(path), "is": "", "layout": None, "family": None, **lists}


def _lora(path: Path) -> Report | None:
    """What there is to say of a LoRA, None of anything else."""
    try:
        return describe_lora(path)
    except (CheckpointError, FileNotFoundError):
        return None


def _single_files(layout: Layout) -> Sequence[Path]:
    if layout.name != SINGLE:
        return []
    return [layout.path] if layout.path.is_file() else find_diffusers_weights(layout.path)


def _add_parts(report: Report, layout: Layout) -> None:
    shapes = {}
    for part in layout.parts:
        try:
            config, weights, _ = read_network(layout, part, "meta")
            shapes[part] = LOADERS[part](layout, device="meta").config
        except ValueError as error:
            report["problems"].append(str(error))
        else:
            files = [str(file) for file in layout.parts[part].files]
            report["parts"][part] = {"files": files, **_measure(weights), "config": asdict(config)}
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


def _trained(family: Family) -> Report:
    return {
        "width": family.width,
        "height": family.height,
        "num_frames": family.num_frames,
        "source": family.source,
    }


def _suggested(family: Family) -> Report:
    settings = {"steps": family.steps, "guidance_scale": family.guidance_scale, "fps": family.fps}
    return settings | ({"denoise": list(family.denoise)} if family.denoise else {})


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
            lines.append(f"  {name}: {_text(value)}")
    return "\n".join(lines)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) if all(isinstance(v, str) for v in value) else str(list(value))
    return f"{value:,}" if isinstance(value, int) and value > 9999 else str(value)
