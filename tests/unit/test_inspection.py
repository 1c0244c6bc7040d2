"""Inspection: reports about directories and files, whole, incomplete and wrong."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from sdvideo_core import SDVideo, demo_model
from sdvideo_core.checkpoint import CheckpointError, load_text_encoder
from sdvideo_core.cli import main
from sdvideo_core.config import ModelConfig
from sdvideo_core.demo import few_steps_lora
from sdvideo_core.demo.untrained import make_demo_model
from sdvideo_core.inspection import describe, inspect
from sdvideo_core.lora import LoRA, save_lora
from sdvideo_core.lora_files import describe_lora, read_lora
from sdvideo_core.state_dict import read_state_dict
from sdvideo_core.video_io import save_gif, save_mp4, save_pngs, save_webp
from sdvideo_core.weights import text_shapes

UNET, VAE, TEXT = ModelConfig.unet_file, ModelConfig.vae_file, ModelConfig.text_file
PARTS = {"unet": UNET, "vae": VAE, "text encoder": TEXT}


@pytest.fixture
def model_dir(demo_model_dir: Path, tmp_path: Path) -> Path:
    """A copy of the demo model, for one test to change."""
    return Path(shutil.copytree(demo_model_dir, tmp_path / "model"))


def test_whole_model(demo_model_dir):
    report = inspect(demo_model_dir)
    assert (report["is"], report["layout"]) == ("a ModelScope model folder", "modelscope")
    assert (report["missing"], report["problems"], report["warnings"]) == ({}, [], [])
    parts = report["parts"]
    assert parts["unet"]["config"]["dim"] == 32
    assert parts["vae"]["config"] == {"ch": 32, "ch_mult": (1, 1, 1, 2), "num_res_blocks": 1, "z_channels": 4}
    assert parts["text encoder"]["config"]["layers"] == 3
    for part, name in PARTS.items():
        assert parts[part]["files"] == [str(demo_model_dir / name)]
        assert list(parts[part]["dtypes"]) == ["float32"]


def test_sizes_are_those_of_the_weights(demo_model_dir, demo_model):
    measured = inspect(demo_model_dir)["parts"]["unet"]
    parameters = list(demo_model.unet.parameters())
    assert measured["tensors"] == len(parameters)
    assert measured["parameters"] == sum(parameter.numel() for parameter in parameters)
    assert measured["bytes"] == 4 * measured["parameters"]
    assert measured["dtypes"] == {"float32": len(parameters)}


def test_precision_is_told(tmp_path):
    unet = inspect(make_demo_model(tmp_path, dtype=torch.float16))["parts"]["unet"]
    assert unet["dtypes"] == {"float16": unet["tensors"]}
    assert unet["bytes"] == 2 * unet["parameters"]


def test_report_is_json(demo_model_dir):
    assert json.loads(json.dumps(inspect(demo_model_dir)))["parts"]["vae"]["config"]["ch_mult"] == [1, 1, 1, 2]


def looked(path: Path) -> str:
    return f"looked for {path} and its .safetensors twin"


@pytest.mark.parametrize(("part", "name"), PARTS.items())
def test_missing_part_is_listed_and_the_others_are_measured(model_dir, part, name):
    (model_dir / name).unlink()
    report = inspect(model_dir)
    [(missing, where)] = report["missing"].items()
    assert (missing, where) == (part, f"{name} is missing; {looked(model_dir / name)}. Put the file there")
    assert list(report["parts"]) == [other for other in PARTS if other != part]
    assert f"\n  missing: {part} {name} is missing; looked for " in describe(report)


def test_wrong_file_is_a_problem_that_is_told(model_dir):
    shutil.copyfile(model_dir / TEXT, model_dir / VAE)
    report = inspect(model_dir)
    problem = f"{model_dir / VAE} is an OpenCLIP model; expected a ModelScope autoencoder"
    assert (report["problems"], report["missing"]) == ([problem], {})
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


def test_folder_without_a_model(demo_model_dir, tmp_path):
    message = r"holds no model; expected configuration\.json and weights, or a folder of diffusers$"
    with pytest.raises(CheckpointError, match=message):
        inspect(tmp_path)
    shutil.copytree(demo_model_dir, tmp_path / "deeper")
    with pytest.raises(CheckpointError, match=r"There is one in deeper$"):
        inspect(tmp_path)


def test_bad_configuration_is_an_error(tmp_path):
    (tmp_path / "configuration.json").write_text("<html>")
    with pytest.raises(CheckpointError, match="is a web page, not JSON"):
        inspect(tmp_path)


def test_path_that_does_not_exist(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"does not exist; give a model folder or a file of weights$"):
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
    weights = {"fc.weight": torch.zeros(100, 100), "fc.bias": torch.zeros(100, 100, dtype=torch.float16)}
    torch.save(weights, tmp_path / "some.pth")
    assert describe(inspect(tmp_path / "some.pth")).splitlines() == [
        f"{tmp_path / 'some.pth'} is unknown (its first tensor is fc.weight)",
        "  tensors: 2",
        "  parameters: 20,000",
        "  bytes: 60,000",
        "  dtypes: float32 1, float16 1",
    ]


def test_lora_is_described(tmp_path):
    path = "lora_unet_input_blocks_0_1_proj_in"
    weights = {f"{path}.lora_down.weight": torch.zeros(4, 320), f"{path}.lora_up.weight": torch.zeros(512, 4)}
    save_file(weights, tmp_path / "lora.safetensors")
    report = inspect(tmp_path / "lora.safetensors")
    assert report["layout"] is None
    assert report == report | describe_lora(tmp_path / "lora.safetensors")
    assert report["tensors"] == 2


def test_loras_of_the_demo_model_are_told_to_be_for_it(tmp_path, capsys):
    assert main(["info", str(few_steps_lora())]) == 0
    shown = capsys.readouterr().out
    assert "\n  for: SDVideo's demo model\n" in shown
    assert "\n  unused layers: 0\n" in shown
    unet = SDVideo(demo_model(), amp=False).unet
    lora = LoRA(unet, rank=2, targets="temporal")
    save_lora(lora, tmp_path / "lora.safetensors")
    report = inspect(tmp_path / "lora.safetensors")
    assert (report["for"], report["unet layers"]) == ("SDVideo's demo model", len(lora.adapters))


def test_what_is_wrong_with_a_lora_is_a_problem(tmp_path, capsys):
    path, name = tmp_path / "lora.safetensors", "lora_unet_input_blocks_0_1_proj_in"
    save_file({f"{name}.lora_down.weight": torch.zeros(4, 320)}, path)
    report = inspect(path)
    assert report["is"] == "a LoRA"
    with pytest.raises(CheckpointError) as caught:
        read_lora(path)
    assert report["problems"] == [str(caught.value)]
    assert f"{name}.lora_up.weight is missing" in report["problems"][0]
    assert main(["info", str(path)]) == 1
    assert "lora_up.weight is missing" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("save", "content"),
    [(save_file, {}), (torch.save, {}), (torch.save, []), (torch.save, [torch.ones(2, 2)] * 3)],
)
def test_a_lora_that_cannot_be_read_is_told_as_when_it_is_loaded(tmp_path, save, content):
    path = tmp_path / f"lora{'.safetensors' if save is save_file else '.pt'}"
    save(content, path)
    with pytest.raises(CheckpointError) as loading:
        read_lora(path)
    with pytest.raises(CheckpointError) as telling:
        inspect(path)
    assert str(telling.value) == str(loading.value)


@pytest.mark.parametrize("form", ["original", "diffusers"])
def test_each_file_is_read_once_and_without_open_clip(original_dir, diffusers_dir, monkeypatch, form):
    read = []

    def counted(path):
        read.append(path)
        return read_state_dict(path)

    monkeypatch.setattr("sdvideo_core.state_dict.read_state_dict", counted)
    monkeypatch.delitem(sys.modules, "sdvideo_core.text_encoder", raising=False)
    monkeypatch.setitem(sys.modules, "open_clip", None)  # which takes seconds to import
    monkeypatch.setitem(sys.modules, "open_clip.tokenizer", None)
    report = inspect(original_dir if form == "original" else diffusers_dir)
    assert (list(report["parts"]), report["problems"]) == (list(PARTS), [])
    assert len(read) == len(set(read)) == 3


def test_the_shapes_of_a_text_tower_are_those_of_open_clips(demo_model_dir):
    config, expected = load_text_encoder(demo_model_dir).config, load_text_encoder(demo_model_dir).state_dict()
    assert text_shapes(config) == {key: tuple(value.shape) for key, value in expected.items()}


CLIPS = {
    "clip.gif": (save_gif, "an animated GIF, to start from in vid2vid or, with a caption, to train on; no model", 12.5),
    "clip.webp": (
        save_webp,
        "an animated WebP, to start from in vid2vid or, with a caption, to train on; no model",
        12.5,
    ),
    "clip.mp4": (save_mp4, "a video (h264), to start from in vid2vid or, with a caption, to train on; no model", 12.5),
    "clip": (lambda video, path, fps: save_pngs(video, path), "a folder of pictures, to start from in vid2vid", None),
}


@pytest.mark.parametrize("name", CLIPS)
def test_clip_is_described(name, tmp_path, capsys):
    save, what, fps = CLIPS[name]
    save(torch.rand(1, 3, 5, 48, 64, generator=torch.Generator().manual_seed(0)), tmp_path / name, fps=12.5)
    report = inspect(tmp_path / name)
    assert report["is"].startswith(what)
    assert (report["num_frames"], report["width"], report["height"], report["fps"]) == (5, 64, 48, fps)
    assert main(["info", str(tmp_path / name)]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / name} is {what}")


def test_picture_is_described_and_a_broken_one_is_named(tmp_path):
    Image.new("RGB", (64, 48)).save(tmp_path / "one.png")
    assert inspect(tmp_path / "one.png")["is"] == "a picture (PNG)"
    for name, content in {"broken.png": (tmp_path / "one.png").read_bytes()[:60], "broken.mp4": b"no video"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(OSError, match=rf"^cannot read .*{name}: .*; replace or remove the file$"):
            inspect(tmp_path / name)


def test_pictures_beside_other_files_are_no_clip(tmp_path):
    Image.new("RGB", (64, 48)).save(tmp_path / "vid_loss.png")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(CheckpointError, match="holds no model"):
        inspect(tmp_path)


def test_description_of_a_whole_model_has_a_line_for_each_part(demo_model_dir):
    lines = describe(inspect(demo_model_dir)).splitlines()
    assert lines[0] == f"{demo_model_dir} is a ModelScope model folder"
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["max_frames", *PARTS]


@pytest.fixture(scope="module")
def finetuned(diffusers_dir, tmp_path_factory) -> Path:
    """What Text-To-Video-Finetuning writes: a folder of diffusers with a LoRA in it."""
    folder = Path(shutil.copytree(diffusers_dir, tmp_path_factory.mktemp("runs") / "checkpoint-100"))
    (folder / "lora").mkdir()
    (folder / "lora" / "100_unet.pt").touch()
    return folder


def test_folder_of_diffusers(finetuned):
    report = inspect(finetuned)
    assert (report["is"], report["layout"]) == ("a model folder in diffusers' format", "diffusers")
    assert [report["parts"][part]["config"]["dim" if part == "unet" else "ch"] for part in ("unet", "vae")] == [32, 32]
    assert report["parts"]["text encoder"]["config"]["layers"] == 3
    assert report["parts"]["unet"]["files"] == [str(finetuned / "unet" / "diffusion_pytorch_model.safetensors")]
    lora = finetuned / "lora" / "100_unet.pt"
    assert report["warnings"] == [f"LoRAs lie beside it, and are not part of it: {lora}"]


def test_folder_of_diffusers_without_an_autoencoder(finetuned, tmp_path, capsys):
    folder = shutil.copytree(finetuned, tmp_path / "model")
    shutil.rmtree(folder / "vae")
    assert main(["info", str(folder)]) == 1
    assert f"missing: vae {folder / 'vae'} holds no weights, such as diffusion_pytorch_model" in capsys.readouterr().out


def test_unet_alone(finetuned, capsys):
    report = inspect(finetuned / "unet" / "diffusion_pytorch_model.safetensors")
    assert (report["is"], report["layout"]) == ("a UNet in diffusers' format", "file")
    assert (list(report["parts"]), report["missing"], report["problems"]) == (["unet"], {}, [])
    assert [line.split(":")[0] for line in report["warnings"]] == [
        "it has no autoencoder",
        "it has no OpenCLIP text tower",
    ]
    assert inspect(finetuned / "unet")["is"] == "a UNet in diffusers' format"
    assert main(["info", str(finetuned / "unet")]) == 0
