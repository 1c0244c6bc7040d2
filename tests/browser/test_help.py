"""ComfyUI's help panel, in both renderers: every node's page shows a picture of it."""

from pathlib import Path

import pytest

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect

PAGES = sorted((Path(__file__).parents[2] / "web" / "docs").glob("*.md"))


def test_every_help_page_shows_its_picture(canvas):
    help_page = canvas.page.locator(".node-help-content")
    for index, page in enumerate(PAGES):
        canvas.select(canvas.add(page.stem))
        if index == 0:
            canvas.page.get_by_test_id("info-button").click()
        title = page.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        expect(help_page.get_by_role("heading", level=1)).to_have_text(title)
        picture = help_page.get_by_role("img")
        expect(picture).to_have_attribute("alt", f"The node {title}")
        assert picture.evaluate("(image) => image.decode().then(() => image.naturalWidth)") > 0
