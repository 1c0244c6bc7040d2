"""The parts of a model directory: their layout on a GPU, whether they fit each other, what its JSON may say."""

import json
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from open_clip.transformer import TextTransformer

from sdvideo_core import SDVideo
from sdvideo_core.attention import sdpa, xformers_attention
from sdvideo_core.checkpoint import load_text_encoder, load_unet, use_channels_last
from sdvideo_core.cli import main
from sdvideo_core.configuration import CONFIG_NAME, CheckpointError, read_config


@pytest.fixture
def model_dir(demo_model_dir, tmp_path) -> Path:
    return Path(shutil.copytree(demo_model_dir, tmp_path / "model"))


def edit_configuration(model_dir: Path, part: str, **values) -> None:
    path = model_dir / CONFIG_NAME
    content = json.loads(path.read_text(encoding="utf-8"))
    content["model"][part] |= values
    path.write_text(json.dumps(content), encoding="utf-8")


def test_convolution_weights_can_be_laid_out_for_a_gpu(demo_model_dir):
    unet = load_unet(demo_model_dir)
    before = {key: value.clone() for key, value in unet.state_dict().items()}
    use_channels_last(unet)
    temporal = unet.get_parameter("middle_block.0.temopral_conv.conv1.2.weight")
    assert unet.get_parameter("out.2.weight").is_contiguous(memory_format=torch.channels_last)
    assert temporal.is_contiguous(memory_format=torch.channels_last_3d)
    assert all(torch.equal(value, before[key]) for key, value in unet.state_dict().items())


def test_a_text_encoder_of_another_width_is_refused_before_sampling(model_dir, capsys):
    tower = TextTransformer(width=128, heads=2, layers=3, output_dim=128)
    torch.save(tower.state_dict(), model_dir / read_config(model_dir).text_file)
    assert load_text_encoder(model_dir).config.width == 128
    message = "the text encoder gives 128 numbers a token, the UNet takes 64; the text encoder belongs to another model"
    with pytest.raises(CheckpointError, match=re.escape(message)):
        SDVideo(model_dir)
    assert main(["info", str(model_dir)]) == 1
    assert message in capsys.readouterr().out


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        ("model_args", {"ckpt_clip": 5}, "ckpt_clip is 5, not a file name"),
        ("model_cfg", {"unet_dim": 0}, "a size below 1 in UNetConfig"),
        ("model_cfg", {"unet_dim_mult": [1, "x"]}, "invalid literal for int"),
    ],
)
def test_values_of_the_wrong_kind_in_the_configuration(model_dir, part, values, message):
    edit_configuration(model_dir, part, **values)
    pattern = rf"configuration\.json has a value of the wrong kind: {message}.*; download it again"
    with pytest.raises(CheckpointError, match=pattern):
        read_config(model_dir)


def test_numbers_written_as_text_in_the_configuration(model_dir):
    edit_configuration(model_dir, "model_cfg", unet_dim_mult=["1", "2"])
    assert read_config(model_dir).unet.dim_mult == (1, 2)


def test_of_a_configuration_of_another_model_the_first_wrong_keys_are_named(model_dir):
    edit_configuration(model_dir, "model_cfg", unet_dim=64)
    with pytest.raises(CheckpointError) as caught:
        load_unet(model_dir)
    told = str(caught.value)
    assert len(told) < 2000
    assert "expected (256, 64)" in told
    wrong, more = (int(re.search(pattern, told)[1]) for pattern in (r"\((\d+) keys\)", r"; (\d+) more$"))
    assert wrong == more + 8 > 100


@pytest.mark.parametrize(
    ("output", "fps", "message"),
    [
        ("video.avi", "8", "unknown extension .avi"),
        ("video.gif", "60", "fps is 60.0, but GIF plays"),
        (".", "8", "is not an empty folder"),
    ],
)
def test_output_is_checked_before_the_model_is_loaded(tmp_path, monkeypatch, capsys, output, fps, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "something").touch()
    assert main(["txt2vid", "no_model", "a prompt", "--output", output, "--fps", fps]) == 1
    errors = capsys.readouterr().err
    assert message in errors
    assert "Loading" not in errors


def test_demo_can_keep_its_model(tmp_path):
    assert main(["demo", "--steps", "2", "--output", str(tmp_path / "a.gif"), "--save-model", str(tmp_path / "m")]) == 0
    assert main(["info", str(tmp_path / "m")]) == 0


def test_info_of_an_incomplete_model_exits_with_1(model_dir):
    (model_dir / read_config(model_dir).vae_file).unlink()
    assert main(["info", str(model_dir)]) == 1


def test_xformers_is_used_where_it_runs(demo_model_dir, monkeypatch):
    calls = []

    def memory_efficient_attention(q, k, v):
        calls.append(q.shape)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)

    package, ops = ModuleType("xformers"), ModuleType("xformers.ops")
    ops.memory_efficient_attention = memory_efficient_attention
    monkeypatch.setitem(sys.modules, "xformers", package)
    monkeypatch.setitem(sys.modules, "xformers.ops", ops)
    model = SDVideo(demo_model_dir, amp=False)
    settings = {"timesteps": 1, "image_size": (32, 32), "num_frames": 2, "seed": 1}
    plain = model("a red circle", **settings)
    model.enable_xformers(True)
    assert model.unet.attention is xformers_attention
    calls.clear()
    torch.testing.assert_close(model("a red circle", **settings), plain, rtol=1e-4, atol=1e-4)
    assert len(calls) > 10


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (NotImplementedError("No operator found\nfor these inputs"), "No operator found"),
        (OSError("libcudart.so: not found"), "libcudart.so: not found"),
        (AttributeError("no such op"), "no such op"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_xformers_that_cannot_run_is_said_and_torchs_attention_used(demo_model, monkeypatch, error, reason):
    def memory_efficient_attention(*_):
        raise error

    ops = ModuleType("xformers.ops")
    ops.memory_efficient_attention = memory_efficient_attention
    monkeypatch.setitem(sys.modules, "xformers", ModuleType("xformers"))
    monkeypatch.setitem(sys.modules, "xformers.ops", ops)
    with pytest.warns(UserWarning) as caught:
        demo_model.enable_xformers()
    [told] = (str(warning.message) for warning in caught)
    assert told.startswith(f"xformers is not used: it has no kernel for torch.float32 on cpu ({reason});")
    assert demo_model.unet.attention is sdpa
