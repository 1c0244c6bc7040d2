"""Fixtures: a running ComfyUI with this pack installed, and a way into its Python."""

import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.comfy.comfy_child import call_in_comfy
from tests.comfy.comfy_server import FLAGS, ComfyServer, find_comfyui, make_base_directory, start_comfyui


@pytest.fixture(scope="session")
def comfyui() -> Path:
    path = find_comfyui()
    if path is None:
        pytest.skip("no ComfyUI found: set COMFYUI_PATH to a checkout, or install one at ~/comfy/ComfyUI")
    return path


@pytest.fixture(scope="session")
def comfy_base(comfyui: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ComfyUI's --base-directory: models go in models/text2video, frames in input, at any time."""
    return make_base_directory(tmp_path_factory.mktemp("comfyui"))


@pytest.fixture(scope="session")
def server(comfyui: Path, comfy_base: Path) -> Iterator[ComfyServer]:
    # `timeout` around the tests sends SIGTERM, which by default ends Python at once and leaves the server.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    with start_comfyui(comfyui, comfy_base) as running:
        yield running
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")
def in_comfy(comfyui: Path, comfy_base: Path) -> Callable[..., dict[str, Any]]:
    """`in_comfy(function, **arguments)` calls a top-level function of a test file as a node would run: among
    ComfyUI's modules, with the server's flags, in torch.inference_mode. Its arguments and the dict it returns
    hold tensors and JSON values. There, `sdvideo` is this pack; import it and comfy inside the function."""
    job = {"comfyui": str(comfyui), "base": str(comfy_base), "flags": FLAGS}
    return partial(call_in_comfy, job)
