"""Options of the command line for samplers and guidance, and what they are for `SDVideo`."""

from __future__ import annotations

import argparse
from typing import Any

SAMPLER_NAMES = ("ddim", "dpm++2m", "unipc", "lcm")  # those of samplers.SAMPLERS, which would bring torch


def add_options(parser: argparse.ArgumentParser) -> None:
    text = "dpm++2m and unipc need 10 to 25 steps; lcm is for models distilled for 4 to 8, at a guidance scale of 1"
    parser.add_argument("--sampler", default="ddim", choices=SAMPLER_NAMES, help=text)
    scales = parser.add_mutually_exclusive_group()
    text = "scales in place of --cfg, from the first step to the last, such as 12,4"
    scales.add_argument("--cfg-schedule", type=_numbers, metavar="A,B,...", help=text)
    text = "guide only in this part of the way, such as 0.1,0.8; elsewhere it is twice as fast"
    scales.add_argument("--cfg-interval", type=_interval, metavar="START,END", help=text)
    text = "0..1: RescaleCFG, against washed out or burnt colours at a high --cfg; 0.7 is usual"
    parser.add_argument("--cfg-rescale", type=float, default=0.0, metavar="AMOUNT", help=text)
    text = "up to 1: clip extreme values at a high --cfg; 0.995 is usual"
    parser.add_argument("--dynamic-thresholding", type=float, metavar="PERCENTILE", help=text)


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `SDVideo` from the options."""
    from .guidance import guidance_interval

    schedule = guidance_interval(args.cfg, *args.cfg_interval) if args.cfg_interval else args.cfg_schedule
    return {
        "sampler": args.sampler,
        "guidance_schedule": schedule,
        "guidance_rescale": args.cfg_rescale,
        "dynamic_thresholding": args.dynamic_thresholding,
    }


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
