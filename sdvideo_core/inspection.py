"""Inspection: what a file of weights or a model directory is, in what precision, and what it lacks."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from .checkpoint import (
    check_parts,
    find_weights,
    load_text_encoder,
    load_unet,
    load_vae,
    read_state_dict,
    text_weights,
    unet_weights,
    vae_weights,
    what_is,
)
from .configuration import CONFIG_NAME, read_config

Report = dict[str, Any]

READERS = {"unet": unet_weights, "vae": vae_weights, "text encoder": text_weights}
LOADERS = {"unet": load_unet, "vae": load_vae, "text encoder": load_text_encoder}


def inspect(path: Path) -> Report:
    """A report of plain values (str, int, list, dict); only headers are read. Errors become entries of it."""
    if path.is_dir():
        return _inspect_directory(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; give a model directory or a file of weights")
    weights = read_state_dict(path)
    return {"path": str(path), "is": what_is(weights), **_measure(weights)}


def _inspect_directory(path: Path) -> Report:
    report: Report = {"path": str(path), "is": "a ModelScope model directory", "missing": [], "problems": []}
    if not (path / CONFIG_NAME).is_file():
        return report | {"is": f"a directory without {CONFIG_NAME}", "missing": [CONFIG_NAME]}
    config = read_config(path)
    report["unet config"] = asdict(config.unet)
    report["max frames"] = config.max_frames
    names = {"unet": config.unet_file, "vae": config.vae_file, "text encoder": config.text_file}
    shapes = {}
    for part, name in names.items():
        try:
            file = find_weights(path, name)
            weights = READERS[part](file)
            shapes[part] = LOADERS[part](path, device="meta").config
        except FileNotFoundError:
            report["missing"].append(name)
        except ValueError as error:
            report["problems"].append(str(error))
        else:
            report[part] = {"file": str(file), **_measure(weights)}
            if part != "unet":
                report[part]["config"] = asdict(shapes[part])
    if len(shapes) == len(names):
        try:
            check_parts(shapes["unet"], shapes["vae"], shapes["text encoder"], path)
        except ValueError as error:
            report["problems"].append(str(error))
    return report


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
    for name, value in report.items():
        if name in ("path", "is") or value in ([], {}):
            continue
        lines.append(f"  {name}: {_text(value)}")
    return "\n".join(lines)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) if all(isinstance(v, str) for v in value) else str(list(value))
    return f"{value:,}" if isinstance(value, int) and value > 9999 else str(value)
