"""Devices: all that samples and trains runs where the model is, also where there is none.

torch's fake tensors know their device and precision without memory there, and refuse to be mixed, as real ones do.
"""

from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from PIL import Image
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.training_memory import Alive
from sdvideo_core import SDVideo
from sdvideo_core.checkpoint import assemble, use_channels_last
from sdvideo_core.lcm import LCM
from sdvideo_core.schedule import NoiseSchedule
from sdvideo_core.training.cache import fingerprint
from sdvideo_core.training.distillation import ConsistencyLoss, Distillation
from sdvideo_core.training.loss import DiffusionLoss
from sdvideo_core.training.network import Network
from sdvideo_core.training.processes import adopt_state
from sdvideo_core.unet import UNetSD

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


def test_mixed_precision_keeps_no_second_copy_of_the_weights_on_a_gpu(on_gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # autocast is off without
    on_gpu.dtype, on_gpu.amp, seen = torch.float32, True, set()
    for network in (on_gpu.unet, on_gpu.vae, on_gpu.text_encoder):
        move(network, torch.float32)
    for block in on_gpu.unet.input_blocks:
        block.register_forward_hook(lambda _block, _args, out: seen.add((out.dtype, torch.is_autocast_cache_enabled())))
    on_gpu("a", timesteps=1, image_size=(SIZE, SIZE), num_frames=2, seed=0)
    assert (torch.float16, False) in seen
    assert not any(kept for _, kept in seen)


class Convolutions(TorchDispatchMode):
    """Shapes of the weights that torch convolves with."""

    def __init__(self):
        super().__init__()
        self.weights: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.convolution.default:
            self.weights.append(tuple(args[1].shape))
        return function(*args, **(kwargs or {}))


def test_convolutions_along_time_are_those_of_pictures_on_a_gpu(on_gpu):
    x, context = (torch.zeros(*shape, device=GPU, dtype=on_gpu.dtype) for shape in ((1, 4, 2, 4, 4), (1, 77, 64)))
    network = Network(on_gpu.unet, lora_rank=2)
    network.begin()
    with Convolutions() as convolutions:
        network(x, torch.zeros(1, device=GPU), context)
    assert {weight[2:] for weight in convolutions.weights} == {(3, 3), (1, 1), (3, 1)}


def test_the_autoencoder_s_attention_gets_tokens_that_lie_together_on_a_gpu(on_gpu, monkeypatch):
    # Else only torch's slowest attention takes them, which keeps the scores of all pairs of pixels.
    strides, sdpa = [], functional.scaled_dot_product_attention

    def attention(*tensors):
        strides.extend(tensor.stride(-1) for tensor in tensors)
        return sdpa(*tensors)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", attention)
    use_channels_last(on_gpu.vae)
    with torch.no_grad():
        on_gpu.vae.decode(on_gpu.vae.encode(torch.zeros(1, 3, 64, 64, device=GPU, dtype=on_gpu.dtype)))
    assert strides == [1] * 6


def test_no_more_than_one_weight_lies_twice_on_a_gpu_while_a_model_is_loaded(new_model, without_values):
    unet = new_model().unet
    weights = {key: torch.empty(weight.shape) for key, weight in unet.state_dict().items()}
    with Alive(GPU) as alive:
        loaded = assemble(lambda: UNetSD(unet.config), weights, torch.float16, GPU, Path("model"))
    sizes = [weight.nbytes for weight in loaded.parameters()]
    assert alive.bytes == sum(sizes)
    assert alive.peak <= sum(sizes) + max(sizes)
    assert loaded.get_parameter("out.2.weight").is_contiguous(memory_format=torch.channels_last)


def test_a_state_of_a_cpu_becomes_the_gpu_s(without_values):
    weight = nn.Parameter(torch.zeros(3, 3, device=GPU))
    optimizer = torch.optim.AdamW([weight])
    moments = {name: torch.zeros(3, 3, device=GPU) for name in ("exp_avg", "exp_avg_sq")}
    optimizer.state[weight] = {"step": torch.tensor(1.0), **moments}
    adopt_state(optimizer, fused=True)
    assert optimizer.param_groups[0]["fused"]
    assert {value.device for value in optimizer.state[weight].values()} == {GPU}


class Readbacks(TorchDispatchMode):
    """Shapes of what is copied off the GPU, which waits for it."""

    def __init__(self):
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        to_cpu = str((kwargs or {}).get("device")) == "cpu"
        if function is torch.ops.aten._to_copy.default and to_cpu and args[0].device == GPU:
            self.shapes.append(tuple(args[0].shape))
        return function(*args, **(kwargs or {}))


def test_losses_are_where_the_network_is_and_read_nothing_back_from_it(on_gpu):
    network = Network(on_gpu.unet, lora_rank=2)
    network.begin()
    latents = torch.zeros(2, 4, 3, 4, 4, device=GPU)
    generator = torch.Generator().manual_seed(0)
    context = torch.zeros(2, 77, 64, device=GPU, dtype=on_gpu.dtype)

    def eps(x, timesteps):
        return network(x.to(on_gpu.dtype), timesteps, context).float()

    plain = DiffusionLoss(on_gpu.schedule, noise_offset=0.1, min_snr_gamma=5, start_noise=0.2)
    distilled = ConsistencyLoss(on_gpu.schedule, Distillation(), start_noise=0.2)
    with Readbacks() as readbacks:
        losses = [plain(eps, latents, generator)]
        losses += [distilled(eps, lambda x, t: (eps(x, t), eps(x, t)), latents, generator)]
    assert {loss.device for loss in losses} == {GPU}
    assert readbacks.shapes == []


def test_the_fingerprint_asks_no_device_for_float64(monkeypatch):
    calls, cpu, double = [], torch.Tensor.cpu, torch.Tensor.double
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: calls.append("cpu") or cpu(tensor))
    monkeypatch.setattr(torch.Tensor, "double", lambda tensor: calls.append("double") or double(tensor))
    fingerprint({"weight": torch.ones(3)})
    assert calls == ["cpu", "double"]
