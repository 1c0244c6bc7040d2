"""Messages of the command line: options stand where the library names arguments, and nothing else changes."""

import argparse
import sys
import warnings
from pathlib import Path

import pytest

from sdvideo_core import cli, demo_model
from sdvideo_core.cli import build_parser, main
from sdvideo_core.cli_messages import in_options
from tests.unit.small_clips import save_clip


def parser(command: str) -> argparse.ArgumentParser:
    [action] = [action for action in build_parser()._actions if isinstance(action.choices, dict)]
    return action.choices[command]


def shown(command: str, said: str, **given: object) -> str:
    return in_options(said, argparse.Namespace(parser=parser(command), **given))


# Command, what the library says, and what is shown.
SAID = [
    ("txt2vid", "timesteps=0; it must be 1..999", "--steps 0; it must be 1..999"),
    ("txt2vid", "num_frames is 0, expected at least 1; raise num_frames", "--frames is 0, expected at least 1; raise "),
    ("txt2vid", "use timesteps=4 and guidance_scale=1", "use --steps 4 and --cfg 1"),
    ("txt2vid", "sampler 'lcm' with a guidance_schedule", "sampler 'lcm' with a --cfg-schedule"),
    ("txt2vid", "eta=0.5 with sampler='lcm'; eta belongs to 'ddim'", "--eta 0.5 with --sampler lcm; --eta belongs to"),
    ("txt2vid", "use dtype=torch.float32 with amp=False.", "use --dtype float32 with --no-amp."),
    ("txt2vid", "with dtype=torch.bfloat16 and amp=True", "with --dtype bfloat16 and without --no-amp"),
    ("train", "noise_offset=0.1 has no part", "--noise-offset 0.1 has no part"),
    ("train", "or leave bad clips out with skip_bad=True", "or leave bad clips out with --skip-bad"),
    ("train", "lr_min=1.0; it must be 0..lr, and lr is 0.1", "--lr-min 1.0; it must be 0..lr, and --lr is 0.1"),
    ("train", "lora_rank is None; set lora_rank", "--lora-rank is not given; set --lora-rank"),
    (
        "train",
        "saved with ema=None, this run starts with ema=0.9",
        "saved without --ema, this run starts with --ema 0.9",
    ),
    ("train", "saved with compile=False, started with compile=True", "saved without --compile, started with --compile"),
    (
        "train",
        "min_snr_gamma=0.0; it must be above 0, or None for no weighting",
        "--min-snr-gamma 0.0; it must be above 0, or leave it out for no weighting",
    ),
    ("train", "with device=cuda:1 and lr=1.5e-05.", "with --device cuda:1 and --lr 1.5e-05."),
]


@pytest.mark.parametrize(("command", "said", "told"), SAID)
def test_arguments_are_shown_as_options(command, said, told):
    assert shown(command, said).startswith(told)


SAME = [
    ("txt2vid", "models/seed=1/num_frames.gif does not exist"),
    ("txt2vid", "clips/num_frames/0.png, num_frames/0.png and num_frames.gif are no videos"),
    ("txt2vid", "the seed of a video, its size, its frames and eta"),
    ("txt2vid", "batch_size=0; it must be at least 1"),  # which txt2vid has no option for
    ("txt2vid", ": vae=PATH in Python, --vae PATH on the command line, vae in the node"),
    ("vid2vid", "LoRA strength=nan; expected a number, such as 1.0"),  # of a LoRA, not --strength
    ("info", "timesteps=0; it must be 1..999"),
    ("train", "input.gif, data and model are files; lower lr"),
    ("train", "the loss is nan; use a lower guidance_scale"),  # of which --lcm-guidance is another one
    ("txt2vid", "was saved with distillation={'guidance_scale': 7.5, 'seed': 1}"),
    ("txt2vid", "a seed=3.gif, a (seed=42).gif and eta=2.7z are empty"),
    ("train", "rank=8,lr=1e-4: Permission denied"),
    ("train", "None is not given, or None for all"),
]


@pytest.mark.parametrize(("command", "said"), SAME)
def test_other_words_stay(command, said):
    assert shown(command, said) == said


# Command, what the user named, and what the library says.
NAMED = [
    ("vid2vid", {"input": "seed=42"}, "seed=42 does not exist"),
    ("train", {"data": "num_frames"}, "num_frames has no clips"),
    ("train", {"out": "runs/lr=1 seed=2"}, "[Errno 13] Permission denied: 'runs/lr=1 seed=2'"),
    ("train", {"out": "runs"}, "cannot write runs/rank=8,lr=1 there"),
    ("train", {"data": "clips/"}, "clips/a seed=3 b.gif is empty; replace or remove it"),
    ("train", {"data": "clips"}, "the first, a seed=3 b: clips/a seed=3 b.gif is empty"),
    ("vid2vid", {"input": r"C:\my clips"}, r"C:\my clips\boat (seed=42).gif is empty"),
    ("txt2vid", {"model": "models/eta=1 seed=2"}, "eta=1 seed=2 is missing"),
    ("txt2vid", {"lora": [("seed=1 a", 1.0)]}, "seed=1 a is no LoRA"),
    ("train", {"sample_prompt": ["a red lr=1 circle"]}, "a red lr=1 circle is too long"),
]


@pytest.mark.parametrize(("command", "given", "said"), NAMED)
def test_what_the_user_named_stays(command, given, said, tmp_path, monkeypatch):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a seed=3 b.gif").touch()
    monkeypatch.chdir(tmp_path)
    assert shown(command, said, **given) == said
    arguments, options = "; use timesteps=4 and num_frames=2", "; use timesteps=4 and --frames 2"
    if command != "train":
        options = options.replace("timesteps=4", "--steps 4")
    assert shown(command, said + arguments, **given) == said + options


def test_files_named_as_an_argument_do_not_hide_it():
    said, told = "with vae=None and text_encoder=None", "without --vae and without --clip"
    assert shown("convert", said, vae="parts/vae", text_encoder="parts/text_encoder", dtype="") == told


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    save_clip(tmp_path / "clips" / "1.gif", "a caption")
    (tmp_path / "clips" / "2.gif").touch()
    (tmp_path / "clips" / "2.gif.txt").touch()
    return tmp_path / "clips"


COMMANDS = [
    (["txt2vid", "{model}", "a", "--eta", "2"], "--eta 2.0; it must be from 0"),
    (["txt2vid", "{model}", "a", "--fps", "99"], "--fps is 99.0, but GIF plays 0.01 to 50"),
    (["txt2vid", "{model}", "a", "--fps", "nan"], "--fps is nan, but GIF plays 0.01 to 50"),
    (["txt2vid", "{model}", "a", "--fps", "inf"], "--fps is inf, but GIF plays 0.01 to 50"),
    (["vid2vid", "{model}", "a", "--input", "{clips}/a seed=1.gif"], "{clips}/a seed=1.gif "),
    (["txt2vid", "{model}", "a", "--cfg-rescale", "7"], "--cfg-rescale 7.0; it must be from 0 (off) to 1"),
    (["vid2vid", "{model}", "a", "--input", "{clips}/1.gif", "--frames", "0"], "--frames is 0, expected at least 1; r"),
    (["vid2vid", "{model}", "a", "--input", "{clips}/1.gif", "--offset", "-1"], "--offset is -1, expected at least 0"),
    (["demo", "--steps", "1000"], "--steps 1000; a schedule of 1000 takes 1..999 steps"),
    (["demo", "--sampler", "lcm", "--lcm-original-steps", "501"], "--lcm-original-steps 501; expected 1..500"),
    (
        ["train", "{data}"],
        "{clips}/2.gif is empty (0 bytes), expected at least 1 frame; replace or remove it; or leave bad",
    ),
    (["train", "{data}", "--frames", "0"], "--frames is 0, expected at least 1; raise --frames"),
    (["cache", "{data}", "--stride", "0"], "--stride is 0, expected at least 1; raise --stride"),
    (["train", "{data}", "--skip-bad", "--epochs", "0"], "--epochs 0; it must be at least 1"),
    (
        ["train", "{data}", "--min-snr-gamma", "0", "--skip-bad"],
        "--min-snr-gamma 0.0; it must be above 0, or leave it ",
    ),
    (["train", "{data}", "--lcm", "--lcm-timesteps", "1"], "--lcm-timesteps 1 of the distillation; expected 2..500"),
    (
        ["convert", "{model}", "{clips}/x.safetensors", "--format", "safetensors", "--vae", "{model}"],
        "{clips}/x.safetensors is one file, which holds a UNet; write it without --vae and without --clip, or name",
    ),
]


@pytest.mark.parametrize(("command", "told"), COMMANDS)
@pytest.mark.filterwarnings("ignore:1 of 2 clips")
def test_errors_of_commands_name_their_options(command, told, clips, tmp_path, capsys):
    data = ["--model", str(demo_model()), "--data", str(clips), "--out", str(tmp_path / "out"), "--device", "cpu"]
    named = {"model": demo_model(), "clips": clips}
    given = [part for word in command for part in (data if word == "{data}" else [word.format(**named)])]
    assert main(given) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"sdvideo: {told.format(**named)}")
    if command == ["train", "{data}"]:
        assert last.endswith("with --skip-bad")


def test_warnings_name_options_too(monkeypatch, capsys):
    def warn(_args: argparse.Namespace) -> None:
        sys.stderr.write(warnings.formatwarning("use timesteps=4", UserWarning, "lcm.py", 1))

    monkeypatch.setattr(cli, "txt2vid", warn)
    before = warnings.formatwarning
    warn.__name__ = "txt2vid"
    assert main(["txt2vid", "model", "a red circle"]) == 0
    assert capsys.readouterr().err == "sdvideo: warning: use --steps 4\n"
    assert warnings.formatwarning is before
