"""The graph and the Python API are one program: same seed, same video; and stock nodes differ by what is known.

All in float32, as the server runs here. ComfyUI's side is computed in one child for the whole file.
"""

import itertools

import pytest
import torch

from sdvideo_core import load_sequence
from sdvideo_core.frames import images_to_frames
from sdvideo_core.schedule import NoiseSchedule
from tests.comfy.comfy_child import call_in_comfy

WIDTH, HEIGHT, NUM_FRAMES = 72, 64, 5
POSITIVE, NEGATIVE = "a red circle moving left", "blurry, low quality"
SEED = 7

CASES = {
    "text, cfg 1": {"steps": 7, "cfg": 1.0, "eta": 0.0, "denoise": 1.0},
    "text, cfg 9, eta 0.5": {"steps": 20, "cfg": 9.0, "eta": 0.5, "denoise": 1.0},
    "frames, denoise 0.3": {"steps": 9, "cfg": 9.0, "eta": 0.5, "denoise": 0.3},
    "frames, denoise 0.7": {"steps": 20, "cfg": 1.0, "eta": 0.0, "denoise": 0.7},
    "frames, denoise 1": {"steps": 7, "cfg": 9.0, "eta": 0.0, "denoise": 1.0},
}
# Without brackets, which ComfyUI reads as weights, and short enough that it does not add a second chunk.
PROMPTS = ["", "a red circle", "A dog, running, fast; 3 cats & 2 birds!", "  Café   日本語  naïve ", "word " * 60]

STOCK_STEPS, STOCK_CFG = 20, 9.0


def graph_video(calls, name):
    """Frames (F, H, W, 3) of a case, made by this pack's nodes."""
    model, clip, vae = calls.load()
    given = {}
    if name.startswith("frames"):
        frames, _ = calls.call("SDVideoLoadFrameSequence", "example_frames", NUM_FRAMES, 2, 2, WIDTH, HEIGHT)
        given = {"frames": frames, "vae": vae}
    (latent,) = calls.call("SDVideoLatentInit", WIDTH, HEIGHT, NUM_FRAMES, **given)
    conditioning = calls.encode(clip, POSITIVE, NEGATIVE)
    samples = calls.sample(model, conditioning, latent, seed=SEED, **CASES[name])
    return calls.call("SDVideoVAEDecode", {"samples": samples}, vae)[0]


def stock_latents(calls):
    """Latents of ComfyUI's KSampler, and of its sampler given our steps and our first noise; and our own."""
    import comfy.sample
    import comfy.samplers

    import nodes

    model, clip, _ = calls.load()
    conditioning, latent = calls.encode(clip, POSITIVE, NEGATIVE), calls.empty(WIDTH, HEIGHT, NUM_FRAMES)
    settings = (STOCK_STEPS, STOCK_CFG, "ddim", "ddim_uniform")
    (ksampler,) = nodes.common_ksampler(model, SEED, *settings, *conditioning, latent)

    schedule = NoiseSchedule()
    sigmas = torch.tensor([schedule.sigma(t) for t in [*schedule.timesteps(STOCK_STEPS), 0]])
    sampler = comfy.samplers.sampler_object("ddim")
    sampler.max_denoise = lambda *_: True
    noise = comfy.sample.prepare_noise(latent["samples"], SEED)
    aligned = comfy.sample.sample_custom(
        model, noise, STOCK_CFG, sampler, sigmas, *conditioning, latent["samples"], disable_pbar=True, seed=SEED
    )
    ours = calls.sample(model, conditioning, latent, seed=SEED, steps=STOCK_STEPS, cfg=STOCK_CFG)
    last = sigmas[-1].item()
    return {"ksampler": ksampler["samples"], "aligned": aligned / (1 + last**2) ** 0.5, "ours": ours}


def compute_in_comfy(pictures, latents):
    from tests.comfy import called_nodes as calls

    model, clip, vae = calls.load()
    return {
        **{name: graph_video(calls, name) for name in CASES},
        **{f"stock {name}": value for name, value in stock_latents(calls).items()},
        "prompts": torch.cat([calls.encode(clip, prompt)[0][0][0] for prompt in PROMPTS]),
        "encoded": calls.call("SDVideoLatentInit", 0, 0, 0, frames=pictures, vae=vae)[0]["samples"],
        "decoded": calls.call("SDVideoVAEDecode", {"samples": latents}, vae)[0],
        "dtypes": [str(dtype) for dtype in (model.model.diffusion_model.dtype, vae.vae_dtype)],
    }


def compute_with_half_weights():
    from tests.comfy import called_nodes as calls

    model, clip, _ = calls.load()
    weights = {
        "unet": model.model.diffusion_model.input_blocks[1][0].in_layers[2].weight,
        "text": clip.patcher.model.clip_h.transformer.text_model.encoder.layers[0].mlp.fc1.weight,
    }
    dtypes = {key: str(weight.dtype) for key, weight in weights.items()}
    model_dtypes = [str(model.model.diffusion_model.dtype), str(model.model.manual_cast_dtype)]
    layout = weights["unet"].is_contiguous(memory_format=torch.channels_last)
    return {"video": graph_video(calls, "text, cfg 9, eta 0.5"), "model": model_dtypes, "layout": layout, **dtypes}


@pytest.fixture(scope="module")
def pictures(example_frames):
    return load_sequence(example_frames, NUM_FRAMES, offset=2, stride=2, image_size=(WIDTH, HEIGHT))


@pytest.fixture(scope="module")
def latents():
    return 4 * torch.randn(NUM_FRAMES, 4, HEIGHT // 8, WIDTH // 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def in_graph(in_comfy, comfy_demo, example_frames, pictures, latents):
    images = images_to_frames(pictures).add(1).div(2).movedim(1, 3)
    return in_comfy(compute_in_comfy, pictures=images, latents=latents)


@pytest.fixture(scope="module")
def api_video(api, pictures):
    """A function: case -> the Python API's video of it, as frames (F, H, W, 3)."""

    def video(name):
        settings = CASES[name]
        steps = settings["steps"]
        vid2vid = {"initial_frames": pictures, "t_start": round(steps * settings["denoise"])}
        result = api(
            POSITIVE,
            NEGATIVE,
            guidance_scale=settings["cfg"],
            timesteps=steps,
            image_size=(WIDTH, HEIGHT),
            num_frames=NUM_FRAMES,
            eta=settings["eta"],
            seed=SEED,
            **(vid2vid if name.startswith("frames") else {}),
        )
        return result[0].permute(1, 2, 3, 0)

    return video


def relative_error(found, expected):
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("name", CASES)
def test_the_graph_makes_the_video_of_the_python_api(in_graph, api_video, name):
    expected = api_video(name)
    # Else everything could be black or white, and equal for that reason.
    inner = (expected > 0.02) & (expected < 0.98)
    assert inner.float().mean() > 0.5
    assert (in_graph[name] - expected).abs().max() <= 1e-4


def test_every_case_is_another_video(in_graph):
    for one, other in itertools.combinations(CASES, 2):
        assert (in_graph[one] - in_graph[other]).abs().max() > 0.05, (one, other)


def test_text_is_encoded_as_in_core(in_graph, api):
    with torch.no_grad():
        expected = api.text_encoder(PROMPTS)
    assert in_graph["prompts"].shape == expected.shape == (len(PROMPTS), 77, 64)
    assert relative_error(in_graph["prompts"], expected) <= 1e-5
    assert expected.std(dim=0).max() > 0.1


def test_frames_are_encoded_and_decoded_as_in_core(in_graph, api, pictures, latents):
    with torch.no_grad():
        encoded = api.vae.encode(images_to_frames(pictures)) / 0.18215
        decoded = api.vae.decode(latents * 0.18215).add(1).div(2).clamp(0, 1).movedim(1, 3)
    assert relative_error(in_graph["encoded"], encoded) <= 1e-5
    assert relative_error(in_graph["decoded"], decoded) <= 1e-5
    assert decoded.std() > 0.05


def test_ksampler_comes_close_to_our_sampler(in_graph):
    # Two differences. With s = 11 for the sigma of the first of 20 steps, KSampler starts from noise of deviation
    # s / sqrt(1 + s**2), 0.4 % less than 1. And its last step removes all noise, where the published models' last
    # step ends at index 0 of the schedule, with 0.085 % of the variance left.
    ours, ksampler = in_graph["stock ours"].flatten(), in_graph["stock ksampler"].flatten()
    assert torch.corrcoef(torch.stack([ours, ksampler]))[0, 1] > 0.9999
    assert 1e-4 < (ours - ksampler).norm() / ours.norm() < 0.02


def test_ksampler_differs_by_its_first_noise_and_its_last_step_only(in_graph):
    assert relative_error(in_graph["stock aligned"], in_graph["stock ours"]) <= 1e-4


def test_weights_are_float32_on_a_cpu_whatever_the_file_holds(in_graph):
    assert in_graph["dtypes"] == ["torch.float32", "torch.float32"]


def test_half_precision_weights_are_kept_and_computed_in_float32(comfy_job, comfy_demo, api_video):
    # ComfyUI's defaults for everything else: text encoder in float16, sub-quadratic attention.
    flags = ("--cpu", "--fp16-unet", "--force-channels-last")
    result = call_in_comfy({**comfy_job, "flags": flags}, compute_with_half_weights)
    assert (result["unet"], result["text"]) == ("torch.float16", "torch.float16")
    assert result["model"] == ["torch.float16", "torch.float32"]
    assert result["layout"]
    assert (result["video"] - api_video("text, cfg 9, eta 0.5")).abs().max() <= 1e-3
