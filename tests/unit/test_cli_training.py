"""Command line for training: parts from elsewhere, and options that belong to others."""

from pathlib import Path

import pytest

from sdvideo_core import demo_model
from sdvideo_core.cli import build_parser, main
from sdvideo_core.training import CachedDataset, Distillation
from tests.unit.small_clips import save_clip
from tests.unit.small_model import put_beside_nothing

SMALL = ["--frames", "2", "--size", "32x16", "--device", "cpu"]


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    folder = tmp_path / "clips"
    folder.mkdir()
    save_clip(folder / "0001.gif")
    return folder


def test_a_unet_alone_trains_and_caches_with_parts_of_another_model(original_dir, clips, tmp_path, capsys):
    unet = put_beside_nothing(original_dir, tmp_path)
    parts = ["--vae", str(original_dir), "--clip", str(original_dir)]
    cache = ["cache", "--model", str(unet), "--data", str(clips), "--out", str(tmp_path / "cache"), *SMALL]
    assert main(cache) == 1
    assert "--vae PATH on the command line" in capsys.readouterr().err
    assert main([*cache, *parts]) == 0
    train = ["train", "--model", str(unet), "--data", str(tmp_path / "cache"), "--out", str(tmp_path / "out")]
    assert main([*train, *parts, "--lora-rank", "1", "--steps", "1", "--device", "cpu"]) == 0
    assert (tmp_path / "out" / "vid_lora.safetensors").is_file()


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
