"""LoRA layers: what of a UNet and a text tower a LoRA can adapt, and what the formats call it.

Layers of the UNet go by UNetSD's module paths, those of the text tower by transformers' (CLIPTextModel), which all
formats but one use. The two never coincide.
"""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from torch import nn

from .config import TextConfig, UNetConfig
from .key_maps import TEXT_BLOCK_MODULES, TEXT_QKV, diffusers_key, diffusers_modules, inverted
from .unet import GUIDANCE_DIM, UNetSD

if TYPE_CHECKING:
    from .text_encoder import TextEncoder

Layer = nn.Linear | nn.Conv2d | nn.Conv3d
Shape = tuple[int, ...]

# The layers of a block of the text tower, in the order of transformers' modules.
TEXT_ORDER = (
    *("self_attn.k_proj", "self_attn.v_proj", "self_attn.q_proj", "self_attn.out_proj"),
    *("mlp.fc1", "mlp.fc2"),
)
# transformers' module -> OpenCLIP's, which has queries, keys and values as one; the webui's files tell them apart.
_OPEN_CLIP = inverted(TEXT_BLOCK_MODULES) | {name: name.replace("self_attn", "attn") for name in TEXT_QKV}
TEXT_MODULES = {name: _OPEN_CLIP[name] for name in TEXT_ORDER}
TEXT_BLOCKS = "text_model.encoder.layers."
TEXT_EMBEDDINGS = ("text_model.embeddings.token_embedding", "text_model.embeddings.position_embedding")

# What files put before a layer's name, one or several of them; dots count as underscores.
# fmt: off
PREFIXES = (
    "base_model_model_", "lora_unet_", "lora_te_", "lora_te1_", "unet_", "text_encoder_", "text_encoders_", "clip_h_",
    "cond_stage_model_", "model_", "diffusion_model_", "transformer_",
)
# Siblings in the order in which diffusers' UNet3DConditionModel declares them.
ORDER = (
    "conv_in", "time_embedding", "transformer_in", "down_blocks", "up_blocks", "mid_block", "conv_out",
    "linear_1", "cond_proj", "linear_2",
    "resnets", "temp_convs", "attentions", "temp_attentions", "downsamplers", "upsamplers", "conv",
    "conv1", "time_emb_proj", "conv2", "conv_shortcut", "conv3", "conv4",
    "proj_in", "transformer_blocks", "proj_out", "attn1", "attn2", "ff",
    "to_q", "to_k", "to_v", "to_out", "net", "proj",
)
# fmt: on
# Classes of diffusers whose layers a trainer may have chosen, by where they are.
CLASSES = (
    r"transformer_in\.|\.temp_attentions\.",  # TransformerTemporalModel
    r"\.attentions\.",  # Transformer2DModel
    r"\.resnets\.",  # ResnetBlock2D
    r"\.temp_convs\.",  # TemporalConvLayer
)
# The layer that a UNet has after `add_guidance_embedding`; T2V-Turbo's LoRA has it too.
COND_PROJ = {"cond_proj": "time_embedding.cond_proj"}


@dataclass(frozen=True)
class Layers:
    """The layers of one model by their paths, with the shapes of their weights."""

    config: UNetConfig
    unet: Mapping[str, Shape]
    text: Mapping[str, Shape] = field(default_factory=dict)
    idle: Mapping[str, Shape] = field(default_factory=dict)  # of the text tower's last block, which never runs

    @classmethod
    def of(cls, unet: UNetSD, text_encoder: TextEncoder | None = None) -> Layers:
        """Those of networks, which may be on the meta device."""
        shapes = {path: tuple(layer.weight.shape) for path, layer in adaptable(unet).items()}
        layers = cls(unet.config, shapes)
        return layers.with_text_tower(text_encoder.config) if text_encoder else layers

    @classmethod
    def full_size(cls) -> Layers:
        """Those of the ModelScope family."""
        return cls.of(UNetSD(UNetConfig(), device="meta")).with_text_tower(TextConfig())

    def with_text(self, shapes: Mapping[str, Shape]) -> Layers:
        """With layers of a text tower that are all in use."""
        return replace(self, text=shapes, idle={})

    def with_text_tower(self, config: TextConfig) -> Layers:
        """With those of a text tower, which is read at its penultimate block."""
        shapes, used = text_shapes(config, config.layers), text_shapes(config, config.layers - 1)
        return replace(self, text=used, idle={path: shape for path, shape in shapes.items() if path not in used})

    @property
    def shapes(self) -> dict[str, Shape]:
        """Path -> shape, of all layers that act."""
        return {**self.unet, **self.text}

    @property
    def known(self) -> dict[str, Shape]:
        """Of all layers that a LoRA for this model may have."""
        return {**dict.fromkeys(COND_PROJ, (self.config.dim, GUIDANCE_DIM)), **self.shapes, **self.idle}

    def diffusers_names(self) -> dict[str, str]:
        """Path -> diffusers' or transformers' path."""
        modules = diffusers_modules(self.config) | COND_PROJ
        return {path: diffusers_key(path, modules) for path in self.unet} | {path: path for path in self.text}

    def in_diffusers_order(self) -> list[str]:
        """The UNet's paths, as diffusers' UNet3DConditionModel would list them."""
        names = self.diffusers_names()
        return sorted(self.unet, key=lambda path: _position(names[path]))


def adaptable(unet: UNetSD) -> dict[str, Layer]:
    """Module path -> layer, in the UNet's order, of all that a LoRA can adapt."""
    return {path: layer for path, layer in unet.named_modules() if isinstance(layer, Layer)}


def text_shapes(config: TextConfig, num_blocks: int) -> dict[str, Shape]:
    """transformers' path -> shape of the weight, (out, in)."""
    width = config.width
    shapes: dict[str, Shape] = {
        TEXT_EMBEDDINGS[0]: (config.vocab_size, width),
        TEXT_EMBEDDINGS[1]: (config.context_length, width),
    }
    wide = {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
    for block, name in itertools.product(range(num_blocks), TEXT_MODULES):
        shapes[f"{TEXT_BLOCKS}{block}.{name}"] = wide.get(name, (width, width))
    return shapes


def open_clip_name(path: str) -> str:
    """OpenCLIP's name of a layer inside a block; that of an embedding is the same."""
    if not path.startswith(TEXT_BLOCKS):
        return path
    index, name = path.removeprefix(TEXT_BLOCKS).split(".", 1)
    return f"resblocks.{index}.{TEXT_MODULES[name]}"


def joined(name: str) -> str:
    """A name as kohya's format writes it."""
    return name.replace(".", "_")


def places_by_name(names: Iterable[str], layers: Layers) -> dict[str, str]:
    """Name in a file -> path, for the names that any format gives to one of the layers."""
    table = {joined(name): path for path in (*layers.shapes, *layers.idle) for name in _names(path)}
    table |= {joined(name): path for path, name in layers.diffusers_names().items()}
    table |= {name.removesuffix("_0"): path for name, path in list(table.items()) if name.endswith("_to_out_0")}
    found = {name: _bare(joined(name.replace(".processor.", ".")), table) for name in names}
    return {name: table[bare] for name, bare in found.items() if bare in table}


def _names(path: str) -> list[str]:
    if path.startswith("text_model."):
        return [path, path.removeprefix("text_model."), open_clip_name(path)]  # the second since transformers 5
    return [path, path.replace(".op", ".0.op")]  # as Stable Diffusion's files have it


def _bare(name: str, table: Mapping[str, str]) -> str:
    while name not in table:
        prefix = next((prefix for prefix in PREFIXES if name.startswith(prefix)), None)
        if prefix is None:
            break
        name = name.removeprefix(prefix)
    return name


def places_by_shape(shapes: Sequence[Shape], layers: Layers) -> dict[int, str]:
    """Index -> path for the weights of a list without names, which follow diffusers' order of layers.

    A list may leave layers out (trainers adapt the layers inside some classes) and hold others than ours. So each
    choice that trainers offer is tried, weights go in turn to the next layer of their shape, and the choice that
    leaves the fewest weights without a layer, then the fewest layers without weights, is taken. Where more than one
    weight and a tenth of them are left, the list is of another model, and nothing is placed.
    """
    known = layers.known
    choices = (_align(shapes, [(path, known[path]) for path in choice]) for choice in _choices(layers))
    places, _ = min(choices, key=lambda found: (len(shapes) - len(found[0]), found[1]))
    return places if len(shapes) - len(places) <= max(1, len(shapes) // 10) else {}


def _align(shapes: Sequence[Shape], layers: Sequence[tuple[str, Shape]]) -> tuple[dict[int, str], int]:
    """Index -> path, and how many layers got nothing."""
    positions: dict[Shape, list[int]] = {}
    for position, (_, shape) in enumerate(layers):
        positions.setdefault(shape, []).append(position)
    places, start = {}, 0
    for index, shape in enumerate(shapes):
        later = positions.get(shape, [])
        next_one = bisect.bisect_left(later, start)
        if next_one < len(later):
            places[index] = layers[later[next_one]][0]
            start = later[next_one] + 1
    return places, len(layers) - len(places)


def _choices(layers: Layers) -> Iterator[list[str]]:
    """Paths in diffusers' order: of the whole UNet, of some classes, without projections, without convolutions."""
    names = COND_PROJ | layers.diffusers_names()
    unet = sorted({*COND_PROJ, *layers.unet}, key=lambda path: _position(names[path]))
    counts = range(1, len(CLASSES) + 1)
    patterns = ["", *("|".join(some) for count in counts for some in itertools.combinations(CLASSES, count))]
    for pattern, without in itertools.product(patterns, (r"^\b$", r"\.proj_(in|out)$")):
        chosen = [path for path in unet if re.search(pattern, names[path]) and not re.search(without, names[path])]
        yield chosen
        yield [path for path in chosen if len(layers.unet.get(path, ())) < 4]
    for pattern in (r"\.layers\.", r"\.self_attn\.", r"\.mlp\.", ""):
        yield [path for path in (*layers.text, *layers.idle) if re.search(pattern, path)]


def _position(diffusers_name: str) -> list[int]:
    return [int(part) if part.isdecimal() else ORDER.index(part) for part in diffusers_name.split(".")]
