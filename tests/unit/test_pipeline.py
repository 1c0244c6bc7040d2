"""SDVideo: what each argument does, what is promised of a seed, and what is refused."""

import functools
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sdvideo_core import SDVideo, load_sequence, save_gif, save_pngs

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")


@pytest.fixture
def own_model(demo_model_dir: Path) -> SDVideo:
    """A model that one test may change."""
    return SDVideo(demo_model_dir, amp=False)


@pytest.fixture
def sample(demo_model: SDVideo) -> Callable[..., Tensor]:
    """The demo model, small and quick unless the test says otherwise."""
    return functools.partial(demo_model, "a red circle", timesteps=3, image_size=(32, 32), num_frames=3)


@pytest.fixture
def edit(demo_model: SDVideo) -> Callable[..., Tensor]:
    return functools.partial(demo_model, "a red circle", timesteps=10, seed=0)


def gradients(num_frames: int, width: int = 40, height: int = 24) -> list[Image.Image]:
    """Colours that change across the picture, and a little from frame to frame."""
    x, y = np.meshgrid(np.linspace(0, 200, width), np.linspace(0, 200, height))
    return [Image.fromarray(np.stack([x + 9 * k, y, x / 2], axis=2).astype(np.uint8)) for k in range(num_frames)]


def assert_video(video: Tensor, shape: tuple[int, ...]) -> None:
    assert video.shape == shape
    assert video.dtype == torch.float32
    assert video.device.type == "cpu"
    assert not video.requires_grad
    assert torch.isfinite(video).all()
    assert video.min() >= 0
    assert video.max() <= 1
    assert video.std() > 0.01


def test_every_argument_of_the_api(demo_model):
    video = demo_model(
        text="some text",
        text_neg="other text",
        guidance_scale=9.0,
        timesteps=4,
        image_size=(48, 32),
        num_frames=5,
        initial_frames=None,
        t_start=None,
        eta=0.5,
        seed=1,
        bar=False,
    )
    assert_video(video, (1, 3, 5, 32, 48))


def test_default_length_is_the_configurations(demo_model, sample):
    assert demo_model.config.max_frames == 16
    assert_video(sample(num_frames=None), (1, 3, 16, 32, 32))


def test_one_frame_is_a_video(sample):
    assert_video(sample(num_frames=1), (1, 3, 1, 32, 32))


def test_one_pixel_of_latents_is_a_video(sample):
    assert_video(sample(image_size=(8, 8)), (1, 3, 3, 8, 8))


def test_same_seed_is_the_same_video_bit_for_bit(sample, demo_model_dir):
    video = sample(seed=7)
    assert torch.equal(sample(seed=7), video)
    assert torch.equal(SDVideo(demo_model_dir, amp=False)(*sample.args, **sample.keywords, seed=7), video)


@pytest.mark.parametrize("change", [{"seed": 2}, {"text_neg": "blue"}, {"guidance_scale": 5.0}, {"timesteps": 4}])
def test_options_change_the_video(sample, change):
    assert not torch.equal(sample(seed=1), sample(**{"seed": 1} | change))


def test_prompt_changes_the_video(demo_model, sample):
    other = demo_model("a blue square", **sample.keywords, seed=1)
    assert not torch.equal(sample(seed=1), other)


def test_without_a_seed_every_video_differs(sample):
    assert not torch.equal(sample(), sample())
    assert not torch.equal(sample(seed=None), sample(seed=None))


def test_seeds_reach_up_to_64_bits(sample):
    assert torch.equal(sample(seed=2**64 - 1, eta=1.0), sample(seed=2**64 - 1, eta=1.0))


def test_guidance_of_1_ignores_the_negative_prompt(sample):
    assert torch.equal(sample(seed=1, guidance_scale=1), sample(seed=1, guidance_scale=1, text_neg="blue"))


def test_eta_adds_noise_that_is_seeded(sample):
    video = sample(seed=1, eta=1.0)
    assert torch.equal(sample(seed=1, eta=1.0), video)
    assert not torch.equal(sample(seed=1, eta=0.5), video)
    assert not torch.equal(sample(seed=1, eta=0.0), video)


def test_torchs_own_random_numbers_are_left_alone(sample, edit):
    before = torch.get_rng_state()
    sample(eta=1.0)
    sample(seed=1, eta=1.0)
    edit(initial_frames=gradients(2), t_start=2)
    assert torch.equal(torch.get_rng_state(), before)


def first_input(model: SDVideo, run: Callable[[], Tensor]) -> Tensor:
    """The latents that the first step sees."""
    seen: list[Tensor] = []
    hook = model.unet.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    run()
    hook.remove()
    return seen[0]


def test_longer_video_starts_from_the_noise_of_the_shorter(demo_model, sample):
    short = first_input(demo_model, lambda: sample(seed=1, num_frames=2))
    long = first_input(demo_model, lambda: sample(seed=1, num_frames=4))
    assert torch.equal(long[:, :, :2], short)
    assert not torch.equal(long[:, :, 2:], short)


def test_guidance_runs_one_batch_a_step(demo_model, sample):
    assert len(first_input(demo_model, lambda: sample(guidance_scale=9.0))) == 2
    assert len(first_input(demo_model, lambda: sample(guidance_scale=1.0))) == 1


@pytest.mark.parametrize(("num_frames", "length"), [(None, 4), (3, 3)])
def test_initial_frames_decide_size_and_length(edit, num_frames, length):
    video = edit(initial_frames=gradients(4), image_size=(64, 64), num_frames=num_frames, t_start=2)
    assert_video(video, (1, 3, length, 24, 40))


def test_first_of_the_initial_frames_are_taken(edit):
    cut = edit(initial_frames=gradients(4), num_frames=2, t_start=3)
    assert torch.equal(cut, edit(initial_frames=gradients(4)[:2], t_start=3))


def decoded_latents(model: SDVideo, run: Callable[[], Tensor]) -> Tensor:
    seen: list[Tensor] = []
    hook = model.vae.post_quant_conv.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    run()
    hook.remove()
    return torch.cat(seen)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_t_start_is_how_far_a_video_goes_from_its_input(demo_model, edit, seed):
    frames = gradients(3)
    original = decoded_latents(demo_model, lambda: demo_model.decode(demo_model.encode(frames)))
    runs = [functools.partial(edit, initial_frames=frames, t_start=t, seed=seed) for t in (1, 2, 4, 7, 10)]
    distances = [(decoded_latents(demo_model, run) - original).square().mean().sqrt().item() for run in runs]
    assert distances == sorted(distances)
    assert distances[0] < 0.05 * distances[-1]


def test_first_step_of_video_to_video_sees_the_input_under_its_noise(demo_model, edit):
    frames = gradients(2)
    seen = first_input(demo_model, lambda: edit(initial_frames=frames, t_start=4, guidance_scale=1))
    noise = first_input(demo_model, lambda: edit(image_size=(40, 24), num_frames=2, guidance_scale=1))
    alpha = demo_model.schedule.alpha_cumprod(301)  # of 1, 101, 201, 301 ... 901 the fourth from the end
    expected = math.sqrt(alpha) * demo_model.encode(frames) + math.sqrt(1 - alpha) * noise
    torch.testing.assert_close(seen, expected, rtol=0, atol=1e-6)


def test_all_steps_run_without_t_start(edit):
    frames = gradients(2)
    assert torch.equal(edit(initial_frames=frames), edit(initial_frames=frames, t_start=10))


def test_encoded_frames_are_latents_without_gradients(demo_model):
    latents = demo_model.encode(gradients(3))
    assert (latents.shape, latents.dtype, latents.requires_grad) == ((1, 4, 3, 3, 5), torch.float32, False)


# Mean difference to float32, measured and doubled: bfloat16 has 8 times coarser steps than float16.
@pytest.mark.parametrize(("dtype", "mean_error"), [(torch.float16, 0.0025), (torch.bfloat16, 0.02)])
def test_half_precision_is_close_to_full(sample, demo_model_dir, dtype, mean_error):
    model = SDVideo(demo_model_dir, dtype=dtype)
    seen = first_input(model, lambda: model("a red circle", **sample.keywords))
    video = model("a red circle", **sample.keywords, seed=1)
    assert seen.dtype == dtype  # amp leaves half-precision weights alone
    assert_video(video, (1, 3, 3, 32, 32))
    assert (video - sample(seed=1)).abs().mean() < mean_error


@pytest.mark.parametrize("amp", [True, False])
def test_amp_computes_in_bfloat16_on_a_cpu_that_can(sample, demo_model_dir, amp):
    model = SDVideo(demo_model_dir, amp=amp)
    can = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    output: list[Tensor] = []
    model.unet.register_forward_hook(lambda _module, _inputs, result: output.append(result))
    video = model("a red circle", **sample.keywords, seed=1)
    assert output[0].dtype == (torch.bfloat16 if amp and can else torch.float32)
    assert_video(video, (1, 3, 3, 32, 32))
    assert torch.equal(video, sample(seed=1)) == (not (amp and can))


def test_xformers_that_cannot_run_is_told_and_not_used(own_model, sample, monkeypatch):
    monkeypatch.setitem(sys.modules, "xformers", None)
    reason = r"it is not installed for this torch \(.*xformers.*\)"
    with pytest.warns(UserWarning, match=rf"^xformers is not used: {reason}; torch's attention is$"):
        assert own_model.enable_xformers(True) is own_model
    assert torch.equal(own_model(*sample.args, **sample.keywords, seed=1), sample(seed=1))


def test_turning_xformers_off_is_silent(own_model):  # as every warning is an error
    assert own_model.enable_xformers(False) is own_model


def test_progress_bar_counts_the_steps_that_run(sample, edit, capsys):
    sample(bar=True)
    assert "Sampling: 100%|" in (shown := capsys.readouterr().err)
    assert "3/3" in shown
    assert "Decoding: 100%|" in shown
    edit(initial_frames=gradients(1), t_start=2, bar=True)
    assert "2/2" in (shown := capsys.readouterr().err)
    assert "Encoding: 100%|" in shown
    sample(bar=False)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": (36, 32)}, "width 36 is not usable: the model needs a positive multiple of 8; try 40"),
        ({"image_size": (32, 0)}, "height 0 is not usable: the model needs a positive multiple of 8; try 8"),
        ({"num_frames": 0}, "num_frames=0; a video has at least 1 frame"),
        ({"num_frames": -1}, "num_frames=-1; a video has at least 1 frame"),
        ({"timesteps": 0}, r"timesteps=0; a schedule of 1000 takes 1\.\.999 steps"),
        ({"timesteps": 1000}, r"timesteps=1000; a schedule of 1000 takes 1\.\.999 steps"),
        ({"eta": -0.1}, r"eta=-0\.1; it must be from 0 \(deterministic\) to 1 \(as much noise as DDPM\)"),
        ({"eta": 1.5}, r"eta=1\.5; it must be from 0 \(deterministic\) to 1 \(as much noise as DDPM\)"),
        ({"t_start": 2}, "t_start=2 needs initial_frames; without them all the steps run"),
        ({"seed": -1}, r"seed=-1; it must be 0\.\.18446744073709551615"),
        ({"seed": 2**64}, r"seed=18446744073709551616; it must be 0\.\.18446744073709551615"),
    ],
)
def test_bad_arguments(sample, options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        sample(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames": 4}, "num_frames=4, but initial_frames has 3; lower num_frames"),
        ({"initial_frames": []}, "num_frames=0; a video has at least 1 frame"),
        ({"t_start": 0}, r"t_start=0; with 10 timesteps it must be 1\.\.10"),
        ({"t_start": 11}, r"t_start=11; with 10 timesteps it must be 1\.\.10"),
        ({"t_start": -1, "timesteps": 1}, r"t_start=-1; with 1 timesteps it must be 1\.\.1"),
        (
            {"initial_frames": gradients(1) + gradients(1, width=48)},
            "image 1 is 48x24, but image 0 is 40x24; all frames must have one size, resize them first",
        ),
        (
            {"initial_frames": gradients(2, width=44)},
            "width 44 is not usable: the model needs a positive multiple of 8; try 48",
        ),
    ],
)
def test_bad_initial_frames(edit, options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        edit(**{"initial_frames": gradients(3)} | options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32, torch.float8_e4m3fn])
def test_other_dtypes_are_refused(demo_model_dir, dtype):
    known = r"torch\.float32, torch\.float16, torch\.bfloat16"
    with pytest.raises(ValueError, match=f"^dtype={dtype}; expected one of {known}$"):
        SDVideo(demo_model_dir, dtype=dtype)


def test_devices_that_are_not_there_are_refused(demo_model_dir):
    with pytest.raises(ValueError, match=r"^device 'toaster' cannot be used here: .*toaster; use 'cpu'$"):
        SDVideo(demo_model_dir, device="toaster")


@pytest.mark.parametrize(
    ("part", "name"), [("unet.out.2", "latents after sampling"), ("vae.decoder.conv_out", "decoded frames")]
)
def test_nan_is_an_error_with_a_remedy(own_model, sample, part, name):
    network, _, layer = part.partition(".")
    with torch.no_grad():
        getattr(own_model, network).get_submodule(layer).bias.fill_(math.nan)
    message = f"the {name} hold NaN or infinity, computed with dtype=torch.float32 and amp=False; use dtype=torch.flo"
    with pytest.raises(FloatingPointError, match=f"^{message}"):
        own_model(*sample.args, **sample.keywords)


@pytest.mark.filterwarnings("ignore:xformers is not used")
def test_text_to_video_as_the_readme_has_it(demo_model_dir, tmp_path):
    model = SDVideo(demo_model_dir, "cpu", dtype=torch.float16)
    model.enable_xformers(True)
    x = model("arnold schwarzenegger eating a giant cheeseburger", timesteps=2, image_size=(32, 32))
    save_gif(x, tmp_path / "output.gif")
    assert len(load_sequence(tmp_path / "output.gif", image_size=None)) == 16


def test_video_to_video_as_the_readme_has_it(demo_model_dir, tmp_path):
    save_pngs(torch.rand(1, 3, 16, 24, 40), tmp_path / "image_sequence")
    denoise_strength, timesteps = 0.7, 3
    model = SDVideo(demo_model_dir, "cpu")
    init_frames = load_sequence(tmp_path / "image_sequence", image_size=(32, 32))
    x = model(
        "very wrinkly and old",
        initial_frames=init_frames,
        bar=True,
        timesteps=timesteps,
        t_start=round(timesteps * denoise_strength),
    )
    save_gif(x, tmp_path / "output.gif")
    assert load_sequence(tmp_path / "output.gif", image_size=None)[15].size == (32, 32)


@needs_cuda
def test_same_seed_is_the_same_video_on_cuda(demo_model_dir, sample, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    model = SDVideo(demo_model_dir, "cuda", amp=False)
    video = model(*sample.args, **sample.keywords, seed=1, eta=1.0)
    torch.testing.assert_close(video, sample(seed=1, eta=1.0), rtol=0, atol=1e-3)


@needs_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_half_precision_on_cuda(demo_model_dir, sample, dtype):
    video = SDVideo(demo_model_dir, "cuda", dtype)(*sample.args, **sample.keywords, seed=1)
    assert_video(video, (1, 3, 3, 32, 32))
    assert (video - sample(seed=1)).abs().mean() < 0.02
