"""Save GIF's player, in both renderers: it plays, pauses, steps and seeks what the node saved."""

import io
import time

import numpy as np
import pytest
import torch
from PIL import Image

from sdvideo_core.video_io import save_mp4

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect

NUM_FRAMES, WIDTH, HEIGHT = 6, 64, 48
COLORS = [(40 * i, 255 - 40 * i, 128) for i in range(NUM_FRAMES)]


@pytest.fixture(scope="module")
def clip(output):
    """A GIF of plain frames, each of a colour of its own, 100 ms long."""
    first, *rest = [Image.new("RGB", (WIDTH, HEIGHT), color) for color in COLORS]
    first.save(output / "plain.gif", save_all=True, append_images=rest, duration=100, loop=0)
    first.save(output / "plain.webp", save_all=True, append_images=rest, duration=100, loop=0, lossless=True)
    video = torch.tensor(COLORS).div(255)[:, :, None, None].expand(-1, -1, HEIGHT, WIDTH)  # (F, 3, H, W)
    save_mp4(video.movedim(1, 0)[None], output / "plain.mp4", fps=10)
    (output / "plain").mkdir(exist_ok=True)
    for index, image in enumerate([first, *rest]):
        image.save(output / "plain" / f"{index}.png")
    return {
        "gif": [saved("plain.gif")],
        "webp": [saved("plain.webp")],
        "mp4": [saved("plain.mp4")],
        "png": [saved(f"{index}.png", "plain") for index in range(NUM_FRAMES)],
    }


def saved(name, folder=""):
    return {"filename": name, "subfolder": folder, "type": "output"}


@pytest.fixture
def player(canvas, clip):
    """The player of a Save GIF node that has saved the clip."""
    return show(canvas, clip["gif"])


def show(canvas, files):
    number = canvas.add("SDVideoSaveGIF")
    expect(canvas.player).to_be_hidden()
    canvas.show_output(number, {"images": files, "sdvideo": [[10, NUM_FRAMES, "gif"]]})
    expect(canvas.player).to_be_visible()
    return canvas.player


def picture(player):
    """The pixels on the screen where the clip is."""
    screenshot = player.locator(".sdvideo-stage").screenshot(animations="allow")
    return np.asarray(Image.open(io.BytesIO(screenshot)).convert("RGB")).astype(int)


def color(player):
    pixels = picture(player)
    height, width, _ = pixels.shape
    return pixels[height // 2, width // 2]


def counter(player):
    return player.get_by_label("Frame counter")


def wait_for_color(player, expected, tolerance):
    """A video has its place before it has its picture."""
    for _ in range(10):
        if abs(color(player) - expected).max() <= tolerance:
            return
    pytest.fail(f"{color(player)}, not {expected}")


def moves(player):
    before = color(player)
    return any(abs(color(player) - before).max() > 20 for _ in range(10))


def pause(player):
    player.get_by_role("button", name="Pause").click()


@pytest.mark.parametrize("kind", ["gif", "webp", "mp4", "png"])
def test_a_clip_plays_and_stands_still_when_paused(canvas, clip, kind):
    player = show(canvas, clip[kind])
    assert moves(player)
    pause(player)
    before = picture(player)
    time.sleep(0.25)
    assert np.array_equal(picture(player), before)
    player.get_by_role("button", name="Play").click()
    expect(player.get_by_role("button", name="Pause")).to_be_visible()
    assert moves(player)


# Video has its colours rounded twice, for brightness and colour apart.
@pytest.mark.parametrize(("kind", "tolerance"), [("gif", 2), ("mp4", 6)])
def test_buttons_show_the_next_and_previous_frames_around_the_end(canvas, clip, kind, tolerance):
    player = show(canvas, clip[kind])
    player.get_by_label("Frame", exact=True).fill("0")
    expect(player.get_by_role("button", name="Play")).to_be_visible()
    expect(counter(player)).to_have_text(f"1 / {NUM_FRAMES}")
    for step, frame in zip("NNPPPN", (2, 3, 2, 1, NUM_FRAMES, 1), strict=True):
        player.get_by_role("button", name={"N": "Next frame", "P": "Previous frame"}[step]).click()
        expect(counter(player)).to_have_text(f"{frame} / {NUM_FRAMES}")
        wait_for_color(player, COLORS[frame - 1], tolerance)


def test_keys_step_and_play(player):
    pause(player)
    player.get_by_label("Frame", exact=True).fill("0")
    button = player.get_by_role("button", name="Play")
    button.press("ArrowRight")
    button.press("ArrowRight")
    button.press("ArrowLeft")
    expect(counter(player)).to_have_text(f"2 / {NUM_FRAMES}")
    button.press("Space")
    expect(player.get_by_role("button", name="Pause")).to_be_visible()


def test_all_is_reached_by_keys_and_has_a_name(canvas, player):
    expected = ["Previous frame", "Pause", "Next frame", "Frame", "Speed"]
    assert canvas.tab_through(player, len(expected)) == expected


def test_the_speed_menu_changes_how_long_a_frame_stays(player):
    durations = {}
    for speed in ("0.5", "2"):
        player.get_by_label("Speed").select_option(speed)
        script = """async (element) => {
          const change = () => new Promise((resolve) => {
            const observer = new MutationObserver(() => { observer.disconnect(); resolve(performance.now()); });
            observer.observe(element, { childList: true, characterData: true, subtree: true });
          });
          const first = await change();
          for (let frame = 0; frame < 4; frame++) await change();
          return (await change()) - first;
        }"""
        durations[speed] = counter(player).evaluate(script) / 5
    assert durations == {"0.5": pytest.approx(200, abs=40), "2": pytest.approx(50, abs=25)}


def test_motion_waits_for_a_click_where_the_user_wants_less_of_it(canvas, clip):
    canvas.page.emulate_media(reduced_motion="reduce")
    player = show(canvas, clip["gif"])
    canvas.page.emulate_media(reduced_motion="no-preference")
    expect(player.get_by_role("button", name="Play")).to_be_visible()
    before = picture(player)
    time.sleep(0.25)
    assert np.array_equal(picture(player), before)


def test_a_missing_file_is_said(canvas):
    number = canvas.add("SDVideoSaveGIF")
    canvas.show_output(number, {"images": [saved("gone.gif")]})
    expect(canvas.player.get_by_role("alert")).to_have_text("Cannot show gone.gif: HTTP 404")
    canvas.errors[:] = [error for error in canvas.errors if "gone.gif" not in error]


def test_nothing_of_the_player_is_stored_in_the_workflow(canvas, player):
    (node,) = canvas.serialize()["nodes"]
    canvas.clear()
    canvas.add("SaveAnimatedWEBP")
    assert "player" not in str(node["widgets_values_named"])
    assert all(slot["name"] != "player" for slot in node["inputs"])
    assert len(node["widgets_values"]) == len(node["widgets_values_named"])


def test_only_the_player_shows_the_clip(canvas, player):
    shown = canvas.page.locator("img[src*='plain.gif']")
    assert shown.count() == 0
    assert canvas.page.evaluate("app.graph.nodes[0].imgs ?? null") is None


def test_it_is_there_again_when_the_workflow_is_opened_again(canvas, player):
    outputs = canvas.page.evaluate("structuredClone(app.nodeOutputs)")
    workflow = canvas.serialize()
    canvas.clear()
    expect(player).to_be_hidden()
    canvas.load(workflow)
    canvas.page.evaluate("(outputs) => { app.nodeOutputs = outputs }", outputs)
    expect(player).to_be_visible()


def test_without_a_decoder_a_gif_still_moves_and_pauses(canvas, clip):
    canvas.page.evaluate("() => { window.kept = window.ImageDecoder; delete window.ImageDecoder; }")
    player = show(canvas, clip["gif"])
    canvas.page.evaluate("() => { window.ImageDecoder = window.kept; }")
    assert moves(player)
    pause(player)
    assert abs(color(player) - COLORS[0]).max() <= 2
    expect(player.get_by_role("button", name="Next frame")).to_be_disabled()


def test_the_menu_opens_saves_and_names_the_file(canvas, player):
    pause(player)
    path = {}
    for entry in ("Copy Path", "Save File", "Open in New Tab"):
        player.locator(".sdvideo-stage").click(button="right")
        item = canvas.page.get_by_text(entry, exact=True).last
        if entry == "Save File":
            with canvas.page.expect_download() as download:
                item.click()
            path[entry] = download.value.suggested_filename
        elif entry == "Open in New Tab":
            with canvas.page.context.expect_page() as page:
                item.click()
            path[entry] = page.value.url.rpartition("?")[2]
            page.value.close()
        else:
            item.click()
            path[entry] = canvas.page.evaluate("navigator.clipboard.readText()")
    assert path == {
        "Copy Path": "output/plain.gif",
        "Save File": "plain.gif",
        "Open in New Tab": "filename=plain.gif&subfolder=&type=output",
    }


def test_a_portrait_clip_is_shown_whole_and_fills_the_node(canvas, output):
    Image.new("RGB", (120, 160), (200, 30, 30)).save(output / "portrait.png")
    pixels = picture(show(canvas, [saved("portrait.png")]))
    height, width, _ = pixels.shape
    assert height / width == pytest.approx(160 / 120, rel=0.05)
    assert abs(pixels[10:-10, 3:-3] - (200, 30, 30)).max() <= 2
