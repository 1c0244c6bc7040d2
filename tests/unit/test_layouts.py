"""Layouts: paths that are nearly a model, such as one shard, an index or the folder above, lead to it or name it."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from sdvideo_core.checkpoint import CheckpointError, load_unet
from sdvideo_core.cli import main
from sdvideo_core.config import ModelConfig
from sdvideo_core.families import family_of
from sdvideo_core.inspection import inspect
from sdvideo_core.layouts import find_layout, names_of
from tests.unit.small_model import assert_same, put_beside_nothing, save_diffusers

UNET, VAE = ModelConfig.unet_file, ModelConfig.vae_file


@pytest.fixture(scope="module")
def shards(theirs, tmp_path_factory) -> Path:
    """The folder of a UNet that diffusers wrote in three files or more."""
    folder = save_diffusers(tmp_path_factory.mktemp("shards"), {"unet": theirs["unet"]}, max_shard_size="400KB")
    assert len(list((folder / "unet").glob("*.safetensors"))) >= 3
    return folder / "unet"


@pytest.mark.parametrize("pattern", ["*.index.json", "*-00001-of-*", "*-00002-of-*"])
def test_an_index_and_one_shard_stand_for_all(shards, loaded, pattern):
    [path] = shards.glob(pattern)
    assert_same(path, loaded, ["unet"])
    assert inspect(path)["tensors"] == len(loaded["unet"])


def test_shards_need_no_index_and_a_missing_one_is_named(shards, loaded, tmp_path):
    folder = Path(shutil.copytree(shards, tmp_path / "unet"))
    next(folder.glob("*.index.json")).unlink()
    first, second, *_ = sorted(folder.glob("*.safetensors"))
    assert_same(first, loaded, ["unet"])
    second.unlink()
    message = rf"{first.name} is shard 1 of \d+, and {second.name} is missing beside it\. Put it there$"
    with pytest.raises(FileNotFoundError, match=message):
        load_unet(first)


@pytest.mark.parametrize("name", ["model_index.json", "unet/config.json"])
def test_other_json_names_the_folder(diffusers_dir, name):
    path = diffusers_dir / name
    with pytest.raises(CheckpointError, match=rf"^{path} is JSON, not weights; give the folder that it lies in"):
        find_layout(path)


def test_the_folder_above_several_models_names_them(original_dir, tmp_path):
    """As zeroscope_v2_1111models lies: an autoencoder, and models below, of which one has no JSON."""
    shutil.copyfile(original_dir / VAE, tmp_path / VAE)
    for name in ("zs2_576w", "zs2_XL", "pictures"):
        (tmp_path / name).mkdir()
    shutil.copyfile(original_dir / UNET, tmp_path / "zs2_XL" / UNET)
    (tmp_path / "zs2_576w" / "configuration.json").write_text(json.dumps({}))
    message = rf"{UNET} is missing; looked for .*\. Put the file there\. There is one in zs2_576w, zs2_XL$"
    with pytest.raises(FileNotFoundError, match=message):
        load_unet(tmp_path)


def test_the_only_file_of_a_folder_is_taken_whatever_its_name(original_dir, loaded, tmp_path):
    folder = put_beside_nothing(original_dir, tmp_path).parent
    (folder / "configuration.json").rename(tmp_path.with_suffix(".json"))
    with pytest.raises(CheckpointError, match=r"zeroscope_v1_320s\.pth has not the size of the published models"):
        load_unet(folder)
    assert family_of(names_of(find_layout(folder))).name == "ZeroScope v1 320s"


def test_of_several_files_the_folder_names_each(original_dir, tmp_path, capsys):
    for name in ("zs.pth", "zs2.SAFETENSORS", "notes.txt"):
        shutil.copyfile(original_dir / UNET, tmp_path / name)
    message = "or a folder of diffusers. It holds zs.pth, zs2.SAFETENSORS: give the path of one of these files\n"
    assert main(["info", str(tmp_path)]) == 1
    assert capsys.readouterr().err.endswith(message)


def test_a_file_beside_models_is_not_taken_for_what_the_folder_is(original_dir, tmp_path):
    shutil.copyfile(original_dir / VAE, tmp_path / "vae.pth")
    (tmp_path / "zeroscope").symlink_to(original_dir)
    with pytest.raises(CheckpointError, match=r"It holds vae\.pth: give .* There is one in zeroscope$"):
        find_layout(tmp_path)


def test_shards_in_name_only_are_read_as_one_file(shards, tmp_path):
    weights = {key: value for file in sorted(shards.glob("*.safetensors")) for key, value in load_file(file).items()}
    save_file(weights, tmp_path / "zs-00001-of-00001.safetensors")
    save_file(weights, tmp_path / "zs-00001-of-00000.safetensors")
    for file in tmp_path.iterdir():
        assert find_layout(file).files == (file,)
