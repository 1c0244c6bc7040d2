"""Calls functions in an interpreter set up as ComfyUI's, for comparisons with ComfyUI's own classes.

A child and not the test process: comfy settles device, dtypes and attention once, when it is imported; it
brings top-level modules `nodes`, `utils` and `server`, the first of which is also a folder of this pack; and
it warns and changes global state of torch, which would reach every other test.

The child imports ComfyUI, which takes seconds, and then answers every call with a fork of itself, so that a
function finds ComfyUI as it was imported, whatever the ones before it changed.
"""

import importlib.util
import json
import os
import select
import subprocess
import sys
import tempfile
import traceback
import types
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Values = dict[str, Any]
PATIENCE = 600  # seconds


class ComfyChild:
    """The child that `job` (`comfyui`, `base`, `flags`, `environment`) describes; it ends with the context."""

    def __init__(self, job: Values):
        self._log = Path(job["base"], f"child-{uuid.uuid4().hex}.log")
        with self._log.open("wb") as stream:
            self._process = subprocess.Popen(
                [sys.executable, __file__, json.dumps(job)],
                cwd=job["base"],
                env={**os.environ, **job["environment"]},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
            )

    def __enter__(self) -> "ComfyChild":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def call(self, function: Callable[..., Values], /, **arguments: Any) -> Values:
        """`function(**arguments)`, of a top-level function of a file."""
        with tempfile.TemporaryDirectory() as exchange:
            _write(Path(exchange, "arguments"), arguments)
            where = {"file": function.__code__.co_filename, "function": function.__name__, "exchange": exchange}
            logged = self._log.stat().st_size
            if code := self._answer(json.dumps(where)):
                log = self._log.read_bytes()[logged:].decode(errors="replace")
                raise RuntimeError(f"{function.__name__} ended with {code}\n{log[-8000:]}")
            return _read(Path(exchange, "result"))

    def _answer(self, line: str) -> str:
        """Empty where all went well, else how the call ended."""
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return "its interpreter, before it was called"
        if not select.select([self._process.stdout], [], [], PATIENCE)[0]:
            self._process.kill()
            return f"no answer after {PATIENCE} s"
        code = self._process.stdout.readline().strip()
        return "" if code == "0" else f"code {code}" if code else "its interpreter"


def call_in_comfy(job: Values, function: Callable[..., Values], /, **arguments: Any) -> Values:
    """`function(**arguments)` in a child of its own."""
    with ComfyChild(job) as child:
        return child.call(function, **arguments)


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
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what ComfyUI prints belongs to the log
    _import_comfyui(job)
    for line in sys.stdin:
        answers.write(f"{_call_in_fork(**json.loads(line))}\n")
        answers.flush()


def _import_comfyui(job: Values) -> None:
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
    # The first parses sys.argv, and everything in comfy reads the device from there; the rest is for all calls.
    import comfy.cli_args  # isort: skip
    import nodes  # isort: skip # noqa: F401
    import tests.comfy.called_nodes  # isort: skip # noqa: F401


def _call_in_fork(file: str, function: str, exchange: str) -> int:
    """The exit code of a fork that calls the function; it has no thread but this one to lose."""
    if fork := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1])
    code = 1
    try:
        _call(file, function, Path(exchange))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _call(file: str, function: str, exchange: Path) -> None:
    spec = importlib.util.spec_from_file_location("called_in_comfy", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    # As ComfyUI runs nodes.
    with torch.inference_mode():
        result = getattr(module, function)(**_read(exchange / "arguments"))
    _write(exchange / "result", result)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
