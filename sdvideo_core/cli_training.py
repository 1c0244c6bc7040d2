"""Command line for training: sdvideo train | cache."""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import cli_defaults, cli_files
from .cli_files import DTYPES

if TYPE_CHECKING:
    from .pipeline import SDVideo
    from .training import CachedDataset, Distillation
    from .training.datasets import ClipDataset

# Options that are arguments of SDVideoTrainer by the same name.
# fmt: off
TRAINER_OPTIONS = (
    "seed", "epochs", "gradient_accumulation", "lora_rank", "train_only", "lr", "scale_lr", "lr_delay", "lr_warmup",
    "lr_decay", "lr_min", "weight_decay", "max_grad_norm", "adam8bit", "mixed_precision", "gradient_checkpointing",
    "xformers", "compile", "ema", "unconditional_ratio", "noise_offset", "min_snr_gamma", "snr_floor", "start_noise",
    "log_with",
)
# fmt: on

Command = Callable[[Any, Callable[[argparse.Namespace], int | None], str], argparse.ArgumentParser]


def add_commands(commands: Any, command: Command, size: Callable[[str], tuple[int, int]]) -> None:
    _add_train(command(commands, train, "train a model, or a LoRA for it, on clips with captions"), size)
    _add_cache(command(commands, cache, "encode clips and captions once, to train from the result"), size)


def _add_data(parser: argparse.ArgumentParser, size: Callable[[str], tuple[int, int]], data: str) -> None:
    add = parser.add_argument
    add("--model", required=True, metavar="PATH", help="model folder, or a file of a UNet's weights")
    cli_files.add_part_options(parser)
    add("--data", required=True, metavar="DIR", help=data)
    text = f"of each clip, its first; shorter clips play back and forth; {cli_defaults.FRAMES}"
    add("--frames", dest="num_frames", type=int, default=None, help=text)
    add("--stride", type=int, default=None, help="take every n-th frame; default: 1")
    text = f"WIDTHxHEIGHT clips are scaled and cropped to; {cli_defaults.SIZE}"
    add("--size", dest="image_size", type=size, default=None, help=text)
    add("--skip-bad", action="store_true", help="leave clips out that cannot be used, and count them")
    add("--device", default="auto", help="cpu, cuda or cuda:1; auto: cuda if there is one")


def _add_train(parser: argparse.ArgumentParser, size: Callable[[str], tuple[int, int]]) -> None:
    _add_data(parser, size, "0001.gif + 0001.txt, videos + texts, frames/ID + text/ID.txt, or what `cache` wrote")
    add = parser.add_argument
    parser.set_defaults(lighter="--gradient-checkpointing, --lora-rank, a smaller --size or fewer --frames")
    add("--dtype", default="float32", choices=DTYPES, help="of the weights; half only with --lora-rank")
    add("--out", required=True, metavar="DIR", help="where weights, states, samples and the loss plot go")
    add("--name", default="vid", help="of the run: DIR/<name>_unet.safetensors, or _lora.safetensors")
    add("--steps", type=int, default=None, help="optimizer steps in all; default: --epochs times through the data")
    add("--epochs", type=int, default=1, help="times through the data, without --steps")
    add("--save-every", type=int, default=1000, metavar="STEPS", help="write the weights and a state to go on from")
    add("--resume", action="store_true", help="go on from the newest state of the run, if there is one")
    add("--seed", type=int, default=0, help="the same seed, data and options train the same weights")
    add("--batch-size", type=int, default=1, help="clips in one pass")
    add("--gradient-accumulation", type=int, default=1, metavar="N", help="passes of one step")
    add("--lora-rank", type=int, default=None, metavar="RANK", help="train a LoRA; default: the weights themselves")
    add("--lcm", action="store_true", help="make that LoRA one for sampling in 4 to 8 steps without guidance")
    text = "guidance scale that --lcm builds in; default: 7.5"
    add("--lcm-guidance", type=float, default=None, metavar="SCALE", help=text)
    text = "points of a video's path that --lcm learns from; default: 50"
    add("--lcm-timesteps", type=int, default=None, metavar="N", help=text)
    add("--train-only", default="all", choices=("all", "temporal"), help="all layers, or those that mix frames")
    add("--lr", type=float, default=1e-4, help="learning rate; all layers want a lower one than a LoRA")
    add("--scale-lr", action="store_true", help="multiply --lr by the clips of one step")
    add("--lr-delay", type=int, default=0, metavar="STEPS", help="first steps, at --lr-min")
    add("--lr-warmup", type=int, default=0, metavar="STEPS", help="then steps of rising to --lr")
    add("--lr-decay", type=int, default=0, metavar="STEPS", help="last steps, falling to --lr-min")
    add("--lr-min", type=float, default=0.0, help="lowest learning rate")
    add("--weight-decay", type=float, default=0.01, help="AdamW's")
    add("--max-grad-norm", type=float, default=1.0, help="longer gradients are cut to this; 0: never")
    add("--adam8bit", action="store_true", help="bitsandbytes' AdamW, a quarter of the optimizer's memory")
    add("--mixed-precision", default="no", choices=("no", "bf16", "fp16"), help="of the network's computations")
    add("--gradient-checkpointing", action="store_true", help="less memory, more time")
    add("--xformers", action="store_true", help="use xformers' attention; on CUDA")
    add("--compile", action="store_true", help="torch.compile: minutes to begin with, then faster")
    add("--ema", type=float, default=None, metavar="0..1", help="save a running average; share kept, such as 0.999")
    add("--unconditional-ratio", type=float, default=0.1, metavar="0..1", help="captions replaced by an empty one")
    add("--noise-offset", type=float, default=0.0, help="0..0.2: for darker and brighter videos")
    add("--min-snr-gamma", type=float, default=None, help="weigh timesteps by min-SNR; 5 is usual")
    add("--snr-floor", type=float, default=0.0, help="more weight for noisy timesteps; 1 is usual")
    add("--start-noise", type=float, default=0.0, metavar="0..1", help="share of samples that start from pure noise")
    add("--sample-every", type=int, default=None, metavar="STEPS", help="write a GIF of each --sample-prompt")
    add("--sample-prompt", action="append", default=[], metavar="PROMPT", help="may be given several times")
    add("--log-with", default=None, help="tensorboard, or another tracker of accelerate")
    add("--log-every", type=int, default=10, metavar="STEPS", help="show and log the loss")
    add("--workers", dest="num_workers", type=int, default=0, help="processes that read clips")


def _add_cache(parser: argparse.ArgumentParser, size: Callable[[str], tuple[int, int]]) -> None:
    _add_data(parser, size, "0001.gif + 0001.txt, videos + texts, or frames/ID + text/ID.txt")
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="of the weights that encode")
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="folder for the encoded clips; what is there is kept"
    )


def train(args: argparse.Namespace) -> None:
    from torch.utils.data import DataLoader

    from .training import SDVideoTrainer, collate_cached, collate_fn
    from .whole_file import check_place

    check_place(Path(args.out) / f"{args.name}_states", is_folder=True)
    distillation = _distillation(args)
    is_cache = _is_cache(Path(args.data))
    data: Any
    data, options = _cached(args) if is_cache else _clips(args)
    collate = partial(collate_cached if is_cache else collate_fn, **options)
    model = _load(args)
    if is_cache:
        _check_cache(args, data, model)
    trainer = SDVideoTrainer(
        model,
        DataLoader(data, args.batch_size, shuffle=True, num_workers=args.num_workers, collate_fn=collate),
        args.out,
        load_state=args.resume,
        preencoded_img=is_cache,
        preencoded_txt=is_cache,
        distillation=distillation,
        **{name: getattr(args, name) for name in TRAINER_OPTIONS},
    )
    _tell(f"Training {_what(args)} on {_count(data)}\n")
    file = trainer.train(args.name, args.log_every, args.save_every, args.steps, args.sample_every, args.sample_prompt)
    _tell(f"Wrote {file}; to use it: {_use(args, file, _prompt(data), _trained_on(data, options))}\n")


def _tell(text: str) -> None:
    if os.environ.get("RANK", "0") == "0":  # of several processes one
        sys.stderr.write(text)


def _what(args: argparse.Namespace) -> str:
    layers = {"all": "all layers", "temporal": "the layers that mix frames"}[args.train_only]
    return f"a LoRA of rank {args.lora_rank} on {layers}" if args.lora_rank else layers


def _count(data: Any) -> str:
    return f"{len(data)} clip{'' if len(data) == 1 else 's'}"


def _trained_on(data: Any, options: Mapping[str, Any]) -> tuple[int, int, int]:
    """Frames, width and height: of a cache its own, unless fewer frames are taken."""
    made: dict[str, Any] = getattr(data, "settings", {})
    width, height = options.get("image_size") or (made["width"], made["height"])
    return options["num_frames"] or made["num_frames"], width, height


def _prompt(data: Any) -> str:
    """A caption that was trained on; a cache has none as text."""
    return data.clips[0].text.strip() if getattr(data, "clips", None) else "your prompt"


def _use(args: argparse.Namespace, file: Path, prompt: str, trained_on: tuple[int, int, int]) -> str:
    """The command that draws with what was trained, as it was trained."""
    frames, width, height = trained_on
    model = args.model if args.lora_rank else str(file)
    parts = {"--vae": args.vae, "--clip": args.text_encoder}
    if not args.lora_rank:
        parts = {option: part or args.model for option, part in parts.items()}
    lora = {"--lora": str(file)} if args.lora_rank else {}
    sampler = {"--sampler": "lcm"} if args.lcm else {}
    options = {**parts, **lora, "--size": f"{width}x{height}", "--frames": str(frames), **sampler}
    given = (word for option in options.items() if option[1] for word in option)
    return _in_a_shell(["sdvideo", "txt2vid", model, prompt, *given])


def _in_a_shell(words: list[str]) -> str:
    """A command as it is pasted into the system's own shell."""
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def _cached(args: argparse.Namespace) -> tuple[CachedDataset, dict[str, Any]]:
    from .training import CachedDataset

    return CachedDataset(args.data), {"num_frames": args.num_frames}


def cache(args: argparse.Namespace) -> None:
    from .training import encode_dataset
    from .training.cache import CLIPS_NAME
    from .whole_file import check_place

    check_place(Path(args.out) / CLIPS_NAME, is_folder=True)
    dataset, options = _clips(args)
    encode_dataset(_load(args), dataset, args.out, bar=True, **options)
    sys.stderr.write(f"Wrote {args.out}: {_count(dataset)} of {options['num_frames']} frames\n")


def _distillation(args: argparse.Namespace) -> Distillation | None:
    from .training import Distillation

    options = {"guidance_scale": args.lcm_guidance, "num_timesteps": args.lcm_timesteps}
    given = {name: value for name, value in options.items() if value is not None}
    if given and not args.lcm:
        raise ValueError("--lcm-guidance and --lcm-timesteps are settings of --lcm; add --lcm, or leave them out")
    try:
        return Distillation(**given) if args.lcm else None
    except ValueError as error:
        raise ValueError(str(error).replace("num_timesteps=", "--lcm-timesteps ")) from error


def _is_cache(directory: Path) -> bool:
    """Whether it is what `cache` wrote, also where that was not finished."""
    from .training.cache import CLIPS_NAME, INDEX_NAME

    return (directory / INDEX_NAME).is_file() or any((directory / CLIPS_NAME).rglob("*.safetensors"))


def describe_data(path: Path) -> dict[str, Any] | None:
    """What `sdvideo info` says of clips with captions, or of what `cache` wrote; None of anything else."""
    from .inspection import empty_report
    from .sequence import has_captions

    if (path / "clips").is_dir() and _is_cache(path):  # which takes long to import
        from .training import CachedDataset

        cached = CachedDataset(path)
        return empty_report(path) | {"is": "a cache of clips to train on", "clips": len(cached), **cached.settings}
    if not path.is_dir() or not has_captions(path):
        return None
    from .training import open_dataset
    from .training.datasets import ClipError

    report = empty_report(path) | {"is": "a dataset of clips to train on"}
    try:
        data = open_dataset(path)
    except ClipError as error:
        return report | {"problems": [str(error).replace("skip_bad=True", "--skip-bad")]}
    return report | {"clips": len(data), "kind": data.layout}


def _check_cache(args: argparse.Namespace, dataset: CachedDataset, model: SDVideo) -> None:
    made, size = dataset.settings, (dataset.settings["width"], dataset.settings["height"])
    for option, given, value in (("--size", args.image_size, size), ("--stride", args.stride, made["stride"])):
        if given not in (None, value):
            raise ValueError(
                f"{option} cannot change what {args.data} holds; leave it out, or run `sdvideo cache` again"
            )
    dataset.check_model(model)


def _clips(args: argparse.Namespace) -> tuple[ClipDataset, dict[str, Any]]:
    """The clips, read no further than they are used, and the options that collate them."""
    from .families import find_family
    from .frames import check_selection
    from .training import open_dataset

    options = cli_defaults.clip_options(args, find_family(args.model))
    stride = options.pop("stride")
    check_selection(options["num_frames"], 0, stride)
    return open_dataset(args.data, args.skip_bad, options["num_frames"], stride), options


def _load(args: argparse.Namespace) -> SDVideo:
    import torch

    from .pipeline import SDVideo

    parts = {"vae": args.vae, "text_encoder": args.text_encoder}
    return SDVideo(args.model, device(args), getattr(torch, args.dtype), amp=False, **parts)


def device(args: argparse.Namespace) -> str:
    """What --device names; auto is the GPU of this process, for `accelerate launch` gives each its own."""
    import torch

    if args.device != "auto":
        return args.device
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
