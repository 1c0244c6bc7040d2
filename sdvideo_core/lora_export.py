"""LoRA export: pairs written in kohya's format, PEFT's and the webui's."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from .configuration import CheckpointError
from .lora_files import TEXT_FOLDER, LoRAReport, read_lora
from .lora_formats import ALPHA, ENDINGS, LORALIB, PEFT_EMBEDDING, Pair, at_least_float32, folded, some_of
from .lora_layers import TEXT_EMBEDDINGS, Layers, joined, open_clip_name
from .lora_peft import PEFT_CONFIG, PEFT_PREFIX
from .state_dict import StateDict
from .whole_file import whole_file, whole_folder

Pairs = Mapping[str, Pair]
Metadata = Mapping[str, str]

UNET_PREFIX, TEXT_PREFIX = "lora_unet_", "lora_te_"
WEBUI_METADATA = {"stable_lora_text_to_video": "v1"}  # without it the webui does not list a file
EXPORT_FORMATS = ("kohya", "peft", "webui")
ANOTHER_SIZE = (
    "If it is for a model of another size, say which: --model DIR on the command line, "
    "layers=Layers.of(unet, text_encoder) in Python"
)


def convert_lora(
    source: str | Path,
    destination: str | Path,
    form: str = "kohya",
    dtype: torch.dtype = torch.float16,
    layers: Layers | None = None,
) -> LoRAReport:
    """Writes a LoRA of any format in one of EXPORT_FORMATS, whole or not at all; the report says what is left out.

    destination: a .safetensors file, or for peft a folder, that is not there yet. layers: those of the model it is for,
    by default of the full-size models of the ModelScope family. Raises FileExistsError rather than overwrite, and as
    `read_lora` and `LoRAFile.match` do.
    """
    if form not in EXPORT_FORMATS:
        raise ValueError(f"format={form!r}; expected one of {', '.join(EXPORT_FORMATS)}")
    path = Path(destination)
    _check_new(path)
    file, is_full_size = read_lora(source), layers is None
    layers = layers or Layers.full_size()
    try:
        match = file.match(layers)
    except CheckpointError as error:
        if not is_full_size or file.other_model:
            raise
        raise CheckpointError(f"{error}. {ANOTHER_SIZE}") from error
    pairs = {**match.unet, **match.text}
    if form == "peft":
        write_peft(pairs, layers, path, dtype, file.metadata)
    elif form == "webui":
        write_webui(pairs, layers, path, dtype, file.metadata)
    else:
        write_kohya(pairs, path, dtype, file.metadata)
    return match.report


def _check_new(path: Path) -> None:
    if path.exists():
        raise FileExistsError(
            f"cannot write the LoRA {path}: it is there already; give another name, or remove it first"
        )


def kohya_name(path: str) -> str:
    """The name of a layer in files, from its module path; ComfyUI makes the same of a model's keys."""
    return (TEXT_PREFIX if path.startswith("text_model.") else UNET_PREFIX) + joined(path)


def write_kohya(pairs: Pairs, path: Path, dtype: torch.dtype, metadata: Metadata | None = None) -> None:
    """One file, with names such as lora_unet_input_blocks_0_0.lora_down.weight."""
    down, up = ENDINGS[0]
    tensors: StateDict = {}
    for layer, pair in pairs.items():
        name = kohya_name(layer)
        tensors |= {name + down: pair.down, name + up: pair.up}
        # alpha in float32, because that of a cut rank need not be a round number.
        tensors[name + ALPHA] = torch.tensor(pair.alpha, dtype=torch.float32)
    widest = max(pairs.values(), key=lambda pair: len(pair.down), default=None)
    # As kohya's trainer names them.
    facts = {"ss_network_dim": str(len(widest.down)), "ss_network_alpha": str(widest.alpha)} if widest else {}
    _write(tensors, path, dtype, {**facts, **(metadata or {})})


def write_webui(pairs: Pairs, layers: Layers, path: Path, dtype: torch.dtype, metadata: Metadata | None = None) -> None:
    """One file, with names such as input_blocks.0.0.lora_A, as sd-webui-text2video's LoRA loader takes it."""
    tensors: StateDict = {}
    for layer, pair in pairs.items():
        factors = _embedding(pair) if layer in TEXT_EMBEDDINGS else folded(pair, layers.shapes[layer])
        if "proj_" in layer and layer in layers.unet:
            factors = [factor[..., None] for factor in factors]  # which that loader takes off again
        tensors |= {open_clip_name(layer) + end: factor for end, factor in zip(LORALIB, factors, strict=True)}
    _write(tensors, path, dtype, {**WEBUI_METADATA, "lora_name": path.stem, **(metadata or {})})


def _embedding(pair: Pair) -> list[Tensor]:
    return [pair.up.t(), at_least_float32(pair.down).t() * (pair.alpha / len(pair.down))]


def write_peft(
    pairs: Pairs, layers: Layers, folder: Path, dtype: torch.dtype, metadata: Metadata | None = None
) -> None:
    """A folder that peft loads into diffusers' UNet3DConditionModel, and one in it for transformers' CLIPTextModel."""
    _check_new(folder)
    names = layers.diffusers_names()
    unet = {names[path]: pair for path, pair in pairs.items() if path in layers.unet}
    text = {path: pair for path, pair in pairs.items() if path in layers.text}
    with whole_folder(folder) as temporary:
        temporary.mkdir()
        if unet:
            _write_adapter(unet, temporary, dtype, metadata or {})
        if text:
            _write_adapter(text, temporary / TEXT_FOLDER, dtype, metadata or {})


def _write_adapter(pairs: Pairs, folder: Path, dtype: torch.dtype, metadata: Metadata) -> None:
    folder.mkdir(exist_ok=True)
    tensors: StateDict = {}
    for name, pair in pairs.items():
        factors = (
            [pair.up.flatten(1).t(), pair.down.flatten(1).t()] if name in TEXT_EMBEDDINGS else [pair.down, pair.up]
        )
        ends = PEFT_EMBEDDING if name in TEXT_EMBEDDINGS else ENDINGS[1]
        tensors |= {PEFT_PREFIX + name + end: factor for end, factor in zip(ends, factors, strict=True)}
    _write(tensors, folder / "adapter_model.safetensors", dtype, metadata)
    (folder / PEFT_CONFIG).write_text(json.dumps(_peft_config(pairs), indent=2) + "\n", encoding="utf-8")


def _peft_config(pairs: Pairs) -> dict[str, object]:
    sizes = {name: (len(pair.down), pair.alpha) for name, pair in pairs.items()}
    (rank, alpha), _ = Counter(sizes.values()).most_common(1)[0]
    return {
        "peft_type": "LORA",
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {name: r for name, (r, _) in sizes.items() if r != rank},
        "alpha_pattern": {name: a for name, (_, a) in sizes.items() if a != alpha},
        "target_modules": list(pairs),
    }


def _write(tensors: StateDict, path: Path, dtype: torch.dtype, metadata: Metadata) -> None:
    if path.suffix != ".safetensors":
        raise ValueError(f"cannot write the LoRA {path}: its name ends in {path.suffix!r}; use .safetensors")
    if not tensors:
        raise ValueError(f"cannot write the LoRA {path}: it adapts no layer; choose other targets")
    stored = {
        key: value.detach().to("cpu", value.dtype if key.endswith(ALPHA) else dtype).contiguous().clone()
        for key, value in tensors.items()
    }
    _check_finite(stored, path)
    content = safetensors.torch.save(stored, {"format": "pt", **metadata})
    with whole_file(path) as temporary:
        temporary.write_bytes(content)


def _check_finite(tensors: StateDict, path: Path) -> None:
    if wrong := [key for key, value in tensors.items() if not value.isfinite().all()]:
        raise FloatingPointError(
            f"cannot write the LoRA {path}: {some_of(wrong)} hold NaN or infinity in {tensors[wrong[0]].dtype}; "
            "save it in float32, or train with a lower learning rate"
        )
