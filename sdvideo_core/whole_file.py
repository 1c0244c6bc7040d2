"""Whole files: outputs that appear when they are complete, or not at all."""

from __future__ import annotations

import errno
import os
import shutil
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
    if path.is_dir():
        raise IsADirectoryError(f"cannot write {path}: it is a folder; give the name of a file")
    with whole_folder(path, exclusive) as temporary:
        yield temporary


@contextmanager
def whole_folder(path: Path, exclusive: bool = False) -> Iterator[Path]:
    """The same for a folder that is not there yet, made under the temporary name."""
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
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
        reason = getattr(error, "strerror", None) or error
        raise OSError(
            f"cannot write {path}: {reason}; choose another place or check its permissions and free space"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        with suppress(OSError):
            temporary.unlink()


class _Tried(Exception):
    """Ends a trial, so that nothing is kept."""


def check_place(path: str | os.PathLike[str]) -> None:
    """Raises what the two above would, before there is anything to write; makes the folders that are on the way."""
    with suppress(_Tried), whole_folder(Path(path).absolute()) as temporary:
        temporary.touch()
        raise _Tried


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
