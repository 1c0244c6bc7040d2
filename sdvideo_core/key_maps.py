"""Key maps: names of the same weights in ModelScope's files and in diffusers' and transformers' modules."""

from __future__ import annotations

from .config import UNetConfig, VAEConfig

Modules = dict[str, str]

# ModelScope module -> diffusers module, where the position does not depend on the number of levels.
FIXED_MODULES = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "input_blocks.0.1": "transformer_in",
    "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.temp_attentions.0",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}

RES_BLOCK_MODULES = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}

VAE_FIXED_MODULES = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
VAE_MIDDLE_MODULES = {"conv_in": "conv_in", "norm_out": "conv_norm_out", "conv_out": "conv_out"}
VAE_ATTENTION_MODULES = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
VAE_RES_BLOCK_MODULES = {name: name for name in ("norm1", "conv1", "norm2", "conv2")} | {
    "nin_shortcut": "conv_shortcut"
}
# What diffusers called the layers of that attention before version 0.18.
VAE_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

# OpenCLIP -> transformers' CLIPTextModel, less its prefix `text_model.`; queries, keys and values are one tensor there.
TEXT_MODULES = {
    "token_embedding": "embeddings.token_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final": "final_layer_norm",
}
TEXT_BLOCK_MODULES = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
TEXT_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


def diffusers_modules(config: UNetConfig) -> Modules:
    """ModelScope module path -> diffusers module path, for every module that holds or contains weights."""
    modules = dict(FIXED_MODULES)
    modules |= _res_block("middle_block.0", "mid_block", 0) | _res_block("middle_block.3", "mid_block", 1)
    for level in range(len(config.dim_mult)):
        modules |= _down_block(config, level) | _up_block(config, level)
    return modules


def renamed(key: str, modules: Modules) -> str | None:
    """The name that a weight has on the other side of a map of modules; None when none of them contains it."""
    path = key
    while path not in modules:
        path, dot, _ = path.rpartition(".")
        if not dot:
            return None
    return modules[path] + key[len(path) :]


def diffusers_key(key: str, modules: Modules) -> str:
    """The diffusers name of a ModelScope weight; KeyError when no module of `modules` contains it."""
    name = renamed(key, modules)
    if name is None:
        raise KeyError(f"{key} is in none of the modules of this UNet")
    return name


def inverted(modules: Modules) -> Modules:
    """The same map in the other direction."""
    return {theirs: ours for ours, theirs in modules.items()}


def _res_block(source: str, target: str, index: int) -> Modules:
    names = {f"{source}.{a}": f"{target}.resnets.{index}.{b}" for a, b in RES_BLOCK_MODULES.items()}
    return names | {f"{source}.temopral_conv": f"{target}.temp_convs.{index}"}


def _transformers(source: str, target: str, index: int) -> Modules:
    return {
        f"{source}.1": f"{target}.attentions.{index}",
        f"{source}.2": f"{target}.temp_attentions.{index}",
    }


def _down_block(config: UNetConfig, level: int) -> Modules:
    target, first = f"down_blocks.{level}", 1 + level * (config.res_blocks + 1)
    modules: Modules = {}
    for index in range(config.res_blocks):
        source = f"input_blocks.{first + index}"
        modules |= _res_block(f"{source}.0", target, index)
        if 0.5**level in config.attn_scales:
            modules |= _transformers(source, target, index)
    if level < len(config.dim_mult) - 1:
        modules[f"input_blocks.{first + config.res_blocks}.op"] = f"{target}.downsamplers.0.conv"
    return modules


def _up_block(config: UNetConfig, level: int) -> Modules:
    position = len(config.dim_mult) - 1 - level
    target, first = f"up_blocks.{position}", position * (config.res_blocks + 1)
    attention = 0.5**level in config.attn_scales
    modules: Modules = {}
    for index in range(config.res_blocks + 1):
        source = f"output_blocks.{first + index}"
        modules |= _res_block(f"{source}.0", target, index)
        if attention:
            modules |= _transformers(source, target, index)
    if level > 0:
        sampler = f"output_blocks.{first + config.res_blocks}.{3 if attention else 1}.conv"
        modules[sampler] = f"{target}.upsamplers.0.conv"
    return modules


def vae_modules(config: VAEConfig) -> Modules:
    """Latent diffusion's autoencoder -> diffusers' AutoencoderKL; its decoder counts levels the other way round."""
    modules, last = dict(VAE_FIXED_MODULES), len(config.ch_mult) - 1
    for level in range(last + 1):
        down, up = f"encoder.down.{level}", f"decoder.up.{level}"
        their_down, their_up = f"encoder.down_blocks.{level}", f"decoder.up_blocks.{last - level}"
        modules |= _vae_blocks(f"{down}.block", their_down, config.num_res_blocks)
        modules |= _vae_blocks(f"{up}.block", their_up, config.num_res_blocks + 1)
        modules[f"{down}.downsample"] = f"{their_down}.downsamplers.0"
        modules[f"{up}.upsample"] = f"{their_up}.upsamplers.0"
    for half in ("encoder", "decoder"):
        middle = f"{half}.mid_block"
        modules |= {f"{half}.{a}": f"{half}.{b}" for a, b in VAE_MIDDLE_MODULES.items()}
        modules |= {f"{half}.mid.attn_1.{a}": f"{middle}.attentions.0.{b}" for a, b in VAE_ATTENTION_MODULES.items()}
        modules |= _vae_block(f"{half}.mid.block_1", f"{middle}.resnets.0")
        modules |= _vae_block(f"{half}.mid.block_2", f"{middle}.resnets.1")
    return modules


def _vae_blocks(source: str, target: str, number: int) -> Modules:
    blocks = [_vae_block(f"{source}.{index}", f"{target}.resnets.{index}") for index in range(number)]
    return {name: theirs for block in blocks for name, theirs in block.items()}


def _vae_block(source: str, target: str) -> Modules:
    return {f"{source}.{a}": f"{target}.{b}" for a, b in VAE_RES_BLOCK_MODULES.items()}


def text_modules(layers: int) -> Modules:
    """OpenCLIP's text tower -> transformers' CLIPTextModel of that many layers, less queries, keys and values."""
    modules = dict(TEXT_MODULES)
    for layer in range(layers):
        ours, theirs = f"transformer.resblocks.{layer}", f"encoder.layers.{layer}"
        modules |= {f"{ours}.{a}": f"{theirs}.{b}" for a, b in TEXT_BLOCK_MODULES.items()}
    return modules
