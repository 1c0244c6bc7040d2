"""A real ComfyUI in a child process, and a client for its HTTP and websocket interface."""

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import websocket

from tests.comfy.workflow import api_graph

PACK = Path(__file__).parents[2]
PACK_NAME = "sdvideo"

Json = dict[str, Any]
Graph = dict[str, Json]  # node id -> {"class_type": ..., "inputs": ...}

FLAGS = (
    "--cpu",
    # Text encoders are fp16 even with --cpu; the UNet and the VAE are fp32 there without a flag of their own.
    "--fp32-text-enc",
    # The default on a CPU is sub-quadratic attention; SDPA is what most people run and what core uses.
    "--use-pytorch-cross-attention",
    # Off by default; the browser turns previews on with a setting of its own.
    "--preview-method",
    "latent2rgb",
    "--disable-api-nodes",
    "--database-url",
    "sqlite:///:memory:",
)

# More threads gain nothing on a tiny model, and where other programs run they wait for each other most of the
# time. ComfyUI brings its tokenizer, so nothing is to be downloaded.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

# Preview messages start with the event type, then a length, then JSON about the image, then the image.
PREVIEW_WITH_METADATA = 4


class ComfyError(RuntimeError):
    """ComfyUI did not start, refused a graph, or a node failed (`node_id` says which)."""

    def __init__(self, message: str, node_id: str | None = None):
        super().__init__(message)
        self.node_id = node_id


def find_comfyui() -> Path | None:
    """$COMFYUI_PATH, else the ComfyUI that this pack is installed in, else comfy-cli's default, else None."""
    if chosen := os.environ.get("COMFYUI_PATH"):
        if not (Path(chosen) / "main.py").is_file():
            raise ComfyError(f"COMFYUI_PATH is {chosen}, which has no main.py; set it to a ComfyUI checkout")
        return Path(chosen).resolve()
    installed_in = [PACK.parents[1]] if PACK.parent.name == "custom_nodes" else []
    for path in (*installed_in, Path.home() / "comfy" / "ComfyUI"):
        if (path / "main.py").is_file():
            return path
    return None


def make_base_directory(base: Path) -> Path:
    """The folders ComfyUI expects under --base-directory, with this pack as its only custom node."""
    # main.py lists custom_nodes before anything creates it, so a missing folder ends the start.
    for folder in ("custom_nodes", "core", "models/text2video", "input", "output", "user"):
        (base / folder).mkdir(parents=True)
    (base / "custom_nodes" / PACK_NAME).symlink_to(PACK, target_is_directory=True)
    # For comfy_child.py; a folder apart, so that the pack's root is never on a path beside ComfyUI's.
    (base / "core" / "sdvideo_core").symlink_to(PACK / "sdvideo_core", target_is_directory=True)
    return base


@contextlib.contextmanager
def start_comfyui(
    comfyui: Path, base: Path, *flags: str, common: tuple[str, ...] = FLAGS, patience: float = 180
) -> Iterator["ComfyServer"]:
    """ComfyUI on a free port, ready to take graphs; its whole process group is gone afterwards."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = ("--listen", "127.0.0.1", "--port", str(port), "--base-directory", str(base))
    log = base / f"comfyui-{port}.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, str(comfyui / "main.py"), *common, *address, *flags],
            cwd=base,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **ENVIRONMENT},
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = ComfyServer(port, base, log)
    try:
        server.wait_until_ready(process, patience)
        yield server
    finally:
        server.close()
        # The group, as nodes may have left helpers running; at once, as nothing here is worth saving.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class ComfyServer:
    """Queues graphs and collects what comes back. `messages` holds those of the latest graph, in order, as
    far as it was waited for: the server's JSON as it is, and previews as {"type": "preview", "data": {...,
    "image": bytes}}."""

    def __init__(self, port: int, base: Path, log: Path):
        self.url = f"http://127.0.0.1:{port}"
        self.base = base
        self.messages: list[Json] = []
        self.startup_log = ""
        self._log = log
        self._client_id = uuid.uuid4().hex
        self._prompt_id: str | None = None
        self._socket: websocket.WebSocket | None = None
        # Without a handler of its own urllib sends even 127.0.0.1 through $http_proxy.
        self._http = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def wait_until_ready(self, process: subprocess.Popen, patience: float) -> None:
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            if process.poll() is not None:
                ended = f"ComfyUI ended with code {process.returncode} while starting"
                raise ComfyError(f"{ended}\n{self.log_tail()}")
            with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
                self.get("/system_stats", timeout=5)
                self.startup_log = self.log()
                return
            time.sleep(0.2)
        raise ComfyError(f"ComfyUI was not ready after {patience} s\n{self.log_tail()}")

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def log(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def log_tail(self, lines: int = 40) -> str:
        return "\n".join(["last lines of ComfyUI's log:", *self.log().splitlines()[-lines:]])

    def get(self, path: str, timeout: float = 60, **query: str) -> bytes:
        url = f"{self.url}{path}?{urllib.parse.urlencode(query)}"
        with self._http.open(url, timeout=timeout) as response:
            return response.read()

    def post(self, path: str, body: Json) -> Json:
        """The JSON reply, also of a refusal (HTTP 400)."""
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}{path}", json.dumps(body).encode(), headers)
        try:
            with self._http.open(request, timeout=60) as response:
                reply = response.read()
        except urllib.error.HTTPError as error:
            with error:
                if error.code != 400:
                    raise ComfyError(f"POST {path}: HTTP {error.code}\n{self.log_tail()}") from error
                reply = error.read()
        return json.loads(reply) if reply else {}

    def object_info(self, node_id: str | None = None) -> Json:
        """The schema of one node, or of all by id."""
        if node_id is None:
            return json.loads(self.get("/object_info"))
        schemas = json.loads(self.get(f"/object_info/{node_id}"))
        if node_id not in schemas:
            raise ComfyError(f"ComfyUI has no node {node_id}\n{self.startup_log}", node_id)
        return schemas[node_id]

    def workflow_templates(self) -> dict[str, list[str]]:
        """Template names by the custom node folder that brings them."""
        return json.loads(self.get("/workflow_templates"))

    def view(self, filename: str, subfolder: str = "", type: str = "output") -> bytes:
        """A file of the output, input or temp folder: `view(**image)` for an image of a node's output."""
        return self.get("/view", filename=filename, subfolder=subfolder, type=type)

    def api_graph(self, workflow: Json) -> Graph:
        """The API graph of a workflow file's JSON, with this server's schemas."""
        return api_graph(workflow, self.object_info())

    def queue(self, graph: Graph, workflow: Json | None = None, previews: str = "default") -> str:
        """Queue an API graph, return its prompt id. `workflow` is what nodes save in files beside it."""
        self._connect()
        self.messages = []
        extra_data: Json = {"preview_method": previews}
        extra_data |= {} if workflow is None else {"extra_pnginfo": {"workflow": workflow}}
        body = {"prompt": graph, "client_id": self._client_id, "extra_data": extra_data}
        reply = self.post("/prompt", body)
        # ComfyUI accepts a graph when one of its output nodes is valid; here the others matter too.
        if reply.get("error") or reply.get("node_errors"):
            raise _refusal(reply)
        self._prompt_id = reply["prompt_id"]
        return self._prompt_id

    def wait_for(self, prompt_id: str, kind: str, timeout: float = 60, **fields: Any) -> Json:
        """The data of the next message of this kind about this graph whose fields have these values."""
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            with contextlib.suppress(websocket.WebSocketTimeoutException):
                message = self._receive(left)
                data = message["data"]
                wanted = {"prompt_id": prompt_id, **fields}
                if message["type"] == kind and all(data.get(name, "") == wanted[name] for name in wanted):
                    return data
        self.interrupt(prompt_id)
        raise ComfyError(f"no message {kind} {fields} after {timeout} s\n{self.log_tail()}")

    def wait(self, prompt_id: str, timeout: float = 120) -> Json:
        """The history entry of a queued graph, once it is done: `outputs` by node id, `status`, `prompt`."""
        self.wait_for(prompt_id, "executing", timeout, node=None)
        history = json.loads(self.get(f"/history/{prompt_id}"))[prompt_id]
        for kind, data in history["status"]["messages"]:
            if kind in ("execution_error", "execution_interrupted"):
                raise _failure(kind, data)
        return history

    def run(self, graph: Graph, timeout: float = 120, workflow: Json | None = None) -> Json:
        """`queue` and `wait`. ComfyUI does not run a node again whose inputs are those of the run before."""
        return self.wait(self.queue(graph, workflow), timeout)

    def interrupt(self, prompt_id: str) -> None:
        self.post("/interrupt", {"prompt_id": prompt_id})

    def _connect(self) -> None:
        if self._socket is not None:
            return
        url = f"{self.url.replace('http', 'ws', 1)}/ws?clientId={self._client_id}"
        self._socket = websocket.create_connection(url, timeout=60)
        # As the browser does: previews then say which node and graph they belong to.
        flags = {"supports_preview_metadata": True}
        self._socket.send(json.dumps({"type": "feature_flags", "data": flags}))
        while self._receive(60)["type"] != "feature_flags":
            pass

    def _receive(self, timeout: float) -> Json:
        self._socket.settimeout(timeout)
        try:
            received = self._socket.recv()
        except (websocket.WebSocketConnectionClosedException, ConnectionError) as error:
            raise ComfyError(f"ComfyUI closed the connection\n{self.log_tail()}") from error
        message = json.loads(received) if isinstance(received, str) else _preview(received)
        # A graph refused in part still runs its valid part, and may report after the next one is queued.
        if message["data"].get("prompt_id", self._prompt_id) == self._prompt_id:
            self.messages.append(message)
        return message


def _preview(received: bytes) -> Json:
    event, length = struct.unpack(">II", received[:8])
    if event != PREVIEW_WITH_METADATA:
        return {"type": "binary", "data": {"event": event, "content": received[4:]}}
    about = json.loads(received[8 : 8 + length])
    return {"type": "preview", "data": {**about, "image": received[8 + length :]}}


def _refusal(reply: Json) -> ComfyError:
    error = reply.get("error") or {"message": "some output nodes are not valid"}
    lines = [f"{error['message']} {error.get('details', '')}".strip()]
    for node_id, node in reply["node_errors"].items():
        for problem in node["errors"]:
            lines.append(f"{node['class_type']} (node {node_id}): {problem['message']}: {problem['details']}")
    node_id = next(iter(reply["node_errors"]), error.get("extra_info", {}).get("node_id"))
    return ComfyError("\n".join(lines), node_id)


def _failure(kind: str, data: Json) -> ComfyError:
    where = f"{data['node_type']} (node {data['node_id']})"
    if kind == "execution_interrupted":
        return ComfyError(f"{where} was interrupted", data["node_id"])
    problem = f"{data['exception_type']}: {data['exception_message'].strip()}"
    return ComfyError(f"{where} failed: {problem}\n{''.join(data['traceback'])}", data["node_id"])
