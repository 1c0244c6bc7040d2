"""Demo model: a tiny ModelScope directory with random weights, in the original file layout."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from open_clip.transformer import TextTransformer
from torch import Tensor

from ..config import ModelConfig, TextConfig, UNetConfig, VAEConfig
from ..configuration import CONFIG_NAME, configuration
from ..unet import UNetSD
from ..vae import AutoencoderKL

DEMO_UNET = UNetConfig(
    dim=32, context_dim=64, dim_mult=(1, 2), num_heads=2, head_dim=16, res_blocks=1, attn_scales=(1.0, 0.5)
)
DEMO_VAE = VAEConfig(ch=32, ch_mult=(1, 1, 1, 2), num_res_blocks=1)
DEMO_TEXT = TextConfig(width=64, layers=3, heads=1)


def make_demo_model(directory: str | Path, seed: int = 0, dtype: torch.dtype = torch.float16) -> Path:
    """Writes configuration.json and the three files of weights (about 10 MB in float16); returns the directory.

    The same seed gives the same weights. What they draw is noise: they serve to try the machinery.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    config = ModelConfig(unet=DEMO_UNET)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNetSD(config.unet).state_dict()
        vae = AutoencoderKL(DEMO_VAE).state_dict()
        text = _open_clip_weights()
    torch.save(_cast(unet, dtype), directory / config.unet_file)
    vae = {f"first_stage_model.{key}": value for key, value in _cast(vae, dtype).items()}
    torch.save({"state_dict": vae}, directory / config.vae_file)
    torch.save(_cast(text, dtype), directory / config.text_file)
    (directory / CONFIG_NAME).write_text(json.dumps(configuration(config), indent=4) + "\n", encoding="utf-8")
    return directory


def _open_clip_weights() -> dict[str, Tensor]:
    """A text tower with everything that an OpenCLIP checkpoint holds beside it."""
    t = DEMO_TEXT
    tower = TextTransformer(t.context_length, t.vocab_size, t.width, t.heads, t.layers, output_dim=t.width)
    return tower.state_dict() | {"logit_scale": torch.tensor(4.6), "visual.proj": torch.zeros(4, t.width)}


def _cast(weights: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {key: value.to(dtype) for key, value in weights.items()}
