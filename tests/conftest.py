"""Fixtures: the demo model, a tiny ModelScope directory with random weights."""

from pathlib import Path

import pytest
import torch

from sdvideo_core import SDVideo
from sdvideo_core.demo.untrained import make_demo_model


@pytest.fixture(scope="session")
def demo_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo_model(tmp_path_factory.mktemp("demo_model"), dtype=torch.float32)


@pytest.fixture(scope="session")
def demo_model(demo_model_dir: Path) -> SDVideo:
    return SDVideo(demo_model_dir, amp=False)
