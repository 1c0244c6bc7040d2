"""Output of the command line: the options that say where a video goes, and writing it there."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .playback import DEFAULT_OPTIONS, DITHERS, PALETTES, SaveOptions, progress_bar

if TYPE_CHECKING:
    from torch import Tensor


FPS = 8.0
FILES = ("model", "input", "lora", "vae", "text_encoder")  # options that name files, by their `dest`
UNTOLD = ("output", "save_model", "device", "metadata", "seed")


def add_options(parser: argparse.ArgumentParser, default: str, fps: float | None = FPS) -> None:
    """fps: None for that of the input, which `settle_fps` puts in its place."""
    text = "file ending in .gif, .webp or .mp4, which replaces one of that name, or a new folder (no ending) for PNGs"
    parser.add_argument("--output", "-o", default=default, help=text)
    text = "" if fps else f"; default: as fast as the input plays, up to what the format can; {FPS:g} for pictures"
    parser.add_argument("--fps", type=float, default=fps, help=f"frames per second of the output{text}")
    text = "how many times a GIF or WebP plays; 0 is for ever"
    parser.add_argument("--loop", type=int, default=DEFAULT_OPTIONS.loop, metavar="N", help=text)
    parser.add_argument("--ping-pong", action="store_true", help="play forwards, then backwards")
    text = "colours of a GIF: 256 for the whole clip, or 256 for each frame, which may flicker"
    parser.add_argument("--palette", default=DEFAULT_OPTIONS.palette, choices=PALETTES, help=text)
    text = "how a GIF shows more colours: floyd-steinberg is smoothest, bayer keeps still what stands still"
    parser.add_argument("--dither", default=DEFAULT_OPTIONS.dither, choices=DITHERS, help=text)
    text = "do not write the prompt and settings into the file, where `sdvideo info` finds them"
    parser.add_argument("--no-metadata", dest="metadata", action="store_false", help=text)


def settings(args: argparse.Namespace) -> SaveOptions:
    """Raises ValueError for a loop that files cannot hold."""
    return SaveOptions(args.loop, args.ping_pong, args.palette, args.dither)


def check(args: argparse.Namespace) -> None:
    """Raises, before there is a video, what writing it would."""
    from .video_io import check_output, check_writable

    settings(args)
    check_output(args.output, FPS if args.fps is None else args.fps)
    check_writable(args.output)


def settle_fps(args: argparse.Namespace) -> None:
    """Lets a video that is made of another play as fast, where --fps does not say how fast."""
    from .playback import FASTEST_FPS, SLOWEST_FPS
    from .sequence import frame_rate
    from .video_io import FORMATS

    if args.fps is None:
        last = None if args.num_frames is None else args.offset + (args.num_frames - 1) * args.stride
        rate = (frame_rate(Path(args.input), last) or FPS * args.stride) / args.stride
        name = FORMATS.get(Path(args.output).suffix.lower(), "")
        args.fps = max(SLOWEST_FPS, min(rate, FASTEST_FPS.get(name, rate)))
        if args.fps < rate:
            sys.stderr.write(
                f"Note: the input plays {rate:g} frames per second, {name} at most {args.fps:g}; "
                "add --stride, or write an MP4\n"
            )


def save(video: Tensor, args: argparse.Namespace, seed: int) -> None:
    """Writes a video (1, 3, F, H, W) in 0..1, and tells so."""
    from .video_io import save_video
    from .video_metadata import SETTINGS

    options = settings(args)
    _, _, num_frames, height, width = video.shape
    frames = len(options.play_order(num_frames))
    with progress_bar("Writing", "frame") as progress:
        metadata = {SETTINGS: made_with(args, seed)} if args.metadata else {}
        save_video(video, args.output, args.fps, metadata, options, progress)
    sys.stderr.write(f"Wrote {args.output}: {frames} frames of {width}x{height}, seed {seed}\n")


def made_with(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """What tells how to make a video again: the command, and its options where they are not as by default.

    Of files only names, as folders are nobody's business.
    """
    told: dict[str, Any] = {"command": args.parser.prog}
    for action in args.parser._actions:
        value = getattr(args, action.dest, None)
        if action.dest not in UNTOLD and value not in (None, action.default):
            name = max(action.option_strings, key=len, default=action.dest).lstrip("-")
            told[name] = _name(value) if action.dest in FILES else value if action.nargs != 0 else True
    return told | {"seed": seed}


def _name(value: Any) -> Any:
    """A path without its folders; of --lora each with its strength."""
    if isinstance(value, list):
        return [f"{_name(path)}:{strength:g}" for path, strength in value]
    return Path(value).resolve().name
