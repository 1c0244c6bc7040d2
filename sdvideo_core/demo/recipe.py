"""Recipe: makes the demo model from nothing, stage by stage; a stage that is done is not done again."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..blocks import ResBlock, SpatialTransformer, TemporalConv, TemporalTransformer
from ..config import ModelConfig
from ..configuration import CONFIG_NAME, configuration
from ..families import TRAINED_UNET
from ..pipeline import SDVideo
from ..precision import computes_in
from ..text_encoder import TextEncoder
from ..training import SDVideoTrainer
from ..unet import UNetSD
from ..vae import AutoencoderKL
from ..whole_file import whole_file
from . import autoencoder, text
from .clips import NUM_FRAMES, SIZE
from .dataset import LatentClips, collate_latents, encode_clips

CONFIG = ModelConfig(unet=TRAINED_UNET, max_frames=NUM_FRAMES)
CROP = 48  # pixels; parts of frames teach most of what whole ones do, in a quarter of the pixels
SEED = 0
SAVE_EVERY = 250  # steps of the UNet

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Amounts:
    """How much each stage does; the defaults made the model that ships."""

    vae_parts: int = 1300  # steps on parts of frames
    vae_frames: int = 500  # steps on whole frames
    decoder: int = 300  # steps of the decoder on noisy latents
    text: int = 500  # steps
    clips: int = 2892  # three of every scene, six of those that turn
    every_second_frame: int = 4000  # steps of the UNet: a clip costs half, and teaches most of what a whole one does
    every_frame: int = 1500  # steps of the UNet


def can_compile(device: str) -> bool:
    return device != "cpu" or shutil.which("c++") is not None


class Recipe:
    """The stages, each kept in a file or folder of `work`."""

    def __init__(self, work: Path, device: str = "cpu", amounts: Amounts = Amounts(), compiled: bool = True):
        work.mkdir(parents=True, exist_ok=True)
        self.work, self.device, self.amounts = work, device, amounts
        self.compiled = compiled and can_compile(device)

    def make(self, output: Path) -> Path:
        """Runs the stages that are left and writes the model's directory.

        Each call adds its seconds to times.json, whether it ends or is stopped: together they are what the model took.
        """
        with self._timed():
            return self._make(output)

    def _make(self, output: Path) -> Path:
        vae = AutoencoderKL(autoencoder.CONFIG)
        vae.load_state_dict(self._kept("vae", self.train_vae))
        vae.load_state_dict(self._kept("decoder", lambda: self.train_decoder(vae)))
        encoder = TextEncoder(text.CONFIG)
        encoder.load_state_dict(self._kept("text", self.train_text))
        clips = self.work / "clips.safetensors"
        if not clips.is_file():
            self.encode(clips)
        start = write_model(self.work / "start", new_unet().state_dict(), vae, encoder, torch.float32)
        unet = self.train_unet(start, clips, "second", 2, self.amounts.every_second_frame, lr_min=5e-4)
        middle = write_model(self.work / "middle", unet, vae, encoder, torch.float32)
        unet = self.train_unet(middle, clips, "every", 1, self.amounts.every_frame, lr_min=1e-5)
        return write_model(output, unet, vae, encoder, torch.float16)

    def train_vae(self) -> Weights:
        rng, generator = np.random.default_rng(SEED), torch.Generator().manual_seed(SEED)
        vae = AutoencoderKL(autoencoder.CONFIG).to(self.device)
        autoencoder.initialise(vae, generator)
        loss, amounts = autoencoder.ReconstructionLoss(vae), self.amounts
        for batch, crop, steps, lr in ((16, CROP, amounts.vae_parts, 2e-3), (8, SIZE, amounts.vae_frames, 1e-3)):
            batches = autoencoder.frame_batches(rng, batch, crop)
            with _progress(f"Autoencoder, {crop} pixels", steps) as log:
                autoencoder.fit(loss, batches, steps, lr, generator, self.compiled, log)
        autoencoder.whiten(vae, next(autoencoder.frame_batches(rng, 128, SIZE)).to(self.device))
        return vae.state_dict()

    def train_decoder(self, vae: AutoencoderKL) -> Weights:
        """The autoencoder with a decoder that cleans what it is given; latents stay as they are."""
        rng, generator = np.random.default_rng(SEED + 1), torch.Generator().manual_seed(SEED + 1)
        loss, steps = autoencoder.DenoisingLoss(vae.to(self.device)), self.amounts.decoder
        with _progress("Decoder", steps) as log:
            batches = autoencoder.frame_batches(rng, 8, SIZE)
            autoencoder.fit(loss, batches, steps, 8e-4, generator, self.compiled, log)
        return vae.state_dict()

    def train_text(self) -> Weights:
        with _progress("Text encoder", self.amounts.text) as log:
            return text.train_text_encoder(self.amounts.text, seed=SEED, log=log).state_dict()

    def encode(self, path: Path) -> None:
        vae = AutoencoderKL(autoencoder.CONFIG)
        vae.load_state_dict(load_file(self.work / "vae.safetensors"))
        vae.to(self.device)
        if self.compiled:
            vae.encoder.compile(dynamic=False)
        with tqdm(total=self.amounts.clips, desc="Encoding clips", unit="clip") as bar:
            encode_clips(vae, self.amounts.clips, path, SEED, lambda *_: bar.update())

    def train_unet(self, model: Path, clips: Path, name: str, stride: int, steps: int, lr_min: float) -> Weights:
        """The UNet of a model after `steps` of the project's own trainer, which goes on where it was stopped."""
        done = self.work / f"{name}.done"
        if not done.is_file():
            data = LatentClips(clips, stride=stride, seed=SEED)
            trainer = SDVideoTrainer(
                SDVideo(model, self.device),
                DataLoader(data, batch_size=8, shuffle=True, collate_fn=collate_latents, drop_last=True),
                self.work,
                lr=1e-3,
                lr_warmup=min(100, steps // 3),
                lr_decay=steps * 2 // 3,
                lr_min=lr_min,
                load_state=True,
                seed=SEED,
                preencoded_img=True,
                mixed_precision="bf16" if computes_in(torch.bfloat16, self.device) else "no",
                ema=0.998,
                min_snr_gamma=5.0,
                snr_floor=0.25,
                start_noise=0.2,
                weight_decay=1e-3,
                betas=(0.9, 0.99),
                compile=self.compiled,
                save_dtype=torch.float32,
            )
            trainer.train(name, log_every=20, save_every=SAVE_EVERY, steps=steps)
            done.touch()
        return load_file(self.work / f"{name}_unet.safetensors")

    @contextmanager
    def _timed(self) -> Iterator[None]:
        path, start = self.work / "times.json", time.perf_counter()
        before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
        try:
            yield
        finally:
            with whole_file(path) as temporary:
                temporary.write_text(json.dumps([*before, round(time.perf_counter() - start, 1)]), encoding="utf-8")

    def _kept(self, name: str, train: Callable[[], Weights]) -> Weights:
        path = self.work / f"{name}.safetensors"
        if not path.is_file():
            weights = {key: value.cpu().contiguous() for key, value in train().items()}
            with whole_file(path) as temporary:
                save_file(weights, temporary)
        return load_file(path)


@torch.no_grad()
def new_unet() -> UNetSD:
    """A UNet in which every residual branch starts at zero, as in Ho et al. 2020 and Wang et al. 2023."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        unet = UNetSD(CONFIG.unet)
    last: list[nn.Module] = [unet.out[-1]]
    for module in unet.modules():
        if isinstance(module, ResBlock):
            last.append(module.out_layers[-1])
        elif isinstance(module, TemporalConv):
            last.append(module.conv4[-1])
        elif isinstance(module, SpatialTransformer | TemporalTransformer):
            last.append(module.proj_out)
    for layer in last:
        for parameter in layer.parameters():
            parameter.zero_()
    return unet


def write_model(directory: Path, unet: Weights, vae: AutoencoderKL, encoder: TextEncoder, dtype: torch.dtype) -> Path:
    """A ModelScope directory with the original names, its weights as safetensors twins.

    Its files appear together when all are written: one that is stopped leaves the model that was there.
    """
    parts = {
        CONFIG.unet_file: unet,
        CONFIG.vae_file: {f"first_stage_model.{key}": value for key, value in vae.state_dict().items()},
        CONFIG.text_file: text.open_clip_weights(encoder),
    }
    with ExitStack() as files:
        for name, weights in parts.items():
            cast = {key: value.to(dtype).contiguous() for key, value in weights.items()}
            path = (directory / name).with_suffix(".safetensors")
            save_file(cast, files.enter_context(whole_file(path)), {"format": "pt"})
        config = json.dumps(configuration(CONFIG), indent=4) + "\n"
        files.enter_context(whole_file(directory / CONFIG_NAME)).write_text(config, encoding="utf-8")
    return directory


@contextmanager
def _progress(name: str, steps: int) -> Iterator[Callable[[int, int, float], None]]:
    with tqdm(total=steps, desc=name, unit="step") as bar:

        def log(_step: int, _steps: int, loss: float) -> None:
            bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
            bar.update()

        yield log


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("output", type=Path, help="directory to write the model to")
    parser.add_argument("--work", type=Path, default=Path("output/demo"), help="where the stages are kept, to go on")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    options = parser.parse_args()
    Recipe(options.work, options.device).make(options.output)


if __name__ == "__main__":
    sys.exit(main())
