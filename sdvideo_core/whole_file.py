"""Whole files: outputs that appear when they are complete, or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Lends a temporary name beside a file's path, which becomes `path` only if all went well.

    Raises OSError, which names the path and what to do, where it cannot be written; IsADirectoryError for a folder.
    """
    path = Path(path).absolute()
    if path.is_dir():
        raise IsADirectoryError(f"cannot write {path}: it is a folder; give the name of a file")
    with whole_folder(path) as temporary:
        yield temporary


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """The same for a folder that is not there yet, made under the temporary name."""
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OSError(
            f"cannot write {path}: {reason}; choose another place or check its permissions and free space"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        with suppress(OSError):
            temporary.unlink()
