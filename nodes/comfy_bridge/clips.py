"""Clips: saved animations as videos, which the browser asks for at /sdvideo/clip where it cannot take them apart."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from aiohttp import web

from ...sdvideo_core.video_io import convert_to_mp4
from .browser import add_route
from .folders import stamp, stored_file, temporary_folder


def register_clip_route() -> None:
    add_route("/sdvideo/clip", _find, _answer)


def _find(query: Mapping[str, str]) -> Path:
    """?filename=NAME&subfolder=FOLDER&type=output, as in ComfyUI's /view."""
    return stored_file(*(query.get(key, "") for key in ("filename", "subfolder", "type")))


def _answer(path: Path) -> web.StreamResponse:
    return web.FileResponse(_as_mp4(path), headers={"Cache-Control": "no-cache"})


def _as_mp4(path: Path) -> Path:
    """Made once for each state of the file."""
    key = hashlib.sha256(f"{path} {stamp(path)}".encode()).hexdigest()[:32]
    video = temporary_folder() / "sdvideo_clips" / f"{key}.mp4"
    if not video.exists():
        convert_to_mp4(path, video)
    return video
