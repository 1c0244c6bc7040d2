"""Fixtures: the demo model, a tiny ModelScope directory with random weights."""

import gc
from pathlib import Path
from typing import Any

import pytest
import torch

from sdvideo_core import SDVideo
from sdvideo_core.demo.untrained import make_demo_model

SHARING = ("tests/browser/", "tests/comfy/")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """What one worker runs: the tests of a file, or all that share a ComfyUI, which takes long to start."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return next((folder for folder in SHARING if file.startswith(folder)), file)

    return Scheduling(config, log)


def pytest_collection_finish() -> None:
    # What is imported by now is no garbage; looking through it after each training takes as long as the training.
    gc.freeze()


@pytest.fixture(scope="session")
def demo_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo_model(tmp_path_factory.mktemp("demo_model"), dtype=torch.float32)


@pytest.fixture(scope="session")
def demo_model(demo_model_dir: Path) -> SDVideo:
    return SDVideo(demo_model_dir, amp=False)
