"""Demo model: what ships, and that it draws what it is asked for."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence
from torch.utils.data import DataLoader

from sdvideo_core import SDVideo, demo_model
from sdvideo_core.cli import main
from sdvideo_core.config import UNetConfig
from sdvideo_core.demo import few_steps, few_steps_lora
from sdvideo_core.demo.clips import NUM_FRAMES, SIZE, Scene, caption, draw_clip
from sdvideo_core.demo.reading import read_scene
from sdvideo_core.frames import video_to_images
from sdvideo_core.inspection import inspect
from sdvideo_core.lcm import LCM
from sdvideo_core.lora import LoRA
from sdvideo_core.lora_files import read_lora
from sdvideo_core.training import SDVideoTrainer
from sdvideo_core.unet import UNetSD

ROOT = Path(__file__).parents[2]
OPTIONS = {"image_size": (SIZE, SIZE), "timesteps": 20, "guidance_scale": 2.0, "seed": 0}


@pytest.fixture(scope="module")
def demo() -> SDVideo:
    return SDVideo(demo_model(), amp=False)


def pixels(video) -> np.ndarray:
    return np.stack([np.asarray(image) for image in video_to_images(video)])


def read(video):
    return read_scene(pixels(video))


def test_it_is_a_whole_model_of_at_most_25_mb():
    files = [path for path in demo_model().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 25_000_000
    report = inspect(demo_model())
    assert not report.get("missing")
    assert not report.get("problems")


def test_its_default_length_is_what_it_was_trained_on(demo):
    assert demo.config.max_frames == NUM_FRAMES == 16


PROMPTS = {
    "a red circle moving left": ("red", "circle", "left", "black"),
    "a yellow star moving right on a blue background": ("yellow", "star", "right", "blue"),
    "a green square moving up on a white background": ("green", "square", "up", "white"),
    "a blue triangle growing": ("blue", "triangle", "growing", "black"),
}


@pytest.mark.parametrize(("prompt", "expected"), PROMPTS.items())
def test_it_follows_the_prompt(demo, prompt, expected):
    seen = read(demo(prompt, **OPTIONS))
    assert (seen.color, seen.shape, seen.motion, seen.background) == expected


def test_the_first_command_shows_what_it_says(tmp_path, capsys):
    gif = tmp_path / "demo.gif"
    assert main(["demo", "a red circle moving left", "--output", str(gif)]) == 0
    with Image.open(gif) as file:
        frames = np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(file)])
    assert frames.shape == (16, 288, 288, 3)
    seen = read_scene(frames)
    assert (seen.color, seen.shape, seen.motion) == ("red", "circle", "left")
    assert "demo.gif" in capsys.readouterr().err


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_make_demo_calls_it():
    command = ["make", "--no-print-directory", "--dry-run", "demo"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == '.venv/bin/sdvideo demo "a red circle moving left" --output demo.gif'


def test_the_few_step_lora_is_small_and_says_how_it_is_sampled():
    assert few_steps_lora().stat().st_size <= 3_000_000
    assert LCM.from_metadata(read_lora(few_steps_lora()).metadata) == few_steps.SAMPLING["sampler"]


@pytest.mark.parametrize(("prompt", "expected"), PROMPTS.items())
def test_four_steps_without_guidance_follow_the_prompt_with_its_lora(demo, prompt, expected):
    with LoRA.from_file(demo.unet, few_steps_lora()):
        seen = read(demo(prompt, **OPTIONS | few_steps.SAMPLING))
    assert (seen.color, seen.shape, seen.motion, seen.background) == expected


def test_video_to_video_changes_the_colour_and_keeps_the_motion(demo):
    clip = draw_clip(Scene("green", "square", "right", "black"), np.random.default_rng(3))
    frames = [Image.fromarray(frame) for frame in clip]
    seen = read(demo("a red square moving right", initial_frames=frames, t_start=14, **OPTIONS))
    assert (seen.color, seen.motion) == ("red", "right")


def clips_of(model, scene, captions_of, count):
    """Batches of latents that show one scene and captions that say another."""
    rng = np.random.default_rng(0)
    items = []
    for _ in range(count):
        clip = torch.from_numpy(draw_clip(scene, rng, num_frames=4)).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.no_grad():
            items.append((model.vae.encode(clip), caption(captions_of, rng)))
    return DataLoader(items, batch_size=4, shuffle=True, collate_fn=collate)


def collate(items):
    return {"pixel_values": torch.stack([clip for clip, _ in items]), "text": [text for _, text in items]}


def test_a_lora_turns_red_into_blue(demo, tmp_path):
    shown, said = (Scene(color, "circle", "left", "black") for color in ("blue", "red"))
    data = clips_of(demo, shown, said, count=16)
    trainer = SDVideoTrainer(demo, data, tmp_path, lr=4e-3, lr_warmup=5, lora_rank=8, preencoded_img=True)
    file = trainer.train(steps=40, bar=False)
    options = OPTIONS | {"num_frames": 8}
    assert read(demo("a red circle moving left", **options)).color == "red"
    with LoRA.from_file(demo.unet, file):
        assert read(demo("a red circle moving left", **options)).color == "blue"


def results(name: str) -> dict:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def percents(found: dict) -> dict[str, float]:
    return {
        what: values["percent"] for what, values in found.items() if isinstance(values, dict) and "percent" in values
    }


def test_the_measured_model_follows_prompts_and_the_documents_say_how_well():
    found = results("prompt-following")
    assert found["what"].startswith("demo model, text to video, 64 held-out prompts")
    fifty, twenty = (percents(found[f"{steps} steps"]) for steps in (50, 20))
    for measured in (fifty, twenty):
        assert measured["color"] >= 95 and measured["motion"] >= 90 and measured["shape"] >= 85
        row = " | ".join(f"{measured[what]:g} %" for what in ("color", "shape", "motion", "background"))
        assert row in (ROOT / "docs" / "demo-model.md").read_text(encoding="utf-8")
    assert all(abs(fifty[what] - twenty[what]) <= 3 for what in ("color", "shape", "motion"))
    assert f"{fifty['shape']:g} % of the shapes" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_measured_model_changes_colours_and_keeps_motions():
    found = results("prompt-following-video-to-video")
    measured = percents(found["20 steps, motion said"])
    assert found["strength"] == 0.7
    assert measured["new color"] >= 90 and measured["motion kept"] >= 90


def test_it_has_every_kind_of_layer_of_the_full_size(demo):
    with torch.device("meta"):
        full = UNetSD(UNetConfig())
    assert {type(layer) for layer in full.modules()} == {type(layer) for layer in demo.unet.modules()}
