"""Whole files: outputs that appear when they are complete, or not at all."""

from __future__ import annotations

import errno
import glob
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError


@contextmanager
def whole_file(path: str | os.PathLike[str], exclusive: bool = False) -> Iterator[Path]:
    """Lends a temporary name beside a file's path, which becomes `path` only if all went well.

    exclusive: raises FileExistsError rather than replace what is at `path` by then.
    Raises OSError, which names the path and what to do, where it cannot be written; IsADirectoryError for a folder.
    """
    path = Path(path).absolute()
    _refuse_folder(path)
    with whole_folder(path, exclusive) as temporary:
        yield temporary


@contextmanager
def whole_folder(path: Path, exclusive: bool = False) -> Iterator[Path]:
    """The same for a folder that is not there yet, made under the temporary name."""
    temporary = path.with_name(f"{_partial(path)}{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if exclusive:
            _move_to_new(temporary, path)
        else:
            temporary.replace(path)
    except (OSError, SafetensorError) as error:
        if exclusive and getattr(error, "errno", None) in (errno.EEXIST, errno.ENOTEMPTY) and path.exists():
            raise FileExistsError(f"{path} is there already; give another name, or remove it first") from error
        raise _cannot_write(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        with suppress(OSError):
            temporary.unlink()


def check_place(path: str | os.PathLike[str], is_folder: bool = False) -> None:
    """Raises what the two above would of a place that cannot be written; leaves nothing there."""
    path = Path(path).absolute()
    if not is_folder:
        _refuse_folder(path)
    try:
        with tempfile.TemporaryFile(dir=next(parent for parent in path.parents if parent.exists())):
            pass
    except OSError as error:
        raise _cannot_write(path, error) from error


def remove_partial(path: Path) -> None:
    """Removes what processes left that were killed while they wrote a file."""
    for leftover in path.parent.glob(f"{glob.escape(_partial(path))}*.tmp"):
        leftover.unlink(missing_ok=True)


def _partial(path: Path) -> str:
    """How temporary names begin; names have an end at 255 bytes."""
    return f".{path.name[:50]}."


def _refuse_folder(path: Path) -> None:
    if path.is_dir():
        raise IsADirectoryError(f"cannot write {path}: it is a folder; give the name of a file")


def _cannot_write(path: Path, error: Exception) -> OSError:
    reason = getattr(error, "strerror", None) or error
    return OSError(f"cannot write {path}: {reason}; choose another place or check its permissions and free space")


def _move_to_new(source: Path, target: Path) -> None:
    """Renames, and replaces nothing but an empty folder."""
    if not source.is_dir():
        try:
            os.link(source, target)
            return
        except FileExistsError:
            raise
        except OSError:  # a drive without hard links
            pass
    if target.exists():
        raise FileExistsError(errno.EEXIST, "it is there already", str(target))
    source.rename(target)
