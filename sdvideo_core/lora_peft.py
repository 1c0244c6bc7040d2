"""PEFT's configuration of a LoRA: adapter_config.json, or the same in a file's metadata, for the scale of each layer.

Ranks need no telling, the weights have them. The keys are those of peft's LoraConfig.
"""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .configuration import CheckpointError, read_json

PEFT_CONFIG = "adapter_config.json"  # beside the weights
FOLDER_STEMS = ("adapter_model", "pytorch_lora_weights")  # the names of the weights in a folder, PEFT's or diffusers'
DIFFUSERS_CONFIG = "lora_adapter_metadata"  # a key of the metadata of a .safetensors file
NETWORKS = ("unet.", "text_encoder.")  # which diffusers puts before the keys, and before the names of layers
PEFT_PREFIX = "base_model.model."  # of names, but not of what patterns match

DEFAULT_ALPHA = 8  # peft's, where lora_alpha is not said
LARGEST = 3.4e38  # what float32 can hold


@dataclass(frozen=True)
class Scales:
    """What a configuration says of the layers of one network."""

    alpha: float | None = None  # None is each layer's rank, a scale of 1
    patterns: tuple[tuple[re.Pattern[str], float], ...] = ()  # alphas of single layers; the first match counts
    rank_stabilized: bool = False  # the scale is alpha / sqrt(rank) (Kalajdzievski 2023, rsLoRA)

    def alpha_of(self, layer: str, rank: int) -> float:
        """The alpha of a layer of that rank, where alpha / rank is its scale."""
        alpha = next((alpha for pattern, alpha in self.patterns if pattern.match(layer)), self.alpha)
        if alpha is None:
            return float(rank)
        return alpha * math.sqrt(rank) if self.rank_stabilized else alpha


@dataclass(frozen=True)
class PeftConfig:
    """The scales of a LoRA's networks, by what the names of their layers start with."""

    networks: Mapping[str, Scales]

    def alpha_of(self, name: str, rank: int) -> float:
        """The alpha of a layer by its name in the file, and that of scale 1 where nothing is said of it."""
        name = name.removeprefix(PEFT_PREFIX)
        network = next((network for network in NETWORKS if name.startswith(network)), "")
        scales = self.networks.get(network) or self.networks.get("") or Scales()
        return scales.alpha_of(name.removeprefix(network), rank)


def read_peft_config(weights: Path, metadata: Mapping[str, str]) -> PeftConfig:
    """What is said of a file of weights; CheckpointError, with the name of the field, where that makes no sense."""
    if DIFFUSERS_CONFIG in metadata:
        content = _parse(metadata[DIFFUSERS_CONFIG], weights)
        fields = {n: {k.removeprefix(n): v for k, v in content.items() if k.startswith(n)} for n in NETWORKS}
        return PeftConfig({network: _scales(values, weights) for network, values in fields.items()})
    beside = weights.with_name(PEFT_CONFIG)
    if not beside.is_file():
        return PeftConfig({})
    return PeftConfig({"": _scales({"lora_alpha": DEFAULT_ALPHA, **read_json(beside)}, beside)})


def _parse(text: str, source: Path) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{source} has a broken {DIFFUSERS_CONFIG}: {error}. Download it again.") from error
    if not isinstance(content, dict):
        raise _wrong(source, DIFFUSERS_CONFIG, content, "a JSON object")
    return content


def _scales(fields: Mapping[str, Any], source: Path) -> Scales:
    alpha, patterns = fields.get("lora_alpha"), fields.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise _wrong(source, "alpha_pattern", patterns, "an object of patterns and numbers")
    return Scales(
        None if alpha is None else _number(alpha, "lora_alpha", source),
        tuple((_pattern(key, source), _number(a, f"alpha_pattern of {key}", source)) for key, a in patterns.items()),
        bool(fields.get("use_rslora")),
    )


def _number(value: Any, name: str, source: Path) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < LARGEST:
        raise _wrong(source, name, value, "a number")
    return float(value)


def _pattern(key: str, source: Path) -> re.Pattern[str]:
    """What peft takes a key for: a regular expression of the end of a module's path, from any dot on."""
    try:
        return re.compile(rf"(.*\.)?({key})$")
    except re.error as error:
        raise _wrong(source, "alpha_pattern", key, f"a regular expression ({error.msg})") from error


def _wrong(source: Path, name: str, value: Any, expected: str) -> CheckpointError:
    return CheckpointError(f"{source}: {name} is {reprlib.repr(value)}; expected {expected}. Download it again.")
