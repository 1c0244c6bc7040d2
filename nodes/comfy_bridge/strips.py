"""Strips: thumbnails of a sequence in the input folder, which the browser asks for at /sdvideo/strip."""

from __future__ import annotations

import asyncio
import base64
import io
from functools import lru_cache
from pathlib import Path
from typing import Any

from aiohttp import web
from PIL import Image
from server import PromptServer

from ...sdvideo_core.thumbnails import make_thumbnails
from .folders import input_path, sequence_stamp

ONE_AT_A_TIME = asyncio.Lock()  # long videos take seconds of all cores
KEPT = 16  # strips, of less than half a megabyte


def register_strip_route() -> None:
    """Adds the route to the running server; there is none where ComfyUI is a library."""
    if server := getattr(PromptServer, "instance", None):
        server.routes.get("/sdvideo/strip")(_get_strip)


async def _get_strip(request: web.Request) -> web.Response:
    """?source=NAME, as Load Frame Sequence lists it."""
    source = request.query.get("source", "")
    try:
        path = input_path(source)
    except ValueError as error:
        return web.Response(status=404, text=str(error))
    try:
        async with ONE_AT_A_TIME:
            return web.json_response(await asyncio.to_thread(_strip_as_it_is, path))
    except (OSError, ValueError) as error:
        return web.Response(status=404, text=str(error).replace(str(path), source))


def _strip_as_it_is(path: Path) -> dict[str, Any]:
    return _strip(path, tuple(sequence_stamp(path)) if path.exists() else ())


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
