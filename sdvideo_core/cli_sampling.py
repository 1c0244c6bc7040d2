"""Options of the command line for samplers and guidance, and what they are for `SDVideo`."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .lcm import LCM

SAMPLER_NAMES = ("ddim", "dpm++2m", "unipc", "lcm")  # those of samplers.SAMPLERS, which would bring torch
GRIDS = ("strided", "even")


def add_options(parser: argparse.ArgumentParser) -> None:
    text = "dpm++2m and unipc need 10 to 25 steps; lcm is for models distilled for 4 to 8, at a guidance scale of 1"
    parser.add_argument("--sampler", default="ddim", choices=SAMPLER_NAMES, help=text)
    text = "timesteps that the model was distilled at; default: what the file of --lora says, 50 if it says nothing"
    parser.add_argument(
        "--lcm-original-steps", dest="original_steps", type=int, metavar="N", help=f"of --sampler lcm: {text}"
    )
    text = "which of those are visited, as T2V-Turbo does or as MCM's own demo; default: as above, strided"
    parser.add_argument("--lcm-grid", dest="grid", choices=GRIDS, help=f"of --sampler lcm: {text}")
    text = "scale of a model that is told it (T2V-Turbo), 5 to 15, with --cfg 1; 7.5 is usual"
    parser.add_argument("--guidance-embed", type=float, metavar="SCALE", help=text)
    scales = parser.add_mutually_exclusive_group()
    text = (
        "scales in place of --cfg, spread evenly over the way from pure noise to the video, such as 12,4; video to "
        "video runs the last part of the way, so --strength 0.5 starts that one at 8"
    )
    scales.add_argument("--cfg-schedule", dest="guidance_schedule", type=_numbers, metavar="A,B,...", help=text)
    text = "guide only in this part of that way, 0..1, such as 0.1,0.8; elsewhere it is twice as fast"
    scales.add_argument("--cfg-interval", type=_interval, metavar="START,END", help=text)
    text = "0..1: RescaleCFG, against washed out or burnt colours at a high --cfg; 0.7 is usual"
    parser.add_argument("--cfg-rescale", dest="guidance_rescale", type=float, default=0.0, metavar="AMOUNT", help=text)
    text = "up to 1: clip extreme values at a high --cfg; 0.995 is usual"
    parser.add_argument("--dynamic-thresholding", type=float, metavar="PERCENTILE", help=text)


def check(args: argparse.Namespace) -> None:
    """Raises, before a model is loaded, what it would; to be called while what was not given is None."""
    from .frames import check_selection, check_size
    from .guidance import guidance_wrappers
    from .lcm import LCM
    from .lora_files import read_lora
    from .pipeline import check_seed
    from .samplers import find_sampler
    from .schedule import NoiseSchedule

    if args.guidance_scale is not None and args.guidance_schedule:
        raise ValueError(f"--cfg {args.guidance_scale:g} has no effect beside --cfg-schedule; leave one of them out")
    if args.timesteps is not None:
        NoiseSchedule().stride(args.timesteps)
    if args.image_size:
        check_size(*args.image_size)
    check_selection(getattr(args, "num_frames", None), 0, 1)
    check_seed(args.seed)
    find_sampler(_sampler(args, LCM()), getattr(args, "eta", 0.0))
    guidance_wrappers(NoiseSchedule(), args.guidance_rescale, args.dynamic_thresholding)
    for path, _ in args.lora or []:
        read_lora(path)


def settings(args: argparse.Namespace, lcm: LCM) -> dict[str, Any]:
    """Arguments of `SDVideo` from the options. lcm: the sampler of that name, as the model's LoRAs say it."""
    from .guidance import guidance_interval

    scale, interval = args.guidance_scale, args.cfg_interval
    schedule = guidance_interval(scale, *interval) if interval else args.guidance_schedule
    return {
        "sampler": _sampler(args, lcm),
        "guidance_schedule": schedule,
        "guidance_rescale": args.guidance_rescale,
        "dynamic_thresholding": args.dynamic_thresholding,
        "guidance_embed": args.guidance_embed,
    }


def _sampler(args: argparse.Namespace, lcm: LCM) -> str | LCM:
    options = {"original_steps": args.original_steps, "grid": args.grid}
    given = {name: value for name, value in options.items() if value is not None}
    if args.sampler == "lcm":
        return replace(lcm, **given)
    if given:
        name = "--lcm-" + next(iter(given)).replace("_", "-")
        raise ValueError(f"{name} with --sampler {args.sampler}; it belongs to --sampler lcm, leave it out")
    return args.sampler


def _numbers(text: str) -> list[float]:
    try:
        return [float(number) for number in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers, such as 12,4") from error


def _interval(text: str) -> list[float]:
    numbers = _numbers(text)
    if len(numbers) != 2:
        raise argparse.ArgumentTypeError(f"{text!r} is not START,END, such as 0.1,0.8")
    return numbers
