"""Browser: what a running node tells the page that queued its graph, and what the page asks about files."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import comfy.model_management
from aiohttp import web
from server import PromptServer

from .folders import without_folders

SHORTEST_WAIT = 0.1  # seconds; a page gains nothing from more
# A report waits this many times as long as the last one took to make, so all of them stay under 3 % of the time.
WAITS = 40

Json = dict[str, Any]


def send(event: str, report: Json) -> None:
    """Sends a report about the node that runs; without a page, or where ComfyUI is a library, nothing happens."""
    server = getattr(PromptServer, "instance", None)
    if server and server.client_id is not None:
        server.send_sync(event, {**_running_node(server), **report}, server.client_id)


def _running_node(server: PromptServer) -> Json:
    """The node's id and type, and the id of its workflow: the page may show another when the report comes."""
    about: Json = {"node": server.last_node_id, "type": None, "workflow": None}
    for _, prompt_id, prompt, extra, *_ in server.prompt_queue.get_current_queue_volatile()[0]:
        if prompt_id == server.last_prompt_id:
            about["type"] = prompt.get(server.last_node_id, {}).get("class_type")
            about["workflow"] = ((extra.get("extra_pnginfo") or {}).get("workflow") or {}).get("id")
    return about


def add_route(
    url: str, find: Callable[[Mapping[str, str]], Path], answer: Callable[[Path], web.StreamResponse]
) -> None:
    """Lets the browser ask at a URL about a file: `find` takes the query, `answer` may take seconds, in a thread.

    What they raise is a 404 that says why, without the folders of the server. There is no route where ComfyUI is a
    library.
    """
    one_at_a_time = asyncio.Lock()  # long videos take seconds of all cores

    async def get(request: web.Request) -> web.StreamResponse:
        try:
            path = find(request.query)
            async with one_at_a_time:
                return await asyncio.to_thread(answer, path)
        except (OSError, ValueError) as error:
            return web.Response(status=404, text=without_folders(str(error)))

    if server := getattr(PromptServer, "instance", None):
        server.routes.get(url)(get)


class Reports:
    """Reports of one run of a node, as often as they cost next to nothing, with its speed and the time left."""

    def __init__(self, event: str) -> None:
        self.event = event
        self.started = self.due = time.monotonic()
        self.first: tuple[int, float] | None = None  # steps done and when; the first step also loads and compiles

    def step(self, done: int, total: int, details: Callable[[], Json]) -> None:
        """After each step; `details` are asked for only when a report is due, as it always is at the last step."""
        if time.monotonic() < self.due and done < total:
            return
        comfy.model_management.synchronize()  # a GPU may still compute the step, which is no cost of the report
        now = time.monotonic()
        self.first = self.first or (done, now)
        before, since = self.first if done > self.first[0] else (done - 1, self.started)
        seconds = (now - since) / (done - before)
        speed = {"step": done, "steps": total, "seconds_per_step": seconds, "seconds_left": (total - done) * seconds}
        send(self.event, speed | details())
        after = time.monotonic()
        self.due = after + max(SHORTEST_WAIT, WAITS * (after - now))
