"""Checkpoints: a ModelScope directory's files in, modules out.

Weights are memory-mapped and become the modules' parameters without a copy, unless another dtype or device is asked
for; then they are converted tensor by tensor. Pickles are only read by torch's weights-only unpickler.
"""

from __future__ import annotations

import re
import threading
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import safetensors
import torch
from torch import Tensor, nn

from .config import TextConfig, UNetConfig, VAEConfig
from .configuration import CheckpointError, read_config
from .unet import UNetSD
from .vae import AutoencoderKL

if TYPE_CHECKING:
    from .text_encoder import TextEncoder

StateDict = dict[str, Tensor]
Module = TypeVar("Module", bound=nn.Module)

# What a file is, by a part of its keys; the first match counts.
SIGNATURES = (
    ("lora", "a LoRA"),
    ("motion_modules.", "an AnimateDiff motion module"),
    ("temporal_transformer.", "an AnimateDiff motion module"),
    ("input_blocks.0.1.proj_in.", "a ModelScope UNet"),
    ("transformer_in.", "a UNet in diffusers' format"),
    ("model.diffusion_model.input_blocks.", "a Stable Diffusion checkpoint (an image model)"),
    ("down_blocks.0.", "an image UNet or VAE in diffusers' format"),
    ("first_stage_model.decoder.", "a checkpoint with an autoencoder"),
    ("decoder.up.0.", "an autoencoder"),
    ("resblocks.", "an OpenCLIP model"),
    ("text_model.encoder.", "a CLIP text model in transformers' format"),
    ("input_blocks.", "an image UNet"),
)

UNET_PREFIXES = ("model.diffusion_model.", "module.", "")
VAE_PREFIXES = ("first_stage_model.", "")

# Every block of an OpenCLIP text tower holds these.
TEXT_BLOCK_KEYS = [
    *(f"{norm}.{kind}" for norm in ("ln_1", "ln_2") for kind in ("weight", "bias")),
    *("attn.in_proj_weight", "attn.in_proj_bias", "attn.out_proj.weight", "attn.out_proj.bias"),
    *(f"mlp.{layer}.{kind}" for layer in ("c_fc", "c_proj") for kind in ("weight", "bias")),
]

# Objects that Lightning pickles beside the weights of VQGAN_autoencoder.pth; they are replaced by empty shells.
INERT_GLOBALS = (
    ("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
)


class _Inert:
    def __init__(self, *_: Any): ...

    def __setstate__(self, _state: Any) -> None: ...


_INERT_TYPES: list[Any] = [type(name, (_Inert,), {"__module__": module}) for module, name in INERT_GLOBALS]


_READING = threading.Lock()  # torch keeps one list of allowed names for the whole process


@contextmanager
def _inert_globals() -> Iterator[None]:
    with _READING:
        before = torch.serialization.get_safe_globals()
        torch.serialization.clear_safe_globals()  # or the real class of a name could be taken instead of its shell
        torch.serialization.add_safe_globals(_INERT_TYPES)
        try:
            yield
        finally:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals(before)


def read_state_dict(path: str | Path) -> StateDict:
    """The tensors of a .safetensors file or a torch pickle, memory-mapped, out of a `state_dict` wrapper if any."""
    path = Path(path)
    with path.open("rb") as file:
        start = file.read(64)
    try:
        content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    except Exception as error:  # on broken bytes an unpickler raises nearly anything
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            raise
        raise CheckpointError(f"{path} {_why_unreadable(path, start, str(error))}") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    tensors = {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, dict) else {}
    if not tensors:
        what = "a list, such as a LoRA in cloneofsimo's format" if isinstance(content, list) else "no named tensors"
        raise CheckpointError(f"{path} holds {what}; expected a checkpoint of named weights")
    return tensors


def _why_unreadable(path: Path, start: bytes, error: str) -> str:
    if forbidden := re.search(r"GLOBAL (\S+)", error):
        return (
            f"holds more than weights ({forbidden[1]}) and was not opened, as a pickle can run code. "
            "Get the weights as .safetensors, or convert the file where you trust it."
        )
    if start.lstrip().startswith(b"<"):
        return "is a web page, not weights; download the raw file instead of its page"
    if start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the weights themselves; run `git lfs pull`, or download the file itself"
    size = path.stat().st_size
    return f"cannot be read ({size} bytes): it is damaged, cut short or no file of weights. Download it again."


def _read_safetensors(path: Path) -> StateDict:
    with safetensors.safe_open(path, framework="pt") as file:  # pyright: ignore[reportPrivateImportUsage]
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def _read_pickle(path: Path) -> Any:
    with _inert_globals():
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def what_is(keys: Iterable[str]) -> str:
    """A file's kind in words, from the names of its tensors."""
    keys = list(keys)
    for part, kind in SIGNATURES:
        if any(part in key for key in keys):
            return kind
    return f"unknown (its first tensor is {keys[0]})" if keys else "empty"


def find_weights(directory: str | Path, name: str) -> Path:
    """The file of weights that a configuration names, or its .safetensors twin; the twin wins."""
    named = Path(directory) / name
    for path in (named.with_suffix(".safetensors"), named):
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"{named.name} is missing; looked for {named} and its .safetensors twin. Put the file there."
    )


def _without_prefix(state_dict: StateDict, prefixes: tuple[str, ...]) -> StateDict:
    """The keys below the first prefix that any key has, without it."""
    prefix = next(p for p in prefixes if any(key.startswith(p) for key in state_dict))
    return {key[len(prefix) :]: value for key, value in state_dict.items() if key.startswith(prefix)}


def unet_weights(path: Path) -> StateDict:
    """A ModelScope UNet's tensors by UNetSD's names."""
    return _expect(read_state_dict(path), "input_blocks.0.1.proj_in.weight", UNET_PREFIXES, path, "UNet")


def vae_weights(path: Path) -> StateDict:
    """An autoencoder's tensors by AutoencoderKL's names, also out of a whole Stable Diffusion checkpoint."""
    weights = _expect(read_state_dict(path), "decoder.conv_in.weight", VAE_PREFIXES, path, "autoencoder")
    parts = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
    weights = {key: value for key, value in weights.items() if key.startswith(parts)}
    levels = _count(weights, "encoder.down.") or 1
    widths = [f"encoder.down.{i}.block.0.conv2.weight" for i in range(levels)]
    _require(weights, ["encoder.conv_in.weight", *widths], path)
    if levels != 4:
        raise CheckpointError(
            f"{path} is an autoencoder that shrinks frames by {2 ** (levels - 1)}; expected 8, as ModelScope's"
        )
    return weights


def text_weights(path: Path) -> StateDict:
    """An OpenCLIP text tower's tensors, the image tower left out."""
    state_dict = read_state_dict(path)
    embedding = next((key for key in state_dict if key.endswith("token_embedding.weight")), "")
    prefix = embedding.removesuffix("token_embedding.weight")
    weights = _expect(state_dict, "transformer.resblocks.0.ln_1.weight", (prefix,), path, "OpenCLIP text tower")
    layers = range(_count(weights, "transformer.resblocks."))
    blocks = [f"transformer.resblocks.{layer}.{key}" for layer in layers for key in TEXT_BLOCK_KEYS]
    _require(weights, ["token_embedding.weight", "positional_embedding"], path)
    _refuse(path, [f"{key} is missing" for key in (*blocks, "ln_final.weight", "ln_final.bias") if key not in weights])
    parts = ("transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection")
    return {key: value for key, value in weights.items() if key.startswith(parts)}


def _expect(state_dict: StateDict, key: str, prefixes: tuple[str, ...], path: Path, kind: str) -> StateDict:
    weights = _without_prefix(state_dict, prefixes)
    if key not in weights:
        raise CheckpointError(f"{path} is {what_is(state_dict)}; expected a ModelScope {kind}")
    return weights


def _require(weights: StateDict, keys: list[str], path: Path) -> None:
    missing = [key for key in keys if key not in weights]
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}; download it again")


def vae_config(weights: StateDict) -> VAEConfig:
    """The shape of an autoencoder, read off its tensors."""
    ch = weights["encoder.conv_in.weight"].shape[0]
    widths = [weights[f"encoder.down.{i}.block.0.conv2.weight"].shape[0] for i in range(4)]
    return VAEConfig(
        ch=ch,
        ch_mult=tuple(width // ch for width in widths),
        num_res_blocks=_count(weights, "encoder.down.0.block."),
        z_channels=weights["decoder.conv_in.weight"].shape[1],
    )


def text_config(weights: StateDict) -> TextConfig:
    """The shape of a text tower, read off its tensors; heads are 64 wide as in every OpenCLIP model."""
    vocab_size, width = weights["token_embedding.weight"].shape
    return TextConfig(
        width=width,
        layers=_count(weights, "transformer.resblocks."),
        heads=max(1, width // 64),
        context_length=weights["positional_embedding"].shape[0],
        vocab_size=vocab_size,
    )


def _count(weights: StateDict, prefix: str) -> int:
    """How many numbered modules there are below a prefix."""
    return len({key[len(prefix) :].split(".")[0] for key in weights if key.startswith(prefix)})


def check_weights(module: nn.Module, weights: StateDict, source: Path) -> None:
    """Raises CheckpointError, naming every key, unless the weights are exactly the module's."""
    expected = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in weights.items()}
    wrong = [
        f"{key} has shape {found[key]}, expected {shape}"
        for key, shape in expected.items()
        if key in found and found[key] != shape and not (len(shape) == 3 and found[key] == shape[:-1])
    ]
    problems = [
        *(f"{key} is missing" for key in expected if key not in found),
        *(f"{key} is not part of the model" for key in found if key not in expected),
        *wrong,
    ]
    _refuse(source, problems)


def _refuse(source: Path, problems: list[str]) -> None:
    if problems:
        raise CheckpointError(f"{source} does not fit its model ({len(problems)} keys): {'; '.join(problems)}")


def assemble(
    make: Callable[[], Module],
    weights: StateDict,
    dtype: torch.dtype,
    device: torch.device | str,
    source: Path,
) -> Module:
    """A module around the given tensors: built without memory, checked, then handed its weights."""
    with torch.device("meta"):
        module = make()
    check_weights(module, weights, source)
    module.load_state_dict({k: v.to(device, dtype) for k, v in weights.items()}, assign=True)
    if torch.device(device).type == "cuda":
        use_channels_last(module)
    return module.eval()


def use_channels_last(module: nn.Module) -> None:
    """Lays convolution weights out as the activations are, so that GPU kernels need not convert them at every call."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in module.parameters():
        if parameter.ndim in formats:
            parameter.data = parameter.data.contiguous(memory_format=formats[parameter.ndim])


def check_parts(unet: UNetConfig, vae: VAEConfig, text: TextConfig, directory: str | Path) -> None:
    """Raises CheckpointError unless the three networks of a directory fit each other."""
    if text.width != unet.context_dim:
        raise CheckpointError(
            f"{directory}: the text encoder gives {text.width} numbers a token, the UNet takes {unet.context_dim}; "
            "the text encoder belongs to another model"
        )
    if vae.z_channels != unet.in_dim:
        raise CheckpointError(
            f"{directory}: the autoencoder has {vae.z_channels} latent channels, the UNet takes {unet.in_dim}; "
            "the autoencoder belongs to another model"
        )


def load_unet(path: str | Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> UNetSD:
    """The UNet of a ModelScope directory."""
    config = read_config(path)
    file = find_weights(path, config.unet_file)
    return assemble(lambda: UNetSD(config.unet), unet_weights(file), dtype, device, file)


def load_vae(path: str | Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> AutoencoderKL:
    """The autoencoder of a ModelScope directory."""
    file = find_weights(path, read_config(path).vae_file)
    weights = vae_weights(file)
    return assemble(lambda: AutoencoderKL(vae_config(weights)), weights, dtype, device, file)


def load_text_encoder(
    path: str | Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> TextEncoder:
    """The text encoder of a ModelScope directory."""
    from .text_encoder import TextEncoder  # open_clip takes seconds to import, and ComfyUI never needs it

    file = find_weights(path, read_config(path).text_file)
    weights = text_weights(file)
    config = text_config(weights)
    unused = (f"transformer.resblocks.{config.layers - 1}.", "text_projection")  # after the penultimate block
    weights = {key: value for key, value in weights.items() if not key.startswith(unused)}
    return assemble(lambda: TextEncoder(config), weights, dtype, device, file)
