"""Few steps: a LoRA with which the demo model draws in 4 steps without guidance, distilled by the project's trainer."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from ..pipeline import SDVideo
from ..precision import computes_in
from ..training import Distillation, SDVideoTrainer
from . import FEW_STEPS_LORA, demo_model
from .dataset import LatentClips, collate_latents
from .recipe import can_compile

LORA = FEW_STEPS_LORA
RANK = 16
DISTILLATION = Distillation(guidance_scale=2.0, num_timesteps=20)  # as many points as steps that suffice the teacher
SAMPLING = DISTILLATION.sampling  # how the demo model is called with it
STEPS = 500
SEED = 0


def distil(
    model: Path, clips: Path, work: Path, steps: int = STEPS, device: str = "cpu", compiled: bool = True
) -> Path:
    """Trains the LoRA on latents that `Recipe.encode` wrote, and returns its file; a stopped run goes on."""
    data = LatentClips(clips, seed=SEED)
    trainer = SDVideoTrainer(
        SDVideo(model, device),
        DataLoader(data, batch_size=8, shuffle=True, collate_fn=collate_latents, drop_last=True),
        work,
        lr=1e-3,
        lr_warmup=min(20, steps // 2),
        lr_decay=steps // 2,
        lr_min=1e-5,
        load_state=True,
        seed=SEED,
        unconditional_ratio=0.0,
        preencoded_img=True,
        mixed_precision="bf16" if computes_in(torch.bfloat16, device) else "no",
        ema=0.98,
        start_noise=0.75,
        lora_rank=RANK,
        distillation=DISTILLATION,
        weight_decay=0.0,
        compile=compiled,
        save_dtype=torch.float16,
    )
    return trainer.train("few_steps", log_every=20, save_every=100, steps=steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", type=Path, default=demo_model(), help="the teacher")
    parser.add_argument("--work", type=Path, default=Path("output/demo"), help="where the recipe kept its clips")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    options = parser.parse_args()
    clips, device = options.work / "clips.safetensors", options.device
    distil(options.model, clips, options.work, device=device, compiled=can_compile(device))


if __name__ == "__main__":
    sys.exit(main())
