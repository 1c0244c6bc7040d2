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
    ("train", "was saved with ema=None, this run has 0.9", "was saved without --ema, this run has 0.9"),
    ("train", "was saved with compile=False", "was saved without --compile"),
    ("train", "num_timesteps=1 of the distillation", "--lcm-timesteps 1 of the distillation"),
]


@pytest.mark.parametrize(("command", "said", "shown"), SAID)
def test_arguments_are_shown_as_options(command, said, shown):
    assert in_options(said, parser(command)).startswith(shown)


SAME = [
    ("txt2vid", "models/seed=1/num_frames.gif does not exist"),
    ("txt2vid", "clips/num_frames/0.png, num_frames/0.png and num_frames.gif are no videos"),
    ("txt2vid", "the seed of a video, its size, its frames and eta"),
    ("txt2vid", "batch_size=0; it must be at least 1"),  # which txt2vid has no option for
    ("txt2vid", ": vae=PATH in Python, --vae PATH on the command line, vae in the node"),
    ("vid2vid", "LoRA strength=nan; expected a number, such as 1.0"),  # of a LoRA, not --strength
    ("info", "timesteps=0; it must be 1..999"),
    ("train", "input.gif, data and model are files; lower lr"),
]


@pytest.mark.parametrize(("command", "said"), SAME)
def test_other_words_stay(command, said):
    assert in_options(said, parser(command)) == said


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    save_clip(tmp_path / "clips" / "1.gif", "a caption")
    (tmp_path / "clips" / "2.gif").touch()
    (tmp_path / "clips" / "2.gif.txt").touch()
    return tmp_path / "clips"


COMMANDS = [
    (["txt2vid", "{model}", "a", "--eta", "2"], "--eta 2.0; it must be from 0"),
    (["txt2vid", "{model}", "a", "--fps", "99"], "--fps is 99.0, but GIF plays 0.01 to 50"),
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
