"""Clips: saved animations as videos, which the browser asks for at /sdvideo/clip where it cannot take them apart."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

from aiohttp import web
from server import PromptServer

from ...sdvideo_core.video_io import convert_to_mp4
from .folders import stamp, stored_file, temporary_folder

ONE_AT_A_TIME = asyncio.Lock()


def register_clip_route() -> None:
    """Adds the route to the running server; there is none where ComfyUI is a library."""
    if server := getattr(PromptServer, "instance", None):
        server.routes.get("/sdvideo/clip")(_get_clip)


async def _get_clip(request: web.Request) -> web.StreamResponse:
    """?filename=NAME&subfolder=FOLDER&type=output, as in ComfyUI's /view: that GIF or WebP as an MP4."""
    name, subfolder, kind = (request.query.get(key, "") for key in ("filename", "subfolder", "type"))
    try:
        path = stored_file(name, subfolder, kind)
    except (OSError, ValueError) as error:
        return web.Response(status=404, text=str(error))
    try:
        async with ONE_AT_A_TIME:
            return web.FileResponse(await asyncio.to_thread(_as_mp4, path), headers={"Cache-Control": "no-cache"})
    except (OSError, ValueError) as error:
        return web.Response(status=404, text=str(error).replace(str(path), name))


def _as_mp4(path: Path) -> Path:
    """Made once for each state of the file."""
    key = hashlib.sha256(f"{path} {stamp(path)}".encode()).hexdigest()[:32]
    video = temporary_folder() / "sdvideo_clips" / f"{key}.mp4"
    if not video.exists():
        convert_to_mp4(path, video)
    return video
