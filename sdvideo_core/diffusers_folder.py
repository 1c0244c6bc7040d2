"""diffusers folder: the JSON and the tokenizer that make weights a TextToVideoSDPipeline for diffusers."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from .config import TextConfig, UNetConfig, VAEConfig
from .configuration import CheckpointError
from .layouts import DIFFUSERS_FOLDERS
from .part_config import SCHEDULE, sizes
from .vae import LATENT_SCALE

Json = dict[str, Any]

# Folder -> library and class, as model_index.json has them.
COMPONENTS = {
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet3DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
FIRST_HEADS = 8  # of the first temporal transformer in UNet3DConditionModel, which no field of its config changes

# ModelScope's noise schedule and its DDIM, in the words of diffusers.
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    **SCHEDULE,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
# CLIP's tokens; open_clip spells the first two <start_of_text> and <end_of_text>, and pads with token 0, "!".
START, END, PAD = "<|startoftext|>", "<|endoftext|>", "!"
TOKENIZER = {
    "add_prefix_space": False,
    "bos_token": START,
    "do_lower_case": True,
    "eos_token": END,
    "errors": "replace",
    "pad_token": PAD,
    "tokenizer_class": "CLIPTokenizer",
    "unk_token": END,
}


def model_index(parts: Collection[str]) -> Json:
    """model_index.json of a folder that holds these parts; the others are null, as diffusers saves what is not set."""
    absent = {folder for part, folder in DIFFUSERS_FOLDERS.items() if part not in parts}
    components = {name: [None, None] if name in absent else kind for name, kind in COMPONENTS.items()}
    return {"_class_name": "TextToVideoSDPipeline", **components}


def unet_config(config: UNetConfig) -> Json:
    """unet/config.json; CheckpointError for a shape that UNet3DConditionModel cannot have."""
    if config.num_heads != FIRST_HEADS:
        raise CheckpointError(
            f"diffusers cannot hold this UNet: its first temporal transformer has {config.num_heads} heads, "
            f"UNet3DConditionModel always {FIRST_HEADS}; convert to modelscope or safetensors"
        )
    levels = range(len(config.dim_mult))
    down = ["CrossAttnDownBlock3D" if 0.5**level in config.attn_scales else "DownBlock3D" for level in levels]
    return {
        "_class_name": "UNet3DConditionModel",
        **sizes(config),
        "act_fn": "silu",
        "attention_head_dim": config.head_dim,
        "down_block_types": down,
        "downsample_padding": 1,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-5,
        "norm_num_groups": 32,
        "sample_size": 32,
        "up_block_types": [name.replace("Down", "Up") for name in reversed(down)],
    }


def vae_config(config: VAEConfig) -> Json:
    """vae/config.json."""
    levels = len(config.ch_mult)
    return {
        "_class_name": "AutoencoderKL",
        **sizes(config),
        "act_fn": "silu",
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "in_channels": 3,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": 256,
        "scaling_factor": LATENT_SCALE,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }


def text_encoder_config(config: TextConfig) -> Json:
    """text_encoder/config.json: the tower up to its penultimate block, all of whose layers run there."""
    return {
        "architectures": ["CLIPTextModel"],
        **sizes(config),
        "bos_token_id": config.vocab_size - 2,
        "eos_token_id": config.vocab_size - 1,
        "hidden_act": "gelu",
        "intermediate_size": 4 * config.width,
        "layer_norm_eps": 1e-5,
        "model_type": "clip_text_model",
        "num_attention_heads": config.heads,
        "num_hidden_layers": config.layers - 1,
        "pad_token_id": 0,
        "projection_dim": config.width,
    }


def tokenizer_files(context_length: int) -> dict[str, Any]:
    """Name -> content of the files of transformers' CLIPTokenizer, from open_clip's: text for merges.txt, else JSON."""
    from open_clip.tokenizer import SimpleTokenizer  # seconds to import

    tokenizer = SimpleTokenizer(context_length=context_length)
    vocab = dict(tokenizer.encoder)
    for ours, theirs in (("<start_of_text>", START), ("<end_of_text>", END)):
        vocab[theirs] = vocab.pop(ours)
    merges = [" ".join(pair) for pair in tokenizer.bpe_ranks]
    special = {key: value for key, value in TOKENIZER.items() if key.endswith("_token")}
    return {
        "vocab.json": vocab,
        "merges.txt": "\n".join(["#version: 0.2", *merges]) + "\n",
        "tokenizer_config.json": TOKENIZER | {"model_max_length": context_length},
        "special_tokens_map.json": special,
    }
