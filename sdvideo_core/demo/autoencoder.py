"""Demo autoencoder: a small KL-f8 VAE, trained on frames of moving shapes in minutes on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from ..config import VAEConfig
from ..precision import computes_in
from ..training.ema import EMA
from ..training.lr_schedule import LRSchedule
from ..vae import LATENT_SCALE, AttnBlock, AutoencoderKL, ResnetBlock
from .clips import draw_frame, scenes

CONFIG = VAEConfig(ch=64, ch_mult=(1, 1, 1, 1), num_res_blocks=1)

# Standard deviation of the scaled latents. Frames of flat colour are so redundant that at 1 the noisiest timestep still
# shows them; halving the signal moves the schedule to where there is something to learn (Hoogeboom et al. 2023).
LATENT_STD = 0.5
KL_WEIGHT = 1e-5
DECODER_NOISE = 0.2  # standard deviation, of scaled latents
WARMUP = 50  # steps

Log = Callable[[int, int, float], object]  # (step, number of steps, loss)


def frame_batches(rng: np.random.Generator, batch_size: int, crop: int) -> Iterator[Tensor]:
    """Endless batches (N, 3, crop, crop) in -1..1 of random parts of random frames."""
    every = scenes()
    while True:
        frames = np.stack([draw_frame(every[rng.integers(len(every))], rng) for _ in range(batch_size)])
        y, x = rng.integers(0, frames.shape[1] - crop + 1, 2)
        frames = frames[:, y : y + crop, x : x + crop]
        yield torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def initialise(vae: AutoencoderKL, generator: torch.Generator | None = None) -> None:
    """Starts from a network that passes colours through: with torch's gains residual blocks drown them."""
    last: list[nn.Module] = []  # of each residual branch
    for module in vae.modules():
        if isinstance(module, ResnetBlock):
            last.append(module.conv2)
        elif isinstance(module, AttnBlock):
            last.append(module.proj_out)
    for name, parameter in vae.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif parameter.ndim == 4:
            nn.init.kaiming_normal_(parameter, nonlinearity="linear", generator=generator)
    for layer in last:
        nn.init.zeros_(layer.get_parameter("weight"))
    logvar = vae.quant_conv.get_parameter("bias")[vae.config.z_channels :]
    nn.init.constant_(logvar, -5.0)  # little noise to begin with


class ReconstructionLoss(nn.Module):
    """What the autoencoder is trained on: L1, L2, L1 of edges, and a little KL (Kingma & Welling 2014)."""

    def __init__(self, vae: AutoencoderKL):
        super().__init__()
        self.vae = vae

    def forward(self, frames: Tensor, noise: Tensor) -> Tensor:
        """frames (N, 3, H, W) in -1..1, noise (N, 4, H/8, W/8) of unit variance."""
        moments = self.vae.quant_conv(self.vae.encoder(frames)).float()
        mean, logvar = moments.chunk(2, dim=1)
        logvar = logvar.clamp(-20, 10)
        z = mean + noise * (0.5 * logvar).exp()
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
        return difference(self.vae.decoder(self.vae.post_quant_conv(z)).float(), frames) + KL_WEIGHT * kl


class DenoisingLoss(nn.Module):
    """What the decoder alone is trained on then: to draw clean frames from slightly noisy latents, as a UNet's are."""

    def __init__(self, vae: AutoencoderKL):
        super().__init__()
        self.vae = vae
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)

    def forward(self, frames: Tensor, noise: Tensor) -> Tensor:
        """frames (N, 3, H, W) in -1..1, noise (N, 4, H/8, W/8) of unit variance; the last frame gets most of it."""
        with torch.no_grad():
            z = self.vae.quant_conv(self.vae.encoder(frames)).float().chunk(2, dim=1)[0]
        level = torch.linspace(0, DECODER_NOISE / LATENT_SCALE, len(z), device=z.device)[:, None, None, None]
        return difference(self.vae.decoder(self.vae.post_quant_conv(z + level * noise)).float(), frames)


def difference(out: Tensor, frames: Tensor) -> Tensor:
    error = out - frames
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    return error.abs().mean() + (error**2).mean() + 0.5 * edges


def fit(
    loss: ReconstructionLoss | DenoisingLoss,
    batches: Iterator[Tensor],
    steps: int,
    lr: float,
    generator: torch.Generator,
    compiled: bool = False,
    log: Log | None = None,
) -> None:
    """Minimises `loss` over the autoencoder's weights that want gradients, which end as their running average."""
    parameters = {name: weight for name, weight in loss.vae.named_parameters() if weight.requires_grad}
    device = loss.vae.post_quant_conv.weight.device
    optimizer = torch.optim.AdamW(parameters.values(), lr=lr, betas=(0.9, 0.98), weight_decay=1e-3)
    warmup = min(WARMUP, steps)
    rate, ema = LRSchedule(lr, attack=warmup, hold=0, decay=steps - warmup), EMA(parameters, 0.99)
    run = torch.compile(loss, dynamic=False) if compiled else loss
    for step in range(steps):
        frames = next(batches).to(device)
        noise = torch.randn(len(frames), 4, frames.shape[2] // 8, frames.shape[3] // 8, generator=generator)
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        with torch.autocast(device.type, torch.bfloat16, enabled=computes_in(torch.bfloat16, device)):
            value = run(frames, noise.to(device))
        value.backward()
        nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.update(parameters)
        if log:
            log(step, steps, value.item())
    ema.copy_to(parameters)


@torch.no_grad()
def whiten(vae: AutoencoderKL, frames: Tensor) -> None:
    """Gives latents LATENT_STD in all directions, by a matrix in quant_conv and its inverse in post_quant_conv."""
    z_channels = vae.config.z_channels
    latents = vae.encode(frames).transpose(0, 1).flatten(1).double() / LATENT_SCALE  # (4, N*h*w)
    mean = latents.mean(1)
    values, vectors = torch.linalg.eigh(latents.cov())
    scale = LATENT_STD / LATENT_SCALE
    matrix = vectors @ torch.diag(values.rsqrt()) @ vectors.T * scale
    into, out_of = vae.quant_conv.state_dict(), vae.post_quant_conv.state_dict()  # the layers' own memory
    weight, bias = into["weight"][:z_channels, :, 0, 0], into["bias"][:z_channels]
    weight.copy_(matrix @ weight.double())
    bias.copy_(matrix @ (bias.double() - mean))
    weight, bias = out_of["weight"][:, :, 0, 0], out_of["bias"]
    bias.add_((weight.double() @ mean).float())
    weight.copy_(weight.double() @ matrix.inverse())
