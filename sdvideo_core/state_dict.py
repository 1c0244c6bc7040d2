"""State dict: named tensors in a file, read where they lie and written one by one; no pickle ever runs code."""

from __future__ import annotations

import json
import re
import struct
import threading
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor
from torch.torch_version import TorchVersion

from .configuration import CheckpointError

StateDict = dict[str, Tensor]

# Objects that Lightning pickles beside the weights of VQGAN_autoencoder.pth; they are replaced by empty shells.
INERT_GLOBALS = (
    ("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
)

WEIGHT_SUFFIXES = (".safetensors", ".sft", ".pth", ".pt", ".bin", ".ckpt")  # of files; what they hold decides
WRAPPINGS = 3  # dicts around the weights, such as {"state_dict": {"model": ...}}, that are unwrapped

SAFE_TORCH = "2.6"  # before it, `weights_only=True` could be made to run code: CVE-2025-32434
ZIP_OF_TORCH = b"/data.pkl"  # the first file in the archives that torch saves

# What a file that is no weights begins with, as its format has it, and what it is.
SIGNATURES = (
    (rb"(\xef\xbb\xbf)?\s*<", "a web page"),
    (rb"version https://git-lfs", "a Git LFS pointer"),
    (rb"GIF8", "a GIF picture"),
    (rb"\x89PNG", "a PNG picture"),
    (rb"\xff\xd8\xff", "a JPEG picture"),
    (rb"RIFF....WEBP", "a WebP picture"),
    (rb"RIFF....AVI ", "an AVI video"),
    (rb"....ftyp", "an MP4 or MOV video"),
    (rb"\x1aE\xdf\xa3", "a WebM or MKV video"),
    (rb"PK(?!.*%b).{60}|Rar!|7z\xbc\xaf|\x1f\x8b" % ZIP_OF_TORCH, "an archive"),
)
GIVE_WEIGHTS = "give a .safetensors, .pth, .bin or .ckpt file in its place"
REMEDIES = {
    "a web page": "download the raw file instead of its page",
    "a Git LFS pointer": "run `git lfs pull`, or download the file itself",
    "an archive": "unpack it, and give the file of weights in it",
}

TEXT = re.compile(rb"[\t\n\r\x20-\xff]+")
NO_METADATA: Mapping[str, str] = {}

# The names that a .safetensors header has for what weights are stored in.
SAFETENSORS_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


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
    """The tensors of safetensors or a torch pickle, memory-mapped; its first bytes tell which it is, not its name.

    Out of a `state_dict` or another dict around them (`model`, `module`, `ema`, ...). Raises CheckpointError, which
    says what the file is, where it holds no named tensors, several sets of them, or cannot be read.
    """
    path = Path(path)
    with path.open("rb") as file:
        start = file.read(256)
    try:
        content = _read_safetensors(path) if is_safetensors(path) else _read_pickle(path)
    except CheckpointError:
        raise
    except Exception as error:  # on broken bytes an unpickler raises nearly anything
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            raise
        raise CheckpointError(f"{path} {_why_unreadable(path, start, str(error))}") from error
    tensors = _unwrapped(content, path)
    if not tensors:
        what = "a list, such as a LoRA in cloneofsimo's format" if isinstance(content, list) else "no named tensors"
        raise CheckpointError(f"{path} holds {what}; expected a checkpoint of named weights")
    return tensors


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as the safetensors format does: with the length of a header, and a header of JSON."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _unwrapped(content: Any, path: Path, wrappings: int = WRAPPINGS) -> StateDict:
    """The named tensors in what was unpickled: its own, or those of the one dict in it that holds more of them."""
    if not isinstance(content, dict) or wrappings < 0:
        return {}
    if isinstance(content.get("state_dict"), dict):
        return _unwrapped(content["state_dict"], path, wrappings - 1)
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    dicts = {key: _unwrapped(value, path, wrappings - 1) for key, value in content.items() if isinstance(key, str)}
    most = max(map(len, dicts.values()), default=0)
    if most <= len(tensors):
        return tensors
    sets = [key for key, found in dicts.items() if 10 * len(found) >= most]  # a few tensors are random states and such
    if len(sets) > 1:
        raise CheckpointError(
            f"{path} holds {len(sets)} sets of weights ({', '.join(sets)}); expected one. "
            "Save the one you want in a file of its own"
        )
    return dicts[sets[0]]


def read_files(files: Iterable[Path], device: torch.device | str | None = None) -> StateDict:
    """The tensors of a file or of all the shards of one; on the device `meta`, shapes and precisions only."""
    tensors = {key: value for file in files for key, value in read_state_dict(file).items()}
    shapes_only = device is not None and torch.device(device).type == "meta"
    return {key: value.to("meta") for key, value in tensors.items()} if shapes_only else tensors


def _why_unreadable(path: Path, start: bytes, error: str) -> str:
    if forbidden := re.search(r"GLOBAL (\S+)", error):
        return (
            f"holds more than weights ({forbidden[1]}) and was not opened, as a pickle can run code. "
            "Get the weights as .safetensors, or convert the file where you trust it."
        )
    if what := next((what for signature, what in SIGNATURES if re.match(signature, start, re.DOTALL)), None):
        return f"is {what}, not weights; {REMEDIES.get(what, GIVE_WEIGHTS)}"
    if path.suffix.lower() not in WEIGHT_SUFFIXES and TEXT.fullmatch(start):
        return f"is no file of weights; {GIVE_WEIGHTS}"
    size = path.stat().st_size
    return f"cannot be read ({size} bytes): it is damaged, cut short or no file of weights. Download it again."


def _read_safetensors(path: Path) -> StateDict:
    with safetensors.safe_open(path, framework="pt") as file:  # pyright: ignore[reportPrivateImportUsage]
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def check_pickle(path: Path) -> None:
    """Raises CheckpointError where this torch cannot read a pickle without the risk that it runs code."""
    if TorchVersion(torch.__version__) < SAFE_TORCH:
        raise CheckpointError(
            f"{path} is no .safetensors file and was not opened, as torch {torch.__version__} lets a pickle run code "
            f"(CVE-2025-32434); expected torch {SAFE_TORCH} or newer, or the .safetensors that `sdvideo convert` makes "
            "of it there"
        )


def _read_pickle(path: Path) -> Any:
    check_pickle(path)
    with _inert_globals():
        if path.suffix == ".safetensors":  # newer torch goes by that name, and would read it as safetensors
            with path.open("rb") as file:
                return torch.load(file, map_location="cpu", weights_only=True)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def write_safetensors(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] = NO_METADATA,
) -> None:
    """Writes a .safetensors file, holding one tensor in memory at a time beside those given.

    dtype: what floating-point weights are converted to; None leaves each as it is. metadata: texts of the header. The
    format is that of https://github.com/huggingface/safetensors#format: length of the header, header in JSON, bytes of
    the tensors.
    Raises CheckpointError for a precision that the format has no name for.
    """
    stored = {key: dtype if dtype and value.is_floating_point() else value.dtype for key, value in tensors.items()}
    if unknown := next((key for key in stored if stored[key] not in SAFETENSORS_DTYPES), None):
        raise CheckpointError(
            f"{unknown} is stored as {stored[unknown]}, which .safetensors files cannot hold; "
            "convert it to another precision, such as float32"
        )
    keys = sorted(tensors, key=lambda key: -stored[key].itemsize)  # the widest first, so that all are aligned
    header: dict[str, Any] = {"__metadata__": {**metadata, "format": "pt"}}
    end = 0
    for key in keys:
        begin, end = end, end + tensors[key].numel() * stored[key].itemsize
        shape = list(tensors[key].shape)
        header[key] = {"dtype": SAFETENSORS_DTYPES[stored[key]], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with Path(path).open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for key in keys:
            values = convert_tensor(tensors[key], stored[key], key)
            file.write(values.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def convert_tensor(tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """The tensor in another precision; CheckpointError, with its name, where that cannot hold its values."""
    if dtype is tensor.dtype:
        return tensor
    largest = torch.finfo(dtype).max
    if largest < min(torch.finfo(torch.bfloat16).max, torch.finfo(tensor.dtype).max):
        sizes = (tensor.float() if tensor.itemsize == 1 else tensor).abs()
        if ((sizes > largest) & sizes.isfinite()).any():  # conversion may make such values infinite, or the largest
            kind = str(dtype).removeprefix("torch.")
            raise CheckpointError(
                f"{name} has values that {kind} cannot hold (above {largest:g}); use bfloat16 or float32"
            )
    return tensor.to(dtype)
