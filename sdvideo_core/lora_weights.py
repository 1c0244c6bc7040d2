"""LoRA in weights: LoRAs from files that act on a UNet and a text encoder until they are taken out, bit for bit."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from .key_maps import TEXT_QKV
from .lcm import LCM
from .lora_files import LoRAReport, read_lora
from .lora_formats import Pair
from .lora_layers import TEXT_BLOCKS, TEXT_EMBEDDINGS, TEXT_MODULES, Layers, adaptable
from .unet import UNetSD

if TYPE_CHECKING:
    from .text_encoder import TextEncoder

GUIDANCE_LAYER = "cond_proj"  # see UNetSD.add_guidance_embedding


class Slot(NamedTuple):
    """Where a layer's weight is."""

    parameter: Tensor
    rows: slice


class LoRAWeights:
    """LoRAs merged into the weights of two networks, any number with a strength each.

    A weight is the base's plus all of their changes, summed in float64 and rounded once, so the order in which they
    came does not matter, and running costs nothing more. The base's weights are kept in memory (the CPU's) as they
    were; `remove` puts them back.
    """

    def __init__(self, unet: UNetSD, text_encoder: TextEncoder):
        self._unet, self._text_encoder = unet, text_encoder
        self._survey()
        self._has_guidance_layer = unet.cond_proj is not None
        self._loaded: list[tuple[float, Mapping[str, Pair]]] = []
        self.lcm: LCM | None = None  # how the first few-step LoRA among them says it wants to be sampled
        self._base: dict[Tensor, Tensor] = {}

    def _survey(self) -> None:
        self._layers = Layers.of(self._unet, self._text_encoder)
        self._slots = {path: Slot(layer.weight, slice(None)) for path, layer in adaptable(self._unet).items()}
        self._slots |= {path: _text_slot(self._text_encoder, path) for path in self._layers.text}

    def add(self, path: str | Path, strength: float = 1.0) -> LoRAReport:
        """Reads a LoRA and lets it act; strength 0 changes nothing. Raises as `read_lora` and `LoRAFile.match` do."""
        if not math.isfinite(strength):
            raise ValueError(f"LoRA strength={strength}; expected a number, such as 1.0")
        file = read_lora(path)
        match = file.match(self._layers)
        if any(GUIDANCE_LAYER in name for name in match.report.unused):  # T2V-Turbo's brings a layer of its own
            self._unet.add_guidance_embedding()
            self._survey()
            match = file.match(self._layers)
        if match.report.is_doubtful:
            warnings.warn(str(match.report), stacklevel=3)
        if strength != 0:
            said = LCM.from_metadata(file.metadata)
            self._loaded.append((strength, {**match.unet, **match.text}))
            self.lcm = self.lcm or said
            self._write({self._slots[path].parameter for path in self._loaded[-1][1]})
        return match.report

    def remove(self) -> None:
        """Takes all of them out."""
        while self._base:
            parameter, weight = self._base.popitem()
            parameter.data = weight.to(parameter.device)
        self._loaded.clear()
        self.lcm = None
        if self._unet.cond_proj is not None and not self._has_guidance_layer:
            self._unet.cond_proj = None
            self._survey()

    @torch.no_grad()
    def _write(self, parameters: Iterable[Tensor]) -> None:
        paths: dict[Tensor, list[str]] = {}
        for path, slot in self._slots.items():
            paths.setdefault(slot.parameter, []).append(path)
        for parameter in parameters:
            base = self._base.setdefault(parameter, parameter.data.cpu())
            device = "cpu" if parameter.device.type == "mps" else parameter.device  # mps has no float64
            # Converted where it goes: on the way to a GPU float64 would be four times the bytes of float16.
            weight = base.to(device).to(torch.float64, copy=True)
            for path in paths[parameter]:
                self._add_changes(path, weight[self._slots[path].rows])
            parameter.data = weight.to(parameter.device, parameter.dtype)

    def _add_changes(self, path: str, weight: Tensor) -> None:
        for strength, pairs in self._loaded:
            if pair := pairs.get(path):
                on_device = pair._replace(down=pair.down.to(weight.device), up=pair.up.to(weight.device))
                weight += strength * on_device.delta().view(weight.shape)


def _text_slot(encoder: TextEncoder, path: str) -> Slot:
    if path in TEXT_EMBEDDINGS:
        is_token = path == TEXT_EMBEDDINGS[0]
        return Slot(encoder.token_embedding.weight if is_token else encoder.positional_embedding, slice(None))
    index, name = path.removeprefix(TEXT_BLOCKS).split(".", 1)
    block = f"transformer.resblocks.{index}."
    if name in TEXT_QKV:  # OpenCLIP's in_proj_weight has their rows in this order
        width, row = encoder.config.width, TEXT_QKV.index(name) * encoder.config.width
        return Slot(encoder.get_parameter(block + "attn.in_proj_weight"), slice(row, row + width))
    return Slot(encoder.get_parameter(f"{block}{TEXT_MODULES[name]}.weight"), slice(None))
