"""LoRA: low-rank adapters on a UNet's layers, trained, used, merged, and kept in kohya's file format.

A layer's weight W becomes W + strength * alpha / rank * up @ down (Hu et al. 2021, eq. 3). `down` is a layer like the
adapted one with `rank` outputs, `up` a linear layer or a convolution of kernel size 1.
"""

from __future__ import annotations

import contextlib
import functools
import re
import uuid
import warnings
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checkpoint import CheckpointError, StateDict, read_state_dict, what_is
from .unet import UNetSD

Layer = nn.Linear | nn.Conv2d | nn.Conv3d

_TEMPORAL = r"^(input_blocks\.0\.1|(in|out)put_blocks\.\d+\.2|middle_block\.2)\.|\.temopral_conv\."

# Sets of layers to adapt: regular expressions that are searched for in the module paths.
TARGETS = {
    "all": "",
    "attention": r"\.attn[12]\.",  # queries, keys, values and outputs, in space and in time
    "spatial": f"^(?!.*({_TEMPORAL}))",  # everything that sees one frame at a time
    "temporal": _TEMPORAL,  # attention and convolutions along time
}

PREFIX = "lora_unet_"
DOWN, UP, ALPHA = ".lora_down.weight", ".lora_up.weight", ".alpha"


class Pair(NamedTuple):
    """The adapter of one layer, as files hold it."""

    down: Tensor  # (rank, in) or (rank, in, *kernel)
    up: Tensor  # (out, rank) or (out, rank, 1, ...)
    alpha: float  # the adapter's product is scaled by alpha / rank


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
        low = self.product(x, self.down.to(x.dtype), *self.window)
        return self.product(low, self.up.to(x.dtype))

    @torch.no_grad()
    def delta(self) -> Tensor:
        """scale * up @ down in float64, in the shape of the layer's weight."""
        product = self.up.double().flatten(1) @ self.down.double().flatten(1)
        return (self.scale * product).view(len(self.up), *self.down.shape[1:])


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
        self.adapters = nn.ModuleDict({_joined(path): Adapter(layers[path], pair) for path, pair in pairs.items()})

    @classmethod
    def from_pairs(cls, unet: UNetSD, pairs: Mapping[str, Pair], source: str | Path = "the LoRA") -> LoRA:
        """A LoRA with given weights, by module path; `source` names them in errors."""
        layers = target_layers(unet, pairs.keys())
        _check_pairs(layers, pairs, source)
        lora = cls(unet, targets=())
        lora._hold(layers, pairs)
        return lora

    @classmethod
    def from_file(cls, unet: UNetSD, path: str | Path) -> LoRA:
        """The LoRA in a file of kohya's format; warns of what in it is not used, and keeps the names as `unused`."""
        tensors = _read(Path(path))
        pairs = _pairs(tensors, path)
        paths = {kohya_name(layer): layer for layer in target_layers(unet)}
        known = {name: pair for name, pair in pairs.items() if name in paths}
        if not known:
            raise CheckpointError(_why_not_ours(path, tensors, pairs))
        lora = cls.from_pairs(unet, {paths[name]: pair for name, pair in known.items()}, path)
        used = {name + part for name in known for part in (DOWN, UP, ALPHA)}
        lora.unused = [key for key in tensors if key not in used]
        if lora.unused:
            unused = f"{len(lora.unused)} of its {len(tensors)} tensors are not used: {', '.join(lora.unused)}"
            warnings.warn(f"{path} has {len(known)} layers of this UNet; {unused}", stacklevel=2)
        return lora

    @property
    def paths(self) -> list[str]:
        """Module paths of the adapted layers, in the UNet's order."""
        return list(self._layers)

    def adapter(self, path: str) -> Adapter:
        """The adapter of the layer at a module path."""
        if path not in self._layers:
            raise ValueError(f"this LoRA has no adapter for {path!r}; it has {_examples(self.paths)}")
        return cast(Adapter, self.adapters[_joined(path)])

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
        """What strength 1 adds to the weight of the layer at a module path, in float64 and in the layer's shape.

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
            change = strength * self.delta(path).to(weight.device).view(weight.shape)
            merged[f"{path}.weight"] = (weight.double() + change).to(weight.dtype)
        return merged


def target_layers(unet: UNetSD, targets: str | Collection[str] = "all") -> dict[str, Layer]:
    """Module path -> layer, in the UNet's order: those that LoRA's `targets` means."""
    layers = {path: layer for path, layer in unet.named_modules() if isinstance(layer, Layer)}
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


def kohya_name(path: str) -> str:
    """The name of a layer in files, from its module path; ComfyUI makes the same of a model's keys."""
    return PREFIX + _joined(path)


def save_lora(
    lora: LoRA, path: str | Path, dtype: torch.dtype = torch.float16, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a .safetensors file in kohya's format, whole or not at all; `strength` is not part of it.

    dtype: precision of the weights in the file. metadata: texts to store beside the rank and alpha.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"cannot write the LoRA {path}: its name ends in {path.suffix!r}; use .safetensors")
    if not lora.paths:
        raise ValueError(f"cannot write the LoRA {path}: it adapts no layer; choose other targets")
    adapters = {kohya_name(layer): lora.adapter(layer) for layer in lora.paths}
    tensors = {name + key: value for name, pair in adapters.items() for key, value in _tensors(pair, dtype).items()}
    _check_finite(tensors, path)
    widest = max(adapters.values(), key=lambda adapter: adapter.rank)
    facts = {"ss_network_dim": str(widest.rank), "ss_network_alpha": str(widest.alpha)}  # as kohya's trainer names them
    content = safetensors.torch.save(tensors, {"format": "pt", **facts, **(metadata or {})})
    with _whole(path) as temporary:
        temporary.write_bytes(content)


def load_lora(path: str | Path) -> dict[str, Pair]:
    """The adapters in a file of kohya's format by the layers' names in it, `lora_unet_...`, in float32."""
    return _pairs(_read(Path(path)), path)


def _joined(path: str) -> str:
    return path.replace(".", "_")


def _examples(layers: Collection[str]) -> str:
    return ", ".join([*list(layers)[:2], "..."]) if layers else "none"


def _tensors(adapter: Adapter, dtype: torch.dtype) -> StateDict:
    down, up = (weight.detach().to("cpu", dtype).contiguous() for weight in (adapter.down, adapter.up))
    # alpha in float32, because that of a cut rank need not be a round number.
    return {DOWN: down, UP: up, ALPHA: torch.tensor(adapter.alpha, dtype=torch.float32)}


def _check_finite(tensors: StateDict, path: Path) -> None:
    if wrong := [key for key, value in tensors.items() if not value.isfinite().all()]:
        raise FloatingPointError(
            f"cannot write the LoRA {path}: {', '.join(wrong)} hold NaN or infinity in {tensors[wrong[0]].dtype}; "
            "save with dtype=torch.float32, or train with a lower learning rate"
        )


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Lends a temporary name beside `path`, which becomes `path` only if all went well."""
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"cannot write the LoRA {path}: {reason}; choose another place or free some space") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _read(path: Path) -> StateDict:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; expected a LoRA")
    with (
        contextlib.suppress(safetensors.SafetensorError),  # read_state_dict says more of what is wrong
        safetensors.safe_open(path, framework="pt") as file,  # pyright: ignore[reportPrivateImportUsage]
    ):
        if not file.keys():
            raise CheckpointError(f"{path}: this LoRA contains no tensors; download it again, or get another file")
    return read_state_dict(path)


def _pairs(tensors: StateDict, source: str | Path) -> dict[str, Pair]:
    names = dict.fromkeys(key.removesuffix(part) for key in tensors for part in (DOWN, UP) if key.endswith(part))
    problems = [f"{name}{part} is missing" for name in names for part in (DOWN, UP) if name + part not in tensors]
    alphas = {name: tensors[name + ALPHA] for name in names if name + ALPHA in tensors}
    problems += [f"{name}{ALPHA} is not one number" for name, alpha in alphas.items() if alpha.numel() != 1]
    _refuse(source, problems, "download it again")
    downs = {name: tensors[name + DOWN].float() for name in names}
    ranks = {name: float(down.shape[:1].numel()) for name, down in downs.items()}  # alpha where it is not given
    alphas = ranks | {name: float(alpha.item()) for name, alpha in alphas.items()}
    return {name: Pair(down, tensors[name + UP].float(), alphas[name]) for name, down in downs.items()}


def _why_not_ours(path: str | Path, tensors: StateDict, pairs: Mapping[str, Pair]) -> str:
    expected = f"names such as {PREFIX}input_blocks_0_0{DOWN}"
    if not pairs:
        return f"{path} is {what_is(tensors)}, with no {DOWN[1:]} in it; expected a LoRA in kohya's format, {expected}"
    found = f"none of its {len(pairs)} layers ({_examples(pairs)}) is one of this UNet's"
    return f"{path} is a LoRA of another model: {found}; expected {expected}"


def _check_pairs(layers: Mapping[str, Layer], pairs: Mapping[str, Pair], source: str | Path) -> None:
    problems = []
    for path, (down, up, _) in pairs.items():
        weight = layers[path].weight
        fits = down.ndim > 1 and up.ndim > 1 and 0 < len(down) == up[0].numel()
        if not fits or down[0].numel() != weight[0].numel() or len(up) != len(weight):
            got = f"down {tuple(down.shape)} and up {tuple(up.shape)}"
            problems.append(f"{path} has {got}, expected a product of shape {tuple(weight.shape)}")
    _refuse(source, problems, "this LoRA belongs to another model")


def _check_base(layers: Mapping[str, Layer], weights: StateDict) -> None:
    problems = []
    for path, layer in layers.items():
        key, expected = f"{path}.weight", tuple(layer.weight.shape)
        found = tuple(weights[key].shape) if key in weights else "missing"
        if found not in (expected, (*expected, 1)):
            problems.append(f"{key} is {found}, expected {expected}")
    _refuse("the state dict", problems, "merge into the weights of the UNet that the LoRA was made for")


def _refuse(source: str | Path, problems: list[str], remedy: str) -> None:
    if problems:
        raise CheckpointError(f"{source} does not fit ({len(problems)} problems): {'; '.join(problems)}; {remedy}")
