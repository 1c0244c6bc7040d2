"""Checkpoints: every layout of a ModelScope directory that is accepted, and what it costs to load."""

import json
import pickle
import pickletools
import shutil
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from sdvideo_core.checkpoint import assemble, load_text_encoder, load_unet, load_vae, read_config, read_state_dict
from sdvideo_core.config import ModelConfig, UNetConfig
from sdvideo_core.demo.untrained import DEMO_TEXT, DEMO_UNET, DEMO_VAE

UNET, VAE, TEXT = ModelConfig.unet_file, ModelConfig.vae_file, ModelConfig.text_file
LOADERS = {UNET: load_unet, VAE: load_vae, TEXT: load_text_encoder}
FIRST_STAGE = "first_stage_model."
LIGHTNING = "pytorch_lightning"


@pytest.fixture
def model_dir(demo_model_dir: Path, tmp_path: Path) -> Path:
    """A copy of the demo model, for one test to change."""
    return Path(shutil.copytree(demo_model_dir, tmp_path / "model"))


def change_config(directory: Path, **parts: dict[str, Any] | None) -> None:
    """Updates model_args or model_cfg of configuration.json; None removes the part."""
    path = directory / "configuration.json"
    content = json.loads(path.read_text())
    for name, values in parts.items():
        content["model"][name] = None if values is None else content["model"][name] | values
    path.write_text(json.dumps(content))


def file_weights(path: Path) -> dict[str, Tensor]:
    """What torch itself reads, without the wrapper and prefix of the VAE's file."""
    content = torch.load(path, weights_only=True)
    return {key.removeprefix(FIRST_STAGE): value for key, value in content.get("state_dict", content).items()}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    differing = [key for key in found if not torch.equal(found[key], expected[key])]
    assert not differing


def never_run(key: str) -> bool:
    """Parts of an OpenCLIP file that a text encoder read at its penultimate block does without."""
    return key.startswith(
        ("visual.", "logit_scale", "text_projection", f"transformer.resblocks.{DEMO_TEXT.layers - 1}.")
    )


@pytest.mark.parametrize("name", [UNET, VAE])
def test_state_dict_is_the_file_bit_for_bit(demo_model_dir, name):
    assert_equal(LOADERS[name](demo_model_dir).state_dict(), file_weights(demo_model_dir / name))


def test_text_encoder_is_the_file_less_what_never_runs(demo_model_dir):
    expected = file_weights(demo_model_dir / TEXT)
    assert any(key.startswith("visual.") for key in expected)
    kept = {key: value for key, value in expected.items() if not never_run(key)}
    assert_equal(load_text_encoder(demo_model_dir).state_dict(), kept)


def test_shapes_are_found(demo_model_dir):
    configs = [LOADERS[name](demo_model_dir).config for name in (UNET, VAE, TEXT)]
    assert configs == [DEMO_UNET, DEMO_VAE, DEMO_TEXT]


@pytest.mark.parametrize("name", LOADERS)
def test_modules_come_ready_to_run_not_to_train(demo_model_dir, name):
    assert not any(module.training for module in LOADERS[name](demo_model_dir).modules())


def test_unknown_json_keys_are_ignored(demo_model_dir, model_dir):
    change_config(model_dir, model_cfg={"unet_y_dim": 1, "from_the_future": [1]}, model_args={"tiny_gpu": 0})
    assert read_config(model_dir) == read_config(demo_model_dir)


@pytest.mark.parametrize("value", ["True", "true", True])
def test_temporal_attention_is_a_string_or_a_boolean(model_dir, value):
    change_config(model_dir, model_cfg={"temporal_attention": value})
    assert read_config(model_dir).unet == DEMO_UNET


def test_missing_model_args_are_modelscopes(demo_model_dir, model_dir):
    change_config(model_dir, model_args=None)
    assert read_config(model_dir) == ModelConfig(unet=DEMO_UNET)
    assert_equal(load_vae(model_dir).state_dict(), load_vae(demo_model_dir).state_dict())


def test_missing_sizes_are_modelscopes(tmp_path):
    (tmp_path / "configuration.json").write_text('{"model": {"model_cfg": {}}}')
    assert read_config(tmp_path) == ModelConfig(unet=UNetConfig())


def test_configuration_may_begin_with_a_byte_order_mark(demo_model_dir, model_dir):
    path = model_dir / "configuration.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_config(model_dir) == read_config(demo_model_dir)


def test_files_may_have_other_names_and_lie_beside_the_directory(demo_model_dir, model_dir):
    (model_dir / VAE).rename(model_dir.parent / VAE)
    (model_dir / UNET).rename(model_dir / "zeroscope_v1_320s.pth")
    args = {"ckpt_autoencoder": f"../{VAE}", "ckpt_unet": "zeroscope_v1_320s.pth", "max_frames": 24}
    change_config(model_dir, model_args=args)
    assert read_config(model_dir).max_frames == 24
    for load in (load_unet, load_vae):
        assert_equal(load(model_dir).state_dict(), load(demo_model_dir).state_dict())


@pytest.mark.parametrize("name", LOADERS)
def test_safetensors_twin_replaces_the_file(demo_model_dir, model_dir, name):
    old = model_dir / name
    safetensors.torch.save_file(file_weights(old), old.with_suffix(".safetensors"))
    old.unlink()
    assert_equal(LOADERS[name](model_dir).state_dict(), LOADERS[name](demo_model_dir).state_dict())


@pytest.mark.parametrize("name", LOADERS)
def test_safetensors_twin_wins_over_the_file(model_dir, name):
    zeros = {key: torch.zeros_like(value) for key, value in file_weights(model_dir / name).items()}
    safetensors.torch.save_file(zeros, (model_dir / name).with_suffix(".safetensors"))
    assert not any(weight.any() for weight in LOADERS[name](model_dir).parameters())


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "module."])
def test_unet_keys_may_have_a_prefix(demo_model_dir, model_dir, prefix):
    weights = file_weights(model_dir / UNET)
    prefixed = {prefix + key: value for key, value in weights.items()} | {"logvar": torch.zeros(1)}
    torch.save({"state_dict": prefixed}, model_dir / UNET)
    assert_equal(load_unet(model_dir).state_dict(), weights)


def test_text_keys_may_have_a_prefix(demo_model_dir, model_dir):
    weights = file_weights(model_dir / TEXT)
    prefixed = {f"cond_stage_model.model.{key}": value for key, value in weights.items()}
    torch.save({"state_dict": prefixed | {"model.diffusion_model.out.0.bias": torch.zeros(1)}}, model_dir / TEXT)
    assert_equal(load_text_encoder(model_dir).state_dict(), load_text_encoder(demo_model_dir).state_dict())


def test_temporal_projections_may_lack_their_kernel_axis(demo_model_dir, model_dir):
    weights = file_weights(model_dir / UNET)
    linear = {key: value.squeeze(2) if value.ndim == 3 else value for key, value in weights.items()}
    assert linear["input_blocks.0.1.proj_in.weight"].ndim == 2
    torch.save(linear, model_dir / UNET)
    assert_equal(load_unet(model_dir).state_dict(), weights)


@pytest.mark.parametrize("name", LOADERS)
def test_files_from_before_zip_load(demo_model_dir, model_dir, name):
    content = torch.load(model_dir / name, weights_only=True)
    torch.save(content, model_dir / name, _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(model_dir / name)
    assert_equal(LOADERS[name](model_dir).state_dict(), LOADERS[name](demo_model_dir).state_dict())


def stub_module(monkeypatch: pytest.MonkeyPatch, name: str, **names: object) -> None:
    stub = types.ModuleType(name)
    vars(stub).update(names)
    monkeypatch.setitem(sys.modules, name, stub)


@pytest.fixture(params=["numpy.core.multiarray", "numpy._core.multiarray"], ids=["numpy 1", "numpy 2"])
def lightning_file(request: pytest.FixtureRequest, model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The VAE inside a whole Stable Diffusion checkpoint, with what PyTorch Lightning pickled beside it."""
    checkpoint_class = type("ModelCheckpoint", (), {"__module__": f"{LIGHTNING}.callbacks.model_checkpoint"})
    scalar_class = type("scalar", (), {"__module__": request.param})
    best = type("", (), {"__reduce__": lambda _: (scalar_class, (np.dtype("f8"), b"\xff" * 8))})()
    callbacks = {checkpoint_class: {"best_model_score": best, "best_model_path": "last.ckpt"}}
    vae = torch.load(model_dir / VAE, weights_only=True)["state_dict"]
    unet = {"model.diffusion_model.input_blocks.1.0.in_layers.0.weight": torch.ones(9)}
    content = {"epoch": 1, "callbacks": callbacks, "state_dict": vae | unet | {"first_stage_model.loss.a": best}}
    with monkeypatch.context() as patch:
        stub_module(patch, LIGHTNING)
        stub_module(patch, checkpoint_class.__module__, ModelCheckpoint=checkpoint_class)
        stub_module(patch, request.param, scalar=scalar_class, dtype=np.dtype)
        torch.save(content, model_dir / VAE)
    return model_dir / VAE


def pickled_globals(path: Path) -> set[str]:
    with zipfile.ZipFile(path) as file:
        [name] = [name for name in file.namelist() if name.endswith("/data.pkl")]
        opcodes = list(pickletools.genops(file.read(name)))
    return {arg.split()[-1] for opcode, arg, _ in opcodes if opcode.name == "GLOBAL"}


def test_vae_out_of_a_lightning_checkpoint(demo_model_dir, lightning_file):
    assert pickled_globals(lightning_file) >= {"ModelCheckpoint", "scalar", "dtype", "encode"}
    with pytest.raises(pickle.UnpicklingError):
        torch.load(lightning_file, weights_only=True)
    safe_globals = set(torch.serialization.get_safe_globals())
    assert_equal(load_vae(lightning_file.parent).state_dict(), load_vae(demo_model_dir).state_dict())
    assert set(torch.serialization.get_safe_globals()) == safe_globals


def test_classes_that_others_declared_safe_do_not_matter_and_stay(lightning_file):
    mine = [np.dtype, np.dtypes.Float64DType, np.float64(0).__reduce__()[0]]
    torch.serialization.add_safe_globals(mine)
    before = torch.serialization.get_safe_globals()
    try:
        read_state_dict(lightning_file)
        assert set(torch.serialization.get_safe_globals()) == set(before) >= set(mine)
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals([known for known in before if known not in mine])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", LOADERS)
def test_weights_are_converted(demo_model_dir, name, dtype):
    full = LOADERS[name](demo_model_dir).state_dict()
    half = LOADERS[name](demo_model_dir, dtype)
    assert {parameter.dtype for parameter in half.parameters()} == {dtype}
    assert_equal(half.state_dict(), {key: value.to(dtype) for key, value in full.items()})


needs_proc = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="this system has no /proc to measure with")


def mapped_ranges(path: Path) -> list[range]:
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(path))]
    bounds = [line.split()[0].split("-") for line in lines]
    return [range(int(start, 16), int(end, 16)) for start, end in bounds]


@needs_proc
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", LOADERS)
def test_weights_in_their_own_precision_are_the_mapped_file(model_dir, name, suffix):
    path = (model_dir / name).resolve()
    if suffix == ".safetensors":
        safetensors.torch.save_file(file_weights(path), path := path.with_suffix(suffix))
    module = LOADERS[name](model_dir)
    ranges = mapped_ranges(path)
    outside = [key for key, w in module.state_dict().items() if not any(w.data_ptr() in mapped for mapped in ranges)]
    assert ranges
    assert not outside


def memory(field: str) -> int:
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field)]
    return int(line.split()[1]) * 1024


@needs_proc
def test_half_precision_holds_no_second_whole_copy(tmp_path):
    def make():
        return nn.Sequential(*(nn.Linear(2048, 2048, bias=False) for _ in range(6)))

    path, done = tmp_path / "model.pth", []
    torch.save(make().state_dict(), path)
    weights = read_state_dict(path)
    size = sum(weight.nbytes for weight in weights.values())
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = memory("VmRSS")
    assemble(make, weights, torch.float16, "cpu", path, lambda *report: done.append(report))
    assert memory("VmHWM") - before < 1.75 * size  # the mapped file, and half of it
    assert done == [(size * part // 6, size) for part in range(1, 7)]


@needs_proc
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_image_tower_is_never_loaded(model_dir, suffix, dtype):
    weights = file_weights(model_dir / TEXT) | {"visual.proj": torch.zeros(2**25)}
    size = weights["visual.proj"].nbytes
    (model_dir / TEXT).unlink()
    save = torch.save if suffix == ".bin" else safetensors.torch.save_file
    save(weights, (model_dir / TEXT).with_suffix(suffix))
    del weights
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = memory("VmRSS")
    encoder = load_text_encoder(model_dir, dtype)
    assert not any(key.startswith("visual.") for key in encoder.state_dict())
    assert memory("VmHWM") - before < size / 2
