"""Calls a function in a fresh interpreter set up as ComfyUI's, for comparisons with ComfyUI's own classes.

A child and not the test process: comfy settles device, dtypes and attention once, when it is imported; it
brings top-level modules `nodes`, `utils` and `server`, the first of which is also a folder of this pack; and
it warns and changes global state of torch, which would reach every other test.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Values = dict[str, Any]


def call_in_comfy(job: Values, function: Callable[..., Values], **arguments: Any) -> Values:
    """`function(**arguments)` in the child that `job` (`comfyui`, `base`, `flags`, `environment`) describes."""
    with tempfile.TemporaryDirectory() as exchange:
        _write(Path(exchange, "arguments"), arguments)
        where = {"file": function.__code__.co_filename, "function": function.__name__, "exchange": exchange}
        command = [sys.executable, __file__, json.dumps({**job, **where})]
        environment = {**os.environ, **job["environment"]}
        child = subprocess.run(command, cwd=job["base"], env=environment, capture_output=True, text=True, timeout=600)
        if child.returncode:
            ended = f"{function.__name__} ended with code {child.returncode}"
            raise RuntimeError(f"{ended}\n{child.stderr[-8000:]}")
        return _read(Path(exchange, "result"))


def _write(path: Path, values: Values) -> None:
    # Cloned, because safetensors refuses tensors that share memory, as views of one another do.
    tensors = {name: value.clone().contiguous() for name, value in values.items() if torch.is_tensor(value)}
    save_file(tensors, path.with_suffix(".safetensors"))
    rest = {name: value for name, value in values.items() if name not in tensors}
    path.with_suffix(".json").write_text(json.dumps(rest), encoding="utf-8")


def _read(path: Path) -> Values:
    rest = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    return {**load_file(path.with_suffix(".safetensors")), **rest}


def main(job: Values) -> None:
    # ComfyUI's root in place of this file's folder; the pack is reached by links in folders of their own, so
    # that `import nodes` can only be ComfyUI's.
    sys.path[0] = job["comfyui"]
    sys.path += [str(Path(job["base"], "custom_nodes")), str(Path(job["base"], "core"))]
    sys.argv = ["main.py", *job["flags"], "--base-directory", job["base"]]

    # ComfyUI has a package `tests` too, which only its own tests import; test files mean ours.
    sys.modules["tests"] = types.ModuleType("tests")
    sys.modules["tests"].__path__ = [str(Path(__file__).parents[1])]

    import comfy.options

    comfy.options.enable_args_parsing()
    # Parses sys.argv; everything in comfy reads the device from here when it is imported.
    import comfy.cli_args

    spec = importlib.util.spec_from_file_location("called_in_comfy", job["file"])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    exchange = Path(job["exchange"])
    # As ComfyUI runs nodes.
    with torch.inference_mode():
        result = getattr(module, job["function"])(**_read(exchange / "arguments"))
    _write(exchange / "result", result)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
