"""Weights: a network's tensors by the names of ModelScope's files, out of any known format, and its shape."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .config import TextConfig, UNetConfig, VAEConfig
from .configuration import CheckpointError, refuse
from .diffusers_format import (
    count,
    shape_projection,
    text_from_transformers,
    unet_from_diffusers,
    vae_from_diffusers,
)
from .layouts import PARTS, parts_in, what_is
from .state_dict import StateDict

# In each format, a name that is in every file of it, and in no other.
UNET_MARK, DIFFUSERS_UNET_MARK = "input_blocks.0.1.proj_in.weight", "transformer_in.proj_in.weight"
VAE_MARK = "decoder.conv_in.weight"
TEXT_MARK, TRANSFORMERS_MARK = "transformer.resblocks.0.ln_1.weight", "embeddings.token_embedding.weight"

LDM_DOWNSAMPLE = re.compile(r"^(input_blocks\.\d+)\.0\.op\.")
VAE_PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
TEXT_PARTS = ("transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection")

LATENT_CHANNELS = 4  # of every autoencoder that shares ModelScope's latents

PUBLISHED_INNER, PUBLISHED_HEAD_DIM = 512, 64  # of the first temporal transformer of every published model

OTHER_HEADS = 1152  # the width of the text towers in OpenCLIP whose heads are 72 wide, SigLIP's and ViTamin's largest

# Every block of an OpenCLIP text tower holds these, in shapes of so many times its width.
TEXT_BLOCK = {
    **{f"{norm}.{kind}": (1,) for norm in ("ln_1", "ln_2") for kind in ("weight", "bias")},
    **{"attn.in_proj_weight": (3, 1), "attn.in_proj_bias": (3,), "attn.out_proj.weight": (1, 1)},
    **{"attn.out_proj.bias": (1,), "mlp.c_fc.weight": (4, 1), "mlp.c_fc.bias": (4,)},
    **{"mlp.c_proj.weight": (1, 4), "mlp.c_proj.bias": (1,)},
}


def below(tensors: StateDict, mark: str) -> StateDict:
    """The tensors that share the prefix of a name, such as `model.diffusion_model.`, without it; none without that."""
    prefixes = [key.removesuffix(mark) for key in tensors if key == mark or key.endswith(f".{mark}")]
    if not prefixes:
        return {}
    prefix = min(prefixes, key=len)  # OpenCLIP's image tower has the text tower's names below `visual.`
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}


def _wrong_kind(tensors: StateDict, part: str, source: Path) -> CheckpointError:
    return CheckpointError(f"{source} is {what_is(tensors)}; expected a ModelScope {PARTS[part]}")


@contextmanager
def _reading_shapes(source: Path) -> Iterator[None]:
    """Says which tensor is missing where a shape cannot be told without it."""
    try:
        yield
    except KeyError as error:
        raise CheckpointError(f"{source} lacks {error.args[0]}; download it again") from error


def unet_weights(tensors: StateDict, source: Path) -> StateDict:
    """A UNet's tensors by UNetSD's names: ModelScope's, diffusers' or latent diffusion's, below any prefix."""
    weights = below(tensors, UNET_MARK) or unet_from_diffusers(below(tensors, DIFFUSERS_UNET_MARK))
    if not weights:
        raise _wrong_kind(tensors, "unet", source)
    weights = {LDM_DOWNSAMPLE.sub(r"\1.op.", key): value for key, value in weights.items()}
    return {key: shape_projection(key, value) for key, value in weights.items()}


def unet_config(weights: StateDict, source: Path, head_dim: int | None = None) -> UNetConfig:
    """The shape of a UNet, read off its tensors; the width of its heads, `head_dim`, is not in them."""
    downs = [int(m[1]) for key in weights if (m := re.match(r"input_blocks\.(\d+)\.op\.weight", key))]
    res_blocks = (min(downs) if downs else count(weights, "input_blocks.")) - 1
    firsts = [1 + level * (res_blocks + 1) for level in range(len(downs) + 1)]
    with _reading_shapes(source):
        dim, in_dim = weights["input_blocks.0.0.weight"].shape[:2]
        inner = weights[UNET_MARK].shape[0]
        widths = [weights[f"input_blocks.{i}.0.out_layers.3.weight"].shape[0] for i in firsts]
        context_dim = weights["middle_block.1.transformer_blocks.0.attn2.to_k.weight"].shape[1]
        out_dim = weights["out.2.weight"].shape[0]
    if head_dim is None and inner != PUBLISHED_INNER:
        raise CheckpointError(
            f"{source} has not the size of the published models, and does not say how wide its attention heads are; "
            "put the configuration.json that belongs to it beside it"
        )
    head_dim = head_dim or PUBLISHED_HEAD_DIM
    return UNetConfig(
        in_dim=in_dim,
        dim=dim,
        context_dim=context_dim,
        out_dim=out_dim,
        dim_mult=tuple(width // dim for width in widths),
        num_heads=max(1, inner // head_dim),
        head_dim=head_dim,
        res_blocks=res_blocks,
        attn_scales=tuple(0.5**n for n, i in enumerate(firsts) if f"input_blocks.{i}.1.proj_in.weight" in weights),
    )


def vae_weights(tensors: StateDict, source: Path) -> StateDict:
    """An autoencoder's tensors by AutoencoderKL's names, also out of a whole Stable Diffusion checkpoint."""
    weights = below(tensors, VAE_MARK)
    if not weights or "vae" not in parts_in(tensors):
        raise _wrong_kind(tensors, "vae", source)
    if any(key.startswith("encoder.down_blocks.") for key in weights):
        weights = vae_from_diffusers(weights)
    weights = {key: value for key, value in weights.items() if key.startswith(VAE_PARTS)}
    levels = count(weights, "encoder.down.") or 1
    if levels != 4:
        raise CheckpointError(
            f"{source} is an autoencoder that shrinks frames by {2 ** (levels - 1)}; expected 8, as ModelScope's"
        )
    return weights


def vae_config(weights: StateDict, source: Path) -> VAEConfig:
    """The shape of an autoencoder, read off its tensors."""
    with _reading_shapes(source):
        ch = weights["encoder.conv_in.weight"].shape[0]
        widths = [weights[f"encoder.down.{i}.block.0.conv2.weight"].shape[0] for i in range(4)]
        z_channels = weights[VAE_MARK].shape[1]
    if z_channels != LATENT_CHANNELS:
        raise CheckpointError(
            f"{source} is an autoencoder with {z_channels} latent channels, as those of Stable Diffusion 3 and Flux; "
            f"expected {LATENT_CHANNELS}, an autoencoder of Stable Diffusion 1 or 2"
        )
    return VAEConfig(
        ch=ch,
        ch_mult=tuple(width // ch for width in widths),
        num_res_blocks=count(weights, "encoder.down.0.block."),
        z_channels=z_channels,
    )


def text_weights(tensors: StateDict, source: Path) -> StateDict:
    """A text tower's tensors by OpenCLIP's names, the image tower left out."""
    weights = below(tensors, TEXT_MARK) or text_from_transformers(below(tensors, TRANSFORMERS_MARK))
    if not weights or "text encoder" not in parts_in(tensors):
        raise _wrong_kind(tensors, "text encoder", source)
    return {key: value for key, value in weights.items() if key.startswith(TEXT_PARTS)}


def text_config(weights: StateDict, source: Path) -> TextConfig:
    """The shape of a text tower, read off its tensors; its heads are 64 wide, which no tensor tells."""
    with _reading_shapes(source):
        vocab_size, width = weights["token_embedding.weight"].shape
        context_length = weights["positional_embedding"].shape[0]
    if width == OTHER_HEADS:
        raise CheckpointError(
            f"{source} is a text tower {width} wide, as SigLIP's largest is, whose heads are not 64 wide; "
            "expected a CLIP tower, 1024 wide for the models of this family"
        )
    layers = count(weights, "transformer.resblocks.")
    blocks = [f"transformer.resblocks.{layer}.{key}" for layer in range(layers) for key in TEXT_BLOCK]
    refuse(source, [f"{key} is missing" for key in (*blocks, "ln_final.weight", "ln_final.bias") if key not in weights])
    return TextConfig(
        width=width,
        layers=layers,
        heads=max(1, width // 64),
        context_length=context_length,
        vocab_size=vocab_size,
    )


def text_shapes(config: TextConfig) -> dict[str, tuple[int, ...]]:
    """What of a text tower runs, its penultimate block and what is before it, and the shapes of that."""
    width = config.width
    blocks = {
        f"transformer.resblocks.{layer}.{key}": tuple(times * width for times in shape)
        for layer in range(config.layers - 1)
        for key, shape in TEXT_BLOCK.items()
    }
    tokens = {"token_embedding.weight": (config.vocab_size, width)}
    ends = {
        "positional_embedding": (config.context_length, width),
        "ln_final.weight": (width,),
        "ln_final.bias": (width,),
    }
    return tokens | ends | blocks


def open_clip_weights(tensors: StateDict) -> StateDict:
    """All tensors of an OpenCLIP model, the image tower too if it is there; none of one in transformers' format."""
    return below(tensors, TEXT_MARK)
