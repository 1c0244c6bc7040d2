"""Demo text encoder: a small OpenCLIP tower, taught to tell what a caption of moving shapes says."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from open_clip.transformer import TextTransformer
from torch import Tensor, nn

from ..families import TRAINED_TEXT
from ..text_encoder import TextEncoder
from .clips import BACKGROUNDS, COLORS, MOTIONS, SHAPES, Scene, caption, scenes

CONFIG = TRAINED_TEXT
TOPICS: dict[str, tuple[str, ...]] = {
    "color": tuple(COLORS),
    "shape": SHAPES,
    "motion": MOTIONS,
    "background": tuple(BACKGROUNDS),
}
END = 49407  # the tokenizer's end of text
CAPTIONS_FOR_VOCABULARY = 20_000

Log = Callable[[int, int, float], object]  # (step, number of steps, loss)


def train_text_encoder(steps: int = 500, batch_size: int = 64, seed: int = 0, log: Log | None = None) -> TextEncoder:
    """An encoder whose vectors hold colour, shape, motion and background, at the end of the text and in the padding.

    Rows of tokens that no caption uses are zero: a word it does not know changes nothing, and files pack well.
    """
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    encoder = new_encoder(generator)
    used = _used_tokens(encoder, np.random.default_rng(seed))
    heads = nn.ModuleDict({topic: nn.Linear(CONFIG.width, len(words)) for topic, words in TOPICS.items()})
    for parameter in heads.parameters():
        nn.init.normal_(parameter, std=0.02, generator=generator)
    parameters = [*encoder.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1.5e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 + 0.5 * math.cos(math.pi * step / steps))
    training = [scene for scene in scenes() if not scene.held_out]
    for step in range(steps):
        batch = [training[index] for index in rng.integers(len(training), size=batch_size)]
        loss = _loss(encoder, heads, batch, rng)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if log:
            log(step, steps, loss.item())
    with torch.no_grad():
        encoder.token_embedding.weight[~used] = 0
    return encoder


def new_encoder(generator: torch.Generator) -> TextEncoder:
    """An encoder with random weights."""
    encoder = TextEncoder(CONFIG)
    for name, parameter in encoder.named_parameters():
        if parameter.ndim == 1:
            nn.init.constant_(parameter, float(name.endswith("weight")))
        else:
            nn.init.normal_(parameter, std=0.02 if "embedding" in name else 0.08, generator=generator)
    return encoder


def open_clip_weights(encoder: TextEncoder) -> dict[str, Tensor]:
    """The encoder as an OpenCLIP checkpoint, with the last block and the projection that no video model reads."""
    c = encoder.config
    with torch.device("meta"):
        tower = TextTransformer(c.context_length, c.vocab_size, c.width, c.heads, c.layers, output_dim=c.width)
    unread = {key: torch.zeros(value.shape) for key, value in tower.state_dict().items() if key != "attn_mask"}
    return unread | {key: value for key, value in encoder.state_dict().items() if key != "attn_mask"}


def _used_tokens(encoder: TextEncoder, rng: np.random.Generator) -> Tensor:
    every = scenes()
    captions = [caption(every[rng.integers(len(every))], rng) for _ in range(CAPTIONS_FOR_VOCABULARY)]
    used = torch.zeros(encoder.config.vocab_size, dtype=torch.bool)
    used[encoder.tokenizer(captions).unique()] = True
    return used


def _loss(encoder: TextEncoder, heads: nn.ModuleDict, batch: list[Scene], rng: np.random.Generator) -> Tensor:
    tokens = encoder.tokenizer([caption(scene, rng) for scene in batch])
    vectors = encoder.encode_tokens(tokens)  # (B, 77, D)
    end = (tokens == END).float().argmax(1)
    padding = end + torch.from_numpy(rng.integers(1, tokens.shape[1] - end.numpy()))
    rows = torch.arange(len(batch))
    losses = []
    for topic, words in TOPICS.items():
        answers = torch.tensor([words.index(getattr(scene, topic)) for scene in batch])
        losses += [F.cross_entropy(heads[topic](vectors[rows, place]), answers) for place in (end, padding)]
    return torch.stack(losses).mean()
