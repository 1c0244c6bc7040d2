"""Video metadata: every format gives back what was saved with it, and the command line tells how a video was made."""

import json
import shutil
from collections.abc import Iterator

import pytest
import torch
from PIL import Image

from sdvideo_core import demo_model, read_metadata
from sdvideo_core.cli import main
from sdvideo_core.demo import few_steps_lora
from sdvideo_core.video_io import save_video

CLIP = torch.rand(1, 3, 3, 24, 32, generator=torch.Generator().manual_seed(0))
NAMES = ["clip.gif", "clip.webp", "clip.mp4", "clip"]
GRAPHS = {"prompt": {"1": {"text": 'a "red" circle, 红色: 50 %'}}, "workflow": {"nodes": [1, 2.5, None]}}


@pytest.mark.parametrize("name", NAMES)
def test_what_is_saved_is_read(tmp_path, name):
    save_video(CLIP, tmp_path / name, metadata=GRAPHS)
    assert read_metadata(tmp_path / name) == GRAPHS


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_read_where_nothing_was_saved(tmp_path, name):
    save_video(CLIP, tmp_path / name)
    assert read_metadata(tmp_path / name) == {}


@pytest.mark.parametrize("comment", ["made by hand", "[1, 2]", "1984", b"\xff\xfe", "{", "[" * 50_000])
def test_comments_of_others_are_no_metadata(tmp_path, comment):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.gif", comment=comment)
    assert read_metadata(tmp_path / "a.gif") == {}


SMALL = ["--steps", "1", "--size", "32x24", "--frames", "2", "--device", "cpu", "--no-amp"]


@pytest.mark.parametrize("name", NAMES)
def test_a_video_of_the_command_line_says_how_it_was_made(demo_model_dir, tmp_path, name, capsys):
    call = [
        "txt2vid",
        str(demo_model_dir),
        "a red circle, 红\x1b[2J",
        *SMALL,
        "--seed",
        "7",
        "-o",
        str(tmp_path / name),
    ]
    assert main(call) == 0
    expected = {
        "command": "sdvideo txt2vid",
        "model": demo_model_dir.name,
        "prompt": "a red circle, 红\x1b[2J",
        "steps": 1,
        "cfg": 9.0,
        "size": [32, 24],
        "frames": 2,
        "dtype": "float32",
        "no-amp": True,
        "seed": 7,
    }
    assert read_metadata(tmp_path / name)["sdvideo"] == expected
    capsys.readouterr()
    assert main(["info", str(tmp_path / name), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["made_with"] == expected
    assert main(["info", str(tmp_path / name)]) == 0
    assert "prompt 'a red circle, 红\\x1b[2J', steps 1" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["clip.mp4", "clip.png", "clip.gif"])
def test_a_broken_file_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"broken" if name.endswith("mp4") else b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(OSError, match=f"^cannot read .*{name}: .*; replace or remove the file$"):
        read_metadata(tmp_path / name)


def values(told: object) -> Iterator[object]:
    """All that is told, however deep."""
    parts = told.values() if isinstance(told, dict) else told if isinstance(told, list) else None
    if parts is None:
        yield told
    for part in parts or ():
        yield from values(part)


@pytest.mark.filterwarnings("ignore:SDVideo's demo model .* is asked for")
def test_it_is_left_out_on_demand_and_tells_no_folders(tmp_path):
    lora = shutil.copy(few_steps_lora(), tmp_path / "mine.safetensors")
    parts = ["--vae", str(demo_model()), "--clip", str(demo_model()), "--lora", f"{lora}:0.5"]
    call = ["vid2vid", str(demo_model()), "a red circle", *SMALL, *parts, "--input", str(tmp_path / "a.gif")]
    save_video(torch.rand(1, 3, 3, 96, 96), tmp_path / "a.gif")
    assert main([*call, "-o", str(tmp_path / "told.gif")]) == 0
    assert main([*call, "-o", str(tmp_path / "silent.gif"), "--no-metadata"]) == 0
    told = read_metadata(tmp_path / "told.gif")["sdvideo"]
    assert told["input"] == "a.gif"
    assert isinstance(told["seed"], int)  # drawn, as none was given
    assert told["lora"] == ["mine.safetensors:0.5"]
    assert told.keys() >= {"model", "vae", "clip"}
    assert not [value for value in values(told) if isinstance(value, str) and ("/" in value or "\\" in value)]
    assert read_metadata(tmp_path / "silent.gif") == {}


def test_info_tells_of_a_workflow(tmp_path, capsys):
    save_video(CLIP, tmp_path / "a.gif", metadata=GRAPHS)
    assert main(["info", str(tmp_path / "a.gif")]) == 0
    assert "  workflow: ComfyUI's, drop it on the canvas\n" in capsys.readouterr().out
