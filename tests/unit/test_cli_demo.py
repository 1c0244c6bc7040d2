"""Command line for the demo model: what it draws, in few steps too, where it copies its model, and what it tells."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sdvideo_core import SDVideo, demo, demo_model, load_sequence, read_metadata, save_pngs
from sdvideo_core.cli import main
from sdvideo_core.demo.clips import BACKGROUNDS, COLORS, NUM_FRAMES, SHAPES, SIZE, caption, scenes
from sdvideo_core.demo.vocabulary import hints, unknown_words, what_it_knows
from sdvideo_core.families import DEMO
from sdvideo_core.lcm import LCM

Told = Callable[..., list[str]]


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Told:
    """Runs `sdvideo demo` with an exit status; returns the lines it tells, without its progress bars."""

    def run(*options: str | Path, status: int = 0) -> list[str]:
        assert main(["demo", "--output", str(tmp_path / "demo.gif"), *map(str, options)]) == status
        lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
        return [line for line in lines if line.strip() and "%|" not in line]

    return run


def test_it_needs_nothing(told, tmp_path):
    [hint, saved] = told("--steps", 1, "--seed", 3, "--zoom", 2)
    assert saved == f"Wrote {tmp_path / 'demo.gif'}: 16 frames of 192x192, seed 3"
    assert hint == "Note: 1 of --steps are too few for this model; use 20, or --sampler lcm"
    assert len(load_sequence(tmp_path / "demo.gif", None)) == 16


def test_unknown_words_are_told_with_what_is_known(told):
    [hint, *_] = told("a cat and a red dog", "--steps", 2)
    assert hint == f'Note: the demo model does not know "cat", "and", "dog"; it knows {what_it_knows()}'
    assert all(word in hint for word in (*COLORS, *SHAPES, *BACKGROUNDS))


def test_a_circle_that_turns_is_told_of(told):
    [hint, *_] = told("a blue ball spinning", "--steps", 3, "--zoom", 1)
    assert hint == "Note: the demo model knows no circle that turns, and draws another shape; let a square turn"
    assert not any(line.startswith("Note") for line in told("a blue box spinning", "--steps", 3, "--zoom", 1))


def test_txt2vid_and_vid2vid_tell_it_too_of_the_demo_model_and_of_no_other(demo_model_dir, tmp_path, capsys):
    given = ["a cat moving left", "--frames", "8", "--steps", "1", "--device", "cpu", "-o", str(tmp_path / "a.gif")]
    copy = shutil.copytree(demo_model(), tmp_path / "copy")
    hint = f'Note: the demo model does not know "cat"; it knows {what_it_knows()}\n'
    assert main(["txt2vid", str(copy), *given]) == 0
    assert hint in capsys.readouterr().err
    again = ["--input", str(tmp_path / "a.gif"), "-o", str(tmp_path / "b.gif")]
    assert main(["vid2vid", str(demo_model()), *given, *again]) == 0
    assert hint in capsys.readouterr().err
    assert main(["txt2vid", str(copy), *given, "--lora", f"{demo.few_steps_lora()}:0.5"]) == 0  # which may know a cat
    assert "Note" not in capsys.readouterr().err
    unet = copy / "text2video_pytorch_model.safetensors"
    save_file({name: weight * 1.01 for name, weight in load_file(unet).items()}, unet)  # as training would
    for other in (copy, demo_model_dir):
        assert main(["txt2vid", str(other), *given, "--size", "96x96"]) == 0
        assert "Note" not in capsys.readouterr().err


def test_other_models_do_not_need_it(demo_model_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("sdvideo_core.demo.DIRECTORY", tmp_path / "gone")
    given = ["a cat", "--frames", "2", "--steps", "1", "--size", "32x32", "-o", str(tmp_path / "a.gif")]
    assert main(["txt2vid", str(demo_model_dir), *given]) == 0


def test_every_caption_of_the_training_is_known():
    rng, every = np.random.default_rng(0), scenes()
    captions = [caption(every[index], rng) for index in rng.integers(len(every), size=500)]
    assert not any(map(unknown_words, captions))
    assert not [(text, *hints(text)) for text in captions if any(hints(text))]
    assert unknown_words("A Red circle, moving LEFT!") == []
    assert unknown_words("color noun motion: cat, cat") == ["color", "noun", "motion", "cat"]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    {
        "a white circle moving left on white": ["was never shown white on white, which look alike, and draws blots"],
        "on a blue background, a purple star": ["was never shown purple on blue, which look alike, and draws blots"],
        "a red star on a yellow background": ["knows no yellow background; it knows black, white, gray, blue or green"],
        "a red star on grey": ['does not know "grey"; write "gray"'],
        "a white star on Grey": ['does not know "grey"; write "gray"'],
        "a grey circle": ["is told no colour that it knows, and guesses; it knows a circle, "],
        "white-background, orange star": [],
        "a yellow star against black": ['does not know "against"; it knows a circle, '],
        "a red circle, a blue star": ["draws one shape of one colour, and is told circle and star"],
        "a red, white, blue star": ["draws one shape of one colour, and is told red, blue and white"],
        "": ["is told no shape and no colour that it knows, and guesses; it knows a circle, "],
        "a star moving left": ["is told no colour that it knows, and guesses; it knows a circle, "],
        "red": ["is told no shape that it knows, and guesses; it knows a circle, "],
        "a black square": ["is told no colour that it knows, and guesses; it knows a circle, "],
        "a red square turning on the left": [],
        "a white square over blue": [],
    }.items(),
)
def test_what_a_prompt_asks_for_that_no_clip_shows_is_told(prompt, expected):
    told = list(hints(prompt))
    assert len(told) == len(expected)
    assert all(line.startswith(start) for line, start in zip(told, expected, strict=True))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_model_is_copied_once_and_nothing_is_overwritten(told, tmp_path, capsys):
    model = tmp_path / "model"
    model.mkdir()
    assert main(["demo", "--save-model", str(model)]) == 0
    wrote, hint = capsys.readouterr().err.splitlines()
    assert hint == f'Try it: sdvideo txt2vid {model} "a red circle moving left"'
    assert wrote.startswith(f"Wrote {model}: the demo model, VQGAN_autoencoder.safetensors, configuration.json, ")
    assert contents(model) == contents(demo_model())
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    again, *_, drawn = told("--save-model", model, "a red circle moving left", "--zoom", 1, "--steps", 3)
    assert drawn.startswith(f"Wrote {tmp_path / 'demo.gif'}: ")
    assert again == f"{model} holds the demo model already"
    (model / "configuration.json").write_text("{}")
    before = contents(model)
    refused = f"sdvideo: --save-model {model} exists and is not an empty folder; choose a new or empty one"
    assert told("--save-model", model, status=1) == [refused]
    assert contents(model) == before


def test_few_steps_are_four_without_guidance_with_the_lora_as_its_file_says(told, tmp_path, monkeypatch):
    file = tmp_path / "few_steps.safetensors"
    monkeypatch.setattr(demo, "FEW_STEPS_LORA", file)
    [missing] = told("--few-steps", "--save-model", tmp_path / "model", status=1)
    assert missing.startswith(f"sdvideo: {file} is missing, the demo model's few-step LoRA; ")
    assert not (tmp_path / "model").exists()
    down, up = torch.randn(1, 64, 3, 3, generator=torch.Generator().manual_seed(0)), torch.ones(4, 1, 1, 1)
    pair = {"lora_unet_out_2.lora_down.weight": down, "lora_unet_out_2.lora_up.weight": up / 50}
    save_file(pair, file, LCM(original_steps=20).metadata())
    told("a red circle", "--few-steps", "--zoom", 1, "--seed", 0, "--output", tmp_path / "cli.gif")
    made = read_metadata(tmp_path / "cli.gif")["sdvideo"]
    assert (made["few-steps"], made["sampler"], made["steps"], "lora" in made) == (True, "lcm", 4, False)
    told("a red circle", "--few-steps", "--zoom", 1, "--seed", 0, "--no-metadata", "--output", tmp_path / "cli")
    model = SDVideo(demo_model(), amp=False)
    model.load_lora(file)
    settings = {"image_size": (96, 96), "seed": 0, "timesteps": 4, "guidance_scale": 1.0}
    save_pngs(model("a red circle", sampler=LCM(original_steps=20), **settings), tmp_path / "api")
    assert contents(tmp_path / "cli") == contents(tmp_path / "api")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--zoom", "9"], "--zoom 9; it must be 1..8"),
        (["--few-steps", "--sampler", "unipc"], "--few-steps draws with the sampler lcm, got --sampler unipc; "),
        (["--few-steps", "--sampler", "ddim"], "--few-steps draws with the sampler lcm, got --sampler ddim; "),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(told, options, message):
    [line] = told(*options, status=1)
    assert line.startswith(f"sdvideo: {message}")


def test_its_settings_are_those_it_was_trained_with():
    assert (DEMO.width, DEMO.height, DEMO.num_frames) == (SIZE, SIZE, NUM_FRAMES)
