"""Checkpoints: a ModelScope directory's files in, modules out.

Weights are memory-mapped and become the modules' parameters without a copy, unless another dtype or device is asked
for; then they are converted tensor by tensor. Pickles are only read by torch's weights-only unpickler.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import safetensors
import torch
from torch import Tensor, nn

from .config import ModelConfig, TextConfig, UNetConfig, VAEConfig
from .unet import UNetSD
from .vae import AutoencoderKL

if TYPE_CHECKING:
    from .text_encoder import TextEncoder

CONFIG_NAME = "configuration.json"
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

# Objects that Lightning pickles beside the weights of VQGAN_autoencoder.pth; they are replaced by empty shells.
INERT_GLOBALS = (
    ("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
)


class CheckpointError(ValueError):
    """A file that cannot be what it is taken for; the message says what it is, or what it lacks."""


class _Inert:
    def __init__(self, *_: Any): ...

    def __setstate__(self, _state: Any) -> None: ...


_INERT_TYPES: list[Any] = [type(name, (_Inert,), {"__module__": module}) for module, name in INERT_GLOBALS]


@contextmanager
def _inert_globals() -> Iterator[None]:
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


def read_config(directory: str | Path) -> ModelConfig:
    """The configuration.json of a ModelScope directory; keys it does not know are ignored."""
    path = Path(directory) / CONFIG_NAME
    model = _read_json(path).get("model")
    if not isinstance(model, dict) or not isinstance(model.get("model_cfg"), dict):
        raise CheckpointError(f"{path} has no model.model_cfg; expected ModelScope's {CONFIG_NAME}")
    args, cfg = model.get("model_args") or {}, model["model_cfg"]
    if str(cfg.get("temporal_attention", True)).lower() != "true":
        raise CheckpointError(f"{path} says temporal_attention is false; only models with it are supported")
    defaults = ModelConfig()
    try:
        return ModelConfig(
            unet=_unet_config(cfg),
            unet_file=args.get("ckpt_unet", defaults.unet_file),
            vae_file=args.get("ckpt_autoencoder", defaults.vae_file),
            text_file=args.get("ckpt_clip", defaults.text_file),
            max_frames=int(args.get("max_frames", defaults.max_frames)),
        )
    except (AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} has a value of the wrong kind: {error}; download it again") from error


def _read_json(path: Path) -> dict[str, Any]:
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent} is not a directory; expected one with {CONFIG_NAME} and weights")
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; copy the {CONFIG_NAME} that belongs to the model there")
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


def _unet_config(cfg: dict[str, Any]) -> UNetConfig:
    d = UNetConfig()
    return UNetConfig(
        in_dim=int(cfg.get("unet_in_dim", d.in_dim)),
        dim=int(cfg.get("unet_dim", d.dim)),
        context_dim=int(cfg.get("unet_context_dim", d.context_dim)),
        out_dim=int(cfg.get("unet_out_dim", d.out_dim)),
        dim_mult=tuple(cfg.get("unet_dim_mult", d.dim_mult)),
        num_heads=int(cfg.get("unet_num_heads", d.num_heads)),
        head_dim=int(cfg.get("unet_head_dim", d.head_dim)),
        res_blocks=int(cfg.get("unet_res_blocks", d.res_blocks)),
        attn_scales=tuple(float(scale) for scale in cfg.get("unet_attn_scales", d.attn_scales)),
        dropout=float(cfg.get("unet_dropout", d.dropout)),
    )


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
    _require(weights, ["token_embedding.weight", "positional_embedding"], path)
    parts = ("transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection")
    return {key: value for key, value in weights.items() if key.startswith(parts)}


def _expect(state_dict: StateDict, key: str, prefixes: tuple[str, ...], path: Path, kind: str) -> StateDict:
    weights = _without_prefix(state_dict, prefixes)
    if key not in weights:
        raise CheckpointError(f"{path} is {what_is(state_dict)}; expected a ModelScope {kind}")
    return weights


def _require(weights: StateDict, keys: list[str], path: Path) -> None:
    """The keys that a shape is read off."""
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
