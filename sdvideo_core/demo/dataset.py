"""Demo dataset: clips of moving shapes as latents in memory, with fresh captions every time through."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Dataset

from ..precision import computes_in
from ..vae import AutoencoderKL
from ..whole_file import whole_file
from .clips import Scene, caption, draw_clip, scenes

REVERSED = {
    "left": "right",
    "right": "left",
    "up": "down",
    "down": "up",
    "growing": "shrinking",
    "shrinking": "growing",
}

Log = Callable[[int, int], object]  # (clips done, clips in all)


@torch.no_grad()
def encode_clips(vae: AutoencoderKL, count: int, path: Path, seed: int = 0, log: Log | None = None) -> None:
    """Draws `count` clips, of every scene of training in turn, and writes their latents (N, F, 4, h, w) in float16.

    Those that turn come twice: they are the hardest to learn, and cannot serve played backwards.
    """
    rng = np.random.default_rng(seed)
    every, device = scenes(), vae.post_quant_conv.weight.device
    training = [index for index, scene in enumerate(every) if not scene.held_out]
    turning = [index for index in training if every[index].motion == "turning"]
    order = np.resize(training + turning, count)
    latents = []
    for done, index in enumerate(order, 1):
        frames = torch.from_numpy(draw_clip(every[index], rng)).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.autocast(device.type, torch.bfloat16, enabled=computes_in(torch.bfloat16, device)):
            latents.append(vae.encode(frames.to(device), frames_at_once=len(frames)).half().cpu().contiguous())
        if log:
            log(done, len(order))
    with whole_file(path) as temporary:
        save_file({"latents": torch.stack(latents), "scenes": torch.from_numpy(order)}, temporary)


class LatentClips(Dataset[dict[str, Any]]):
    """Items {"pixel_values": (F, 4, h, w), "text": caption}: the clips forwards, then those played backwards.

    captions: how many ways of saying each clip there are; they make one time through the data that much longer.
    stride: take every stride-th frame.
    """

    def __init__(self, path: Path, captions: int = 4, stride: int = 1, seed: int = 0):
        tensors, every = load_file(path), scenes()
        self.latents, self.captions, self.stride, self.seed = tensors["latents"], captions, stride, seed
        forwards = [(clip, every[index], False) for clip, index in enumerate(tensors["scenes"].tolist())]
        backwards = [(clip, backward, True) for clip, scene, _ in forwards if (backward := _reversed(scene))]
        self.clips = forwards + backwards

    def __len__(self) -> int:
        return len(self.clips) * self.captions

    def __getitem__(self, index: int) -> dict[str, Any]:
        clip, scene, backward = self.clips[index % len(self.clips)]
        latents = self.latents[clip].float()
        latents = latents.flip(0) if backward else latents
        return {
            "pixel_values": latents[:: self.stride],
            "text": caption(scene, np.random.default_rng([self.seed, index])),
        }


def collate_latents(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Items of `LatentClips` -> the batch a trainer takes with preencoded_img."""
    latents: list[Tensor] = [item["pixel_values"] for item in items]
    return {"pixel_values": torch.stack(latents), "text": [item["text"] for item in items]}


def _reversed(scene: Scene) -> Scene | None:
    """What a clip shows when played backwards; None where that is no clip of training."""
    if scene.motion not in REVERSED:
        return None
    backward = replace(scene, motion=REVERSED[scene.motion])
    return None if backward.held_out else backward
