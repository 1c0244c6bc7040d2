"""Command line for the demo model: sdvideo demo."""

from __future__ import annotations

import argparse
import filecmp
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import cli_defaults, cli_lora, cli_output, cli_sampling

PROMPT, OUTPUT = "a red circle moving left", "demo.gif"
TOO_FEW_STEPS = 2  # at most so many draw a blur

Command = Callable[[Any, Callable[[argparse.Namespace], int | None], str], argparse.ArgumentParser]


def add_commands(commands: Any, command: Command) -> None:
    parser = command(commands, demo, "make a video of a moving shape with the small model that comes with SDVideo")
    shapes = "a circle, square, triangle or star of one of eight colours, moving, growing, shrinking, turning or still"
    parser.add_argument("prompt", nargs="?", default=None, help=f"{shapes}; default: {PROMPT}")
    text = "denoising steps, 1..999; default: 25, with the sampler lcm 4"
    parser.add_argument("--steps", dest="timesteps", type=int, default=None, help=text)
    text = "guidance scale; default: 2, with the sampler lcm 1"
    parser.add_argument("--cfg", dest="guidance_scale", type=float, default=None, help=text)
    text = "show a few-step LoRA at work: 4 steps without guidance, sampler lcm, with one that comes with the model"
    parser.add_argument("--few-steps", action="store_true", help=text)
    cli_sampling.add_options(parser)
    parser.add_argument("--zoom", type=int, default=3, help="1..8: enlarge the model's 96x96 pixels")
    text = "copy the model to DIR, to try the other commands with it; draws then only with a prompt or --output"
    parser.add_argument("--save-model", metavar="DIR", help=text)
    # Of the first ten, 5 draws the roundest red circle.
    parser.add_argument("--seed", type=int, default=5, help="the same seed gives the same video")
    cli_lora.add_option(parser)
    cli_output.add_options(parser, OUTPUT)
    parser.set_defaults(image_size=None, sampler=None)  # which --few-steps may choose


def demo(args: argparse.Namespace) -> None:
    from torch.nn.functional import interpolate

    from .demo import demo_model
    from .families import DEMO
    from .pipeline import SDVideo

    if args.save_model and args.prompt is None and args.output == OUTPUT:
        _save_model(demo_model(), Path(args.save_model))
        sys.stderr.write(f'Try it: sdvideo txt2vid {args.save_model} "{PROMPT}"\n')
        return
    cli_output.check(args)
    cli_sampling.check(args)
    if not 1 <= args.zoom <= 8:
        raise ValueError(f"--zoom {args.zoom}; it must be 1..8")
    extra = _few_steps(args) if args.few_steps else []
    if args.save_model:
        _save_model(demo_model(), Path(args.save_model))
    args.prompt = PROMPT if args.prompt is None else args.prompt
    args.sampler = args.sampler or "ddim"
    cli_defaults.complete(args, DEMO)
    _hint(args)
    model = cli_lora.load_loras(SDVideo(demo_model(), amp=False), [*extra, *(args.lora or [])])
    options = {"guidance_scale": args.guidance_scale, "timesteps": args.timesteps, "seed": args.seed}
    options |= cli_sampling.settings(args, model.lcm)
    video = model(args.prompt, image_size=args.image_size, bar=True, **options)
    frames = interpolate(video[0].transpose(0, 1), scale_factor=args.zoom, mode="bicubic").clamp(0, 1)
    cli_output.save(frames.transpose(0, 1)[None], args, args.seed)


def _few_steps(args: argparse.Namespace) -> list[tuple[Path, float]]:
    """The few-step LoRA, whose file says how the sampler that is set here samples with it."""
    if args.sampler not in (None, "lcm"):
        raise ValueError(f"--few-steps draws with the sampler lcm, got --sampler {args.sampler}; leave one of them out")
    from .demo import few_steps_lora

    args.sampler = "lcm"
    return [(few_steps_lora(), 1.0)]


def _save_model(source: Path, target: Path) -> None:
    from .whole_file import whole_folder

    names = sorted(path.name for path in source.iterdir())
    if _is_copy(source, target, names):
        sys.stderr.write(f"{target} holds the demo model already\n")
        return
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"--save-model {target} exists and is not an empty folder; choose a new or empty one")
    target = target.absolute()
    with whole_folder(target) as temporary:
        shutil.copytree(source, temporary)
        if target.exists():
            target.rmdir()  # Windows renames onto no folder, not even an empty one
    sys.stderr.write(f"Wrote {target}: the demo model, {', '.join(names)}\n")


def _is_copy(source: Path, target: Path, names: list[str]) -> bool:
    if not target.is_dir() or sorted(path.name for path in target.iterdir()) != names:
        return False
    same, *_ = filecmp.cmpfiles(source, target, names, shallow=False)
    return same == names


def _hint(args: argparse.Namespace) -> None:
    """Says in a line each what will keep the video from showing what is asked for."""
    _hint_at_prompt(args.prompt)
    if args.timesteps <= TOO_FEW_STEPS and args.sampler != "lcm":
        sys.stderr.write(f"Note: {args.timesteps} of --steps are too few for this model; use 20, or --sampler lcm\n")


def hint_at_words(args: argparse.Namespace) -> None:
    """Says what of a prompt the demo model does not know; nothing of a model or with a LoRA that may know more."""
    from .demo import DIRECTORY
    from .layouts import find_layout

    if args.lora or not DIRECTORY.is_dir():  # installed without it, to save space
        return
    [ours], files = (find_layout(path).parts["unet"].files for path in (DIRECTORY, args.model))
    if all(filecmp.cmp(ours, file, shallow=False) for file in files):
        _hint_at_prompt(args.prompt)


def _hint_at_prompt(prompt: str) -> None:
    from .demo.vocabulary import hints

    for hint in hints(prompt):
        sys.stderr.write(f"Note: the demo model {hint}\n")
