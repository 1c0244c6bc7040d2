"""Output of the command line: the options that say where a video goes, and writing it there."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from .playback import DEFAULT_OPTIONS, DITHERS, PALETTES, SaveOptions, progress_bar

if TYPE_CHECKING:
    from torch import Tensor


def add_options(parser: argparse.ArgumentParser, default: str) -> None:
    text = "file ending in .gif, .webp or .mp4, or a folder (no ending) for PNG images"
    parser.add_argument("--output", "-o", default=default, help=text)
    parser.add_argument("--fps", type=float, default=8.0, help="frames per second of the output")
    text = "how many times a GIF or WebP plays; 0 is for ever"
    parser.add_argument("--loop", type=int, default=DEFAULT_OPTIONS.loop, metavar="N", help=text)
    parser.add_argument("--ping-pong", action="store_true", help="play forwards, then backwards")
    text = "colours of a GIF: 256 for the whole clip, or 256 for each frame, which may flicker"
    parser.add_argument("--palette", default=DEFAULT_OPTIONS.palette, choices=PALETTES, help=text)
    text = "how a GIF shows more colours: floyd-steinberg is smoothest, bayer keeps still what stands still"
    parser.add_argument("--dither", default=DEFAULT_OPTIONS.dither, choices=DITHERS, help=text)


def settings(args: argparse.Namespace) -> SaveOptions:
    """Raises ValueError for a loop that files cannot hold."""
    return SaveOptions(args.loop, args.ping_pong, args.palette, args.dither)


def check(args: argparse.Namespace) -> None:
    """Raises, before there is a video, what writing it would."""
    from .video_io import check_output, check_writable

    settings(args)
    check_output(args.output, args.fps)
    check_writable(args.output)


def save(video: Tensor, args: argparse.Namespace, seed: int) -> None:
    """Writes a video (1, 3, F, H, W) in 0..1, and tells so."""
    from .video_io import save_video

    options = settings(args)
    _, _, num_frames, height, width = video.shape
    frames = len(options.play_order(num_frames))
    with progress_bar("Writing", "frame") as progress:
        save_video(video, args.output, args.fps, options=options, progress=progress)
    sys.stderr.write(f"Wrote {args.output}: {frames} frames of {width}x{height}, seed {seed}\n")
