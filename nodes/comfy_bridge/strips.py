"""Strips: thumbnails of a sequence in the input folder, which the browser asks for at /sdvideo/strip."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from aiohttp import web
from PIL import Image

from ...sdvideo_core.thumbnails import make_thumbnails
from .browser import add_route
from .folders import input_path, sequence_stamp

KEPT = 16  # strips, of less than half a megabyte


def register_strip_route() -> None:
    add_route("/sdvideo/strip", _find, _answer)


def _find(query: Mapping[str, str]) -> Path:
    """?source=NAME, as Load Frame Sequence lists it."""
    return input_path(query.get("source", ""))


def _answer(path: Path) -> web.StreamResponse:
    return web.json_response(_strip(path, tuple(sequence_stamp(path)) if path.exists() else ()))


@lru_cache(maxsize=KEPT)
def _strip(path: Path, _stamp: tuple[tuple[str, int, int], ...]) -> dict[str, Any]:
    """Kept as long as the stamp is the same."""
    made = make_thumbnails(path)
    width, height = made.size
    thumbnails = [_data_url(image) for image in made.images]
    return {
        "num_frames": made.num_frames,
        "width": width,
        "height": height,
        "every": made.every,
        "thumbnails": thumbnails,
    }


def _data_url(image: Image.Image) -> str:
    with io.BytesIO() as file:
        image.save(file, "JPEG", quality=80)
        return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
