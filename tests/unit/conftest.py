"""Fixtures: a model whose UNet has one resolution, to train; and one as diffusers' own classes make and save it."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from sdvideo_core import SDVideo
from sdvideo_core.checkpoint import LOADERS
from sdvideo_core.config import ModelConfig, UNetConfig
from sdvideo_core.configuration import CONFIG_NAME, configuration
from sdvideo_core.convert import convert
from sdvideo_core.unet import UNetSD
from tests.unit.small_training import NewModel

SMALL = ModelConfig(
    unet=UNetConfig(dim=32, context_dim=64, dim_mult=(1,), num_heads=2, head_dim=16, res_blocks=1, attn_scales=(1.0,))
)


@pytest.fixture(scope="session")
def small_model_dir(demo_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model with a UNet of one resolution, which still has every kind of layer that trains."""
    folder = Path(shutil.copytree(demo_model_dir, tmp_path_factory.mktemp("small") / "model"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.save(UNetSD(SMALL.unet).state_dict(), folder / SMALL.unet_file)
    (folder / CONFIG_NAME).write_text(json.dumps(configuration(SMALL)), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def small_model(small_model_dir: Path) -> SDVideo:
    """One for all tests that do not train it."""
    return SDVideo(small_model_dir, amp=False)


@pytest.fixture
def new_model(small_model_dir: Path) -> NewModel:
    """A function that loads a model to train."""
    return partial(SDVideo, small_model_dir, amp=False)


@pytest.fixture
def model(new_model: NewModel) -> SDVideo:
    return new_model()


@pytest.fixture(scope="session")
def theirs() -> dict[str, Any]:
    """unet, vae and text_encoder of diffusers and transformers, as small as they can be."""
    from tests.unit.small_model import their_model  # imports diffusers, which takes seconds

    return their_model()


@pytest.fixture(scope="session")
def diffusers_dir(theirs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.unit.small_model import save_diffusers

    return save_diffusers(tmp_path_factory.mktemp("diffusers"), theirs)


@pytest.fixture(scope="session")
def original_dir(diffusers_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model in ModelScope's layout."""
    folder = tmp_path_factory.mktemp("original") / "model"
    convert(diffusers_dir, folder, "modelscope")
    return folder


@pytest.fixture(scope="session")
def loaded(diffusers_dir: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Its weights as they are loaded, by part."""
    return {part: load(diffusers_dir).state_dict() for part, load in LOADERS.items()}
