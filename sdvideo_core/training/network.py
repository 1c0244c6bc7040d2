"""Network in training: the UNet, or a LoRA on it, with what of it is trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..attention import products, sdpa, xformers_attention
from ..blocks import TemporalConv, TemporalTransformer
from ..lora import LoRA, Pair
from ..lora_export import Metadata, write_kohya
from ..lora_layers import joined
from ..part_config import head_width
from ..unet import UNetSD
from ..whole_file import whole_file

TRAIN_ONLY: dict[str, tuple[type[nn.Module], ...]] = {
    "all": (UNetSD,),
    "temporal": (TemporalConv, TemporalTransformer),
}


class Network(nn.Module):
    """What accelerate wraps. begin() and end() bracket a run and leave the UNet as it was."""

    # What FSDP's TRANSFORMER_BASED_WRAP gathers and frees one by one; the name is transformers'.
    _no_split_modules = ("ResBlock", "SpatialTransformer", "TemporalTransformer")

    def __init__(self, unet: UNetSD, lora_rank: int | None = None, train_only: str = "all", seed: int = 0):
        super().__init__()
        if train_only not in TRAIN_ONLY:
            raise ValueError(f"train_only={train_only!r}; expected one of {', '.join(TRAIN_ONLY)}")
        self.unet = unet
        generator = torch.Generator().manual_seed(seed)
        lora = LoRA(unet, lora_rank, targets=train_only, generator=generator) if lora_rank is not None else None
        self.lora = lora
        self._requires_grad = {name: p.requires_grad for name, p in unet.named_parameters()}
        self._before = unet.attention, unet.gradient_checkpointing, unet.training
        unet.requires_grad_(False)
        if self.lora is None:
            for module in unet.modules():
                if isinstance(module, TRAIN_ONLY[train_only]):
                    module.requires_grad_(True)

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        return self.unet(x, timesteps, context)

    def trainable(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def frozen(self) -> dict[str, Tensor]:
        """The weights that training leaves as they are."""
        return {name: p.detach() for name, p in self.named_parameters() if not p.requires_grad}

    def begin(self, xformers: bool = False, gradient_checkpointing: bool = False, dropout: bool = True) -> None:
        on_cpu = next(self.unet.parameters()).device.type == "cpu"
        self.unet.attention = xformers_attention if xformers else products if on_cpu else sdpa
        self.unet.gradient_checkpointing = gradient_checkpointing
        self.unet.train(dropout)
        if self.lora:
            self.lora.attach()

    def end(self) -> None:
        self.unet.attention, self.unet.gradient_checkpointing, training = self._before
        self.unet.train(training)
        if self.lora:
            self.lora.detach()
        for name, parameter in self.unet.named_parameters():  # by name: FSDP puts others in their places
            parameter.requires_grad_(self._requires_grad[name])
            parameter.grad = None

    @contextmanager
    def without_lora(self) -> Iterator[None]:
        """Within, the UNet is what it was before training."""
        if not self.lora:
            raise ValueError("the network has no LoRA, so what the UNet was before training is not kept")
        strength, self.lora.strength = self.lora.strength, 0.0
        try:
            yield
        finally:
            self.lora.strength = strength

    def save(
        self, weights: dict[str, Tensor], path: Path, dtype: torch.dtype, step: int, metadata: Metadata | None = None
    ) -> None:
        """Writes the weights of this network's state dict as a UNet's file, or as a LoRA's."""
        metadata = {"step": str(step), **(metadata or {})}
        weights = {own_name(key): value for key, value in weights.items()}
        if self.lora:
            write_kohya(_pairs(self.lora, weights), path, dtype, metadata)
            return
        unet = {key.removeprefix("unet."): value.to("cpu", dtype).contiguous() for key, value in weights.items()}
        with whole_file(path) as temporary:
            save_file(unet, temporary, {**metadata, **head_width(self.unet.config), "format": "pt"})


def _pairs(lora: LoRA, weights: dict[str, Tensor]) -> dict[str, Pair]:
    """Its adapters by layer, with weights of the network's state dict: they are whole also where FSDP splits them."""
    names = {path: f"lora.adapters.{joined(path)}" for path in lora.paths}
    return {
        path: Pair(weights[f"{name}.down"], weights[f"{name}.up"], lora.adapter(path).alpha)
        for path, name in names.items()
    }


def own_name(key: str) -> str:
    """A key of the network's state dict without what wrappers such as DDP and torch.compile put before it."""
    for wrapper in ("_orig_mod.", "module."):
        key = key.removeprefix(wrapper)
    return key
