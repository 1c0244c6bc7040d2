"""Command line for LoRA: the option --lora, and sdvideo convert-lora."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .lora_layers import Layers
    from .pipeline import SDVideo

FORMATS = ("kohya", "peft", "webui")
DTYPES = ("float16", "float32", "bfloat16")

Command = Callable[[Any, Callable[[argparse.Namespace], int | None], str], argparse.ArgumentParser]


def add_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--lora",
        action="append",
        type=path_and_strength,
        metavar="PATH:STRENGTH",
        help="a LoRA to use, in any format; strength 1 unless given; may be given several times",
    )


def path_and_strength(text: str) -> tuple[str, float]:
    """`a.safetensors:0.8`, or a path alone; a colon that no number follows belongs to the path, as in C:\\a.pt."""
    path, _, strength = text.rpartition(":")
    try:
        return (path, float(strength)) if path else (text, 1.0)
    except ValueError as error:
        if Path(path).exists() and not strength.startswith(("/", "\\")) and not Path(text).exists():
            raise argparse.ArgumentTypeError(
                f"the strength of {path} is {strength!r}; expected a number, such as {path}:0.8"
            ) from error
        return text, 1.0


def load_loras(model: SDVideo, loras: list[tuple[Any, float]]) -> SDVideo:
    """Loads what --lora names, paths with strengths, and tells what of each is applied."""
    for path, strength in loras:
        sys.stderr.write(f"{model.load_lora(path, strength)}, strength {strength:g}\n")
    return model


def add_commands(commands: Any, command: Command) -> None:
    parser = command(commands, convert_lora, "write a LoRA of any format in another one")
    parser.add_argument("source", help="a LoRA's file or folder")
    parser.add_argument("destination", help="a .safetensors file, or for peft a folder, that is not there yet")
    parser.add_argument("--format", default=FORMATS[0], choices=FORMATS, help="kohya is for ComfyUI")
    parser.add_argument("--dtype", default=DTYPES[0], choices=DTYPES, help="precision of the weights")
    parser.add_argument("--model", metavar="DIR", help="the model it is for, if not of the usual size")
    parser.set_defaults(lighter="a machine with more free memory")


def convert_lora(args: argparse.Namespace) -> None:
    import torch

    from .lora_export import convert_lora

    layers = _layers(args.model) if args.model else _known(args.source)
    report = convert_lora(args.source, args.destination, args.format, getattr(torch, args.dtype), layers)
    sys.stderr.write(f"{report}\nWrote {args.destination}\n")


def _known(source: str) -> Layers | None:
    """Those of a model that has a size of its own, such as the demo model, where the LoRA is for it."""
    from .inspection import known_sizes
    from .lora_files import describe_lora

    sizes = known_sizes()
    return sizes.get(describe_lora(source, others=sizes).get("for", ""))


def _layers(model: str) -> Layers:
    """Those of a model; where it comes without a text encoder, those of the usual one."""
    from .checkpoint import load_text_encoder, load_unet
    from .config import TextConfig
    from .layouts import find_layout
    from .lora_layers import Layers

    layout = find_layout(model)
    unet = load_unet(layout, device="meta")
    if "text encoder" not in layout.parts:
        return Layers.of(unet).with_text_tower(TextConfig())
    return Layers.of(unet, load_text_encoder(layout, device="meta"))
