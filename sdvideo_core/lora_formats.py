"""LoRA formats: the six that LoRAs of this family come in, as tables, and the shapes of what they store.

The tools that define them: kohya (sd-scripts), PEFT (peft), diffusers, the positional list (cloneofsimo/lora), and
stable_lora with its variant for the webui (loralib, Text-To-Video-Finetuning). In all of them a layer's weight W
becomes W + strength * alpha / rank * up @ down (Hu et al. 2021, eq. 3).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .configuration import CheckpointError
from .lora_layers import TEXT_EMBEDDINGS, Shape

FORMATS = {
    "kohya": "a LoRA in kohya's format",
    "peft": "a LoRA in PEFT's format",
    "diffusers": "a LoRA in diffusers' format",
    "webui": "a LoRA in the webui's format (stable_lora)",
    "stable_lora": "a LoRA in stable_lora's format",
    "positional": "a LoRA in cloneofsimo's format (a list without names)",
}
# What a format is told by: a pattern in the names of its tensors; the first match counts.
SIGNS = (
    ("positional", r"^layer \d+\.lora_"),
    ("peft", r"^base_model\.model\."),
    ("kohya", r"\.lora_(down|up)\.weight$"),
    ("webui", r"(^|\.)(time_embed|input_blocks|middle_block|output_blocks|resblocks)\..*\.lora_[AB]$"),
    ("stable_lora", r"\.lora_[AB]$"),
    ("diffusers", r"\.lora_[AB](\.\w+)?\.weight$|[._]lora\.(down|up)\.weight$|\.lora_linear_layer\."),
)
# How the names of a layer's two tensors end. Those of loralib and of PEFT's embeddings are factors of another shape.
ENDINGS = (
    (".lora_down.weight", ".lora_up.weight"),
    (".lora_A.weight", ".lora_B.weight"),
    (".lora_A.default.weight", ".lora_B.default.weight"),
    (".lora.down.weight", ".lora.up.weight"),
    ("_lora.down.weight", "_lora.up.weight"),
    (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
    (LORALIB := (".lora_A", ".lora_B")),
    (PEFT_EMBEDDING := (".lora_embedding_A", ".lora_embedding_B")),
)
ALPHA = ".alpha"

MOST_NAMED = 5  # in a message


class Pair(NamedTuple):
    """The adapter of one layer, in the shapes of kohya's format."""

    down: Tensor  # (rank, in) or (rank, in, *kernel)
    up: Tensor  # (out, rank) or (out, rank, 1, ...)
    alpha: float  # the product is scaled by alpha / rank

    def delta(self) -> Tensor:
        """What strength 1 adds to the weight, (out, in * kernel), in float64."""
        return self.alpha / len(self.down) * (self.up.double().flatten(1) @ self.down.double().flatten(1))


class Stored(NamedTuple):
    """The adapter of one layer as its file has it."""

    down: Tensor
    up: Tensor
    alpha: float
    ending: tuple[str, str]
    keys: tuple[str, ...]  # the tensors it was made of

    def fit(self, path: str, shape: Shape) -> Pair:
        """The pair for a layer whose weight has that shape; whether it fits remains to be seen."""
        if path in TEXT_EMBEDDINGS and self.ending in (LORALIB, PEFT_EMBEDDING):
            return Pair(self.up.t(), self.down.t(), self.alpha)
        return unfolded(self, shape) if self.ending == LORALIB else Pair(self.down, self.up, self.alpha)


def unfolded(stored: Stored, shape: Shape) -> Pair:
    """loralib's factors as a pair.

    loralib keeps the product for a kernel (k, k) as (out * k, in * k), that is k rows for each output, one after the
    other the k parts of its weight. stable_lora does so for a kernel (k, 1, 1) too, and takes the mean of each k
    neighbouring numbers, as there are k times too many.
    """
    down, up = stored.down.flatten(1), stored.up.flatten(1)  # files may have one axis more, of length 1
    out, width, *window = shape
    kernel = window[0] if window else 1
    fits = up.shape == (out * kernel, len(down)) and down.shape[1] == width * kernel
    if kernel == 1 or not fits:
        return Pair(down, up, stored.alpha)
    if len(window) == 3:
        down = at_least_float32(down).unflatten(1, (-1, kernel)).mean(2)
    down = torch.block_diag(*[down] * kernel).unflatten(1, shape[1:])
    return Pair(down, up.unflatten(0, (-1, kernel)).flatten(1), stored.alpha * kernel)


def folded(pair: Pair, shape: Shape) -> list[Tensor]:
    """A pair as loralib's A and B of the same rank and scale 1, the other way round."""
    kernel = shape[2] if len(shape) > 2 else 1
    a = pair.down.flatten(1).unflatten(1, (kernel, -1)).flatten(0, 1)
    if len(shape) == 5:
        a = a.repeat_interleave(kernel, 1)  # stable_lora takes their mean
    up = at_least_float32(pair.up).flatten(1) * (pair.alpha / len(pair.down))
    return [a, torch.kron(up, torch.eye(kernel, dtype=up.dtype))]


def at_least_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def check_pairs(pairs: Mapping[str, Pair], shapes: Mapping[str, Shape], source: str | Path) -> None:
    """Raises CheckpointError, naming the layers, unless each pair's product has the shape of its layer's weight."""
    wrong = {path: pair for path, pair in pairs.items() if not fits(pair, shapes[path])}
    problems = [
        f"{path} has down {tuple(down.shape)} and up {tuple(up.shape)}, expected a product of shape {shapes[path]}"
        for path, (down, up, _) in wrong.items()
    ]
    refuse(source, problems, "this LoRA belongs to another model")


def fits(pair: Pair, shape: Shape) -> bool:
    """Whether the product of a pair has the shape of a weight, axes of length 1 aside."""
    down, up, _ = pair
    multiplies = down.ndim > 1 and up.ndim > 1 and 0 < len(down) == up[0].numel()
    return multiplies and down[0].numel() == math.prod(shape[1:]) and len(up) == shape[0]


def refuse(source: str | Path, problems: Sequence[str], remedy: str) -> None:
    """Raises CheckpointError that names the first problems and what to do, if there are any."""
    if problems:
        said = some_of(problems, "; ")
        raise CheckpointError(f"{source} does not fit ({len(problems)} problems): {said}; {remedy}")


def some_of(items: Sequence[str], separator: str = ", ", most: int = MOST_NAMED) -> str:
    """The first items, and how many more there are."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return separator.join(items[:most]) + more
