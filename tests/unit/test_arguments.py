"""Arguments: what is given in place of another kind of value is told in one line, before any work."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sdvideo_core import SDVideo, load_sequence, save_gif, save_pngs
from sdvideo_core.frames import video_to_images
from sdvideo_core.lcm import LCM
from sdvideo_core.playback import SaveOptions
from sdvideo_core.video_io import save_mp4, save_webp

PICTURE = Image.new("RGB", (32, 32))
PICTURES = (
    "expected a list of PIL images; load_sequence reads them from a folder, a GIF or a video, "
    "video_to_images from a tensor"
)
WHOLE, NUMBER = "expected a whole number (int)", "expected a number (int or float)"
SIZE = "expected (width, height) in pixels, such as (256, 256)"
SCALES = "expected a list of numbers, such as (12, 4), or a function"
SAMPLER = "expected one of ddim, dpm++2m, unipc, lcm, or a Sampler such as LCM()"

# Argument of a call, a value that is not for it, and the line it is told in.
WRONG = [
    ("text", ["a cat", "a dog"], "['a cat', 'a dog'], expected one prompt (str); call the model once for each of"),
    ("text", None, "None, expected one prompt (str); call the model once for each of several"),
    ("text_neg", None, "None, expected one prompt (str), '' for none"),
    ("guidance_scale", "9", f"'9', {NUMBER}"),
    ("timesteps", "20", f"'20', {WHOLE}"),
    ("timesteps", 20.0, f"20.0, {WHOLE}"),
    ("timesteps", True, f"True, {WHOLE}"),
    ("timesteps", torch.tensor(20.0), f"20.0, {WHOLE}"),
    ("timesteps", torch.tensor([20]), f"[20], {WHOLE}"),
    ("timesteps", np.array(True), f"True, {WHOLE}"),
    ("image_size", "256", f"'256', {SIZE}"),
    ("image_size", 256, f"256, {SIZE}"),
    ("image_size", (256,), f"(256,), {SIZE}"),
    ("image_size", (32.0, 32.0), f"(32.0, 32.0), {SIZE}"),
    ("image_size", np.zeros((2, 2), int), f"of type ndarray, {SIZE}"),
    ("num_frames", 16.0, f"16.0, {WHOLE}"),
    ("initial_frames", "clip.gif", f"'clip.gif', {PICTURES}"),
    ("initial_frames", Path("clip.gif"), f"of type {type(Path()).__name__}, {PICTURES}"),
    ("initial_frames", ["0.png", "1.png"], f"['0.png', '1.png'], {PICTURES}"),
    ("initial_frames", [np.zeros((32, 32, 3))], f"a list of ndarray, {PICTURES}"),
    ("initial_frames", PICTURE, f"of type Image, {PICTURES}"),
    ("initial_frames", torch.zeros(1, 3, 2, 32, 32), f"of type Tensor, {PICTURES}"),
    ("t_start", 0.7, f"0.7, {WHOLE}"),
    ("eta", "0", f"'0', {NUMBER}"),
    ("eta", torch.zeros(1), f"[0.0], {NUMBER}"),
    ("seed", "1", f"'1', {WHOLE}"),
    ("sampler", None, f"None, {SAMPLER}"),
    ("sampler", LCM, f"the class LCM, {SAMPLER}"),
    ("guidance_rescale", None, f"None, {NUMBER}"),
    ("guidance_schedule", 9, f"9, {SCALES}"),
    ("guidance_schedule", "12,4", f"'12,4', {SCALES}"),
    ("guidance_schedule", "", f"'', {SCALES}"),
    ("dynamic_thresholding", "0.995", f"'0.995', {NUMBER}"),
    ("guidance_embed", "7.5", f"'7.5', {NUMBER}"),
]


@pytest.fixture
def sample(demo_model: SDVideo) -> Callable[..., Tensor]:
    given = {"text": "a red circle", "timesteps": 1, "image_size": (32, 32), "num_frames": 2, "seed": 1}
    return lambda **changed: demo_model(**given | changed)


def message(call: Callable[[], object]) -> str:
    with pytest.raises(TypeError) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize(("name", "value", "told"), WRONG)
def test_a_call_tells_a_value_of_another_kind(sample, name, value, told):
    said = message(lambda: sample(**{name: value}))
    assert said.startswith(f"{name} is {told}")
    assert "\n" not in said


NUMBERS = {"guidance_scale": 9.0, "eta": 0.5, "guidance_rescale": 0.5, "dynamic_thresholding": 0.75}
NUMBERS |= {"timesteps": 2, "num_frames": 3, "seed": 3}
LISTS = {"guidance_schedule": [12.0, 4.0], "image_size": [40, 32]}


@pytest.mark.parametrize("changed", [np.array, torch.tensor, lambda value: np.array(value)[()]])
def test_a_call_takes_numbers_of_numpy_and_torch(sample, changed):
    for given in (NUMBERS, {**NUMBERS, **LISTS}):
        assert torch.equal(sample(**{name: changed(value) for name, value in given.items()}), sample(**given))


@pytest.mark.parametrize(
    "changed", [tuple, lambda values: list(np.array(values)), lambda values: [*torch.tensor(values)]]
)
def test_a_call_takes_other_sequences(sample, changed):
    assert torch.equal(sample(**{name: changed(values) for name, values in LISTS.items()}), sample(**LISTS))
    pictures = video_to_images(sample())
    assert torch.equal(sample(initial_frames=tuple(pictures)), sample(initial_frames=pictures))


@pytest.mark.parametrize("changed", [np.array, torch.tensor])
def test_a_guidance_to_embed_may_be_a_tensor(sample, changed):
    with pytest.raises(ValueError, match=r"^guidance_embed needs a UNet distilled with"):
        sample(guidance_embed=changed(7.5))


def test_saving_takes_a_rate_as_a_tensor(tmp_path):
    video = torch.rand(1, 3, 4, 16, 16)
    for save, ending in ((save_gif, ".gif"), (save_webp, ".webp"), (save_mp4, ".mp4")):
        written = []
        for fps in (12, np.float32(12), torch.tensor(12), torch.tensor(12, dtype=torch.bfloat16)):
            save(video, tmp_path / f"clip{ending}", fps)
            written.append((tmp_path / f"clip{ending}").read_bytes())
        assert set(written) == {written[0]}


def test_encode_and_load_lora_tell_it_too(demo_model):
    assert message(lambda: demo_model.encode("clip.gif")) == f"images is 'clip.gif', {PICTURES}"
    assert message(lambda: demo_model.load_lora("a.safetensors", "0.8")) == f"strength is '0.8', {NUMBER}"


def test_long_values_are_cut_short(sample):
    said = message(lambda: sample(initial_frames=["a long name of a picture" * 9] * 99))
    assert len(said) < 400 and said.startswith("initial_frames is ['a long name")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"frames": "16"}, f"num_frames is '16', {WHOLE}"),
        ({"frames": 16.0}, f"num_frames is 16.0, {WHOLE}"),
        ({"offset": "1"}, f"offset is '1', {WHOLE}"),
        ({"stride": None}, f"stride is None, {WHOLE}"),
        ({"image_size": 256}, f"image_size is 256, {SIZE}"),
    ],
)
def test_reading_tells_it(tmp_path, options, told):
    PICTURE.save(tmp_path / "0.png")
    assert message(lambda: load_sequence(tmp_path, **options)) == told


@pytest.mark.parametrize(("save", "name"), [(save_gif, "a.gif"), (save_webp, "a.webp"), (save_mp4, "a.mp4")])
def test_saving_tells_it(tmp_path, save, name):
    save_to = functools.partial(save, path=tmp_path / name)
    video = torch.rand(1, 3, 2, 32, 32)
    images = "frames_to_video(images_to_frames(images)) makes one of PIL images"
    tensor = f"expected a tensor (1, 3, F, H, W) in 0..1; {images}"
    assert message(lambda: save_to([PICTURE])) == f"video is a list of Image, {tensor}"
    assert message(lambda: save_to(video.numpy())) == f"video is of type ndarray, {tensor}"
    assert message(lambda: save_to(video, fps="8")) == f"fps is '8', {NUMBER}"
    assert message(lambda: SaveOptions(loop=0.5)) == f"loop is 0.5, {WHOLE}"
    assert message(lambda: save_pngs("a.gif", tmp_path / "folder")) == f"video is 'a.gif', {tensor}"
    assert list(tmp_path.iterdir()) == []


def test_defaults_are_the_published_ones():
    made = {name: p.default for name, p in inspect.signature(SDVideo).parameters.items()}
    call = {name: p.default for name, p in inspect.signature(SDVideo.__call__).parameters.items()}
    assert (made["device"], made["dtype"], made["amp"]) == ("cpu", torch.float32, True)
    expected = {"text_neg": "", "guidance_scale": 9.0, "timesteps": 50, "image_size": (256, 256), "num_frames": None}
    expected |= {"initial_frames": None, "t_start": None, "eta": 0.0, "seed": None, "bar": False}
    assert list(call.items())[2:12] == list(expected.items())
