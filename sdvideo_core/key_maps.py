"""Key maps: names of the same weights in ModelScope's files and in diffusers' UNet3DConditionModel."""

from __future__ import annotations

from .config import UNetConfig

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


def diffusers_modules(config: UNetConfig) -> dict[str, str]:
    """ModelScope module path -> diffusers module path, for every module that holds or contains weights."""
    modules = dict(FIXED_MODULES)
    modules |= _res_block("middle_block.0", "mid_block", 0) | _res_block("middle_block.3", "mid_block", 1)
    for level in range(len(config.dim_mult)):
        modules |= _down_block(config, level) | _up_block(config, level)
    return modules


def diffusers_key(key: str, modules: dict[str, str]) -> str:
    """The diffusers name of a ModelScope weight; KeyError when no module of `modules` contains it."""
    path = key
    while path not in modules:
        path, dot, _ = path.rpartition(".")
        if not dot:
            raise KeyError(f"{key} is in none of the modules of this UNet")
    return modules[path] + key[len(path) :]


def _res_block(source: str, target: str, index: int) -> dict[str, str]:
    names = {f"{source}.{a}": f"{target}.resnets.{index}.{b}" for a, b in RES_BLOCK_MODULES.items()}
    return names | {f"{source}.temopral_conv": f"{target}.temp_convs.{index}"}


def _transformers(source: str, target: str, index: int) -> dict[str, str]:
    return {
        f"{source}.1": f"{target}.attentions.{index}",
        f"{source}.2": f"{target}.temp_attentions.{index}",
    }


def _down_block(config: UNetConfig, level: int) -> dict[str, str]:
    target, first = f"down_blocks.{level}", 1 + level * (config.res_blocks + 1)
    modules: dict[str, str] = {}
    for index in range(config.res_blocks):
        source = f"input_blocks.{first + index}"
        modules |= _res_block(f"{source}.0", target, index)
        if 0.5**level in config.attn_scales:
            modules |= _transformers(source, target, index)
    if level < len(config.dim_mult) - 1:
        modules[f"input_blocks.{first + config.res_blocks}.op"] = f"{target}.downsamplers.0.conv"
    return modules


def _up_block(config: UNetConfig, level: int) -> dict[str, str]:
    position = len(config.dim_mult) - 1 - level
    target, first = f"up_blocks.{position}", position * (config.res_blocks + 1)
    attention = 0.5**level in config.attn_scales
    modules: dict[str, str] = {}
    for index in range(config.res_blocks + 1):
        source = f"output_blocks.{first + index}"
        modules |= _res_block(f"{source}.0", target, index)
        if attention:
            modules |= _transformers(source, target, index)
    if level > 0:
        sampler = f"output_blocks.{first + config.res_blocks}.{3 if attention else 1}.conv"
        modules[sampler] = f"{target}.upsamplers.0.conv"
    return modules
