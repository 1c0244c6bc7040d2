"""ComfyUI on a GPU, under each of its ways to manage memory: the video is that of Python on a CPU, up to rounding.

On a CPU the same graph runs in the server of the other tests.
"""

import io
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from PIL import Image

from tests.comfy.comfy_server import FLAGS, start_comfyui

WIDTH, HEIGHT, NUM_FRAMES, STEPS, SEED = 72, 64, 5, 6, 3
PROMPT, NEGATIVE = "a red circle moving left", "blurry"
GRAPH = {
    "loader": {"class_type": "SDVideoModelScopeLoader", "inputs": {"model": "demo"}},
    "text": {
        "class_type": "SDVideoTextEncode",
        "inputs": {"clip": ["loader", 1], "positive": PROMPT, "negative": NEGATIVE},
    },
    "latent": {
        "class_type": "SDVideoLatentInit",
        "inputs": {"width": WIDTH, "height": HEIGHT, "num_frames": NUM_FRAMES},
    },
    "sampler": {
        "class_type": "SDVideoDDIMSampler",
        "inputs": {
            "model": ["loader", 0],
            "positive": ["text", 0],
            "negative": ["text", 1],
            "latent": ["latent", 0],
            "seed": SEED,
            "steps": STEPS,
            "cfg": 9.0,
            "eta": 0.0,
            "denoise": 1.0,
        },
    },
    "decode": {"class_type": "SDVideoVAEDecode", "inputs": {"samples": ["sampler", 0], "vae": ["loader", 2]}},
    "save": {"class_type": "SaveImage", "inputs": {"images": ["decode", 0], "filename_prefix": "cuda/frame"}},
}
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
# By name: the flags of a server.
WAYS = {
    "dynamic memory": (),
    "estimated memory": ("--disable-dynamic-vram",),
    "streamed weights": ("--novram",),
    "channels_last": ("--force-channels-last",),
}
ON_GPU = tuple(flag for flag in FLAGS if flag not in ("--cpu", "--fp32-text-enc"))


@pytest.fixture(params=["cpu", *(pytest.param(way, marks=needs_cuda) for way in WAYS)])
def running(request, comfyui, comfy_base, server):
    """A server of each kind."""
    way = request.param
    with nullcontext(server) if way == "cpu" else start_comfyui(comfyui, comfy_base, *WAYS[way], common=ON_GPU) as it:
        yield it


def frames_of(server):
    images = server.run(GRAPH)["outputs"]["save"]["images"]
    return np.stack([np.asarray(Image.open(io.BytesIO(server.view(**image))).convert("RGB")) for image in images])


def test_the_video_is_that_of_python_before_and_after_it_is_unloaded(running, comfy_demo, api):
    options = {"guidance_scale": 9.0, "timesteps": STEPS, "image_size": (WIDTH, HEIGHT), "num_frames": NUM_FRAMES}
    video = api(PROMPT, NEGATIVE, seed=SEED, **options)[0].permute(1, 2, 3, 0).numpy() * 255
    first = frames_of(running)
    assert first.shape == video.shape
    assert np.abs(first - video).mean() < 0.02 * 255
    running.post("/free", {"unload_models": True, "free_memory": True})
    again = frames_of(running)
    ran = {message["data"]["node"] for message in running.messages if message["type"] == "executing"}
    assert {"loader", "sampler"} <= ran
    assert np.abs(again.astype(float) - first).mean() < 0.01 * 255
