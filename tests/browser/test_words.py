"""Words in both renderers: all that the pack shows is in the language of ComfyUI's setting."""

import re
from pathlib import Path

import pytest

from tests.browser.conftest import open_canvas

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect

WEB = Path(__file__).parents[2] / "web"
SPEED = {"step": 1, "steps": 9, "seconds_per_step": 2, "seconds_left": 8, "losses": [0.2, 0.1]}
LATIN = re.compile(r"[A-Za-z]{2,}")


@pytest.fixture
def chinese(canvas):
    set_language(canvas, "zh")
    yield canvas
    # Nodes of other tests would look for the clips of these.
    canvas.page.evaluate("() => { app.nodeOutputs = {} }")
    set_language(canvas, "en")


def set_language(canvas, language):
    """Set it as a user does; ComfyUI then loads the open workflow again."""
    script = """(language) => new Promise((resolve) => {
      const { loadGraphData } = app;
      app.loadGraphData = async function () {
        await loadGraphData.apply(this, arguments);
        app.loadGraphData = loadGraphData;
        resolve();
      };
      app.extensionManager.setting.set("Comfy.Locale", language);
    })"""
    canvas.page.evaluate(script, language)
    canvas.clear()


def said(part):
    """The words of a part of the page: its texts, and the names and tips of what is in it."""
    script = """(part) => [part, ...part.querySelectorAll("*")].flatMap((element) => [
      element.ariaLabel, element.title, element.alt,
      ...[...element.childNodes].filter((node) => node.nodeType === Node.TEXT_NODE).map((node) => node.data),
    ]).filter(Boolean)"""
    return part.evaluate(script)


def test_all_parts_speak_chinese(chinese):
    canvas = chinese
    number = canvas.add("SDVideoSaveGIF")
    canvas.show_output(number, {"images": [{"filename": "1.gif", "subfolder": "", "type": "output"}] * 2})
    canvas.add("SDVideoLoadFrameSequence", (700, 150))
    for event, kind in (("sampling", "SDVideoDDIMSampler"), ("training", "SDVideoTrainLoRA")):
        canvas.report(f"sdvideo.{event}", {"node": str(canvas.add(kind, (700, 500))), **SPEED})
    strip = canvas.page.get_by_role("group", name="要加载的帧")
    expect(strip.get_by_role("status")).to_contain_text("已选取")
    player = canvas.page.get_by_role("group", name="视频播放器").first
    expect(player.get_by_role("alert")).to_contain_text("无法显示 1.gif")
    source = canvas.page.evaluate("app.graph.nodes[1].widgets[0].value")
    for part in (strip, player, *canvas.page.locator(".sdvideo-live").all()):
        words = [text.replace(source, "").replace("1.gif", "").replace("HTTP 404", "") for text in said(part)]
        assert words
        assert [text for text in words if LATIN.search(text)] == []
    menu = canvas.page.evaluate("app.extensions.find((e) => e.name === 'SDVideo').getNodeMenuItems(app.graph.nodes[0])")
    assert [entry["content"] for entry in menu if entry] == ["在新标签页中打开", "保存文件", "复制路径"]
    canvas.report("execution_success", {})
    canvas.errors[:] = [error for error in canvas.errors if "1.gif" not in error]


def test_nodes_have_chinese_words_where_comfyui_starts_in_chinese(browser, server):
    try:
        with open_canvas(browser, server, "vue", settings={"Comfy.Locale": "zh"}) as canvas:
            canvas.add("SDVideoSaveGIF")
            expect(canvas.page.locator("[data-node-id]")).to_contain_text(re.compile("保存GIF.*文件名前缀", re.DOTALL))
    finally:
        server.post("/settings", {"Comfy.Locale": "en"})


def test_every_phrase_is_known_in_every_language_and_used():
    table = (WEB / "words.js").read_text(encoding="utf-8")
    known = dict(re.findall(r"^  (\w+): \{(.*?)\},?$", table, re.DOTALL | re.MULTILINE))
    for phrase, row in known.items():
        texts = dict(re.findall(r'(\w+): "([^"]*)"', row))
        assert texts.keys() == {"en", "zh"}, phrase
        assert len({frozenset(re.findall(r"\{\w+\}", text)) for text in texts.values()}) == 1, phrase
    code = "".join(path.read_text(encoding="utf-8") for path in WEB.glob("*.js") if path.name != "words.js")
    assert known.keys() == {
        phrase for call in re.findall(r"\bsay\(([^,)]*)", code) for phrase in re.findall(r'"(\w+)"', call)
    }
