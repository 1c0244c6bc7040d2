"""configuration.json: what a ModelScope directory says of its model, read and written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .config import ModelConfig, UNetConfig

CONFIG_NAME = "configuration.json"

MOST_LISTED, FIRST = 20, 8  # problems of one file: all of up to so many, else the first


class CheckpointError(ValueError):
    """A file that cannot be what it is taken for; the message says what it is, or what it lacks."""


def refuse(source: str | Path, problems: list[str], remedy: str = "") -> None:
    """Raises CheckpointError that lists the problems, and what to do, if there are any; of very many, the first."""
    if problems:
        shown = problems if len(problems) <= MOST_LISTED else [*problems[:FIRST], f"{len(problems) - FIRST} more"]
        what_to_do = f"; {remedy}" if remedy else ""
        raise CheckpointError(f"{source} does not fit its model ({len(problems)} keys): {'; '.join(shown)}{what_to_do}")


def read_config(directory: str | Path) -> ModelConfig:
    """The configuration.json of a ModelScope directory; keys it does not know are ignored."""
    path = Path(directory) / CONFIG_NAME
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent} is not a directory; expected one with {CONFIG_NAME} and weights")
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; copy the {CONFIG_NAME} that belongs to the model there")
    model = read_json(path).get("model")
    if not isinstance(model, dict) or not isinstance(model.get("model_cfg"), dict):
        raise CheckpointError(f"{path} has no model.model_cfg; expected ModelScope's {CONFIG_NAME}")
    args, cfg = model.get("model_args") or {}, model["model_cfg"]
    if str(cfg.get("temporal_attention", True)).lower() != "true":
        raise CheckpointError(f"{path} says temporal_attention is false; only models with it are supported")
    if (mean_type := cfg.get("mean_type", "eps")) != "eps":
        raise CheckpointError(f"{path} says mean_type is {mean_type!r}; only models that predict eps are supported")
    defaults = ModelConfig()
    try:
        return ModelConfig(
            unet=_unet_config(cfg),
            unet_file=_text(args, "ckpt_unet", defaults.unet_file),
            vae_file=_text(args, "ckpt_autoencoder", defaults.vae_file),
            text_file=_text(args, "ckpt_clip", defaults.text_file),
            max_frames=int(args.get("max_frames", defaults.max_frames)),
        )
    except (AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} has a value of the wrong kind: {error}; download it again") from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; CheckpointError, which says what is there in its place, if it holds none."""
    text = path.read_text(encoding="utf-8-sig", errors="replace").strip()
    if not text:
        raise CheckpointError(f"{path} is empty; download it again")
    if text.startswith("<"):
        raise CheckpointError(f"{path} is a web page, not JSON; download the raw file instead of its page")
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}; download it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; expected a JSON object")
    return content


def _text(args: dict[str, Any], key: str, default: str) -> str:
    value = args.get(key, default)
    if not isinstance(value, str):
        raise TypeError(f"{key} is {value!r}, not a file name")
    return value


def _unet_config(cfg: dict[str, Any]) -> UNetConfig:
    d = UNetConfig()
    config = UNetConfig(
        in_dim=int(cfg.get("unet_in_dim", d.in_dim)),
        dim=int(cfg.get("unet_dim", d.dim)),
        context_dim=int(cfg.get("unet_context_dim", d.context_dim)),
        out_dim=int(cfg.get("unet_out_dim", d.out_dim)),
        dim_mult=tuple(int(mult) for mult in cfg.get("unet_dim_mult", d.dim_mult)),
        num_heads=int(cfg.get("unet_num_heads", d.num_heads)),
        head_dim=int(cfg.get("unet_head_dim", d.head_dim)),
        res_blocks=int(cfg.get("unet_res_blocks", d.res_blocks)),
        attn_scales=tuple(float(scale) for scale in cfg.get("unet_attn_scales", d.attn_scales)),
        dropout=float(cfg.get("unet_dropout", d.dropout)),
    )
    sizes = [config.in_dim, config.dim, config.context_dim, config.out_dim, config.num_heads, config.head_dim]
    if min(*sizes, config.res_blocks, *config.dim_mult) < 1:
        raise ValueError(f"a size below 1 in {config}")
    return config


def configuration(config: ModelConfig) -> dict[str, Any]:
    """The content of configuration.json that says `config`, with the keys of the published files."""
    u = config.unet
    model_cfg = {
        "unet_in_dim": u.in_dim,
        "unet_dim": u.dim,
        "unet_y_dim": 768,
        "unet_context_dim": u.context_dim,
        "unet_out_dim": u.out_dim,
        "unet_dim_mult": u.dim_mult,
        "unet_num_heads": u.num_heads,
        "unet_head_dim": u.head_dim,
        "unet_res_blocks": u.res_blocks,
        "unet_attn_scales": u.attn_scales,
        "unet_dropout": u.dropout,
        "temporal_attention": "True",
        "num_timesteps": 1000,
        "mean_type": "eps",
        "var_type": "fixed_small",
        "loss_type": "mse",
    }
    model_args = {
        "ckpt_clip": config.text_file,
        "ckpt_unet": config.unet_file,
        "ckpt_autoencoder": config.vae_file,
        "max_frames": config.max_frames,
        "tiny_gpu": 1,
    }
    kind = "latent-text-to-video-synthesis"
    return {
        "framework": "pytorch",
        "task": "text-to-video-synthesis",
        "model": {"type": kind, "model_args": model_args, "model_cfg": model_cfg},
        "pipeline": {"type": kind},
    }
