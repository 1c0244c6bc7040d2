"""Fixtures: a running ComfyUI with this pack installed, and a way into its Python."""

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from sdvideo_core import SDVideo
from sdvideo_core.demo.clips import Scene, caption, draw_clip
from sdvideo_core.demo.untrained import DEMO_UNET, make_demo_model
from tests.comfy.comfy_child import ComfyChild
from tests.comfy.comfy_server import (
    ENVIRONMENT,
    FLAGS,
    ComfyServer,
    find_comfyui,
    make_base_directory,
    start_comfyui,
)


def pytest_addoption(parser: pytest.Parser) -> None:
    text = "rewrite tests/comfy/schemas.json and locales/en/nodeDefs.json"
    parser.addoption("--update-schemas", action="store_true", help=text)


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
def comfy_demo(comfy_base: Path) -> Path:
    """The model `demo` of the example workflows: tiny, with random weights in float16 pickles."""
    return make_demo_model(comfy_base / "models" / "text2video" / "demo")


@pytest.fixture(scope="module")
def api(comfy_demo: Path) -> Iterator[SDVideo]:
    """The model `demo` in Python, with as many threads as ComfyUI's process has."""
    threads = torch.get_num_threads()
    torch.set_num_threads(int(ENVIRONMENT["OMP_NUM_THREADS"]))
    yield SDVideo(comfy_demo, amp=False)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def unet_alone(comfy_demo: Path) -> Iterator[Path]:
    """A UNet's file alone, with the JSON that says how wide the heads of so small a model are."""
    folder = comfy_demo.parent / "alone"
    folder.mkdir()
    file = folder / "diffusion_pytorch_model.pth"  # only beside such a name a config.json counts
    shutil.copyfile(next(comfy_demo.glob("text2video_pytorch_model.*")), file)
    config = {"_class_name": "UNet3DConditionModel", "attention_head_dim": DEMO_UNET.head_dim}
    (folder / "config.json").write_text(json.dumps(config))
    yield file
    shutil.rmtree(folder)  # other tests list these models


@pytest.fixture(scope="session")
def example_frames(comfy_base: Path) -> Path:
    """The frames of the example workflows: 16 pictures, 96x80, of a disc that crosses a speckled floor."""
    folder = comfy_base / "input" / "example_frames"
    folder.mkdir()
    # Speckles, for in flat areas the tiny autoencoder, with a norm for every channel, divides by almost nothing
    # and makes rounding errors large.
    floor = np.random.default_rng(0).integers(0, 256, (80, 96, 3), dtype=np.uint8)
    for index in range(16):
        image = Image.fromarray(floor)
        ImageDraw.Draw(image).ellipse((index * 4, 20, index * 4 + 30, 50), fill=(255, 40, 16 * index))
        image.save(folder / f"frame{index}.png")
    return folder


@pytest.fixture(scope="session")
def example_clips(comfy_base: Path) -> Path:
    """The clips of the example workflow for training: two GIFs with captions, 6 frames of 64x64."""
    folder, rng = comfy_base / "input" / "example_clips", np.random.default_rng(0)
    folder.mkdir()
    for number, scene in enumerate((Scene("red", "circle", "left", "black"), Scene("blue", "star", "up", "white")), 1):
        first, *rest = map(Image.fromarray, draw_clip(scene, rng, num_frames=6, size=64))
        first.save(folder / f"{number:04}.gif", save_all=True, append_images=rest)
        (folder / f"{number:04}.txt").write_text(caption(scene, rng), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def server(comfyui: Path, comfy_base: Path) -> Iterator[ComfyServer]:
    # `timeout` around the tests sends SIGTERM, which by default ends Python at once and leaves the server.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    with start_comfyui(comfyui, comfy_base) as running:
        yield running
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")
def comfy_job(comfyui: Path, comfy_base: Path) -> dict[str, Any]:
    """What `call_in_comfy` needs to know, for tests that change its `flags`."""
    return {"comfyui": str(comfyui), "base": str(comfy_base), "flags": FLAGS, "environment": ENVIRONMENT}


@pytest.fixture(scope="session")
def in_comfy(comfy_job: dict[str, Any]) -> Iterator[Callable[..., dict[str, Any]]]:
    """`in_comfy(function, **arguments)` calls a top-level function of a test file as a node would run: among
    ComfyUI's modules, with the server's flags, in torch.inference_mode. Its arguments and the dict it returns
    hold tensors and JSON values. There, `sdvideo` is this pack; import it and comfy inside the function."""
    with ComfyChild(comfy_job) as child:
        yield child.call
