"""Command line for training: parts from elsewhere, and options that belong to others."""

import json
import os
import shlex
from pathlib import Path

import pytest

from sdvideo_core import demo_model
from sdvideo_core.cli import build_parser, main
from sdvideo_core.training import CachedDataset, Distillation
from tests.unit.small_clips import save_clip
from tests.unit.small_model import put_beside_nothing

CACHE = "a cache of clips to train on"
GIFS = "GIFs with captions: 0001.gif and 0001.gif.txt (or 0001.txt)"
SMALL = ["--frames", "2", "--size", "32x16", "--device", "cpu"]


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    folder = tmp_path / "clips"
    folder.mkdir()
    save_clip(folder / "0001.gif")
    return folder


@pytest.mark.filterwarnings("ignore:ZeroScope v1 320s .* is asked for 32x16 pixels")
def test_a_unet_alone_trains_and_caches_with_parts_of_another_model(original_dir, clips, tmp_path, capsys):
    unet = put_beside_nothing(original_dir, tmp_path)
    parts = ["--vae", str(original_dir), "--clip", str(original_dir)]
    cache = ["cache", "--model", str(unet), "--data", str(clips), "--out", str(tmp_path / "cache"), *SMALL]
    assert main(cache) == 1
    assert "--vae PATH on the command line" in capsys.readouterr().err
    assert main([*cache, *parts]) == 0
    capsys.readouterr()
    assert main(["info", str(tmp_path / "cache"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["is"], told["clips"], told["width"], told["height"]) == (CACHE, 1, 32, 16)
    train = ["train", "--model", str(unet), "--data", str(tmp_path / "cache"), "--out", str(tmp_path / "out")]
    assert main([*train, *parts, "--lora-rank", "1", "--steps", "1", "--device", "cpu"]) == 0
    assert (tmp_path / "out" / "vid_lora.safetensors").is_file()
    assert draw(capsys.readouterr().err, tmp_path / "drawn.gif") == ["32x16", "2"]


def draw(told: str, output: Path) -> list[str]:
    """Runs the command that training told; returns the size and the number of frames in it."""
    words = shlex.split(told.splitlines()[-1].partition("; to use it: ")[2], posix=os.name != "nt")
    assert words[:2] == ["sdvideo", "txt2vid"]
    assert main([*words[1:], "--steps", "1", "--device", "cpu", "-o", str(output)]) == 0
    assert output.is_file()
    return [words[words.index(option) + 1] for option in ("--size", "--frames")]


@pytest.mark.parametrize(
    ("options", "trained"),
    [
        ([], "all layers"),
        (["--train-only", "temporal"], "the layers that mix frames"),
        (["--lora-rank", "2"], "a LoRA of rank 2 on all layers"),
        (["--lora-rank", "2", "--lcm"], "a LoRA of rank 2 on all layers"),
    ],
)
def test_training_tells_what_it_trains_and_how_to_use_it(original_dir, clips, tmp_path, capsys, options, trained):
    out = tmp_path / "out with spaces"
    (out / "vid").mkdir(parents=True)  # TensorBoard's, of a run before
    train = ["train", "--model", str(original_dir), "--data", str(clips), "--out", str(out), *SMALL]
    assert main([*train, "--steps", "1", *options]) == 0
    told = capsys.readouterr().err
    assert f"Training {trained} on 1 clip\n" in told
    assert ("--sampler lcm" in told) == ("--lcm" in options)
    assert draw(told, tmp_path / "drawn.gif") == ["32x16", "2"]


@pytest.mark.parametrize(("command", "name"), [("train", "vid_states"), ("cache", "clips")])
def test_a_place_that_cannot_be_written_is_told_before_anything_is_read(tmp_path, capsys, command, name):
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "out"
    assert main([command, "--model", "nowhere", "--data", "nothing", "--out", str(out)]) == 1
    assert capsys.readouterr().err.startswith(f"sdvideo: cannot write {out / name}: Not a directory; choose another ")


def test_info_knows_clips_to_train_on_and_what_is_wrong_with_them(clips, tmp_path, capsys):
    assert main(["info", str(clips)]) == 0
    assert capsys.readouterr().out == f"{clips} is a dataset of clips to train on\n  clips: 1\n  kind: {GIFS}\n"
    save_clip(clips / "0002.gif", text=None)
    assert main(["info", str(clips)]) == 1
    assert "  problems: " in (told := capsys.readouterr().out)
    assert "0002.gif" in told
    assert "--skip-bad" in told
    lora = tmp_path / "loras" / "a.safetensors"  # with a preview beside it, as LoRAs often have
    save_clip(lora.with_suffix(".gif"), text=None)
    for name in ("a.safetensors", "b.safetensors"):
        lora.with_name(name).touch()
    assert main(["info", str(lora.parent)]) == 1
    assert "It holds a.safetensors, b.safetensors: give the path" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["info", str(tmp_path / "empty")]) == 1
    assert "holds no model" in capsys.readouterr().err


def test_clips_get_the_size_and_length_of_a_known_model(clips, tmp_path):
    data = ["--data", str(clips), "--out", str(tmp_path / "cache"), "--device", "cpu"]
    assert main(["cache", "--model", str(demo_model()), *data]) == 0
    assert CachedDataset(tmp_path / "cache")[0]["pixel_values"].shape == (16, 4, 12, 12)


@pytest.mark.parametrize("option", ["--lcm-guidance", "--lcm-timesteps"])
def test_settings_of_lcm_are_refused_without_it(option, clips, tmp_path, capsys):
    train = ["train", "--model", "nowhere", "--data", str(clips), "--out", str(tmp_path / "out"), option, "5"]
    assert main(train) == 1
    message = "sdvideo: --lcm-guidance and --lcm-timesteps are settings of --lcm; add --lcm, or leave them out\n"
    assert capsys.readouterr().err == message


def test_help_tells_the_defaults_of_lcm():
    [action] = [action for action in build_parser()._actions if isinstance(action.choices, dict)]
    text = " ".join(action.choices["train"].format_help().split())
    assert f"guidance scale that --lcm builds in; default: {Distillation().guidance_scale}" in text
    assert f"path that --lcm learns from; default: {Distillation().num_timesteps}" in text
