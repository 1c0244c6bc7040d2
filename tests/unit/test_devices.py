"""Devices: all that samples and trains runs where the model is, also where there is none.

torch's fake tensors know their device and precision without memory there, and refuse to be mixed, as real ones do.
"""

from collections.abc import Iterator
from unittest.mock import patch

import pytest
import torch
from PIL import Image
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from sdvideo_core import SDVideo
from sdvideo_core.lcm import LCM
from sdvideo_core.schedule import NoiseSchedule
from sdvideo_core.training.cache import fingerprint
from sdvideo_core.training.distillation import ConsistencyLoss, Distillation
from sdvideo_core.training.loss import DiffusionLoss
from sdvideo_core.training.network import Network

GPU = torch.device("cuda:0")
SIZE = 32


@pytest.fixture
def without_values() -> Iterator[None]:
    """Fake tensors have none: the schedule's are kept as numbers, and NaN is not looked for."""
    schedule = NoiseSchedule()
    alphas = schedule.alphas_cumprod.tolist()
    with (
        patch.object(NoiseSchedule, "alpha_cumprod", lambda _, timestep: alphas[timestep]),
        patch.object(SDVideo, "_check_finite", lambda *_: None),
        FakeTensorMode(allow_non_fake_inputs=True),
    ):
        yield


def move(module: nn.Module, dtype: torch.dtype) -> None:
    for part in module.modules():
        for name, weight in part.named_parameters(recurse=False):
            fake = torch.empty(weight.shape, dtype=dtype, device=GPU)
            part.register_parameter(name, nn.Parameter(fake))


@pytest.fixture
def on_gpu(new_model, without_values) -> SDVideo:
    model = new_model()
    model.device, model.dtype = GPU, torch.float16
    for network in (model.unet, model.vae, model.text_encoder):
        move(network, model.dtype)
    return model


@pytest.mark.parametrize(
    "options",
    [
        {"eta": 0.5, "guidance_rescale": 0.7, "dynamic_thresholding": 0.995},
        {"initial_frames": [Image.new("RGB", (SIZE, SIZE))] * 2, "t_start": 2},
        {"sampler": "dpm++2m", "guidance_schedule": [9.0, 3.0]},
        {"sampler": "unipc", "guidance_scale": 1.0},
        {"sampler": LCM(), "guidance_scale": 1.0},
    ],
    ids=["ddim", "vid2vid", "dpm++2m", "unipc", "lcm"],
)
def test_the_network_sees_its_device_and_precision_and_the_video_comes_back(on_gpu, options):
    seen = []
    on_gpu.unet.register_forward_pre_hook(lambda _, args: seen.append((args[0].device, args[0].dtype)))
    video = on_gpu("a", timesteps=3, image_size=(SIZE, SIZE), num_frames=2, seed=0, **options)
    assert set(seen) == {(GPU, on_gpu.dtype)}
    assert (video.device.type, video.dtype, tuple(video.shape)) == ("cpu", torch.float32, (1, 3, 2, SIZE, SIZE))


def test_losses_are_where_the_network_is(on_gpu):
    network = Network(on_gpu.unet, lora_rank=2)
    network.begin()
    latents = torch.zeros(2, 4, 3, 4, 4, device=GPU)
    generator = torch.Generator().manual_seed(0)
    context = torch.zeros(2, 77, 64, device=GPU, dtype=on_gpu.dtype)

    def eps(x, timesteps):
        return network(x.to(on_gpu.dtype), timesteps, context).float()

    plain = DiffusionLoss(on_gpu.schedule, noise_offset=0.1, min_snr_gamma=5, start_noise=0.2)
    distilled = ConsistencyLoss(on_gpu.schedule, Distillation(), start_noise=0.2)
    losses = [plain(eps, latents, generator), distilled(eps, lambda x, t: (eps(x, t), eps(x, t)), latents, generator)]
    assert {loss.device for loss in losses} == {GPU}


def test_the_fingerprint_asks_no_device_for_float64(monkeypatch):
    calls, cpu, double = [], torch.Tensor.cpu, torch.Tensor.double
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: calls.append("cpu") or cpu(tensor))
    monkeypatch.setattr(torch.Tensor, "double", lambda tensor: calls.append("double") or double(tensor))
    fingerprint({"weight": torch.ones(3)})
    assert calls == ["cpu", "double"]
