"""Distillation: the consistency loss against its formula in NumPy, and a run that makes a few-step LoRA."""

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from sdvideo_core import demo
from sdvideo_core.lcm import LCM
from sdvideo_core.lora_files import read_lora
from sdvideo_core.schedule import NoiseSchedule
from sdvideo_core.training import Distillation
from sdvideo_core.training.distillation import HUBER, ConsistencyLoss
from sdvideo_core.training.network import Network
from tests.numerics import relative_error
from tests.unit.small_training import differing, make_trainer, weights

SCHEDULE = NoiseSchedule()
SHAPE = (5, 4, 3, 2, 2)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def latents() -> torch.Tensor:
    return torch.randn(SHAPE, generator=generator(99))


def student(x: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    return x * 0.5 + timesteps.view(-1, 1, 1, 1, 1) / 1000


def teacher(x: torch.Tensor, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x * 0.9 - timesteps.view(-1, 1, 1, 1, 1) / 2000, x * 0.8


def by_hand(x: np.ndarray, timestep: int, guidance_scale: float, stride: int) -> float:
    """The pseudo-Huber loss of one sample in float64, step by step as in Luo et al. 2023."""
    alphas = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)

    def consistency(x, t):
        scaled, alpha = t * 4.0, alphas[t]
        skip, out = 0.25 / (scaled**2 + 0.25), scaled / np.sqrt(scaled**2 + 0.25)
        return skip * x + out * (x - np.sqrt(1 - alpha) * (x * 0.5 + t / 1000)) / np.sqrt(alpha)

    closer = max(timestep - stride, 0)
    eps, eps_neg = x * 0.9 - timestep / 2000, x * 0.8
    eps = eps_neg + guidance_scale * (eps - eps_neg)
    x0 = (x - np.sqrt(1 - alphas[timestep]) * eps) / np.sqrt(alphas[timestep])
    x_closer = np.sqrt(alphas[closer]) * x0 + np.sqrt(1 - alphas[closer]) * eps
    distance = consistency(x, timestep) - consistency(x_closer, closer)
    return float(np.mean(np.sqrt(distance**2 + HUBER**2) - HUBER))


@pytest.mark.parametrize(("num_timesteps", "guidance_scale"), [(50, 7.5), (10, 1.0), (500, 2.0)])
def test_the_loss_is_the_published_one(num_timesteps, guidance_scale):
    loss = ConsistencyLoss(SCHEDULE, Distillation(guidance_scale, num_timesteps))
    timesteps, x = loss.add_noise(latents(), generator())
    stride = 1000 // num_timesteps
    assert ((timesteps + 1) % stride == 0).all()
    expected = [
        by_hand(sample.double().numpy(), t, guidance_scale, stride)
        for sample, t in zip(x, timesteps.tolist(), strict=True)
    ]
    value = loss(student, teacher, latents(), generator())
    assert value.item() == pytest.approx(np.mean(expected), rel=1e-4)


def test_only_the_farther_point_learns():
    scale = torch.tensor(0.5, requires_grad=True)
    calls = []

    def learning(x, timesteps):
        calls.append(torch.is_grad_enabled())
        return x * scale

    loss = ConsistencyLoss(SCHEDULE, Distillation())
    loss(learning, teacher, latents(), generator()).backward()
    assert calls == [True, False]
    assert scale.grad is not None
    assert scale.grad.abs() > 0


def test_points_reach_from_the_first_timestep_to_the_last():
    loss = ConsistencyLoss(SCHEDULE, Distillation(num_timesteps=4))
    seen = {t for seed in range(30) for t in loss.add_noise(latents(), generator(seed))[0].tolist()}
    assert seen == {249, 499, 749, 999}


def test_start_noise_hides_the_video_at_the_noisiest_points_only():
    x0 = torch.full((2000, 1, 1, 1, 1), 1e4)
    timesteps, x = ConsistencyLoss(SCHEDULE, Distillation(), start_noise=1.0).add_noise(x0, generator())
    shown = x.flatten() / 1e4 / SCHEDULE.alphas_cumprod[timesteps].sqrt()
    assert (shown[timesteps < 880] > 0.9).all()
    assert (shown[timesteps >= 880] < 0.1).float().mean() > 0.3
    whole = ConsistencyLoss(SCHEDULE, Distillation()).add_noise(x0, generator())[1]
    assert (whole.flatten() / 1e4 / SCHEDULE.alphas_cumprod[timesteps].sqrt() > 0.9).all()


def test_the_generator_decides_everything():
    loss = ConsistencyLoss(SCHEDULE, Distillation(), start_noise=0.5)
    values = [loss(student, teacher, latents(), generator(seed)).item() for seed in (1, 1, 2)]
    assert values[0] == values[1] != values[2]


@pytest.mark.parametrize("num_timesteps", [1, 501])
def test_a_path_has_from_2_to_500_points(num_timesteps):
    with pytest.raises(ValueError, match=f"num_timesteps={num_timesteps} of the distillation; expected 2..500"):
        Distillation(num_timesteps=num_timesteps)


def test_a_run_makes_a_lora_for_few_steps(model, tmp_path):
    before = weights(model)
    passes = []
    options = {"lora_rank": 2, "distillation": Distillation(2.0, 10), "before_pass": lambda: passes.append(1)}
    trainer = make_trainer(model, tmp_path, **options)
    file = trainer.train("few", steps=6, sample_every=6, sample_prompts=["a"], bar=False)
    assert not differing(before, weights(model))
    assert file.name == "few_lora.safetensors"
    assert any(tensor.abs().max() > 0 for name, tensor in load_file(file).items() if name.endswith("lora_up.weight"))
    assert [path.name for path in (tmp_path / "few_samples").iterdir()] == ["00000006_0.gif"]
    assert len(passes) == 6 + 4  # steps, and the passes of a sample


def test_the_lora_carries_how_it_is_sampled(model, tmp_path):
    few = make_trainer(model, tmp_path, lora_rank=2, distillation=Distillation(2.0, 10, 5.0))
    plain = make_trainer(model, tmp_path, lora_rank=2)
    files = [trainer.train(name, steps=1, bar=False) for name, trainer in (("few", few), ("plain", plain))]
    with safe_open(files[0], "pt") as file:
        metadata = file.metadata()
    assert (metadata["sdvideo.lcm_timesteps"], metadata["sdvideo.lcm_timestep_scaling"]) == ("10", "5.0")
    assert [LCM.from_metadata(read_lora(file).metadata) for file in files] == [LCM(5.0, 10), None]


def test_the_networks_calls_differ_in_what_they_compute_alone(model, tmp_path):
    """torch.compile compiles once more for a tensor that is laid out in another way."""
    layouts = []
    hook = model.unet.register_forward_pre_hook(lambda _unet, args: layouts.append([a.stride() for a in args]))
    trainer = make_trainer(model, tmp_path, lora_rank=2, distillation=Distillation())
    trainer.train(steps=1, bar=False)
    hook.remove()
    assert len(layouts) == 4
    assert layouts == layouts[:1] * 4


def test_the_teacher_is_the_model_without_the_lora(model):
    x, t, context = torch.randn(1, 4, 2, 2, 2), torch.tensor([500]), torch.randn(1, 3, model.unet.config.context_dim)
    with torch.no_grad():
        expected = model.unet(x, t, context)
        network = Network(model.unet, lora_rank=2)
        for parameter in network.trainable().values():
            parameter.normal_()
        network.begin(dropout=False)
        with network.without_lora():
            assert relative_error(network(x, t, context), expected) < 1e-5
        assert relative_error(network(x, t, context), expected) > 0.1
        network.end()


def test_only_a_lora_can_be_distilled(model, tmp_path):
    with pytest.raises(ValueError, match="distillation makes a LoRA and lora_rank is None; set lora_rank, such as 64"):
        make_trainer(model, tmp_path, distillation=Distillation())
    with pytest.raises(ValueError, match="has no LoRA"), Network(model.unet).without_lora():
        pass


def test_the_demo_models_lora_is_found_or_said_to_be_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "FEW_STEPS_LORA", tmp_path / "few.safetensors")
    with pytest.raises(
        FileNotFoundError, match=r"few\.safetensors is missing, .* install the package again, or make it"
    ):
        demo.few_steps_lora()
    (tmp_path / "few.safetensors").touch()
    assert demo.few_steps_lora() == tmp_path / "few.safetensors"
