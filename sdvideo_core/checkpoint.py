"""Checkpoint: a model of any known layout in, modules out.

Weights are memory-mapped and become the modules' parameters without a copy, unless another dtype or device is asked
for; then they are converted tensor by tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import nn

from .config import TextConfig, UNetConfig, VAEConfig
from .configuration import CheckpointError, read_config, refuse
from .layouts import DIFFUSERS, Layout, Part, find_layout, what_is
from .part_config import check_schedule, fits, stored_head_width
from .state_dict import StateDict, read_files, read_state_dict
from .unet import UNetSD
from .vae import LATENT_SCALE, AutoencoderKL
from .weights import (
    PUBLISHED_HEAD_DIM,
    text_config,
    text_shapes,
    text_weights,
    unet_config,
    unet_weights,
    vae_config,
    vae_weights,
)

if TYPE_CHECKING:
    from .text_encoder import TextEncoder

__all__ = [
    "LOADERS",
    "CheckpointError",
    "Network",
    "StateDict",
    "assemble",
    "check_network",
    "check_parts",
    "check_weights",
    "load_text_encoder",
    "load_unet",
    "load_vae",
    "read_config",
    "read_network",
    "read_state_dict",
    "use_channels_last",
    "what_is",
]

# Whose autoencoder scales latents by how much, as `scaling_factor` in diffusers' config.json says it.
SCALES = {0.13025: "Stable Diffusion XL", 1.5305: "Stable Diffusion 3", 0.3611: "Flux"}

Module = TypeVar("Module", bound=nn.Module)
Device = torch.device | str
Progress = Callable[[int, int], None]  # (bytes done, bytes in all)


class Network(NamedTuple):
    """A network as its file holds it, before it is built."""

    config: Any  # UNetConfig, VAEConfig or TextConfig
    weights: StateDict  # by the names of ModelScope's files
    source: Path


def read_network(
    path: str | Path | Layout, name: str, device: Device | None = None, dtype: torch.dtype | None = None
) -> Network:
    """A network, `unet`, `vae` or `text encoder`, of a model folder or a file of any known layout.

    device: `meta` reads shapes and precisions only. dtype: what the weights will be converted to, if known; for float16
    the float16 variant of a folder of diffusers is read. Raises FileNotFoundError or CheckpointError, which say what
    is missing or what a file is in place of what is expected.
    """
    layout = path if isinstance(path, Layout) else find_layout(path)
    part = layout.part(name)
    files = part.files_for(dtype)
    return READERS[name](layout, part, read_files(files, device), files[0])


def _read_unet(layout: Layout, part: Part, tensors: StateDict, source: Path) -> Network:
    weights = unet_weights(tensors, source)
    if layout.config:
        return Network(layout.config.unet, weights, source)
    check_schedule(part.schedule, layout.path)
    beside = _config_of(layout, part, unet_config(weights, source, PUBLISHED_HEAD_DIM))
    head_dim = stored_head_width(source) or beside.get("attention_head_dim")
    if not isinstance(head_dim, int | None):
        raise CheckpointError(f"{source} has attention_head_dim {head_dim!r} in its config.json; expected a number")
    return Network(unet_config(weights, source, head_dim), weights, source)


def _config_of(layout: Layout, part: Part, network: UNetConfig | VAEConfig | TextConfig) -> Mapping[str, Any]:
    """What the JSON beside weights says of them; nothing where it is of a network of another size."""
    return part.config if layout.name == DIFFUSERS or fits(part.config, network) else {}


def _read_vae(layout: Layout, part: Part, tensors: StateDict, source: Path) -> Network:
    weights = vae_weights(tensors, source)
    network = vae_config(weights, source)
    scale = _config_of(layout, part, network).get("scaling_factor", LATENT_SCALE)
    if scale != LATENT_SCALE:
        raise CheckpointError(
            f"{source} is the autoencoder of {SCALES.get(scale, 'another model')}, which scales latents by {scale}; "
            f"expected {LATENT_SCALE}, an autoencoder of Stable Diffusion 1 or 2"
        )
    return Network(network, weights, source)


def _read_text_encoder(layout: Layout, part: Part, tensors: StateDict, source: Path) -> Network:
    weights = text_weights(tensors, source)
    network = text_config(weights, source)
    activation = _config_of(layout, part, network).get("hidden_act", "gelu")
    if activation != "gelu":
        raise CheckpointError(f"{source} has {activation} activations; expected gelu, as in OpenCLIP's text towers")
    return Network(network, weights, source)


READERS = {"unet": _read_unet, "vae": _read_vae, "text encoder": _read_text_encoder}


def check_weights(module: nn.Module, weights: StateDict, source: Path) -> None:
    """Raises CheckpointError, naming every key, unless the weights are exactly the module's."""
    _check_shapes({key: tuple(value.shape) for key, value in module.state_dict().items()}, weights, source)


def check_network(name: str, network: Network) -> None:
    """The same for a network, `unet`, `vae` or `text encoder`, before it is built, and without open_clip."""
    config, weights, source = network
    if name == "text encoder":
        _check_shapes(text_shapes(config), _that_run(config, weights), source)
    else:
        with torch.device("meta"):
            module = UNetSD(config) if name == "unet" else AutoencoderKL(config)
        check_weights(module, weights, source)


def _that_run(config: TextConfig, weights: StateDict) -> StateDict:
    """A text tower's weights up to its penultimate block."""
    unused = (f"transformer.resblocks.{config.layers - 1}.", "text_projection")
    return {key: value for key, value in weights.items() if not key.startswith(unused)}


def _check_shapes(expected: Mapping[str, tuple[int, ...]], weights: StateDict, source: Path) -> None:
    found = {key: tuple(value.shape) for key, value in weights.items()}
    wrong = [
        f"{key} has shape {found[key]}, expected {shape}"
        for key, shape in expected.items()
        if key in found and found[key] != shape
    ]
    quantized = [key for key, value in weights.items() if key in expected and not value.is_floating_point()]
    problems = [
        *(f"{key} is missing" for key in expected if key not in found),
        *(f"{key} is not part of the model" for key in found if key not in expected),
        *wrong,
        *(f"{key} is stored as {weights[key].dtype}, expected floating-point numbers" for key in quantized),
    ]
    refuse(source, problems)


def assemble(
    make: Callable[[], Module],
    weights: StateDict,
    dtype: torch.dtype,
    device: Device,
    source: Path,
    progress: Progress | None = None,
) -> Module:
    """A module around the given tensors: built without memory, checked, then handed its weights."""
    with torch.device("meta"):
        module = make()
    check_weights(module, weights, source)
    done, total, moved = 0, sum(weight.nbytes for weight in weights.values()), {}
    is_gpu = torch.device(device).type == "cuda"
    for key, weight in weights.items():
        moved[key] = weight.to(device, dtype)
        if is_gpu:  # one by one, so that no more than one lies there twice
            moved[key] = _channels_last(moved[key])
        done += weight.nbytes
        if progress:
            progress(done, total)
    module.load_state_dict(moved, assign=True)
    return module.eval()


def use_channels_last(module: nn.Module) -> None:
    """Lays convolution weights out as the activations are, so that GPU kernels need not convert them at every call."""
    for parameter in module.parameters():
        parameter.data = _channels_last(parameter.data)


def _channels_last(weight: torch.Tensor) -> torch.Tensor:
    layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(weight.ndim)
    return weight.contiguous(memory_format=layout) if layout else weight


def check_parts(unet: UNetConfig, vae: VAEConfig | None, text: TextConfig | None, directory: str | Path) -> None:
    """Raises CheckpointError unless the networks of a model fit each other; one that is not there fits."""
    if text and text.width != unet.context_dim:
        raise CheckpointError(
            f"{directory}: the text encoder gives {text.width} numbers a token, the UNet takes {unet.context_dim}; "
            "the text encoder belongs to another model"
        )
    if vae and vae.z_channels != unet.in_dim:
        raise CheckpointError(
            f"{directory}: the autoencoder has {vae.z_channels} latent channels, the UNet takes {unet.in_dim}; "
            "the autoencoder belongs to another model"
        )


def load_unet(
    path: str | Path | Layout,
    dtype: torch.dtype = torch.float32,
    device: Device = "cpu",
    progress: Progress | None = None,
) -> UNetSD:
    """The UNet of a model folder or a file."""
    config, weights, source = read_network(path, "unet", device, dtype)
    return assemble(lambda: UNetSD(config), weights, dtype, device, source, progress)


def load_vae(
    path: str | Path | Layout,
    dtype: torch.dtype = torch.float32,
    device: Device = "cpu",
    progress: Progress | None = None,
) -> AutoencoderKL:
    """The autoencoder of a model folder or a file, which may be a whole Stable Diffusion 1 or 2 checkpoint."""
    config, weights, source = read_network(path, "vae", device, dtype)
    return assemble(lambda: AutoencoderKL(config), weights, dtype, device, source, progress)


def load_text_encoder(
    path: str | Path | Layout,
    dtype: torch.dtype = torch.float32,
    device: Device = "cpu",
    progress: Progress | None = None,
) -> TextEncoder:
    """The text encoder of a model folder or a file, which may be a whole OpenCLIP model."""
    from .text_encoder import TextEncoder  # open_clip takes seconds to import, and ComfyUI never needs it

    config, weights, source = read_network(path, "text encoder", device, dtype)
    return assemble(lambda: TextEncoder(config), _that_run(config, weights), dtype, device, source, progress)


LOADERS = {"unet": load_unet, "vae": load_vae, "text encoder": load_text_encoder}
