"""Video metadata: what a saved clip says of how it was made, read back out of GIF, WebP, PNG and MP4 files."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import av
from PIL import Image

from .sequence import VIDEO_EXTENSIONS, StrPath, sequence_files

SETTINGS = "sdvideo"  # under which the command line writes its options; ComfyUI has "prompt" and "workflow"
OF_THE_CONTAINER = ("major_brand", "minor_version", "compatible_brands", "encoder")  # what FFmpeg has in MP4's


def read_metadata(path: StrPath) -> dict[str, Any]:
    """What `save_video` and ComfyUI wrote beside the frames, by name; of a folder of pictures, what the first one has.

    Files of others have none, or texts that are no JSON, which are left out. Raises OSError for a file that cannot be
    read.
    """
    file = sequence_files(Path(path))[0]
    if file.suffix.lower() in VIDEO_EXTENSIONS:
        with av.open(file) as container:
            return _parsed((name, text) for name, text in container.metadata.items() if name not in OF_THE_CONTAINER)
    with Image.open(file) as image:
        image.load()  # what lies behind the pixels of a PNG is read with them
        if comment := image.info.get("comment"):
            return _comment(comment)
        texts = [(name, text) for name, text in image.info.items() if isinstance(text, str)]
        tags = (value.partition(":") for value in image.getexif().values() if isinstance(value, str))
        return _parsed([*texts, *((name, text) for name, _, text in tags)])


def _comment(comment: bytes | str) -> dict[str, Any]:
    """That of a GIF: one JSON object with all of it."""
    text = comment.decode("utf-8", "replace") if isinstance(comment, bytes) else comment
    whole = _parsed([("", text)]).get("")
    return whole if isinstance(whole, dict) else {}


def _parsed(texts: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """The texts that are JSON."""
    parsed = {}
    for name, text in texts:
        try:
            parsed[name] = json.loads(text)
        except ValueError:
            continue
    return parsed
