"""LCM and RescaleCFG through stock samplers and nodes give the videos of the Python API, from the same seed."""

import itertools

import pytest
import torch

from sdvideo_core import SDVideo, load_sequence
from sdvideo_core.lcm import LCM

WIDTH, HEIGHT, NUM_FRAMES = 72, 64, 5
POSITIVE, NEGATIVE = "a red circle moving left", "blurry, low quality"
SEED = 7

# At the tiny scaling the boundary functions matter; at 4 they are 0 and 1 but for rounding.
LCM_CASES = {
    "4 steps": {"steps": 4, "cfg": 1.0, "denoise": 1.0, "timestep_scaling": 4.0, "grid": "strided"},
    "8 steps, even": {"steps": 8, "cfg": 3.0, "denoise": 1.0, "timestep_scaling": 0.001, "grid": "even"},
    "frames": {"steps": 4, "cfg": 1.0, "denoise": 0.5, "timestep_scaling": 4.0, "grid": "strided"},
}
RESCALED = {"steps": 10, "cfg": 9.0}
AMOUNT = 0.7


def compute_in_comfy():
    import comfy.samplers
    from comfy_extras.nodes_custom_sampler import SamplerCustom
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete, RescaleCFG

    from tests.comfy import called_nodes as calls

    model, clip, vae = calls.load()
    pair = calls.encode(clip, POSITIVE, NEGATIVE)
    frames, _ = calls.call("SDVideoLoadFrameSequence", "example_frames", NUM_FRAMES, 2, 2, WIDTH, HEIGHT)
    latents = {
        False: calls.empty(WIDTH, HEIGHT, NUM_FRAMES),
        True: calls.call("SDVideoLatentInit", WIDTH, HEIGHT, NUM_FRAMES, frames=frames, vae=vae)[0],
    }
    decode = lambda latent: calls.call("SDVideoVAEDecode", latent, vae)[0]  # noqa: E731
    sampler = comfy.samplers.sampler_object("lcm")

    def sample(patched, case, latent):
        (sigmas,) = calls.call("SDVideoLCMScheduler", case["steps"], case["denoise"], 50, case["grid"])
        custom = calls.call(SamplerCustom, patched, True, SEED, case["cfg"], *pair, sampler, sigmas, latent)
        return decode(custom[0]), patched.get_model_object("model_sampling").timestep(sigmas[:-1]).tolist()

    results = {}
    for name, case in LCM_CASES.items():
        (patched,) = calls.call("SDVideoModelSamplingLCM", model, 50, case["timestep_scaling"])
        results[name], results[f"{name}: timesteps"] = sample(patched, case, latents[name == "frames"])
    (stock,) = ModelSamplingDiscrete().patch(model, "lcm", zsnr=False)
    results["stock"], _ = sample(stock, LCM_CASES["4 steps"], latents[False])
    (rescaled,) = RescaleCFG().patch(model, AMOUNT)
    results["rescaled"] = decode({"samples": calls.sample(rescaled, pair, latents[False], seed=SEED, **RESCALED)})
    (nothing,) = calls.call("SDVideoLCMScheduler", 4, 0.0, 50, "strided")
    ours = patched.get_model_object("model_sampling")
    theirs = stock.get_model_object("model_sampling")
    timesteps = torch.arange(0.0, 1000.0, 7.0)
    results |= {"nothing": list(nothing.shape), "sigmas": ours.sigmas, "stock sigmas": theirs.sigmas}
    return results | {"curve": ours.sigma(timesteps), "stock curve": theirs.sigma(timesteps)}


@pytest.fixture(scope="module")
def in_graph(in_comfy, comfy_demo, example_frames):
    return in_comfy(compute_in_comfy)


@pytest.fixture(scope="module")
def api(comfy_demo, example_frames):
    """A function: settings of a case and further options -> the Python API's video, as frames (F, H, W, 3)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the child, see comfy_server.ENVIRONMENT
    model = SDVideo(comfy_demo, amp=False)
    pictures = load_sequence(example_frames, NUM_FRAMES, offset=2, stride=2, image_size=(WIDTH, HEIGHT))

    def video(case, **options):
        if case.get("denoise", 1.0) < 1:
            options |= {"initial_frames": pictures, "t_start": round(case["steps"] * case["denoise"])}
        options |= {"guidance_scale": case["cfg"], "timesteps": case["steps"], "num_frames": NUM_FRAMES, "seed": SEED}
        result = model(POSITIVE, NEGATIVE, image_size=(WIDTH, HEIGHT), **options)
        return result[0].permute(1, 2, 3, 0)

    yield video
    torch.set_num_threads(threads)


def assert_same_video(found, expected):
    # Else everything could be black or white, and equal for that reason.
    inner = (expected > 0.02) & (expected < 0.98)
    assert inner.float().mean() > 0.5
    assert (found - expected).abs().max() <= 1e-4


@pytest.mark.filterwarnings("ignore:sampler 'lcm' with timesteps=8 and guidance_scale=3")
@pytest.mark.parametrize("name", LCM_CASES)
def test_lcm_makes_the_video_of_the_python_api(in_graph, api, name):
    case = LCM_CASES[name]
    assert_same_video(in_graph[name], api(case, sampler=LCM(case["timestep_scaling"], grid=case["grid"])))


def test_every_case_is_another_video(in_graph):
    for one, other in itertools.combinations(LCM_CASES, 2):
        assert (in_graph[one] - in_graph[other]).abs().max() > 0.05, (one, other)


def test_the_network_sees_the_timesteps_of_the_grid(in_graph):
    assert in_graph["4 steps: timesteps"] == [999, 759, 519, 279]
    assert in_graph["8 steps, even: timesteps"] == [999, 879, 759, 639, 499, 379, 259, 139]
    assert in_graph["frames: timesteps"] == [519, 279]


def test_the_stock_lcm_node_differs_by_its_scaling_only(in_graph):
    """4 here, 10 there, which for 4 steps is nothing."""
    assert_same_video(in_graph["stock"], in_graph["4 steps"])
    assert torch.equal(in_graph["sigmas"], in_graph["stock sigmas"])
    torch.testing.assert_close(in_graph["curve"], in_graph["stock curve"])


def test_denoise_0_runs_no_step(in_graph):
    assert in_graph["nothing"] == [0]


def test_the_stock_rescalecfg_node_makes_the_video_of_the_python_api(in_graph, api):
    assert_same_video(in_graph["rescaled"], api(RESCALED, guidance_rescale=AMOUNT))
    assert (in_graph["rescaled"] - api(RESCALED)).abs().max() > 0.05
