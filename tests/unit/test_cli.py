"""Command line: what each command writes and says, and how it fails."""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sdvideo_core import demo_model, load_sequence, save_gif, save_pngs
from sdvideo_core.cli import build_parser, main
from sdvideo_core.frames import frames_to_video, images_to_frames
from sdvideo_core.video_io import save_mp4

SMALL = ["--steps", "2", "--size", "32x24", "--frames", "3", "--device", "cpu", "--no-amp"]
OUTPUTS = ["video.gif", "video.webp", "video.mp4", "video"]
SAVED = re.compile(r"^Wrote (.+): (\d+) frames of (\d+)x(\d+), seed (\d+)$", re.MULTILINE)

Run = Callable[..., re.Match[str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command that saves a video; returns the line that says so."""

    def run_command(*args: str | Path) -> re.Match[str]:
        assert main(list(map(str, args))) == 0
        out, err = capsys.readouterr()
        assert out == ""
        [saved] = SAVED.finditer(err)
        return saved

    return run_command


@pytest.fixture
def fail(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must fail; returns its message, the last and only line beside what it loaded."""

    def run_command(*args: str | Path) -> str:
        assert main(list(map(str, args))) == 1
        out, err = capsys.readouterr()
        *before, message = err.removesuffix("\n").split("\n")
        assert out == ""
        assert all(line.lstrip("\r").startswith("Loading ") for line in before)
        assert message.startswith("sdvideo: ")
        return message.removeprefix("sdvideo: ")

    return run_command


def contents(path: Path) -> list[bytes]:
    return [file.read_bytes() for file in sorted(path.iterdir())] if path.is_dir() else [path.read_bytes()]


def commands() -> dict[str, argparse.ArgumentParser]:
    [action] = [action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(action.choices)


def test_the_commands():
    assert list(commands()) == ["txt2vid", "vid2vid", "train", "cache", "convert-lora", "convert", "info", "demo"]


@pytest.mark.parametrize("name", [None, *commands()])
def test_help_tells_every_argument(name, capsys):
    parser = commands()[name] if name else build_parser()
    with pytest.raises(SystemExit, match=r"^0$"):
        main([name, "--help"] if name else ["--help"])
    shown = capsys.readouterr().out
    plain = " ".join(shown.split())
    for action in parser._actions:
        assert all(option in shown for option in action.option_strings)
        if not isinstance(action, argparse._SubParsersAction):
            assert action.help
            assert action.help in plain
    assert "default: None" not in shown
    assert "default: False" not in shown


@pytest.mark.parametrize(
    "described",
    [
        "--eta ETA 0..1: fresh noise at every step (default: 0.0)",
        "--size SIZE WIDTHxHEIGHT in pixels, multiples of 8; default: what the model was trained on, 256x256 if",
    ],
)
def test_help_tells_defaults(described):
    assert described in " ".join(commands()["txt2vid"].format_help().split())


def test_program_name_and_one_line_errors_from_a_shell(tmp_path):
    command = [sys.executable, "-m", "sdvideo_core", "info", str(tmp_path / "nowhere")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    message = f"sdvideo: {tmp_path / 'nowhere'} does not exist; give a model folder or a file of weights\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", message)


@pytest.mark.parametrize("name", OUTPUTS)
def test_txt2vid_writes_what_the_name_asks_for(run, demo_model_dir, tmp_path, name):
    saved = run("txt2vid", demo_model_dir, "a red circle", *SMALL, "--seed", 5, "--output", tmp_path / name)
    assert saved.groups() == (str(tmp_path / name), "3", "32", "24", "5")
    assert [image.size for image in load_sequence(tmp_path / name, None, image_size=None)] == [(32, 24)] * 3
    assert (tmp_path / name).is_dir() == (name == "video")


@pytest.mark.parametrize("name", OUTPUTS)
def test_same_seed_is_the_same_file(run, demo_model_dir, tmp_path, name):
    seeds = {"first": 5, "again": 5, "other": 6}
    for folder, seed in seeds.items():
        run("txt2vid", demo_model_dir, "a red circle", *SMALL, "--seed", seed, "-o", tmp_path / folder / name)
    first, again, other = (contents(tmp_path / folder / name) for folder in seeds)
    assert first == again
    assert first != other


def test_without_a_seed_the_printed_one_makes_the_same_file(run, demo_model_dir, tmp_path):
    command = ["txt2vid", demo_model_dir, "a red circle", *SMALL]
    seeds = [run(*command, "-o", tmp_path / name)[5] for name in ("a.gif", "b.gif")]
    assert seeds[0] != seeds[1]
    run(*command, "--seed", seeds[0], "-o", tmp_path / "c.gif")
    assert contents(tmp_path / "c.gif") == contents(tmp_path / "a.gif") != contents(tmp_path / "b.gif")


@pytest.mark.parametrize(
    "option",
    [
        ("--negative", "blue"),
        ("--steps", "3"),
        ("--cfg", "1"),
        ("--eta", "1"),
        ("--dtype", "bfloat16"),
        ("--frames", "2"),
        ("--size", "24x32"),
        ("--fps", "4"),
    ],
)
def test_options_change_the_file(run, demo_model_dir, tmp_path, option):
    command = ["txt2vid", demo_model_dir, "a red circle", *SMALL, "--seed", 1, "--no-metadata"]
    run(*command, "-o", tmp_path / "plain.gif")
    run(*command, *option, "-o", tmp_path / "changed.gif")
    assert contents(tmp_path / "plain.gif") != contents(tmp_path / "changed.gif")


def test_xformers_is_asked_for(run, demo_model_dir, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "xformers", None)
    with pytest.warns(UserWarning, match="^xformers is not used: "):
        run("txt2vid", demo_model_dir, "a red circle", *SMALL, "--xformers", "-o", tmp_path / "a.gif")


SOURCES = {"input": save_pngs, "input.gif": save_gif, "input.mp4": save_mp4}


@pytest.fixture
def source(tmp_path: Path) -> Callable[[str], Path]:
    """Five frames of moving noise in a folder, a GIF or an MP4."""
    video = torch.rand(1, 3, 5, 48, 64, generator=torch.Generator().manual_seed(0))

    def write(name: str) -> Path:
        SOURCES[name](video, tmp_path / name)
        return tmp_path / name

    return write


VID2VID = ["--steps", "4", "--size", "32x24", "--device", "cpu", "--no-amp", "--seed", "1"]


@pytest.mark.parametrize("name", SOURCES)
def test_vid2vid_takes_folders_gifs_and_videos(run, demo_model_dir, tmp_path, source, name):
    saved = run("vid2vid", demo_model_dir, "old", *VID2VID, "--input", source(name), "-o", tmp_path / "out")
    assert saved.groups()[1:] == ("5", "32", "24", "1")
    assert len(contents(tmp_path / "out")) == 5


def test_vid2vid_takes_the_frames_it_is_told(run, demo_model_dir, tmp_path, source):
    command = ["vid2vid", demo_model_dir, "old", *VID2VID, "--fps", 8, "--no-metadata"]
    run(
        *command, "--input", source("input"), "--offset", 1, "--stride", 2, "--frames", 2, "-o", tmp_path / "picked.gif"
    )
    for index in (0, 2, 4):
        (tmp_path / "input" / f"0000{index}.png").unlink()
    run(*command, "--input", tmp_path / "input", "-o", tmp_path / "alone.gif")
    assert contents(tmp_path / "picked.gif") == contents(tmp_path / "alone.gif")


def test_strength_is_how_much_changes(run, demo_model_dir, tmp_path, source):
    command = ["vid2vid", demo_model_dir, "old", *VID2VID, "--input", source("input.gif"), "--no-metadata"]
    files = {strength: tmp_path / f"{strength}.gif" for strength in ("0.01", "0.25", "0.7", "1")}
    for strength, file in files.items():
        run(*command, "--strength", strength, "-o", file)
    run(*command, "-o", tmp_path / "default.gif")
    made = {name: contents(file) for name, file in files.items()}
    assert made["0.01"] == made["0.25"]  # one step is the least
    assert len({tuple(video) for video in made.values()}) == 3
    assert contents(tmp_path / "default.gif") == made["0.7"]


@pytest.mark.parametrize("name", ["input", "input.gif"])
def test_the_input_is_not_overwritten(fail, demo_model_dir, tmp_path, source, name):
    given = source(name)
    message = fail("vid2vid", demo_model_dir, "old", "--input", given, "-o", tmp_path / "a" / ".." / name)
    assert message.endswith(f"{name} would overwrite --input; give another name")


@pytest.mark.parametrize("strength", ["0", "2", "-0.5", "nan"])
def test_strength_outside_0_to_1_is_refused(fail, demo_model_dir, source, strength):
    message = fail("vid2vid", demo_model_dir, "old", "--input", source("input.gif"), f"--strength={strength}")
    assert message == f"--strength {float(strength)}; expected above 0, where nothing would change, to 1, for all steps"


STRENGTH = "just above 0 runs one step, which changes hardly anything; 1 runs all steps and nearly draws what txt2vid"


def test_strength_does_what_its_help_says(run, tmp_path):
    assert STRENGTH in " ".join(commands()["vid2vid"].format_help().split())
    given = [demo_model(), "a red circle moving left", "--steps", 10, "--device", "cpu", "--no-amp", "--seed", 1]
    white = torch.ones(1, 3, 8, 96, 96)
    save_pngs(white, tmp_path / "input")
    run("txt2vid", *given, "--frames", 8, "-o", tmp_path / "drawn")
    videos = {"input": white, "drawn": read(tmp_path / "drawn")}
    for name, strength in {"least": 0.001, "most": 1}.items():
        run("vid2vid", *given, "--input", tmp_path / "input", "--strength", strength, "-o", tmp_path / name)
        videos[name] = read(tmp_path / name)

    def distance(a: str, b: str) -> float:
        return (videos[a] - videos[b]).square().mean().sqrt().item()

    assert distance("least", "input") < 0.1 * distance("drawn", "input")
    assert distance("most", "drawn") < 0.1 * distance("drawn", "input")


def read(folder: Path) -> Tensor:
    return frames_to_video(images_to_frames(load_sequence(folder, None, image_size=None)))


def test_info_is_text_or_json(demo_model_dir, capsys):
    assert main(["info", str(demo_model_dir)]) == 0
    assert capsys.readouterr().out.startswith(f"{demo_model_dir} is a ModelScope model folder\n")
    assert main(["info", str(demo_model_dir), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["max_frames"] == 16


BAD = [
    (
        ["--frames", "1000000", "--size", "800000x800000"],
        "out of memory; use --dtype float16, a smaller size or fewer frames",
    ),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_errors_are_one_line(fail, demo_model_dir, options, message):
    assert fail("txt2vid", demo_model_dir, "a red circle", *SMALL, *options) == message


def test_unknown_device_is_one_line(fail, demo_model_dir):
    message = fail("txt2vid", demo_model_dir, "a red circle", *SMALL, "--device", "toaster")
    assert message.startswith("device 'toaster' cannot be used here: ")


def test_incomplete_model_is_one_line(fail, tmp_path):
    message = f"{tmp_path} holds no model; expected configuration.json and weights, or a folder of diffusers"
    assert fail("txt2vid", tmp_path, "a red circle") == message


WRONG_CALLS = [
    ([], "sdvideo: error: the following arguments are required: command; see sdvideo --help"),
    (["txt2vid"], "sdvideo txt2vid: error: the following arguments are required: model, prompt; see sdvideo txt2vid"),
    (["demo", "--stepz", "3", "a"], "sdvideo demo: error: unrecognized arguments: --stepz a; see sdvideo demo --help"),
    (["info", "model", "--size", "8x8"], "sdvideo info: error: unrecognized arguments: --size 8x8; see sdvideo info"),
    (["cache", "--frames", "x"], "sdvideo cache: error: argument --frames: invalid int value: 'x'; see sdvideo cache"),
]


@pytest.mark.parametrize(("call", "message"), WRONG_CALLS)
def test_wrong_call_is_one_line_of_its_command(call, message, capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        main(call)
    told = capsys.readouterr().err
    assert told == f"{message.removesuffix(' --help')} --help\n"


@pytest.mark.parametrize("size", ["256", "256x", "axb", "1x2x3"])
def test_size_that_is_none(size, capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["txt2vid", "model", "a red circle", "--size", size])
    assert f"argument --size: '{size}' is not WIDTHxHEIGHT, such as 256x256" in capsys.readouterr().err


def test_a_long_step_shows_a_bar(demo_model_dir, tmp_path, capsys):
    clip = tmp_path / "clip.gif"
    assert main(["txt2vid", str(demo_model_dir), "a red circle", *SMALL, "-o", str(clip)]) == 0
    making = ["Loading the UNet", "Loading the autoencoder", "Loading the text encoder", "Sampling", "Decoding"]
    assert finished(capsys) == [*making, "Writing"]
    edit = ["--input", str(clip), "--steps", "2", "--device", "cpu", "-o", str(tmp_path / "edit.gif")]
    assert main(["vid2vid", str(demo_model_dir), "a red circle", *edit]) == 0
    assert finished(capsys)[3:] == ["Encoding", "Sampling", "Decoding", "Writing"]


def test_an_error_is_a_line_of_its_own(demo_model_dir, tmp_path, fail):
    gone = tmp_path / "gone.gif"
    told = fail("vid2vid", demo_model_dir, "a red circle", "--input", gone, "--steps", 2, "--device", "cpu")
    assert told.startswith(f"{gone} does not exist")


def finished(capsys) -> list[str]:
    """The bars that reached their end, in order."""
    return re.findall(r"\r([\w ]+): 100%.*\n", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("file/video.gif", "cannot write {}: "),
        ("file/deep/video.gif", "cannot write {}: "),
        ("taken.gif", "cannot write {}: it is a folder; give the name of a file"),
        ("video.avi", "cannot write {}: unknown extension .avi; use .gif .webp .mp4 or none for PNGs"),
    ],
)
def test_output_that_cannot_be_written(demo_model_dir, tmp_path, capsys, name, message):
    (tmp_path / "file").write_text("")
    (tmp_path / "taken.gif").mkdir()
    output = str(tmp_path / name)
    assert main(["txt2vid", str(demo_model_dir), "a red circle", *SMALL, "-o", output]) == 1
    [told] = capsys.readouterr().err.splitlines()  # before a model is loaded
    assert told.startswith(f"sdvideo: {message.format(output)}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "taken.gif"]


def test_a_command_that_fails_leaves_no_folder(tmp_path):
    assert main(["txt2vid", str(tmp_path / "nowhere"), "a", "--output", str(tmp_path / "new" / "deep" / "a.gif")]) == 1
    assert not list(tmp_path.iterdir())


def test_out_of_memory_in_half_is_not_told_to_use_half(demo_model_dir, tmp_path, capsys):
    more = ["--size", "800000x800000", "--frames", "1000000", "--dtype", "float16", "--device", "cpu"]
    assert main(["txt2vid", str(demo_model_dir), "a", *more, "--output", str(tmp_path / "a.gif")]) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert told == "sdvideo: out of memory; use a smaller size or fewer frames"
