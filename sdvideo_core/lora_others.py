"""LoRAs that do not serve: those for other models, and adapters of other kinds than pairs of low-rank weights."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from .configuration import CheckpointError

# What LoRAs of other models are told by.
OTHERS = (
    ("motion_modules", "AnimateDiff"),
    (r"double_blocks|single_blocks|single_transformer_blocks", "Flux or HunyuanVideo"),
    (r"joint_blocks", "Stable Diffusion 3"),
    (r"blocks[._]\d+[._](cross|self)_attn", "Wan"),
    (r"(input_blocks[._]\d+[._]1|down_blocks[._]\d[._]attentions[._]\d)[._]transformer_blocks[._][1-9]", "SDXL"),
    (r"^(lora_te2|text_encoder_2)[._]", "SDXL"),
)
# What other kinds of adapters are told by, in the names of their tensors, and what keeps them from being read.
KINDS = (
    (r"\.dora_scale$|\.lora_magnitude_vector\b", "a DoRA", "its magnitudes change all of a layer's weights"),
    (r"\.lora_mid\.", "a LoCon with a Tucker decomposition", "it has three factors a layer"),
    (r"\.hada_w[12]_[ab]$", "a LoHa", "it multiplies two products of weights"),
    (r"\.lokr_(w[12](_[ab])?|t2)$", "a LoKr", "it is of Kronecker products"),
    (r"\.oft_(blocks|diag)$", "an OFT", "it rotates a layer's weights"),
    (r"\.on_input$", "an (IA)^3", "it scales a layer's values"),
)


def other_model(names: Iterable[str]) -> str | None:
    """The one of OTHERS that the names of layers are of."""
    names = list(names)
    return next((model for sign, model in OTHERS if any(re.search(sign, name) for name in names)), None)


def check_kind(names: Iterable[str], source: str | Path) -> None:
    """Raises CheckpointError where the names of tensors are those of one of KINDS."""
    names = list(names)
    for sign, kind, reason in KINDS:
        if told_by := next((name for name in names if re.search(sign, name)), None):
            raise CheckpointError(
                f"{source} is {kind} (it has {told_by}): {reason}, which is not read; expected a plain LoRA. "
                "Train it as one, or extract one from the merged weights"
            )
