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


def show(canvas, files, *formats):
    """The player of a new Save GIF node that has saved the files, in as many runs as there are formats."""
    number = canvas.add("SDVideoSaveGIF")
    expect(canvas.player).to_be_hidden()
    formats = formats or ("png sequence" if len(files) > 1 else "gif",)
    # Outputs of older versions lack the path.
    path = [f"/of/server/{files[0]['filename']}"] if len(formats) == 1 else []
    canvas.show_output(number, {"images": files, "sdvideo": [[10, NUM_FRAMES, format, *path] for format in formats]})
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
    # By a time that stands still while a frame is decoded, so that it does not matter how busy the machine is.
    script = """async (counter) => {
      const { now } = performance, request = window.requestAnimationFrame;
      const shown = [], asked = [];
      let time = now.call(performance);
      const observer = new MutationObserver(() => shown.push(time));
      observer.observe(counter, { childList: true });
      performance.now = () => time;
      window.requestAnimationFrame = (action) =>
        new Error().stack.includes("clock.js") ? asked.push(action) : request.call(window, action);
      while (shown.length < 6) {
        while (!asked.length) await new Promise((resolve) => setTimeout(resolve));
        time += 10;
        asked.splice(0).forEach((action) => action(time));
        await null;
      }
      observer.disconnect();
      performance.now = now;
      window.requestAnimationFrame = request;
      asked.forEach((action) => request.call(window, action));
      return shown.slice(2).map((time, index) => time - shown[index + 1]);
    }"""
    durations = {}
    for speed in ("0.5", "2"):
        player.get_by_label("Speed").select_option(speed)
        durations[speed] = counter(player).evaluate(script)
    assert durations == {"0.5": pytest.approx([200] * 4, abs=10), "2": pytest.approx([50] * 4, abs=10)}


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


@pytest.mark.parametrize("kind", ["gif", "webp"])
def test_without_a_decoder_as_over_plain_http_it_has_the_same_buttons(canvas, clip, kind):
    canvas.page.evaluate("() => { window.kept = window.ImageDecoder; delete window.ImageDecoder; }")
    player = show(canvas, clip[kind])
    canvas.page.evaluate("() => { window.ImageDecoder = window.kept; }")
    assert moves(player)
    pause(player)
    for frame in (3, NUM_FRAMES - 1):
        player.get_by_label("Frame", exact=True).fill(str(frame))
        expect(counter(player)).to_have_text(f"{frame + 1} / {NUM_FRAMES}")
        wait_for_color(player, COLORS[frame], 6)
    player.get_by_role("button", name="Next frame").click()
    expect(counter(player)).to_have_text(f"1 / {NUM_FRAMES}")
    wait_for_color(player, COLORS[0], 6)


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
        "Copy Path": "/of/server/plain.gif",
        "Save File": "plain.gif",
        "Open in New Tab": "filename=plain.gif&subfolder=&type=output",
    }


def test_a_portrait_clip_is_shown_whole_and_fills_the_node(canvas, output):
    Image.new("RGB", (120, 160), (200, 30, 30)).save(output / "portrait.png")
    pixels = picture(show(canvas, [saved("portrait.png")]))
    height, width, _ = pixels.shape
    assert height / width == pytest.approx(160 / 120, rel=0.05)
    assert abs(pixels[10:-10, 3:-3] - (200, 30, 30)).max() <= 2


@pytest.fixture(scope="module")
def others(output, clip):
    """Clips of other lengths, and pictures of the same names in another folder."""
    for number, length in enumerate((2, 4)):
        first, *rest = [Image.new("RGB", (WIDTH, HEIGHT), color) for color in COLORS[:length]]
        first.save(output / f"run_{number}.gif", save_all=True, append_images=rest, duration=100, loop=0)
    (output / "white").mkdir(exist_ok=True)
    for index in range(NUM_FRAMES):
        Image.new("RGB", (WIDTH, HEIGHT), "white").save(output / "white" / f"{index}.png")
    return {
        "gifs": [saved("run_0.gif"), saved("run_1.gif")],
        "white": [{**file, "subfolder": "white"} for file in clip["png"]],
    }


def test_what_several_runs_saved_is_as_many_clips(canvas, clip, others):
    """Of a list, ComfyUI joins the outputs."""
    files = [*others["gifs"], *clip["png"], *clip["mp4"]]
    player = show(canvas, files, "gif", "gif", "png sequence", "mp4")
    chosen = player.get_by_label("Clip", exact=True)
    assert chosen.locator("option").all_inner_texts() == ["1: run_0.gif", "2: run_1.gif", "3: 0.png", "4: plain.mp4"]
    for index, (num_frames, path) in enumerate({2: "run_0.gif", 4: "run_1.gif", NUM_FRAMES: "plain"}.items()):
        chosen.select_option(str(index))
        expect(counter(player)).to_contain_text(f"/ {num_frames}")
        player.locator(".sdvideo-stage").click(button="right")
        canvas.page.get_by_text("Copy Path", exact=True).last.click()
        assert canvas.page.evaluate("navigator.clipboard.readText()") == f"output/{path}"
    chosen.select_option("3")
    expect(player.locator("video")).to_be_visible()


def test_other_files_of_the_same_names_are_shown_when_the_workflow_is_opened_again(canvas, clip, others):
    player = show(canvas, clip["png"])
    (node,) = canvas.serialize()["nodes"]
    output = {"images": others["white"], "sdvideo": [[10, NUM_FRAMES, "png sequence"]]}
    canvas.page.evaluate("(outputs) => { app.nodeOutputs = outputs }", {str(node["id"]): output})
    wait_for_color(player, np.array([255, 255, 255]), 2)


@pytest.mark.parametrize("key", ["Delete", "Backspace"])
def test_keys_for_a_button_leave_the_node_alone(canvas, player, key):
    canvas.select(canvas.serialize()["nodes"][0]["id"])
    button = player.get_by_role("button", name="Next frame")
    button.press(key)
    canvas.wait_for_frames()
    assert canvas.node_types() == ["SDVideoSaveGIF"]


def test_a_frame_changes_the_counter_and_nothing_that_is_read_out(canvas, player):
    expect(counter(player)).to_have_attribute("aria-live", "off")
    script = """(player) => new Promise((resolve) => {
      const changed = [];
      const observer = new MutationObserver((changes) => {
        changed.push(...changes.map((change) => change.attributeName ?? `${change.type} of ${change.target.tagName}`));
        if (changed.length >= 6) resolve([...new Set(changed)]);
      });
      observer.observe(player, { attributes: true, childList: true, characterData: true, subtree: true });
    })"""
    assert player.evaluate(script) == ["childList of OUTPUT"]


def test_clips_share_one_clock_and_stop_with_the_page(canvas, clip):
    for _ in range(3):
        number = canvas.add("SDVideoSaveGIF")
        canvas.show_output(number, {"images": clip["gif"], "sdvideo": [[10, NUM_FRAMES, "gif"]]})
    canvas.show_output(canvas.add("SDVideoSaveGIF"), {"images": clip["mp4"], "sdvideo": [[10, NUM_FRAMES, "mp4"]]})
    for index in range(4):
        expect(counter(canvas.player.nth(index))).to_contain_text(f"/ {NUM_FRAMES}")
    video = canvas.page.locator(".sdvideo-stage video")
    expect(video).to_have_js_property("paused", False)
    script = """() => new Promise((resolve) => {
      const request = window.requestAnimationFrame;
      let [asked, pictures] = [0, 0];
      window.requestAnimationFrame = (action) => {
        if (new Error().stack.includes("clock.js")) asked++;
        return request.call(window, action);
      };
      const count = () => {
        if (++pictures < 30) return request.call(window, count);
        window.requestAnimationFrame = request;
        resolve(asked);
      };
      request.call(window, count);
    })"""
    assert canvas.page.evaluate(script) == pytest.approx(30, abs=2)
    hide = """(hidden) => {
      Object.defineProperty(document, "hidden", { configurable: true, get: () => hidden });
      document.dispatchEvent(new Event("visibilitychange"));
    }"""
    canvas.page.evaluate(hide, True)
    expect(video).to_have_js_property("paused", True)
    canvas.page.evaluate(hide, False)
    expect(video).to_have_js_property("paused", False)
