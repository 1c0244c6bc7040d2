"""SDVideo and the command line with samplers and guidance options: defaults, effects, refusals, and demo videos."""

import argparse
import functools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sdvideo_core import SDVideo, cli_defaults, cli_sampling, demo_model, pipeline, save_pngs
from sdvideo_core.cli import build_parser, main
from sdvideo_core.demo.reading import read_scene
from sdvideo_core.frames import video_to_images
from sdvideo_core.guidance import cosine_guidance, guidance_interval, scale_over_steps
from sdvideo_core.lcm import LCM
from sdvideo_core.samplers import SAMPLERS, find_sampler
from sdvideo_core.schedule import NoiseSchedule

# Tests of many samplers give the sampler lcm what they give the others.
any_lcm = pytest.mark.filterwarnings("ignore:sampler 'lcm' with ")
OTHERS = [name for name in SAMPLERS if name != "ddim"]
OFF = {
    "sampler": "ddim",
    "guidance_rescale": 0.0,
    "guidance_schedule": None,
    "dynamic_thresholding": None,
    "guidance_embed": None,
}
GUIDANCE = [
    {"guidance_rescale": 0.7},
    {"guidance_schedule": (9.0, 1.0)},
    {"guidance_schedule": cosine_guidance(9, 1)},
    {"guidance_schedule": guidance_interval(9.0, 0.2, 0.6)},
    {"dynamic_thresholding": 0.9},
]


@pytest.fixture
def sample(demo_model: SDVideo) -> Callable[..., Tensor]:
    """The tiny model, quick unless the test says otherwise."""
    return functools.partial(demo_model, "a red circle", timesteps=4, image_size=(32, 32), num_frames=3, seed=1)


def pictures() -> list[Image.Image]:
    ramp = np.linspace(0, 200, 24)
    return [Image.fromarray(np.stack(np.meshgrid(ramp, ramp + 9 * k) * 2, 2)[..., :3].astype(np.uint8)) for k in (0, 1)]


def test_the_defaults_change_nothing(sample):
    assert torch.equal(sample(**OFF), sample())


@any_lcm
@pytest.mark.parametrize("sampler", OTHERS)
def test_a_sampler_gives_its_own_video_again_and_again(sample, sampler):
    video = sample(sampler=sampler)
    assert torch.equal(sample(sampler=sampler), video)
    assert not torch.equal(sample(), video)
    assert not torch.equal(sample(sampler=sampler, seed=2), video)
    assert video.isfinite().all()


@any_lcm
@pytest.mark.parametrize("sampler", OTHERS)
def test_video_to_video_keeps_more_the_fewer_steps_run(demo_model, sampler):
    edit = functools.partial(demo_model, "a red circle", timesteps=10, seed=0, initial_frames=pictures())
    whole, little = (edit(t_start=t_start, sampler=sampler) for t_start in (10, 1))
    decoded = demo_model.decode(demo_model.encode(pictures()))
    assert (little - decoded).abs().mean() < (whole - decoded).abs().mean()


@any_lcm
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("options", GUIDANCE, ids=lambda options: "-".join(options))
def test_every_sampler_takes_every_guidance(sample, sampler, options):
    changed = sample(sampler=sampler, **options)
    assert changed.isfinite().all()
    assert not torch.equal(changed, sample(sampler=sampler))


def test_options_of_a_sampler_are_taken(sample):
    sample = functools.partial(sample, guidance_scale=1)
    assert torch.equal(sample(sampler=LCM()), sample(sampler="lcm"))
    assert not torch.equal(sample(sampler=LCM(original_steps=20)), sample(sampler="lcm"))


@pytest.mark.parametrize(
    ("options", "given"),
    [
        ({"timesteps": 50}, "timesteps=50 and guidance_scale=9"),
        ({"guidance_scale": 2.5}, "timesteps=4 and guidance_scale=2.5"),
        ({"timesteps": 9, "guidance_scale": 1}, "timesteps=9 and guidance_scale=1"),
        ({"guidance_schedule": (2, 1)}, "timesteps=4 and a guidance_schedule"),
    ],
)
def test_lcm_with_settings_of_other_samplers_warns_in_one_line(sample, monkeypatch, demo_model, options, given):
    monkeypatch.setattr(LCM, "sample", lambda _self, _eps_model, x, *_: x)
    advice = "few-step models are made for 4 to 8 steps without guidance: use timesteps=4 and guidance_scale=1"
    with pytest.warns(UserWarning) as caught:
        sample(sampler="lcm", **options)
    assert [str(warning.message) for warning in caught] == [f"sampler 'lcm' with {given}; {advice}"]
    assert caught[0].filename == __file__


def test_settings_that_suit_few_step_models_do_not_warn(sample):
    sample(sampler="lcm", timesteps=8, guidance_scale=1)


def test_the_prompts_of_a_large_video_run_one_after_the_other(sample, demo_model, monkeypatch):
    batches, together = [], sample()
    hook = demo_model.unet.register_forward_pre_hook(lambda _, args: batches.append(len(args[0])))
    pixels = 3 * 4 * 4  # of the latents
    for limit in (pixels, pixels - 1):
        monkeypatch.setattr(pipeline, "BATCHED", limit)
        torch.testing.assert_close(sample(), together, rtol=0, atol=1e-5)
    hook.remove()
    steps = len(batches) // 3
    assert batches == [2] * steps + [1] * 2 * steps


class Halving:
    """A sampler of a user's own, which shares nothing with ours but its two methods."""

    def timesteps(self, schedule, num_steps, t_start=None):
        return [999] * (t_start or num_steps)

    def sample(self, eps_model, x, schedule, num_steps, t_start=None, generator=None, callback=None):
        for index, t in enumerate(self.timesteps(schedule, num_steps, t_start)):
            x = x - eps_model(x, t) / 2
            callback(index, num_steps, x)
        return x


def test_any_object_with_the_two_methods_is_a_sampler(sample):
    video = sample(sampler=Halving())
    assert torch.equal(sample(sampler=Halving()), video)
    assert not torch.equal(sample(), video)


def test_a_constant_schedule_is_that_scale(sample):
    assert torch.equal(sample(guidance_schedule=[5.0]), sample(guidance_scale=5.0))


def test_an_embedded_scale_needs_its_layer_and_then_matters(demo_model_dir):
    model = SDVideo(demo_model_dir, amp=False)
    sample = functools.partial(model, "a red circle", timesteps=2, image_size=(32, 32), num_frames=2, seed=1)
    with pytest.raises(ValueError, match=r"guidance_embed needs a UNet distilled"):
        sample(guidance_embed=7.5)
    with torch.no_grad():
        model.unet.add_guidance_embedding().weight.normal_(generator=torch.Generator().manual_seed(0))
    weak, strong = (sample(guidance_scale=1, guidance_embed=scale) for scale in (5.0, 15.0))
    assert not torch.equal(weak, strong)
    with pytest.warns(UserWarning, match="^this model was distilled with an embedded guidance scale, .* runs without"):
        assert not torch.equal(weak, sample(guidance_scale=1))
    with pytest.warns(UserWarning, match="^guidance_embed=7.5 with guidance_scale=9 guides twice; use guidance_scale"):
        sample(guidance_embed=7.5)
    with torch.no_grad():
        model.unet.cond_proj.weight.zero_()  # as a LoRA of strength 0 leaves it
    sample()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "euler"}, "sampler='euler'; expected one of ddim"),
        ({"sampler": "unipc", "eta": 0.5}, r"eta=0\.5 with sampler='unipc'; eta belongs to 'ddim'"),
        ({"guidance_rescale": 7.0}, r"guidance_rescale=7\.0; it must be from 0"),
        ({"dynamic_thresholding": 99.5}, r"dynamic_thresholding=99\.5; it must be above 0"),
        ({"guidance_schedule": ()}, "guidance_schedule is empty"),
        ({"sampler": "lcm", "timesteps": 51}, r"timesteps=51; LCM takes 1\.\.50 steps"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(sample, monkeypatch, demo_model, options, message):
    monkeypatch.setattr(demo_model, "text_encoder", None)
    monkeypatch.setattr(demo_model, "unet", None)
    with pytest.raises(ValueError, match=message):
        sample(**options)


@pytest.mark.parametrize("sampler", ["dpm++2m", "unipc"])
def test_ten_steps_of_a_solver_follow_the_prompt(sampler):
    model = SDVideo(demo_model(), amp=False)
    video = model(
        "a red circle moving left",
        guidance_scale=2.0,
        timesteps=10,
        image_size=(96, 96),
        num_frames=8,
        seed=0,
        sampler=sampler,
    )
    seen = read_scene(np.stack([np.asarray(image) for image in video_to_images(video)]))
    assert (seen.color, seen.motion, seen.background) == ("red", "left", "black")


# Command line

SAID = LCM(original_steps=20)  # by a LoRA


def parse(*options: str) -> argparse.Namespace:
    return build_parser().parse_args(["txt2vid", "model", "prompt", *options])


def settings(*options: str, said: LCM = SAID) -> dict:
    args = parse(*options)
    cli_defaults.complete(args, None)
    return cli_sampling.settings(args, said)


def test_the_command_line_knows_every_sampler():
    assert list(SAMPLERS) == list(cli_sampling.SAMPLER_NAMES)


def test_options_reach_the_python_api():
    assert settings() == OFF
    given = settings("--sampler", "unipc", "--cfg-rescale", "0.7", "--cfg-schedule", "12,8,4")
    assert given == OFF | {"sampler": "unipc", "guidance_rescale": 0.7, "guidance_schedule": [12, 8, 4]}
    assert settings("--dynamic-thresholding", "0.995")["dynamic_thresholding"] == 0.995
    assert settings("--guidance-embed", "7.5")["guidance_embed"] == 7.5
    interval = settings("--cfg", "7", "--cfg-interval", "0.2,0.8")["guidance_schedule"]
    assert [interval(progress) for progress in (0.1, 0.2, 0.8, 0.9)] == [1, 7, 7, 1]


@pytest.mark.parametrize(
    ("options", "sampler"),
    [
        ([], LCM(original_steps=20)),
        (["--lcm-original-steps", "10"], LCM(original_steps=10)),
        (["--lcm-grid", "even"], LCM(original_steps=20, grid="even")),
    ],
)
def test_lcm_is_as_the_lora_says_unless_told_otherwise(options, sampler):
    assert settings("--sampler", "lcm", *options)["sampler"] == sampler


@pytest.mark.parametrize("option", [["--lcm-original-steps", "20"], ["--lcm-grid", "even"]])
def test_options_of_lcm_are_refused_with_other_samplers(option):
    with pytest.raises(ValueError, match=f"{option[0]} with --sampler unipc; it belongs to --sampler lcm"):
        settings("--sampler", "unipc", *option)


def test_a_scale_that_a_schedule_would_replace_is_refused(capsys):
    options = ["--cfg", "9", "--cfg-schedule", "12,4"]
    with pytest.raises(ValueError, match=r"^--cfg 9 has no effect beside --cfg-schedule; leave one of them out$"):
        cli_sampling.check(parse(*options))
    cli_sampling.check(parse("--cfg-schedule", "12,4"))
    cli_sampling.check(parse("--cfg", "9", "--cfg-interval", "0,1"))
    assert main(["txt2vid", "nowhere", "prompt", *options]) == 1
    assert "--cfg 9 has no effect" in capsys.readouterr().err


def test_help_says_where_a_schedule_starts_in_video_to_video(capsys):
    with pytest.raises(SystemExit):
        parse("--help")
    assert "such as 12,4; video to video runs the last part of the way, so --strength 0.5 starts that one at 8" in (
        " ".join(capsys.readouterr().out.split())
    )
    for name in ("ddim", "dpm++2m", "unipc"):
        first = find_sampler(name).timesteps(NoiseSchedule(), 50, t_start=25)[0]
        assert scale_over_steps((12, 4))(first) == pytest.approx(8, abs=0.2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--cfg-schedule", "high"], "'high' is not a list of numbers, such as 12,4"),
        (["--cfg-interval", "0.5"], "'0.5' is not START,END, such as 0.1,0.8"),
        (["--cfg-interval", "0,1", "--cfg-schedule", "9,1"], "not allowed with argument"),
        (["--sampler", "euler"], "invalid choice: 'euler'"),
    ],
)
def test_unreadable_options_are_refused(capsys, options, message):
    with pytest.raises(SystemExit, match=r"^2$"):
        settings(*options)
    assert message in capsys.readouterr().err


def test_txt2vid_samples_as_it_is_told(sample, demo_model_dir, tmp_path):
    command = ["txt2vid", str(demo_model_dir), "a red circle", "--size", "32x32", "--frames", "3", "--steps", "4"]
    options = ["--sampler", "dpm++2m", "--cfg-schedule", "9,1", "--cfg-rescale", "0.5", "--seed", "1"]
    assert main([*command, *options, "--device", "cpu", "--no-amp", "--no-metadata", "-o", str(tmp_path / "cli")]) == 0
    save_pngs(sample(sampler="dpm++2m", guidance_schedule=(9, 1), guidance_rescale=0.5), tmp_path / "api")
    files = [[file.read_bytes() for file in sorted((tmp_path / name).iterdir())] for name in ("cli", "api")]
    assert files[0] == files[1]
