"""Demo model: the same files for the same seed, in the layout and keys of the published ones."""

import pytest
import torch

from sdvideo_core.checkpoint import read_config
from sdvideo_core.config import ModelConfig
from sdvideo_core.demo.untrained import DEMO_UNET, make_demo_model

FILES = (ModelConfig.unet_file, ModelConfig.vae_file, ModelConfig.text_file)


def weights(directory, name):
    content = torch.load(directory / name, weights_only=True)
    return content.get("state_dict", content)


def test_files_are_those_of_a_modelscope_directory(tmp_path):
    directory = make_demo_model(tmp_path / "new" / "model")
    assert sorted(path.name for path in directory.iterdir()) == sorted([*FILES, "configuration.json"])
    assert read_config(directory) == ModelConfig(unet=DEMO_UNET)
    assert sum((directory / name).stat().st_size for name in FILES) < 13_000_000
    assert {value.dtype for name in FILES for value in weights(directory, name).values()} == {torch.float16}


@pytest.mark.parametrize("name", FILES)
def test_same_seed_is_the_same_model(tmp_path, name):
    first, again, other = (weights(make_demo_model(tmp_path / str(i), seed), name) for i, seed in enumerate((3, 3, 4)))
    assert first.keys() == again.keys() == other.keys()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


def test_torchs_own_random_numbers_are_left_alone(tmp_path):
    before = torch.get_rng_state()
    make_demo_model(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
