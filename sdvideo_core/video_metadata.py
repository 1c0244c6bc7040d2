"""Video metadata: what a saved clip says of how it was made, read back out of GIF, WebP, PNG and MP4 files."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import av
from PIL import Image

from .sequence import VIDEO_EXTENSIONS, StrPath, naming, sequence_files

SETTINGS = "sdvideo"  # under which the command line writes its options; ComfyUI has "prompt" and "workflow"


def read_metadata(path: StrPath) -> dict[str, Any]:
    """What `save_video` and ComfyUI wrote beside the frames, by name; of a folder of pictures, what the first one has.

    Texts, numbers and what is no JSON are of others, and left out. Raises FileNotFoundError where there is nothing, and
    OSError for a file that cannot be read.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"{path} does not exist; give a saved clip, or a folder of pictures")
    file = sequence_files(Path(path))[0]
    if file.suffix.lower() in VIDEO_EXTENSIONS:
        with naming(file), av.open(file) as container:
            return _parsed(container.metadata.items())
    with naming(file), Image.open(file) as image:
        image.load()  # what lies behind the pixels of a PNG is read with them
        if image.format == "GIF":
            return _comment(image.info.get("comment", ""))
        texts = [(name, text) for name, text in image.info.items() if isinstance(text, str)]
        tags = (value.partition(":") for value in image.getexif().values() if isinstance(value, str))
        return _parsed([*texts, *((name, text) for name, _, text in tags)])


def _comment(comment: bytes | str) -> dict[str, Any]:
    """That of a GIF: one JSON object with all of it."""
    text = comment.decode("utf-8", "replace") if isinstance(comment, bytes) else comment
    return _parsed([("", text)]).get("", {})


def _parsed(texts: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """The texts that are JSON objects."""
    parsed = {}
    for name, text in texts:
        with suppress(ValueError, RecursionError):
            if isinstance(value := json.loads(text), dict):
                parsed[name] = value
    return parsed
