"""Command line for model files: sdvideo convert, and the options that name parts of a model."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

DTYPES = ("float32", "float16", "bfloat16")
STORED_DTYPES = (*DTYPES, "float8_e4m3fn")  # nothing computes in the last, which halves a file once more
FORMATS = ("modelscope", "diffusers", "safetensors")

Command = Callable[[Any, Callable[[argparse.Namespace], int | None], str], argparse.ArgumentParser]


def add_commands(commands: Any, command: Command) -> None:
    parser = command(commands, convert, "write a model in another layout or precision")
    parser.set_defaults(lighter="a machine with more memory; the largest of the model's files has to fit")
    parser.add_argument("source", help="model folder or file of any known layout")
    parser.add_argument("target", help="what to write; must not be there yet")
    text = "modelscope and safetensors: the original layout with pickles or without; diffusers: a folder for diffusers"
    parser.add_argument("--format", required=True, choices=FORMATS, help=text)
    parser.add_argument(
        "--dtype", default=None, choices=STORED_DTYPES, help="precision of the weights; default: as they are"
    )
    add_part_options(parser)


def add_part_options(parser: argparse.ArgumentParser) -> None:
    """The options for parts that a model comes without."""
    parser.add_argument("--vae", default=None, metavar="PATH", help="model or file to take the autoencoder from")
    parser.add_argument(
        "--clip", dest="text_encoder", metavar="PATH", help="model or file to take the text encoder from"
    )


def convert(args: argparse.Namespace) -> None:
    import torch

    from .convert import convert as write

    dtype = getattr(torch, args.dtype) if args.dtype else None
    with _stopped_by_sigterm():
        written = write(args.source, args.target, args.format, dtype, args.vae, args.text_encoder)
    sys.stderr.write(f"Wrote {args.target}: {', '.join(written.parts)}\n")
    sys.stderr.writelines(f"sdvideo: note: {note}\n" for note in written.notes)


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """Lets SIGTERM, which `timeout` and batch systems send, end the command as Ctrl+C does: nothing half is left."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
