"""Defaults of the command line: what a command takes where the user leaves size, steps and guidance to the model."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from sdvideo_core import SDVideo, demo_model, load_sequence, pipeline, save_pngs
from sdvideo_core.cli import build_parser, main
from sdvideo_core.cli_defaults import clip_options, complete
from sdvideo_core.families import DEMO, family_of

ZEROSCOPE = family_of(["zeroscope_v2_576w"])
LCM = ["--sampler", "lcm"]


@pytest.mark.parametrize(
    ("family", "options", "expected"),
    [
        (None, [], ((256, 256), 50, 9.0)),
        (DEMO, [], ((96, 96), 25, 2.0)),
        (ZEROSCOPE, [], ((576, 320), 50, 9.0)),
        (None, LCM, ((256, 256), 4, 1.0)),
        (DEMO, LCM, ((96, 96), 4, 1.0)),
        (DEMO, [*LCM, "--steps", "8", "--cfg", "1.5"], ((96, 96), 8, 1.5)),
        (DEMO, ["--size", "64x32", "--steps", "3", "--cfg", "0"], ((64, 32), 3, 0.0)),
    ],
)
def test_what_is_given_wins_then_the_sampler_then_the_family(family, options, expected):
    args = build_parser().parse_args(["txt2vid", "model", "prompt", *options])
    complete(args, family)
    assert (args.image_size, args.timesteps, args.guidance_scale) == expected


@pytest.mark.parametrize(
    ("family", "options", "expected"),
    [
        (None, [], (16, (256, 256), 1)),
        (DEMO, [], (16, (96, 96), 1)),
        (ZEROSCOPE, [], (24, (576, 320), 1)),
        (family_of(["potat1"]), [], (16, (1024, 576), 1)),  # whose length nobody tells
        (ZEROSCOPE, ["--size", "64x32", "--frames", "3", "--stride", "2"], (3, (64, 32), 2)),
    ],
)
@pytest.mark.parametrize("command", ["train", "cache"])
def test_clips_to_train_on_are_what_the_model_was_trained_on(command, family, options, expected):
    args = build_parser().parse_args([command, "--model", "m", "--data", "d", "--out", "o", *options])
    assert tuple(clip_options(args, family).values()) == expected


@pytest.mark.parametrize("command", ["train", "cache"])
def test_help_tells_that_the_model_decides(command):
    [action] = [action for action in build_parser()._actions if isinstance(action.choices, dict)]
    text = " ".join(action.choices[command].format_help().split())
    assert "cropped to; default: what the model was trained on, 256x256 if unknown" in text
    assert "back and forth; default: as many as the model was trained on, 16 if unknown" in text


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ([], {"timesteps": 25, "guidance_scale": 2.0}),
        (LCM, {"timesteps": 4, "guidance_scale": 1.0, "sampler": "lcm"}),
    ],
)
@pytest.mark.filterwarnings("ignore:SDVideo's demo model .* is asked for 1 frames")
def test_a_known_model_is_sampled_as_it_was_trained(tmp_path, options, settings):
    given = [
        "--frames",
        "1",
        "--seed",
        "1",
        "--device",
        "cpu",
        "--no-amp",
        "--no-metadata",
        "-o",
        str(tmp_path / "cli"),
    ]
    assert main(["txt2vid", str(demo_model()), "a red circle", *given, *options]) == 0
    model = SDVideo(demo_model(), amp=False)
    save_pngs(model("a red circle", num_frames=1, seed=1, image_size=(96, 96), **settings), tmp_path / "api")
    assert (tmp_path / "cli" / "00000.png").read_bytes() == (tmp_path / "api" / "00000.png").read_bytes()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--device", "cuda"], ("cuda", torch.float16)),
        (["--device", "cuda:1"], ("cuda:1", torch.float16)),
        (["--device", "cuda", "--dtype", "bfloat16"], ("cuda", torch.bfloat16)),
        (["--device", "cpu"], ("cpu", torch.float32)),
    ],
)
def test_weights_are_in_half_on_a_gpu_unless_told_otherwise(monkeypatch, options, expected):
    asked = []

    def note(_path, device, dtype, **_):
        asked.append((device, dtype))
        raise ValueError("not loaded")

    monkeypatch.setattr(pipeline, "SDVideo", note)
    assert main(["txt2vid", str(demo_model()), "a red circle", *options]) == 1
    assert asked == [expected]


def test_an_unknown_model_draws_at_256x256(demo_model_dir, tmp_path):
    given = ["--frames", "1", "--steps", "1", "--device", "cpu", "--no-amp", "-o", str(tmp_path / "video")]
    assert main(["txt2vid", str(demo_model_dir), "a red circle", *given]) == 0
    assert [image.size for image in load_sequence(tmp_path / "video", None, image_size=None)] == [(256, 256)]


@pytest.mark.filterwarnings("ignore:SDVideo's demo model .* is asked for 2 frames")
def test_video_to_video_takes_the_input_at_the_size_of_the_model(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for index in range(2):
        Image.new("RGB", (200, 120), (90 * index, 0, 0)).save(source / f"{index}.png")
    given = ["--input", str(source), "--steps", "2", "--device", "cpu", "--no-amp", "-o", str(tmp_path / "video")]
    assert main(["vid2vid", str(demo_model()), "a red circle", *given]) == 0
    assert [image.size for image in load_sequence(tmp_path / "video", None, image_size=None)] == [(96, 96)] * 2


def test_a_size_far_from_training_is_warned_of_in_one_line(tmp_path):
    given = ["--size", "32x32", "--frames", "2", "--steps", "2", "--device", "cpu", "-o", str(tmp_path / "a.gif")]
    command = [sys.executable, "-m", "sdvideo_core", "txt2vid", str(demo_model()), "a red circle", *given]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    warning = (
        "sdvideo: warning: SDVideo's demo model (by the size of its UNet) is asked for 32x32 pixels, trained on 96x96 "
        "and for 2 frames, trained on 16; expect worse pictures or motion"
    )
    assert [line for line in done.stderr.replace("\r", "\n").splitlines() if "arning" in line] == [warning]
    assert "cli.py" not in done.stderr
