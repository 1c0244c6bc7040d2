"""Families: which published model a name tells, what is said of it, and what is warned of."""

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from sdvideo_core import SDVideo, demo_model
from sdvideo_core.checkpoint import load_text_encoder, load_vae
from sdvideo_core.cli import main
from sdvideo_core.configuration import read_config
from sdvideo_core.convert import convert
from sdvideo_core.demo.clips import draw_frame, scenes
from sdvideo_core.families import DEMO, FAMILIES, family_of, far_from_training, find_family, summary
from sdvideo_core.inspection import inspect
from sdvideo_core.layouts import find_layout, names_of

# Names as they are published, of folders, files and repositories.
NAMES = [
    ("modelscope-damo-text-to-video-synthesis", "ModelScope 1.7B"),
    ("ali-vilab/text-to-video-ms-1.7b", "ModelScope 1.7B"),
    ("text-to-video-ms-1.7b-legacy", "ModelScope 1.7B"),
    ("zeroscope_v1_320s.pth", "ZeroScope v1 320s"),
    ("cerspense/zeroscope_v1-1_320s", "ZeroScope v1 320s"),
    ("zeroscope_v2_dark_30x448x256", "ZeroScope v2 30x448x256"),
    ("zs2_448w", "ZeroScope v2 30x448x256"),
    ("zs2_576w", "ZeroScope v2 576w"),
    ("models--cerspense--zeroscope_v2_576w", "ZeroScope v2 576w"),
    ("zeroscope_v2_XL", "ZeroScope v2 XL"),
    ("zs2_XL", "ZeroScope v2 XL"),
    ("potat1-50000-base-text-encoder", "Potat1"),
    ("animov-0.1.1", "Animov 0.1"),
    ("animov-0.1-modelscope-original-format", "Animov 0.1"),
    ("animov-512x", "Animov 512x"),
    ("my_model", None),
    ("text2video_pytorch_model.pth", None),
]


@pytest.mark.parametrize(("name", "expected"), NAMES)
def test_published_names_are_known(name, expected):
    family = family_of([name])
    assert (family.name if family else None) == expected


def test_settings_that_are_modelscopes_name_its_pipeline_and_others_do_not():
    """Cards of other models tell what they were trained on, not steps, guidance or frame rate."""
    for family in FAMILIES:
        has_defaults = (family.steps, family.guidance_scale, family.fps) == (50, 9.0, 8)
        assert has_defaults == family.settings_source.startswith("the defaults of ModelScope's pipeline")
        assert (family.denoise is not None) == ("denoise" in family.settings_source)
        assert "50" not in family.source and "denoise" not in family.source


def test_every_family_has_a_name_and_a_source():
    assert {name for _, name in NAMES if name} == {family.name for family in FAMILIES if family.pattern}
    assert all(family.source and family.width % 8 == family.height % 8 == 0 for family in FAMILIES)


@pytest.fixture
def zeroscope(demo_model_dir, tmp_path) -> Path:
    return Path(shutil.copytree(demo_model_dir, tmp_path / "zeroscope_v2_576w"))


def test_names_come_from_the_folder_the_file_the_cache_and_the_json(zeroscope, tmp_path):
    file = zeroscope / "text2video_pytorch_model.pth"
    assert [family_of(names_of(find_layout(path))).name for path in (zeroscope, file)] == ["ZeroScope v2 576w"] * 2
    snapshot = tmp_path / "models--cerspense--zeroscope_v2_XL" / "snapshots" / "0a1b"
    shutil.copytree(zeroscope, snapshot)
    assert family_of(names_of(find_layout(snapshot))).name == "ZeroScope v2 XL"
    trained = tmp_path / "modelscope" / "checkpoint-100"  # a folder of models tells nothing of one in it
    (trained / "unet").mkdir(parents=True)
    (trained / "unet" / "config.json").write_text("{}")
    assert family_of(names_of(find_layout(trained))) is None
    (trained / "model_index.json").write_text('{"_name_or_path": "camenduru/potat1"}')
    assert family_of(names_of(find_layout(trained))).name == "Potat1"


def test_the_demo_model_is_known_by_its_size_under_any_name_and_in_any_layout(zeroscope, tmp_path):
    copy = Path(shutil.copytree(demo_model(), tmp_path / "modelscope"))
    convert(demo_model(), tmp_path / "converted", "modelscope")
    for path in (demo_model(), copy, copy / "text2video_pytorch_model.safetensors", tmp_path / "converted"):
        assert find_family(path) is DEMO
    assert SDVideo(copy, amp=False).family is DEMO
    assert find_family(zeroscope).name == "ZeroScope v2 576w"


def test_the_demo_models_sizes_are_those_that_ship():
    assert read_config(demo_model()).unet == DEMO.unet
    assert load_text_encoder(demo_model(), device="meta").config == DEMO.text


def test_info_and_warnings_know_the_demo_model():
    report = inspect(demo_model())
    assert report["family"] == "SDVideo's demo model"
    assert report["trained"] == {"width": 96, "height": 96, "num_frames": 16, "source": "docs/demo-model.md"}
    assert report["suggested"] == {"steps": 25, "guidance_scale": 2.0, "fps": 8, "source": "docs/demo-model.md"}
    assert summary(DEMO).startswith("SDVideo's demo model, by the size of its UNet. Trained on 96x96, 16 frames (docs")
    assert far_from_training(DEMO, 96, 96, 16) is None
    assert "is asked for 256x256 pixels, trained on 96x96" in far_from_training(DEMO, 256, 256, 16)


@pytest.mark.parametrize(
    ("name", "size", "num_frames", "expected"),
    [
        ("zeroscope_v2_576w", (576, 320), 24, None),
        ("zeroscope_v2_576w", (448, 256), 16, None),
        ("zeroscope_v2_576w", (576, 320), 48, None),
        ("zeroscope_v2_576w", (576, 320), 49, "for 49 frames, trained on 24"),
        ("zeroscope_v2_576w", (576, 320), 11, "for 11 frames, trained on 24"),
        ("modelscope", (1024, 576), 16, "for 1024x576 pixels, trained on 256x256"),
        ("zeroscope_v2_XL", (256, 256), 4, "for 256x256 pixels, trained on 1024x576 and for 4 frames, trained on 24"),
        ("potat1", (1024, 576), 200, None),  # whose length nobody tells
        ("my_model", (8, 8), 1000, None),
    ],
)
def test_what_is_far_from_training(name, size, num_frames, expected):
    warning = far_from_training(family_of([name]), *size, num_frames)
    assert warning is None if expected is None else expected in warning


def test_python_warns_before_it_samples_and_takes_the_trained_length(zeroscope):
    model = SDVideo(zeroscope, amp=False)
    assert model.family.num_frames == 24 != model.config.max_frames
    with pytest.warns(UserWarning, match=r"ZeroScope v2 576w .* 64x64 pixels, trained on 576x320 and for 2 frames"):
        model("a", image_size=(64, 64), num_frames=2, timesteps=1, seed=0)
    with pytest.warns(UserWarning, match=r"is asked for 64x64 pixels, trained on 576x320; expect"):
        video = model("a", image_size=(64, 64), timesteps=1, seed=0)
    assert video.shape[2] == 24


def test_python_is_silent_where_the_name_tells_nothing(demo_model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        demo_model("a", image_size=(64, 64), num_frames=1, timesteps=1, seed=0)


def test_info_tells_the_family_and_settings(zeroscope, capsys):
    report = inspect(zeroscope)
    assert report["family"] == "ZeroScope v2 576w"
    trained = report["trained"]
    assert (trained["width"], trained["height"], trained["num_frames"]) == (576, 320, 24)
    settings = {"steps": 50, "guidance_scale": 9.0, "fps": 8, "source": "the defaults of ModelScope's pipeline"}
    assert report["suggested"] == settings
    assert main(["info", str(zeroscope)]) == 0
    text = capsys.readouterr().out
    assert "\n  family: ZeroScope v2 576w\n  trained: width 576, height 320, num_frames 24, source " in text
    assert main(["info", str(zeroscope), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["suggested"]["steps"] == 50


def test_a_summary_is_for_people():
    assert summary(family_of(["zeroscope_v2_576w"])).endswith(
        "Trained on 576x320, 24 frames (huggingface.co/cerspense/zeroscope_v2_576w). Suggested: 50 steps, cfg 9, "
        "8 frames per second (the defaults of ModelScope's pipeline)."
    )
    assert "denoise 0.66 to 0.85 (the defaults of ModelScope's pipeline; denoise," in summary(family_of(["zs2_XL"]))
    assert "Trained on 1024x576, a length that nobody tells (" in summary(family_of(["potat1"]))
    assert summary(None).startswith("Which model this is cannot be told from its name.")


def test_colours_of_the_demo_models_latents_are_those_of_least_squares():
    rng = np.random.default_rng(1)
    pixels = np.stack([draw_frame(scene, rng) for scene in scenes()[::11]]) / 127.5 - 1  # (N, 96, 96, 3)
    with torch.no_grad():
        latents = load_vae(demo_model()).encode(torch.from_numpy(pixels).float().movedim(3, 1)).double().numpy()
    colors = pixels.reshape(-1, 12, 8, 12, 8, 3).mean((2, 4)).reshape(-1, 3)
    rows = np.moveaxis(latents, 1, 3).reshape(-1, 4)
    rows = np.concatenate([rows, np.ones_like(rows[:, :1])], axis=1)
    best, *_ = np.linalg.lstsq(rows, colors)
    errors = [((rows @ factors - colors) ** 2).mean() for factors in (best, np.array(DEMO.latent_rgb_factors))]
    assert errors[1] <= 1.2 * errors[0]
