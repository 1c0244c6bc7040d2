"""Colours in both renderers: in each of ComfyUI's palettes, what is to be read stands out from what is behind it."""

import io

import numpy as np
import pytest
from PIL import Image, ImageColor

from tests.browser.player import expect, saved

PALETTES = ("dark", "light", "arc", "nord", "solarized", "github")
SPEED = {"step": 3, "steps": 9, "seconds_per_step": 1, "seconds_left": 6, "losses": [0.3, 0.1, 0.2]}
TEXT, GRAPHICS = 4.5, 3.0  # the least contrast by WCAG 2.2, success criteria 1.4.3 and 1.4.11


@pytest.fixture
def shown(canvas, clip):
    """What is to be read, by name: of players of a clip and of none, a sampler, a training and a frame sequence."""
    canvas.page.evaluate("app.extensionManager.setting.set('Comfy.Minimap.Visible', false)")
    canvas.page.evaluate("app.canvas.ds.scale = 0.7")  # all of them fit the screen
    number = canvas.add("SDVideoSaveGIF", (120, 180))
    canvas.show_output(number, {"images": clip["gif"]})
    canvas.player.get_by_role("button", name="Pause").click()  # and the mouse stays over it
    # For good: ComfyUI asks for it again when another test's node has this one's number.
    canvas.page.route("**/view?filename=torn.gif*", lambda route: route.fulfill(body="no picture"))
    broken = canvas.add("SDVideoSaveGIF", (420, 180))
    canvas.show_output(broken, {"images": [saved("torn.gif")]})
    sampler, training = canvas.add("SDVideoDDIMSampler", (720, 180)), canvas.add("SDVideoTrainLoRA", (1020, 180))
    canvas.report("sdvideo.sampling", {"node": sampler, **SPEED})
    canvas.report("sdvideo.training", {"node": training, **SPEED})
    canvas.add("SDVideoLoadFrameSequence", (720, 580))
    player, group = canvas.player.first, canvas.page.get_by_role
    yield {
        "frame counter": player.get_by_label("Frame counter"),
        "button under the mouse": player.get_by_role("button", name="Play"),
        "speed of a clip": player.get_by_role("combobox"),
        "error": canvas.player.get_by_role("alert"),
        "progress": group("group", name="Live preview").get_by_label("Progress"),
        "loss": group("group", name="Training").get_by_label("Progress"),
        "frames picked": group("group", name="Frames to load").get_by_role("status"),
        "loss curve": group("group", name="Training").locator("svg polyline"),
        "highest loss": group("group", name="Training").locator("svg text").first,
    }
    canvas.page.evaluate("app.extensionManager.setting.set('Comfy.ColorPalette', 'dark')")
    canvas.page.evaluate("app.extensionManager.setting.set('Comfy.Minimap.Visible', true)")


def luminance(color):
    """Relative luminance by WCAG of (..., 3) in 0..255."""
    value = np.asarray(color) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


def contrast(color, background):
    dark, light = sorted(map(luminance, (color, background)))
    return (light + 0.05) / (dark + 0.05)


def behind(part, screen):
    """The colour of most of its pixels."""
    box = {name: round(value) for name, value in part.bounding_box().items()}
    pixels = screen[box["y"] : box["y"] + box["height"], box["x"] : box["x"] + box["width"]].reshape(-1, 3)
    colors, counts = np.unique(pixels, axis=0, return_counts=True)
    return colors[counts.argmax()]


def drawn_in(part):
    """The colour of its text, or of its line."""
    script = """(part) => {
      const { color, fill, stroke } = getComputedStyle(part);
      return part instanceof SVGElement ? (stroke === "none" ? fill : stroke) : color;
    }"""
    return ImageColor.getrgb(part.evaluate(script))


def test_it_can_be_read_in_every_palette(canvas, shown):
    expect(shown["error"]).to_have_css("border-left-style", "solid")
    found = {}
    for palette in PALETTES:
        canvas.page.evaluate("(id) => app.extensionManager.setting.set('Comfy.ColorPalette', id)", palette)
        canvas.wait_for_frames()
        screen = np.asarray(Image.open(io.BytesIO(canvas.page.screenshot())).convert("RGB"))
        for name, part in shown.items():
            expect(part).to_be_visible()
            found[palette, name] = contrast(drawn_in(part), behind(part, screen))
    least = {"loss curve": GRAPHICS}
    assert {key: value for key, value in found.items() if value < least.get(key[1], TEXT)} == {}
