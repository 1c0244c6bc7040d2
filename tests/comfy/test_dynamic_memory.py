"""Dynamic memory: ComfyUI's way on NVIDIA GPUs, which casts weights at each call, gives the videos of its other way.

It runs here on the CPU (`use_dynamic_memory`). LoRAs on large layers act where it has memory of a GPU only.
"""

import pytest
import torch

NUM_FRAMES, SIZE = 4, 64


def sample_in_comfy(dynamic):
    """Videos of one model that goes from one kind of sampling to another and back."""
    from comfy_extras.nodes_custom_sampler import KSamplerSelect, SamplerCustom

    from tests.comfy import called_nodes as calls

    if dynamic:
        calls.use_dynamic_memory()
    model, clip, _ = calls.load()
    conditioning, latent = calls.encode(clip), calls.empty(SIZE, SIZE, NUM_FRAMES)
    (sampler,) = calls.call(KSamplerSelect, "lcm")

    def few_steps(original_timesteps):
        (patched,) = calls.call("SDVideoModelSamplingLCM", model, original_timesteps, 4.0, 0.0)
        (sigmas,) = calls.call("SDVideoLCMScheduler", 4, 1.0, original_timesteps, "strided", patched)
        return calls.call(SamplerCustom, patched, True, 0, 1.0, *conditioning, sampler, sigmas, latent)[0]["samples"]

    results = {"dynamic": model.is_dynamic()}
    for name, sample in {
        "base": lambda: calls.sample(model, conditioning, latent),
        "20 timesteps": lambda: few_steps(20),
        "base, after LCM": lambda: calls.sample(model, conditioning, latent),
        "50 timesteps": lambda: few_steps(50),
        "20 timesteps, after 50": lambda: few_steps(20),
    }.items():
        results[name] = sample()
    return results


@pytest.fixture(scope="module")
def videos(in_comfy, comfy_demo):
    return {dynamic: in_comfy(sample_in_comfy, dynamic=dynamic) for dynamic in (False, True)}


def test_it_is_what_runs(videos):
    assert [found["dynamic"] for found in videos.values()] == [False, True]


@pytest.mark.parametrize("name", ["base", "20 timesteps", "50 timesteps"])
def test_the_video_is_that_of_the_other_way(videos, name):
    assert torch.equal(videos[True][name], videos[False][name])


@pytest.mark.parametrize(("after", "before"), [("base, after LCM", "base"), ("20 timesteps, after 50", "20 timesteps")])
def test_no_sampling_leaves_its_sigmas_to_the_next(videos, after, before):
    for found in videos.values():
        assert torch.equal(found[after], found[before])
