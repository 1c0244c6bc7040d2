"""Command line for model files: sdvideo convert, and the options that name parts of a model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

DTYPES = ("float32", "float16", "bfloat16")
FORMATS = ("modelscope", "diffusers", "safetensors")

Command = Callable[[Any, Callable[[argparse.Namespace], int | None], str], argparse.ArgumentParser]


def add_commands(commands: Any, command: Command) -> None:
    parser = command(commands, convert, "write a model in another layout or precision")
    parser.set_defaults(lighter="a machine with more memory; the largest of the model's files has to fit")
    parser.add_argument("source", help="model folder or file of any known layout")
    parser.add_argument("target", help="what to write; must not be there yet")
    text = "modelscope and safetensors: the original layout with pickles or without; diffusers: a folder for diffusers"
    parser.add_argument("--format", required=True, choices=FORMATS, help=text)
    parser.add_argument("--dtype", default=None, choices=DTYPES, help="precision of the weights; default: as they are")
    add_part_options(parser)


def add_part_options(parser: argparse.ArgumentParser) -> None:
    """The options for parts that a model comes without."""
    parser.add_argument("--vae", default=None, metavar="PATH", help="model or file to take the autoencoder from")
    parser.add_argument("--clip", default=None, metavar="PATH", help="model or file to take the text encoder from")


def convert(args: argparse.Namespace) -> None:
    import torch

    from .convert import convert as write

    dtype = getattr(torch, args.dtype) if args.dtype else None
    parts = write(args.source, args.target, args.format, dtype, args.vae, args.clip)
    sys.stderr.write(f"Wrote {args.target}: {', '.join(parts)}\n")
