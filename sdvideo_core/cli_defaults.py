"""Defaults of the command line: size, length, steps and guidance, where the user leaves them to the model."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .families import Family

LCM_STEPS, LCM_SCALE = 4, 1.0  # what few-step models are made for
STEPS = "denoising steps, 1..999; default: what `sdvideo info` suggests, 50 if unknown; 4 with --sampler lcm"
SCALE = "guidance scale; 1 ignores --negative, twice as fast; default: as for --steps, 9 if unknown; 1 with lcm"
SIZE = "default: what the model was trained on, 256x256 if unknown"
FRAMES = "default: as many as the model was trained on, 16 if unknown"


def complete(args: argparse.Namespace, family: Family | None) -> None:
    """Sets the size, steps and cfg that were not given: to what the sampler needs, else to what suits the family."""
    from .families import MODELSCOPE

    family, is_lcm = family or MODELSCOPE, args.sampler == "lcm"
    if args.image_size is None:
        args.image_size = (family.width, family.height)
    if args.timesteps is None:
        args.timesteps = LCM_STEPS if is_lcm else family.steps
    if args.guidance_scale is None:
        args.guidance_scale = LCM_SCALE if is_lcm else family.guidance_scale


def clip_options(args: argparse.Namespace, family: Family | None) -> dict[str, Any]:
    """Frames, size and stride of clips to train on: what was given, else what the model was trained on."""
    from .families import MODELSCOPE

    family = family or MODELSCOPE
    return {
        "num_frames": args.num_frames if args.num_frames is not None else family.num_frames or MODELSCOPE.num_frames,
        "image_size": args.image_size or (family.width, family.height),
        "stride": args.stride if args.stride is not None else 1,
    }
