"""Clips of moving shapes: what is drawn, said and held out, and the recipe that trains on them."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from sdvideo_core import SDVideo
from sdvideo_core.demo import text
from sdvideo_core.demo.clips import BACKGROUNDS, COLORS, MOTIONS, SHAPES, Scene, caption, draw_clip, draw_frame, scenes
from sdvideo_core.demo.dataset import LatentClips, collate_latents, encode_clips
from sdvideo_core.demo.recipe import CONFIG, Amounts, Recipe, write_model
from sdvideo_core.inspection import inspect
from sdvideo_core.training import SDVideoTrainer


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_scenes_are_all_that_can_be_told_apart():
    every = scenes()
    assert len(every) == len(set(every)) == 1054
    assert {s.color for s in every} == set(COLORS)
    assert {s.shape for s in every} == set(SHAPES)
    assert {s.motion for s in every} == set(MOTIONS)
    assert {s.background for s in every} == set(BACKGROUNDS)
    assert all(s.color != s.background for s in every)


def test_held_out_is_decided_without_the_background():
    held_out = {(s.color, s.shape, s.motion) for s in scenes() if s.held_out}
    trained = {(s.color, s.shape, s.motion) for s in scenes() if not s.held_out}
    assert not held_out & trained
    assert 0.1 < len(held_out) / len(held_out | trained) < 0.2
    for position, values in enumerate((COLORS, SHAPES, MOTIONS)):  # every word is seen in training
        assert {combination[position] for combination in trained} == set(values)


def test_a_generator_is_one_clip():
    scene = Scene("red", "star", "turning", "gray")
    clips = [draw_clip(scene, rng(seed)) for seed in (1, 1, 2)]
    assert clips[0].shape == (16, 96, 96, 3)
    assert np.array_equal(clips[0], clips[1])
    assert not np.array_equal(clips[0], clips[2])
    assert draw_clip(scene, rng(), num_frames=3, size=64).shape == (3, 64, 64, 3)
    assert draw_frame(scene, rng()).shape == (96, 96, 3)


def test_a_clip_has_its_colours_and_soft_edges():
    frame = draw_frame(Scene("blue", "circle", "still", "white"), rng())
    assert tuple(frame[0, 0]) == BACKGROUNDS["white"]
    colors = {tuple(color) for color in frame.reshape(-1, 3)}
    assert COLORS["blue"] in colors
    assert 10 < len(colors) < 40  # the two, and what lies between them on the edge


@pytest.mark.parametrize("scene", scenes()[::97])
def test_captions_say_all_but_a_black_background_and_no_motion(scene):
    for seed in range(20):
        words = caption(scene, rng(seed))
        assert scene.color in words
        assert scene.background == "black" or f"{scene.background}" in words.replace(scene.color, "", 1)
        assert words == " ".join(words.split())
        assert " ," not in words


def test_the_encoder_knows_the_words_and_nothing_else(tmp_path):
    encoder = text.train_text_encoder(steps=2)
    known = encoder.token_embedding.weight.abs().sum(1) > 0
    assert known[encoder.tokenizer(["a red ball falling"])].all()
    assert not known[encoder.tokenizer(["arnold schwarzenegger eating"])[0, 1:-1].unique()].all()
    assert known.sum() < 100


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The recipe with next to nothing of each stage."""
    amounts = Amounts(vae_parts=2, vae_frames=1, decoder=1, text=1, clips=6, every_second_frame=1, every_frame=1)
    recipe = Recipe(tmp_path_factory.mktemp("work"), amounts=amounts, compiled=False)
    return recipe, recipe.make(recipe.work / "model")


def test_the_recipe_makes_a_whole_model(tiny):
    directory = tiny[1]
    report = inspect(directory)
    assert not report.get("missing")
    assert not report.get("problems")
    model = SDVideo(directory, amp=False)
    assert model.config == CONFIG
    assert model("a", image_size=(96, 96), timesteps=1, seed=0).shape == (1, 3, 16, 96, 96)


def test_latents_have_the_size_the_recipe_says(tiny):
    latents = load_file(tiny[0].work / "clips.safetensors")["latents"].float()
    assert latents.shape == (6, 16, 4, 12, 12)
    assert 0.3 < latents.std() < 0.7


def test_finished_stages_are_kept(tiny):
    recipe, directory = tiny
    (first,) = json.loads((recipe.work / "times.json").read_text())
    before = {path: path.stat().st_mtime_ns for path in recipe.work.rglob("*.safetensors") if "model" not in path.parts}
    recipe.make(directory)
    kept = ("vae.safetensors", "text.safetensors", "clips.safetensors", "second_unet.safetensors")
    assert all(path.stat().st_mtime_ns == before[path] for path in before if path.name in kept)
    assert all((recipe.work / name).is_file() for name in kept)
    assert json.loads((recipe.work / "times.json").read_text()) == [first, pytest.approx(first / 2, abs=first / 2)]


def test_a_model_that_cannot_be_finished_leaves_the_one_that_was_there(tiny, tmp_path, monkeypatch):
    def contents():
        return {path.name: path.read_bytes() for path in directory.iterdir()}

    def stop(_config):
        raise KeyboardInterrupt

    directory = shutil.copytree(tiny[1], tmp_path / "model")
    before, model = contents(), SDVideo(directory, amp=False)
    parts = model.unet.state_dict(), model.vae, model.text_encoder
    monkeypatch.setattr("sdvideo_core.demo.recipe.configuration", stop)
    with pytest.raises(KeyboardInterrupt):
        write_model(directory, *parts, torch.float32)
    assert contents() == before


def test_played_backwards_a_clip_is_the_opposite_motion(tiny):
    data = LatentClips(tiny[0].work / "clips.safetensors", captions=1)
    forwards = len(load_file(tiny[0].work / "clips.safetensors")["scenes"])
    assert forwards < len(data) <= 2 * forwards
    clip, scene, backward = data.clips[forwards]
    assert backward
    opposite = data.clips[clip][1]
    assert {scene.motion, opposite.motion} <= {"left", "right", "up", "down", "growing", "shrinking"}
    assert torch.equal(data[forwards]["pixel_values"], data[clip]["pixel_values"].flip(0))
    assert not any(scene.held_out for _, scene, _ in data.clips)


def test_every_caption_of_a_clip_is_drawn_anew_but_the_same_each_time(tiny):
    data = LatentClips(tiny[0].work / "clips.safetensors", captions=50)
    said = {data[index]["text"] for index in range(0, len(data), len(data.clips))}
    assert len(said) > 10
    assert data[7]["text"] == data[7]["text"]
    assert LatentClips(tiny[0].work / "clips.safetensors", stride=2)[0]["pixel_values"].shape[0] == 8


def test_training_on_clips_lowers_the_loss(tiny, tmp_path):
    recipe = tiny[0]
    data = LatentClips(recipe.work / "clips.safetensors", stride=8)
    loader = DataLoader(data, batch_size=2, shuffle=True, collate_fn=collate_latents)
    options = {"lr": 2e-3, "preencoded_img": True, "min_snr_gamma": 1.0}
    trainer = SDVideoTrainer(SDVideo(recipe.work / "start", amp=False), loader, tmp_path, **options)
    trainer.train(steps=30, bar=False)
    assert np.mean(trainer.losses[-8:]) < 0.5 * np.mean(trainer.losses[:8])


def test_encoding_is_the_same_each_time(tiny, tmp_path):
    vae = SDVideo(tiny[1], amp=False).vae
    for name in ("a", "b"):
        encode_clips(vae, 2, tmp_path / name, seed=4)
    first, second = (load_file(tmp_path / name)["latents"] for name in ("a", "b"))
    assert torch.equal(first, second)
