"""Part config: what the JSON beside a network's weights says of it, where it is theirs and not another model's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors

from .config import ModelConfig, TextConfig, UNetConfig, VAEConfig
from .configuration import CONFIG_NAME, CheckpointError, read_config, read_json

Json = Mapping[str, Any]

# The names that diffusers and transformers give a part's weights; only these have a config.json of their own.
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
STEM = re.compile(rf"({'|'.join(STEMS)})(-\d+-of-\d+)?\.")
# Part -> what such a config.json may be of, as `_class_name` or one of its `architectures` has it.
CLASSES = {
    "unet": ("UNet3DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text encoder": ("CLIPTextModel", "CLIPTextModelWithProjection", "CLIPModel"),
}

HEAD_DIM = "sdvideo.head_dim"  # not attention_head_dim, by which diffusers' image UNets mean the number of heads
UNET_FOLDER, SCHEDULER_FILE = "unet", "scheduler/scheduler_config.json"
# This family's noise schedule in diffusers' words.
SCHEDULE = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
    "trained_betas": None,
}


def sizes(config: UNetConfig | VAEConfig | TextConfig) -> dict[str, Any]:
    """The sizes that a network's tensors tell, by the names of diffusers' and transformers' config.json."""
    if isinstance(config, UNetConfig):
        return {
            "block_out_channels": [config.dim * mult for mult in config.dim_mult],
            "cross_attention_dim": config.context_dim,
            "in_channels": config.in_dim,
            "layers_per_block": config.res_blocks,
            "out_channels": config.out_dim,
        }
    if isinstance(config, VAEConfig):
        return {
            "block_out_channels": [config.ch * mult for mult in config.ch_mult],
            "latent_channels": config.z_channels,
            "layers_per_block": config.num_res_blocks,
        }
    return {
        "hidden_size": config.width,
        "max_position_embeddings": config.context_length,
        "vocab_size": config.vocab_size,
    }


def fits(config: Json, network: UNetConfig | VAEConfig | TextConfig) -> bool:
    """Whether a config.json speaks of a network of this size."""
    return all(config.get(name, size) == size for name, size in sizes(network).items())


def config_beside(file: Path, part: str) -> Json:
    """What the JSON in a file's folder may say of one of its parts, by the names of diffusers' config.json.

    Folders such as ComfyUI's models/vae are shared: a config.json counts only beside a file that diffusers or
    transformers named, and only if it is of a class that the part can have. A configuration.json counts for a UNet of
    any name. Whether the sizes in it are those of the weights is for `fits` to say.
    """
    config = _read(file.with_name("config.json")) if STEM.match(file.name) else {}
    architectures = config.get("architectures")
    kinds = {config.get("_class_name"), *(architectures if isinstance(architectures, list) else [])}
    if not kinds.isdisjoint(CLASSES[part]):
        text = config.get("text_config")  # of a whole CLIPModel
        return {**config, **text} if part == "text encoder" and isinstance(text, dict) else config
    return _configuration_beside(file) if part == "unet" else {}


def head_width(unet: UNetConfig) -> dict[str, str]:
    """Metadata for a .safetensors file of a UNet: what its tensors do not tell."""
    return {HEAD_DIM: str(unet.head_dim)}


def stored_head_width(file: Path) -> int | None:
    """What a file that was written with `head_width` says; None of others."""
    try:
        with safetensors.safe_open(file, "pt") as opened:  # pyright: ignore[reportPrivateImportUsage]
            text = (opened.metadata() or {}).get(HEAD_DIM, "")
    except (OSError, safetensors.SafetensorError):  # a pickle, or damaged, which reading its weights will tell
        return None
    return int(text) if re.fullmatch(r"[1-9]\d{0,5}", text) else None


def _read(path: Path) -> Json:
    try:
        return read_json(path) if path.is_file() else {}
    except CheckpointError:
        return {}


def _configuration_beside(file: Path) -> Json:
    if not file.with_name(CONFIG_NAME).is_file():
        return {}
    try:
        unet = read_config(file.parent).unet
    except CheckpointError:
        if file.stem == Path(ModelConfig.unet_file).stem:  # the UNet that a configuration.json speaks of
            raise
        return {}
    return {"attention_head_dim": unet.head_dim, **sizes(unet)}


def schedule_beside(file: Path) -> Json:
    """The scheduler_config.json of the folder of diffusers that a UNet's file lies in; nothing where it is in none."""
    folder = file.absolute().parent
    path = folder.parent / SCHEDULER_FILE
    return read_json(path) if folder.name == UNET_FOLDER and STEM.match(file.name) and path.is_file() else {}


def check_schedule(schedule: Json, source: Path) -> None:
    """Raises CheckpointError unless a scheduler_config.json has this family's noise schedule; null is the default."""
    wrong = [
        f"{name} {schedule[name]!r} where {value!r} is expected"
        for name, value in SCHEDULE.items()
        if schedule.get(name) not in (None, value)
    ]
    if wrong:
        raise CheckpointError(
            f"{source} was trained on another noise schedule: its scheduler_config.json has {', '.join(wrong)}; "
            "only ModelScope's is supported"
        )
