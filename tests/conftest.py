"""Fixtures: the demo model, a tiny ModelScope directory with random weights."""

import gc
from pathlib import Path

import pytest
import torch

from sdvideo_core import SDVideo
from sdvideo_core.demo.untrained import make_demo_model


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What one worker runs: the tests of a file, or all that share a ComfyUI, which takes long to start."""
    if not config.pluginmanager.hasplugin("xdist"):
        return
    for item in items:
        folder, file = item.path.parent.name, item.path.stem
        item.add_marker(pytest.mark.xdist_group(folder if folder in ("browser", "comfy") else file))


def pytest_collection_finish() -> None:
    # What is imported by now is no garbage; looking through it after each training takes as long as the training.
    gc.freeze()


@pytest.fixture(scope="session")
def demo_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo_model(tmp_path_factory.mktemp("demo_model"), dtype=torch.float32)


@pytest.fixture(scope="session")
def demo_model(demo_model_dir: Path) -> SDVideo:
    return SDVideo(demo_model_dir, amp=False)
