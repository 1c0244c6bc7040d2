"""LoRA layers: what of a UNet and a text tower a LoRA can adapt, and what the formats call it.

Layers of the UNet go by UNetSD's module paths, those of the text tower by transformers' (CLIPTextModel), which all
formats but one use. The two never coincide.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
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
# fmt: on
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
        return cls.of_size(UNetConfig(), TextConfig())

    @classmethod
    def of_size(cls, unet: UNetConfig, text: TextConfig) -> Layers:
        """Those of a model that is told by the shapes of its networks."""
        return cls.of(UNetSD(unet, device="meta")).with_text_tower(text)

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
