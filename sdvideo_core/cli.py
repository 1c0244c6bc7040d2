"""Command line: sdvideo txt2vid | vid2vid | train | cache | convert-lora | convert | info | demo."""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from . import cli_defaults, cli_demo, cli_files, cli_lora, cli_messages, cli_output, cli_sampling, cli_training
from .cli_files import DTYPES

if TYPE_CHECKING:
    from .pipeline import SDVideo

OUT_OF_MEMORY = re.compile("out of memory|can't allocate memory")  # torch raises a mere RuntimeError on a CPU
HALF = "--dtype float16"
EXAMPLES = """examples:
  sdvideo demo
  sdvideo info models/zeroscope_v2_576w
  sdvideo txt2vid models/modelscope "a panda eating bamboo on a rock" --seed 1 --output panda.gif
  sdvideo txt2vid models/zeroscope_v2_576w "a sailing boat" --size 576x320 --frames 24 --output boat.mp4
  sdvideo train --model models/modelscope --data clips --out output --lora-rank 16 --steps 500
  sdvideo vid2vid models/modelscope "very wrinkly and old" --input face.gif --strength 0.7 --output old.gif
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; the exit status is 0, or 1 after an error told in one line, 130 when stopped."""
    args, unknown = build_parser().parse_known_args(argv)
    if unknown:
        is_first_word = re.fullmatch(r"\S+", getattr(args, "prompt", None) or "")
        are_words = not any(word.startswith("-") for word in unknown)
        remedy = "; put the prompt in quotes" if is_first_word and are_words else ""
        args.parser.error(f"unrecognized arguments: {' '.join(unknown)}{remedy}")
    try:
        with _one_line_warnings(args):
            return args.run(args) or 0
    except (ValueError, OSError, FloatingPointError, ImportError) as error:
        sys.stderr.write(f"sdvideo: {cli_messages.in_options(str(error), args)}\n")
        return 1
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not OUT_OF_MEMORY.search(str(error)):
            raise
        lighter = args.lighter
        if getattr(args, "dtype", None) == "float16":
            lighter = lighter.removeprefix(f"{HALF}, ")
        sys.stderr.write(f"sdvideo: out of memory; use {lighter}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("sdvideo: stopped\n")
        return 130


@contextmanager
def _one_line_warnings(args: argparse.Namespace) -> Iterator[None]:
    """Shows warnings without the line of Python that they come from."""

    def in_one_line(message: object, *_: object, **__: object) -> str:
        return f"sdvideo: warning: {cli_messages.in_options(str(message), args)}\n"

    before = warnings.formatwarning
    warnings.formatwarning = in_one_line
    try:
        yield
    finally:
        warnings.formatwarning = before


class _Parser(argparse.ArgumentParser):
    """Answers a wrong call in one line, of the command that was called."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="sdvideo",
        description="Text to video and video to video with models of the ModelScope family.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    _add_txt2vid(commands)
    _add_vid2vid(commands)
    cli_training.add_commands(commands, _command, _size)
    cli_lora.add_commands(commands, _command)
    cli_files.add_commands(commands, _command)
    _add_info(commands)
    cli_demo.add_commands(commands, _command)
    return parser


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Tells the defaults that say something, and names values after their options."""

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return action.option_strings[0].lstrip("-").upper()

    def _get_help_string(self, action: argparse.Action) -> str | None:
        says_nothing = action.nargs == 0 or action.default is None or action.default == ""
        return action.help if says_nothing else super()._get_help_string(action)


def _command(commands: Any, run: Any, summary: str) -> argparse.ArgumentParser:
    description = f"{summary[0].upper()}{summary[1:]}."
    parser = commands.add_parser(
        run.__name__.replace("_", "-"), help=summary, description=description, formatter_class=_Help
    )
    parser.set_defaults(run=run, parser=parser, lighter=f"{HALF}, a smaller size or fewer frames")
    return parser


def _add_txt2vid(commands: Any) -> None:
    parser = _command(commands, txt2vid, "make a video of a prompt")
    parser.add_argument("model", help="model folder, or a file of a UNet's weights")
    _add_sampling(parser)
    text = f"WIDTHxHEIGHT in pixels, multiples of 8; {cli_defaults.SIZE}"
    parser.add_argument("--size", dest="image_size", type=_size, default=None, help=text)
    text = "length; default: what the model was trained on"
    parser.add_argument("--frames", dest="num_frames", type=int, default=None, help=text)
    cli_output.add_options(parser, "video.gif")


def _add_vid2vid(commands: Any) -> None:
    parser = _command(commands, vid2vid, "change a video by a prompt")
    parser.add_argument("model", help="model folder, or a file of a UNet's weights")
    _add_sampling(parser)
    parser.add_argument("--input", required=True, help="a folder of images, a GIF, WebP or video to start from")
    text = (
        "how much of the input is redrawn: just above 0 runs one step, which changes hardly anything; 1 runs all steps "
        "and nearly draws what txt2vid would"
    )
    # No argument in Python, where it is t_start: `strength` in the library's messages is a LoRA's.
    parser.add_argument("--strength", dest="denoise_strength", type=float, default=0.7, metavar="0..1", help=text)
    text = f"WIDTHxHEIGHT the input is scaled and cropped to; {cli_defaults.SIZE}"
    parser.add_argument("--size", dest="image_size", type=_size, default=None, help=text)
    text = "frames to take from the input; default: all of them"
    parser.add_argument("--frames", dest="num_frames", type=int, default=None, help=text)
    parser.add_argument("--offset", type=int, default=0, help="frames to skip at the start of the input")
    parser.add_argument("--stride", type=int, default=1, help="take every n-th frame of the input")
    cli_output.add_options(parser, "video.gif", fps=None)


def _add_info(commands: Any) -> None:
    parser = _command(
        commands, info, "tell what a file or a folder is; exit status 1 if a model's folder lacks anything"
    )
    parser.add_argument("path", help="a model folder, a file of weights, a LoRA, a clip, or a folder of clips")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", help="what the video shows")
    parser.add_argument("--negative", dest="text_neg", default="", metavar="PROMPT", help="what the video avoids")
    parser.add_argument("--steps", dest="timesteps", type=int, default=None, help=cli_defaults.STEPS)
    parser.add_argument("--cfg", dest="guidance_scale", type=float, default=None, help=cli_defaults.SCALE)
    parser.add_argument("--eta", type=float, default=0.0, help="0..1: fresh noise at every step")
    cli_sampling.add_options(parser)
    parser.add_argument("--seed", type=int, default=None, help="the same seed gives the same video; default: random")
    cli_lora.add_option(parser)
    cli_files.add_part_options(parser)
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 or mps; auto: cuda if there is one")
    text = "precision the weights are kept in; default: float16 on CUDA, float32 elsewhere"
    parser.add_argument("--dtype", default=None, choices=DTYPES, help=text)
    parser.add_argument("--no-amp", dest="amp", action="store_false", help="compute in the weights' own precision")
    parser.add_argument("--xformers", action="store_true", help="use xformers' attention where it runs")


def _size(text: str) -> tuple[int, int]:
    try:
        width, height = (int(side) for side in text.lower().split("x"))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT, such as 256x256") from error
    return width, height


def txt2vid(args: argparse.Namespace) -> None:
    cli_output.check(args)
    cli_sampling.check(args)
    model = _load(args)
    cli_defaults.complete(args, model.family)
    cli_demo.hint_at_words(args)
    settings = _settings(args, model)
    video = model(args.prompt, image_size=args.image_size, num_frames=args.num_frames, **settings)
    cli_output.save(video, args, settings["seed"])


def vid2vid(args: argparse.Namespace) -> None:
    from .families import find_family
    from .playback import progress_bar
    from .video_io import load_sequence

    cli_output.check(args)
    cli_sampling.check(args)
    if Path(args.output).resolve() == Path(args.input).resolve():
        raise ValueError(f"--output {args.output} would overwrite --input; give another name")
    if not 0 < args.denoise_strength <= 1:
        given = f"--strength {args.denoise_strength}"
        raise ValueError(f"{given}; expected above 0, where nothing would change, to 1, for all steps")
    cli_defaults.complete(args, find_family(args.model))
    with progress_bar("Reading", "frame") as progress:
        picked = args.num_frames, args.offset, args.stride, args.image_size
        images = load_sequence(args.input, *picked, progress=lambda done: progress(done, args.num_frames or 0))
    cli_output.settle_fps(args)
    model = _load(args)
    cli_demo.hint_at_words(args)
    settings = _settings(args, model)
    t_start = max(1, round(args.timesteps * args.denoise_strength))
    cli_output.save(model(args.prompt, initial_frames=images, t_start=t_start, **settings), args, settings["seed"])


def info(args: argparse.Namespace) -> int:
    from .configuration import CheckpointError
    from .inspection import describe, inspect

    path = Path(args.path)
    try:
        report = inspect(path)
    except CheckpointError:
        if not (data := cli_training.describe_data(path)):
            raise
        report = data
    sys.stdout.write((json.dumps(report, indent=2) if args.json else describe(report)) + "\n")
    return 1 if report.get("missing") or report.get("problems") else 0


def _load(args: argparse.Namespace) -> SDVideo:
    import torch

    from .pipeline import SDVideo

    sys.stderr.write(f"Loading {args.model} ...\n")
    parts: dict[str, Any] = {"vae": args.vae, "text_encoder": args.text_encoder, "bar": True}
    device = cli_training.device(args)
    args.dtype = args.dtype or ("float16" if device.startswith("cuda") else "float32")
    model = SDVideo(args.model, device, getattr(torch, args.dtype), amp=args.amp, **parts)
    cli_lora.load_loras(model, args.lora or [])
    return model.enable_xformers() if args.xformers else model


def _settings(args: argparse.Namespace, model: SDVideo) -> dict[str, Any]:
    seed = random.SystemRandom().randrange(2**32) if args.seed is None else args.seed
    return {
        "text_neg": args.text_neg,
        "guidance_scale": args.guidance_scale,
        "timesteps": args.timesteps,
        "eta": args.eta,
        "seed": seed,
        "bar": True,
        **cli_sampling.settings(args, model.lcm),
    }
