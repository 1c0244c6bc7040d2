"""Fixtures: a running ComfyUI and a Chromium that shows it, in each of its two renderers."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sdvideo_core.demo.untrained import make_demo_model
from tests.comfy.comfy_server import ComfyServer, find_comfyui, make_base_directory, start_comfyui

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator

    from tests.browser.canvas import Canvas

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
RENDERERS = {"classic": False, "vue": True}  # the setting Comfy.VueNodes.Enabled
FLAGS = (
    "--no-proxy-server",
    # Neither the tests nor the page need anything from outside.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    comfyui = find_comfyui()
    if comfyui is None:
        pytest.skip("no ComfyUI found: set COMFYUI_PATH to a checkout, or install one at ~/comfy/ComfyUI")
    base = make_base_directory(tmp_path_factory.mktemp("browser"))
    make_demo_model(base / "models" / "text2video" / "demo")
    with start_comfyui(comfyui, base) as running:
        yield running


@pytest.fixture(scope="session")
def browser() -> Iterator["Browser"]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    executable = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if executable is None:
        pytest.skip("no Chromium found: install it, e.g. apt-get install chromium")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=executable, args=list(FLAGS))
        yield browser
        browser.close()


@contextlib.contextmanager
def open_canvas(
    browser: "Browser",
    server: ComfyServer,
    renderer: str,
    with_pack: bool = True,
    settings: dict[str, Any] | None = None,
) -> Iterator["Canvas"]:
    """A page as a new user sees it; without the pack's JavaScript, or with other settings, if so wanted."""
    from tests.browser.canvas import Canvas

    chosen = {"Comfy.TutorialCompleted": False, "Comfy.VueNodes.Enabled": RENDERERS[renderer]}
    server.post("/settings", chosen | (settings or {}))
    # A context of its own, as ComfyUI keeps the graph that was open in the browser's storage.
    with browser.new_context(viewport={"width": 1280, "height": 800}) as context:
        context.set_default_timeout(15_000)
        context.grant_permissions(["clipboard-read", "clipboard-write"], origin=server.url)
        if not with_pack:
            context.route("**/api/extensions", lambda route: route.fulfill(json=[]))
        canvas = Canvas(context.new_page(), renderer)
        canvas.open(server.url)
        yield canvas


@pytest.fixture(scope="session")
def stock_errors(browser: "Browser", server: ComfyServer) -> list[str]:
    """What the frontend logs at its start without the pack."""
    with open_canvas(browser, server, "classic", with_pack=False) as canvas:
        return canvas.errors


@pytest.fixture(scope="session", params=RENDERERS)
def opened(
    request: pytest.FixtureRequest, browser: "Browser", server: ComfyServer, stock_errors: list[str]
) -> Iterator["Canvas"]:
    with open_canvas(browser, server, request.param) as canvas:
        assert set(canvas.errors) <= set(stock_errors)
        canvas.errors.clear()
        yield canvas


@pytest.fixture
def canvas(opened: "Canvas") -> Iterator["Canvas"]:
    """An empty canvas. What the page logs as an error during the test, or between it and the one before, fails it."""
    opened.clear()
    yield opened
    opened.clear()  # what plays would take the cores from other tests
    errors = opened.errors.copy()
    opened.errors.clear()
    assert errors == []


@pytest.fixture(scope="session")
def output(server: ComfyServer) -> Path:
    return server.base / "output"


@pytest.fixture(scope="session")
def clip(output: Path) -> dict[str, list[dict[str, str]]]:
    from tests.browser.player import save_clips

    return save_clips(output)


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """12 frames, each brighter than the one before, in a folder of their own with a note that is no picture."""
    from tests.browser.sequences import save_pictures

    return save_pictures(tmp_path)


@pytest.fixture
def frames(canvas: "Canvas") -> "Locator":
    """The part of a Load Frame Sequence node that shows its frames."""
    from tests.browser.sequences import add_node

    return add_node(canvas)


@pytest.fixture
def player(canvas: "Canvas", clip: dict[str, list[dict[str, str]]]) -> "Locator":
    """The player of a Save GIF node that has saved the clip as a GIF."""
    from tests.browser.player import show

    return show(canvas, clip["gif"])
