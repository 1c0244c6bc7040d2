"""Fixtures: the demo model, a tiny ModelScope directory with random weights."""

import gc
from pathlib import Path

import pytest
import torch

from sdvideo_core import SDVideo
from sdvideo_core.demo.untrained import make_demo_model


def pytest_collection_finish() -> None:
    # What is imported by now is no garbage; looking through it after each training takes as long as the training.
    gc.freeze()


@pytest.fixture(scope="session")
def demo_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo_model(tmp_path_factory.mktemp("demo_model"), dtype=torch.float32)


@pytest.fixture(scope="session")
def demo_model(demo_model_dir: Path) -> SDVideo:
    return SDVideo(demo_model_dir, amp=False)
