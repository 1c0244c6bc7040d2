"""ComfyUI's canvas in a browser: load a graph, add nodes, run them, drop files on it, and what the console said."""

import base64
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from playwright.sync_api import ConsoleMessage, Locator, Page, expect

Json = dict[str, Any]

# What ComfyUI's frontend logs by itself when it is used; what it logs at its start is measured.
STOCK_ERRORS = (
    r"404.*/api/view.*filename=undefined",  # Load Image in an empty input folder
    r"404.*/api/view\?type=input.*rand=",  # Load Image of a picture that is on its way to the server
    r"404.*/docs/\w+/en\.md",  # a help page in one language, before that in all
    r"net::ERR_NAME_NOT_RESOLVED|'https://api\.comfy\.org/",  # what it asks the network
)

# As browsers name them by a file's ending, on some systems.
TYPES = {
    ".gif": "image/gif",
    ".png": "image/png",
    ".webp": "image/webp",
    ".mp4": "video/mp4",
    ".mkv": "",
    ".json": "application/json",
}

# A run is over when the server says that no node is being executed, which it does after how it ended.
WATCH = """() => {
  let how = null;
  const note = ({ type, detail }) => { how = [type, detail]; };
  for (const kind of ["execution_success", "execution_error", "execution_interrupted"])
    app.api.addEventListener(kind, note, { once: true });
  window.ended = new Promise((resolve) => {
    app.api.addEventListener("executing", function over({ detail }) {
      if (detail !== null || !how) return;
      app.api.removeEventListener("executing", over);
      resolve(how);
    });
  });
}"""

DROP = """([way, place, files]) => {
  const transfer = new DataTransfer();
  for (const { name, type, content } of files)
    transfer.items.add(new File([Uint8Array.from(atob(content), (c) => c.charCodeAt(0))], name, { type }));
  const send = (kind, [clientX, clientY]) => {
    const event = { bubbles: true, cancelable: true, dataTransfer: transfer, clientX, clientY };
    document.elementFromPoint(clientX, clientY).dispatchEvent(new DragEvent(kind, event));
  };
  for (const over of way) for (const kind of ["dragenter", "dragover", "dragleave"]) send(kind, over);
  for (const kind of ["dragenter", "dragover", "drop"]) send(kind, place);
}"""


class Canvas:
    """One page with ComfyUI in it; `renderer` is "classic" or "vue"."""

    def __init__(self, page: Page, renderer: str):
        self.page = page
        self.renderer = renderer
        self.errors: list[str] = []
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.errors.append(f"{error.name}: {error.message}\n{error.stack}"))

    def open(self, url: str) -> None:
        self.page.goto(url)
        # The first start opens the templates over the canvas.
        close = self.page.get_by_role("button", name=re.compile("^(Close dialog|关闭对话框)$")).first
        close.click(timeout=60_000)
        expect(close).to_be_hidden()

    def clear(self) -> None:
        # ComfyUI's frontend fails when a file is dropped before its spinner for the one before is gone.
        expect(self.page.locator(".p-blockui-mask")).to_have_count(0)
        self.page.evaluate("app.extensionManager.setting.set('Comfy.RightSidePanel.IsOpen', false)")
        # A graph of another id, as ComfyUI gives a new node the values of one of the same number before.
        self.page.evaluate("app.canvas.setGraph(app.rootGraph)")
        script = "() => { app.graph.clear(); app.graph.id = crypto.randomUUID(); app.canvas.ds.reset(); }"
        self.page.evaluate(script)
        self.page.evaluate("app.canvas.setDirty(true, true)")

    def load(self, workflow: Json) -> None:
        self.page.evaluate("(workflow) => app.loadGraphData(workflow)", workflow)

    def add(self, node_id: str, position: tuple[int, int] = (250, 150)) -> int:
        """A new node's number in the graph."""
        script = """([type, pos]) => {
          const node = LiteGraph.createNode(type);
          node.pos = pos;
          app.graph.add(node);
          return Number(node.id);
        }"""
        return self.page.evaluate(script, [node_id, list(position)])

    def wrap(self, *numbers: int) -> str:
        """Put nodes into a new subgraph. Returns its node's number, "3"; those inside keep theirs."""
        script = """(ids) => {
          const nodes = new Set(ids.map((id) => app.graph.getNodeById(id)));
          return String(app.graph.convertToSubgraph(nodes).node.id);
        }"""
        return self.page.evaluate(script, list(numbers))

    def enter(self, number: str | None) -> None:
        """Open the subgraph of a node, or the graph that all others are in."""
        script = "(id) => app.canvas.setGraph(id ? app.rootGraph.getNodeById(id).subgraph : app.rootGraph)"
        self.page.evaluate(script, number)

    def select(self, number: int) -> None:
        self.page.evaluate("(id) => app.canvas.selectNode(app.graph.getNodeById(id))", number)

    def boxes(self) -> dict[str, list[float]]:
        """Left, top, right and bottom of each node with its title as it is drawn, in units of the graph."""
        script = """() => Object.fromEntries(app.graph.nodes.map((node) => {
          const element = document.querySelector(`[data-node-id="${node.id}"]`);
          const { scale } = app.canvas.ds;
          const drawn = element?.getBoundingClientRect();
          const edges = drawn && [drawn.left, drawn.top, drawn.right, drawn.bottom].map((edge) => edge / scale);
          const [x, y, width, height] = node.getBounding();
          return [`${node.id} ${node.type}`, edges ?? [x, y, x + width, y + height]];
        }))"""
        return self.page.evaluate(script)

    def wait_for_frames(self) -> None:
        """Wait until the browser has laid out and drawn what has changed."""
        self.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def tab_through(self, part: Locator, count: int) -> list[str]:
        """The names of what the Tab key reaches in a part of the page, each with a ring around it."""
        controls = part.locator("button, input:not([type=file]), select, [tabindex='0']")
        expect(controls).to_have_count(count)
        controls.first.focus()
        self.page.keyboard.press("Shift+Tab")
        names = []
        for index in range(count):
            self.page.keyboard.press("Tab")
            expect(controls.nth(index)).to_be_focused()
            expect(controls.nth(index)).not_to_have_css("outline-style", "none")
            names.append(controls.nth(index).evaluate("(control) => control.ariaLabel ?? control.textContent"))
        return names

    def node_types(self) -> list[str]:
        return sorted(self.page.evaluate("app.graph.nodes.map((node) => node.type)"))

    def serialize(self) -> Json:
        return self.page.evaluate("app.graph.serialize()")

    def set_widgets(self, values: Json) -> None:
        """Give all widgets of these names these values."""
        script = """(values) => {
          for (const node of app.graph.nodes)
            for (const widget of node.widgets ?? [])
              if (widget.name in values) {
            widget.value = values[widget.name];
            widget.callback?.(widget.value);
          }
        }"""
        self.page.evaluate(script, values)

    def run(self) -> None:
        """Queue the graph and wait until it is done."""
        self.start()
        self.finish()

    def start(self) -> None:
        self.watch()
        assert self.page.evaluate("app.queuePrompt(0)"), "ComfyUI refused the graph"

    def watch(self) -> None:
        """Note how the next run ends, which a test starts by itself."""
        self.page.evaluate(WATCH)

    def finish(self) -> None:
        kind, detail = self.ended()
        assert kind == "execution_success", (kind, detail)

    def ended(self) -> tuple[str, Json]:
        """How the graph that was started ended, once it has."""
        limit = "new Promise((_, fail) => setTimeout(fail, 120_000, new Error('no end of the run after 120 s')))"
        return self.page.evaluate(f"Promise.race([window.ended, {limit}])")

    def show_output(self, number: int, output: Json) -> None:
        """Tell the page that a node has put this out, as the server does."""
        self.report("executed", {"node": str(number), "display_node": str(number), "output": output})

    def report(self, event: str, detail: Json) -> None:
        """Tell the page what the server would."""
        self.page.evaluate("([event, detail]) => app.api.dispatchCustomEvent(event, detail)", [event, detail])

    def drop(
        self, *paths: Path, place: tuple[float, float] = (900, 600), way: Iterable[tuple[float, float]] = ()
    ) -> None:
        """Drop files at a place of the page, dragged over others on the way."""
        files = [
            {"name": path.name, "type": TYPES[path.suffix], "content": base64.b64encode(path.read_bytes()).decode()}
            for path in paths
        ]
        self.page.evaluate(DROP, [list(map(list, way)), list(place), files])

    def connect(self, source: int, target: int, name: str) -> None:
        """Link a node's first output to the input of this name."""
        script = """([source, target, name]) => {
          const [from, to] = [source, target].map((id) => app.graph.getNodeById(id));
          from.connect(0, to, to.inputs.findIndex((input) => input.name === name));
        }"""
        self.page.evaluate(script, [source, target, name])

    @property
    def player(self) -> Locator:
        return self.page.get_by_role("group", name="Video player")

    def _on_console(self, message: ConsoleMessage) -> None:
        where = re.sub(r"\d{5,}", "", message.location.get("url", ""))  # ports and times
        if message.type == "error" and not any(re.search(known, f"{message.text} {where}") for known in STOCK_ERRORS):
            self.errors.append(f"{message.text} {where}")
