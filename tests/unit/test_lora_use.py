"""LoRA in use: in Python with SDVideo, and on the command line."""

import functools
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sdvideo_core import SDVideo, load_sequence
from sdvideo_core.checkpoint import CheckpointError
from sdvideo_core.cli import main
from sdvideo_core.cli_lora import path_and_strength
from sdvideo_core.config import ModelConfig
from sdvideo_core.configuration import CONFIG_NAME
from sdvideo_core.lcm import LCM
from sdvideo_core.lora_export import write_kohya
from sdvideo_core.lora_files import read_lora
from sdvideo_core.lora_formats import Pair
from sdvideo_core.lora_layers import Layers
from tests.unit.small_lora import random

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")


@pytest.fixture(scope="module")
def model(demo_model_dir) -> SDVideo:
    return SDVideo(demo_model_dir, amp=False)


@pytest.fixture(scope="module")
def layers(model) -> Layers:
    return Layers.of(model.unet, model.text_encoder)


def write_lora(path: Path, layers: Layers, part: str, seed: int = 1, lcm: LCM | None = None) -> Path:
    """A LoRA for the layers whose paths hold `part`, which may say how it is sampled."""
    pairs = {
        layer: Pair(random(2, *rest, seed=seed), 0.1 * random(out, 2, *(1 for _ in rest[1:]), seed=seed + 1), 2.0)
        for layer, (out, *rest) in layers.shapes.items()
        if part in layer
    }
    write_kohya(pairs, path, torch.float32, lcm.metadata() if lcm else {})
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory, layers) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("loras")
    return {part: write_lora(folder / f"{part}.safetensors", layers, part) for part in ("attn1", "temopral", "mlp")}


@pytest.fixture
def sample(model):
    yield functools.partial(model, "a red circle", timesteps=2, image_size=(32, 32), num_frames=3, seed=0)
    model.unload_lora()


def test_several_act_until_they_are_unloaded(files, model, sample):
    base = sample()
    report = model.load_lora(files["attn1"], 0.5)
    assert str(report).startswith(f"{files['attn1']}, a LoRA in kohya's format: {len(report.applied)} layers applied")
    assert all("attn1" in path for path in report.applied)
    one = sample()
    model.load_lora(str(files["temopral"]))
    two = sample()
    model.unload_lora()
    assert not torch.equal(one, base)
    assert not torch.equal(two, one)
    assert torch.equal(sample(), base)
    model.load_lora(files["temopral"])
    model.load_lora(files["attn1"], 0.5)
    assert torch.equal(sample(), two)


def test_the_text_encoder_is_adapted_too(files, model):
    before = model.text_encoder(["a red circle"])
    report = model.load_lora(files["mlp"])
    assert all(path.startswith("text_model.") for path in report.applied)
    changed = model.text_encoder(["a red circle"])
    model.unload_lora()
    assert not torch.equal(changed, before)
    assert torch.equal(model.text_encoder(["a red circle"]), before)


def test_strength_0_is_the_base_model(files, sample, model):
    base = sample()
    model.load_lora(files["attn1"], 0.0)
    assert torch.equal(sample(), base)


def test_lcm_is_as_the_first_few_step_lora_says(files, layers, tmp_path, model, sample):
    said = {name: LCM(original_steps=steps) for name, steps in {"twenty": 20, "ten": 10}.items()}
    for name, lcm in said.items():
        files = {**files, name: write_lora(tmp_path / f"{name}.safetensors", layers, "attn1", lcm=lcm)}
    found = []
    for name, strength in (("attn1", 1.0), ("ten", 0.0), ("twenty", 0.5), ("ten", 1.0)):
        model.load_lora(files[name], strength)
        found.append(model.lcm)
    assert found == [LCM(), LCM(), said["twenty"], said["twenty"]]
    sample = functools.partial(sample, guidance_scale=1, timesteps=3)
    assert torch.equal(sample(sampler="lcm"), sample(sampler=said["twenty"]))
    assert not torch.equal(sample(sampler="lcm"), sample(sampler=LCM()))
    model.unload_lora()
    assert model.lcm == LCM()


def test_the_command_line_samples_as_the_lora_says(layers, demo_model_dir, tmp_path, monkeypatch):
    lora = write_lora(tmp_path / "ten.safetensors", layers, "attn1", lcm=LCM(original_steps=10))
    samplers = []
    monkeypatch.setattr(LCM, "sample", lambda self, _eps_model, x, *_: samplers.append(self) or x)
    for strength in (1, 0):
        given = ["--sampler", "lcm", "--lora", f"{lora}:{strength}", "--size", "32x32", "--frames", "1"]
        assert main(["txt2vid", str(demo_model_dir), "a", *given, "--output", str(tmp_path / f"{strength}.gif")]) == 0
    assert samplers == [LCM(original_steps=10), LCM()]


def test_unloading_nothing(model, sample):
    base = sample()
    model.unload_lora()
    assert torch.equal(sample(), base)


def test_a_lora_of_another_model_changes_nothing(files, tmp_path, model, sample):
    model.load_lora(files["attn1"])
    expected = sample()
    path = tmp_path / "lora.safetensors"
    save_file({f"lora_unet_x.lora_{part}.weight": torch.ones(1, 1) for part in ("up", "down")}, path)
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(path))} is a LoRA in kohya's format of another model"):
        model.load_lora(path)
    assert torch.equal(sample(), expected)


@needs_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_on_cuda_the_weights_are_those_of_the_cpu(dtype, files, demo_model_dir):
    on_cpu, moved = (SDVideo(demo_model_dir, device, dtype, amp=False) for device in ("cpu", "cuda"))
    before = {key: weight.clone() for key, weight in moved.unet.state_dict().items()}
    moved.load_lora(files["attn1"], 0.5)
    on_cpu.load_lora(files["attn1"], 0.5)
    for key, weight in moved.unet.state_dict().items():
        assert weight.is_cuda
        assert weight.stride() == before[key].stride()
        assert torch.allclose(weight.cpu(), on_cpu.unet.state_dict()[key], rtol=torch.finfo(dtype).eps, atol=0)
    moved.unload_lora()
    assert all(torch.equal(weight, before[key]) for key, weight in moved.unet.state_dict().items())


# Command line


@pytest.mark.parametrize(
    ("text", "path", "strength"),
    [
        ("lora.safetensors", "lora.safetensors", 1.0),
        ("lora.safetensors:0.8", "lora.safetensors", 0.8),
        ("lora.safetensors:-1e-1", "lora.safetensors", -0.1),
        (r"C:\loras\x.safetensors:0.8", r"C:\loras\x.safetensors", 0.8),
        (r"C:\loras\x.safetensors", r"C:\loras\x.safetensors", 1.0),
        (r"C:\x", r"C:\x", 1.0),
        ("C:/x:2", "C:/x", 2.0),
        ("a:b", "a:b", 1.0),
        (":3", ":3", 1.0),
    ],
)
def test_path_and_strength(text, path, strength):
    assert path_and_strength(text) == (path, strength)


@pytest.mark.parametrize("strength", ["abc", "", "0,8"])
def test_a_strength_that_is_no_number(strength, files, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["demo", "--lora", f"{files['mlp']}:{strength}"])
    assert caught.value.code == 2
    message = f"the strength of {files['mlp']} is {strength!r}; expected a number, such as {files['mlp']}:0.8"
    assert f"error: argument --lora: {message}" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("text", ["C:\\a.pt", "C:/a.pt", "a:b"])
def test_a_colon_of_a_path(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("C").touch()
    Path("a").touch()
    Path("a:b").touch()
    assert path_and_strength(text) == (text, 1.0)


def run(capsys, *args: str | Path) -> str:
    assert main(list(map(str, args))) == 0
    return capsys.readouterr().err


def test_loras_of_a_command(files, tmp_path, demo_model_dir, capsys):
    options = ("--steps", 1, "--size", "32x24", "--frames", 2, "--seed", 0, "--device", "cpu", "--no-amp")
    command = ("txt2vid", demo_model_dir, "a red circle", *options)
    run(capsys, *command, "--output", tmp_path / "base.gif")
    loras = ("--lora", f"{files['attn1']}:0.5", "--lora", files["temopral"])
    said = run(capsys, *command, *loras, "--output", tmp_path / "lora.gif")
    assert f"{files['attn1']}, a LoRA in kohya's format: " in said
    assert " layers applied, strength 0.5\n" in said
    assert " layers applied, strength 1\n" in said
    base, changed = (load_sequence(tmp_path / f"{name}.gif", 1, image_size=(32, 24)) for name in ("base", "lora"))
    assert base[0].tobytes() != changed[0].tobytes()


@pytest.mark.parametrize(("form", "name"), [("kohya", "a.safetensors"), ("webui", "b.safetensors"), ("peft", "c")])
def test_convert_lora(form, name, files, tmp_path, demo_model_dir, layers, capsys):
    path = tmp_path / name
    command = ("convert-lora", files["attn1"], path, "--format", form, "--dtype", "float32", "--model", demo_model_dir)
    said = run(capsys, *command)
    assert said.startswith(f"{files['attn1']}, a LoRA in kohya's format: ")
    assert said.endswith(f"Wrote {path}\n")
    read, source = read_lora(path), read_lora(files["attn1"]).match(layers)
    assert read.format == form
    assert read.match(layers).report.applied == source.report.applied


def test_convert_lora_overwrites_nothing(files, tmp_path, demo_model_dir, capsys):
    path = tmp_path / "mine.safetensors"
    path.write_text("mine")
    assert main(["convert-lora", str(files["attn1"]), str(path), "--model", str(demo_model_dir)]) == 1
    said = f"sdvideo: cannot write the LoRA {path}: it is there already; give another name, or remove it first\n"
    assert capsys.readouterr().err == said
    assert path.read_text() == "mine"


def test_convert_lora_for_a_model_without_a_text_encoder(files, tmp_path, demo_model_dir, capsys):
    (tmp_path / "model").mkdir()
    for name in (ModelConfig.unet_file, CONFIG_NAME):
        shutil.copy(demo_model_dir / name, tmp_path / "model")
    path = tmp_path / "new.safetensors"
    run(capsys, "convert-lora", files["attn1"], path, "--model", tmp_path / "model", "--dtype", "float32")
    assert read_lora(path).layers.keys() == read_lora(files["attn1"]).layers.keys()
