"""Inspection: reports about directories and files, whole, incomplete and wrong."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from sdvideo_core.checkpoint import CheckpointError
from sdvideo_core.config import ModelConfig
from sdvideo_core.demo.untrained import make_demo_model
from sdvideo_core.inspection import describe, inspect

UNET, VAE, TEXT = ModelConfig.unet_file, ModelConfig.vae_file, ModelConfig.text_file
PARTS = {"unet": UNET, "vae": VAE, "text encoder": TEXT}


@pytest.fixture
def model_dir(demo_model_dir: Path, tmp_path: Path) -> Path:
    """A copy of the demo model, for one test to change."""
    return Path(shutil.copytree(demo_model_dir, tmp_path / "model"))


def test_whole_model(demo_model_dir):
    report = inspect(demo_model_dir)
    assert report["is"] == "a ModelScope model directory"
    assert (report["missing"], report["problems"], report["max frames"]) == ([], [], 16)
    assert report["unet config"]["dim"] == 32
    assert report["vae"]["config"] == {"ch": 32, "ch_mult": (1, 1, 1, 2), "num_res_blocks": 1, "z_channels": 4}
    assert report["text encoder"]["config"]["layers"] == 3
    for part, name in PARTS.items():
        assert report[part]["file"] == str(demo_model_dir / name)
        assert list(report[part]["dtypes"]) == ["float32"]


def test_sizes_are_those_of_the_weights(demo_model_dir, demo_model):
    measured = inspect(demo_model_dir)["unet"]
    parameters = list(demo_model.unet.parameters())
    assert measured["tensors"] == len(parameters)
    assert measured["parameters"] == sum(parameter.numel() for parameter in parameters)
    assert measured["bytes"] == 4 * measured["parameters"]
    assert measured["dtypes"] == {"float32": len(parameters)}


def test_precision_is_told(tmp_path):
    report = inspect(make_demo_model(tmp_path, dtype=torch.float16))
    assert report["unet"]["dtypes"] == {"float16": report["unet"]["tensors"]}
    assert report["unet"]["bytes"] == 2 * report["unet"]["parameters"]


def test_report_is_json(demo_model_dir):
    assert json.loads(json.dumps(inspect(demo_model_dir)))["vae"]["config"]["ch_mult"] == [1, 1, 1, 2]


@pytest.mark.parametrize(("part", "name"), PARTS.items())
def test_missing_part_is_listed_and_the_others_are_measured(model_dir, part, name):
    (model_dir / name).unlink()
    report = inspect(model_dir)
    assert report["missing"] == [name]
    assert [other for other in PARTS if other in report] == [other for other in PARTS if other != part]
    assert f"\n  missing: {name}\n" in describe(report)


def test_wrong_file_is_a_problem_that_is_told(model_dir):
    shutil.copyfile(model_dir / TEXT, model_dir / VAE)
    report = inspect(model_dir)
    problem = f"{model_dir / VAE} is an OpenCLIP model; expected a ModelScope autoencoder"
    assert (report["problems"], report["missing"]) == ([problem], [])
    assert f"\n  problems: {problem}\n" in describe(report)


def test_damaged_file_is_a_problem(model_dir):
    (model_dir / UNET).write_bytes((model_dir / UNET).read_bytes()[:-1000])
    [problem] = inspect(model_dir)["problems"]
    assert problem.startswith(f"{model_dir / UNET} cannot be read (")


def test_weights_that_do_not_fit_are_a_problem(model_dir):
    weights = torch.load(model_dir / UNET, weights_only=True)
    del weights["out.2.bias"]
    torch.save(weights, model_dir / UNET)
    message = f"{model_dir / UNET} does not fit its model (1 keys): out.2.bias is missing"
    assert inspect(model_dir)["problems"] == [message]


def test_directory_without_configuration(tmp_path):
    report = inspect(tmp_path)
    assert report["missing"] == ["configuration.json"]
    assert describe(report) == f"{tmp_path} is a directory without configuration.json\n  missing: configuration.json"


def test_bad_configuration_is_an_error(tmp_path):
    (tmp_path / "configuration.json").write_text("<html>")
    with pytest.raises(CheckpointError, match="is a web page, not JSON"):
        inspect(tmp_path)


def test_path_that_does_not_exist(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"does not exist; give a model directory or a file of weights$"):
        inspect(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "what"),
    [(UNET, "a ModelScope UNet"), (VAE, "a checkpoint with an autoencoder"), (TEXT, "an OpenCLIP model")],
)
def test_single_file(demo_model_dir, name, what):
    report = inspect(demo_model_dir / name)
    assert (report["path"], report["is"]) == (str(demo_model_dir / name), what)
    assert report["bytes"] > 1_000_000


def test_description_is_for_people(tmp_path):
    weights = {"a.lora_A.weight": torch.zeros(100, 100), "a.lora_B.weight": torch.zeros(100, 100, dtype=torch.float16)}
    torch.save(weights, tmp_path / "some.pth")
    assert describe(inspect(tmp_path / "some.pth")).splitlines() == [
        f"{tmp_path / 'some.pth'} is a LoRA",
        "  tensors: 2",
        "  parameters: 20,000",
        "  bytes: 60,000",
        "  dtypes: float32 1, float16 1",
    ]


def test_description_of_a_whole_model_has_a_line_for_each_part(demo_model_dir):
    lines = describe(inspect(demo_model_dir)).splitlines()
    assert lines[0] == f"{demo_model_dir} is a ModelScope model directory"
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["unet config", "max frames", *PARTS]
