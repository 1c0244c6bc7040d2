"""LoRA: low-rank adapters on a UNet's layers, trained, attached, merged and saved.

A layer's weight W becomes W + strength * alpha / rank * up @ down (Hu et al. 2021, eq. 3). `down` is a layer like the
adapted one with `rank` outputs, `up` a linear layer or a convolution of kernel size 1.
"""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import conv_along_time
from .lora_export import kohya_name, write_kohya
from .lora_files import read_lora
from .lora_formats import Pair, check_pairs, refuse
from .lora_layers import Layer, Layers, adaptable, joined
from .state_dict import StateDict
from .unet import UNetSD

__all__ = ["TARGETS", "Adapter", "LoRA", "Pair", "fresh_pair", "kohya_name", "save_lora", "target_layers"]

_TEMPORAL = r"^(input_blocks\.0\.1|(in|out)put_blocks\.\d+\.2|middle_block\.2)\.|\.temopral_conv\."

# Sets of layers to adapt: regular expressions that are searched for in the module paths.
TARGETS = {
    "all": "",
    "attention": r"\.attn[12]\.",  # queries, keys, values and outputs, in space and in time
    "spatial": f"^(?!.*({_TEMPORAL}))",  # everything that sees one frame at a time
    "temporal": _TEMPORAL,  # attention and convolutions along time
}


class Adapter(nn.Module):
    """A pair as float32 parameters, on the device of the layer they adapt."""

    def __init__(self, layer: Layer, pair: Pair):
        super().__init__()
        weight, rank, device = layer.weight, len(pair.down), layer.weight.device
        down = pair.down.reshape(rank, *weight.shape[1:])
        up = pair.up.reshape(len(weight), rank, *(1 for _ in weight.shape[2:]))
        self.down = nn.Parameter(down.to(device, torch.float32, copy=True))
        self.up = nn.Parameter(up.to(device, torch.float32, copy=True))
        self.rank, self.alpha, self.scale = rank, pair.alpha, pair.alpha / rank
        self.window: Any = () if isinstance(layer, nn.Linear) else (None, layer.stride, layer.padding)
        self.product: Any = {2: F.linear, 4: F.conv2d, 5: F.conv3d}[weight.ndim]

    def forward(self, x: Tensor) -> Tensor:
        """The layer's input -> up(down(x)) in the precision of x or of autocast, not scaled."""
        down, up = self.down.to(x.dtype), self.up.to(x.dtype)
        if down.ndim == 5 and x.device.type != "cpu":  # as `layers.Conv3d`
            low = conv_along_time(x.flatten(3), down.squeeze(4), None)
            return conv_along_time(low, up.squeeze(4), None).unflatten(3, x.shape[3:])
        return self.product(self.product(x, down, *self.window), up)

    @torch.no_grad()
    def delta(self) -> Tensor:
        """scale * up @ down in float64 on the CPU, in the shape of the layer's weight."""
        pair = Pair(self.down.cpu(), self.up.cpu(), self.alpha)  # mps has no float64
        return pair.delta().view(len(self.up), *self.down.shape[1:])

    @property
    def pair(self) -> Pair:
        return Pair(self.down, self.up, self.alpha)


class LoRA(nn.Module):
    """Adapters for the layers of one UNet; they act while attached, and the UNet's own modules stay as they are.

    rank: inner width of each adapter, 1 or more, cut to what a layer can use. alpha: the product is scaled by
    alpha / rank, also where the rank was cut; None is rank, a scale of 1. targets: a name of TARGETS, a regular
    expression to search for in module paths, or the paths themselves. generator: on the CPU, for the first weights.

    A fresh LoRA changes nothing, because `up` is zero. `strength` may be set at any time, between the calls; 0 skips
    the adapters. Attached with `attach()`, or for the length of a `with lora:`.
    """

    def __init__(
        self,
        unet: UNetSD,
        rank: int = 8,
        alpha: float | None = None,
        targets: str | Collection[str] = "all",
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        alpha = float(rank) if alpha is None else alpha
        if rank < 1:
            raise ValueError(f"LoRA rank={rank}; expected 1 or more, such as 8")
        if not 0 < alpha < float("inf"):
            raise ValueError(f"LoRA alpha={alpha}; expected a number above 0, such as the rank, {rank}")
        layers, scale = target_layers(unet, targets), alpha / rank
        self._hold(layers, {path: fresh_pair(layer, rank, scale, generator) for path, layer in layers.items()})

    def _hold(self, layers: Mapping[str, Layer], pairs: Mapping[str, Pair]) -> None:
        self.strength = 1.0
        self.unused: list[str] = []  # names of a file's tensors that are not part of this LoRA
        self._layers = dict(layers)  # in a dict, so that they are no submodules, and no parameters of this module
        self._handles: list[Any] = []
        self.adapters = nn.ModuleDict({joined(path): Adapter(layers[path], pair) for path, pair in pairs.items()})

    @classmethod
    def from_pairs(cls, unet: UNetSD, pairs: Mapping[str, Pair], source: str | Path = "the LoRA") -> LoRA:
        """A LoRA with given weights, by module path; `source` names them in errors."""
        layers = target_layers(unet, pairs.keys())
        check_pairs(pairs, {path: tuple(layer.weight.shape) for path, layer in layers.items()}, source)
        lora = cls(unet, targets=())
        lora._hold(layers, pairs)
        return lora

    @classmethod
    def from_file(cls, unet: UNetSD, path: str | Path) -> LoRA:
        """The UNet's part of a LoRA file of any format; warns of what in it is not used, and keeps the names."""
        match = read_lora(path).match(Layers.of(unet))
        lora = cls.from_pairs(unet, match.unet, path)
        lora.unused = match.report.unused
        if lora.unused or match.report.is_doubtful:
            warnings.warn(str(match.report), stacklevel=2)
        return lora

    @property
    def paths(self) -> list[str]:
        """Module paths of the adapted layers, in the UNet's order."""
        return list(self._layers)

    def adapter(self, path: str) -> Adapter:
        """The adapter of the layer at a module path."""
        if path not in self._layers:
            raise ValueError(f"this LoRA has no adapter for {path!r}; it has {_examples(self.paths)}")
        return cast(Adapter, self.adapters[joined(path)])

    def attach(self) -> LoRA:
        """Lets the adapters act in the UNet's forwards until `detach()`; a second call changes nothing."""
        if not self._handles:
            hooks = {path: functools.partial(self._adapt, self.adapter(path)) for path in self._layers}
            self._handles = [layer.register_forward_hook(hooks[path]) for path, layer in self._layers.items()]
        return self

    def detach(self) -> None:
        """Takes the adapters off the UNet, which is then as it was."""
        while self._handles:
            self._handles.pop().remove()

    def __enter__(self) -> LoRA:
        return self.attach()

    def __exit__(self, *_: object) -> None:
        self.detach()

    def _adapt(self, adapter: Adapter, _layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if self.strength == 0:
            return output
        change = adapter(inputs[0]).to(output.dtype)
        # In place, because a sum of its own could be laid out otherwise, and the layers behind it round otherwise.
        return output.add_(change, alpha=self.strength * adapter.scale)

    def delta(self, path: str) -> Tensor:
        """What strength 1 adds to the weight of the layer at a module path, in float64 on the CPU and in its shape.

        That is (out, in) also for the projections of time attention, whose weights state dicts hold as (out, in, 1).
        """
        return self.adapter(path).delta()

    @torch.no_grad()
    def merge_into(self, state_dict: Mapping[str, Tensor], strength: float | None = None) -> StateDict:
        """A UNet's state dict with this LoRA added to it, in float64 and then rounded once.

        strength: None is the LoRA's own. Adapted weights are new tensors of their old dtype and shape, the others
        are those given. Detach the LoRA before its UNet gets the weights, or it acts twice.
        """
        strength = self.strength if strength is None else strength
        merged = dict(state_dict)
        _check_base(self._layers, merged)
        for path in self._layers:
            weight = merged[f"{path}.weight"]
            change = strength * self.delta(path).view(weight.shape)
            merged[f"{path}.weight"] = (weight.cpu().double() + change).to(weight.device, weight.dtype)
        return merged


def target_layers(unet: UNetSD, targets: str | Collection[str] = "all") -> dict[str, Layer]:
    """Module path -> layer, in the UNet's order: those that LoRA's `targets` means."""
    layers = adaptable(unet)
    if not isinstance(targets, str):
        if unknown := [path for path in targets if path not in layers]:
            raise ValueError(f"targets {unknown} are no layers of this UNet; its layers are {_examples(layers)}")
        return {path: layer for path, layer in layers.items() if path in targets}
    expected = f"one of {', '.join(TARGETS)}, or a regular expression for paths like {_examples(layers)}"
    try:
        pattern = re.compile(TARGETS.get(targets, targets))
    except re.error as error:
        raise ValueError(f"targets={targets!r} is no regular expression: {error}; expected {expected}") from error
    found = {path: layer for path, layer in layers.items() if pattern.search(path)}
    if not found:
        raise ValueError(f"targets={targets!r} matches no layer; expected {expected}")
    return found


def fresh_pair(layer: Layer, rank: int, scale: float, generator: torch.Generator | None = None) -> Pair:
    """An adapter that changes nothing yet: `down` is drawn as torch draws a layer's weights, `up` is zero."""
    out, shape = layer.weight.shape[0], layer.weight.shape[1:]
    rank = min(rank, out, shape.numel())
    bound = shape.numel() ** -0.5  # He et al. 2015, uniform, with a = sqrt(5)
    down = torch.empty(rank, *shape, device="cpu").uniform_(-bound, bound, generator=generator)
    return Pair(down, torch.zeros(out, rank, device="cpu"), scale * rank)


def save_lora(
    lora: LoRA, path: str | Path, dtype: torch.dtype = torch.float16, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a .safetensors file in kohya's format, whole or not at all; `strength` is not part of it.

    dtype: precision of the weights in the file. metadata: texts to store beside the rank and alpha.
    """
    write_kohya({layer: lora.adapter(layer).pair for layer in lora.paths}, Path(path), dtype, metadata)


def _examples(layers: Collection[str]) -> str:
    return ", ".join([*list(layers)[:2], "..."]) if layers else "none"


def _check_base(layers: Mapping[str, Layer], weights: StateDict) -> None:
    problems = []
    for path, layer in layers.items():
        key, expected = f"{path}.weight", tuple(layer.weight.shape)
        found = tuple(weights[key].shape) if key in weights else "missing"
        if found not in (expected, (*expected, 1)):
            problems.append(f"{key} is {found}, expected {expected}")
    refuse("the state dict", problems, "merge into the weights of the UNet that the LoRA was made for")
