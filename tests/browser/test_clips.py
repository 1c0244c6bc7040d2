"""What Save GIF's player shows, in both renderers: files of all formats, cut, missing or several, and its menu."""

import time

import numpy as np
import pytest
from PIL import Image

from tests.browser.player import (
    COLORS,
    HEIGHT,
    NUM_FRAMES,
    WIDTH,
    counter,
    expect,
    moves,
    pause,
    picture,
    saved,
    show,
    wait_for_color,
)


def test_a_missing_file_is_said(canvas):
    number = canvas.add("SDVideoSaveGIF")
    canvas.show_output(number, {"images": [saved("gone.gif")]})
    expect(canvas.player.get_by_role("alert")).to_have_text("Cannot show gone.gif: HTTP 404")
    canvas.errors[:] = [error for error in canvas.errors if "gone.gif" not in error]


def test_a_file_that_was_cut_is_said_when_its_end_is_reached(canvas, clip, output):
    whole = (output / clip["gif"][0]["filename"]).read_bytes()
    (output / "cut.gif").write_bytes(whole[: len(whole) * 2 // 3])
    expect(show(canvas, [saved("cut.gif")]).get_by_role("alert")).to_contain_text("Cannot show cut.gif: ")


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
    expect(player.get_by_role("img", name="plain.gif")).to_be_visible()


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
        player.get_by_label("Frame", exact=True).fill(str(frame + 1))
        expect(counter(player)).to_have_text(f"{frame + 1} / {NUM_FRAMES}")
        wait_for_color(player, COLORS[frame], 6)
    player.get_by_role("button", name="Next frame").click()
    expect(counter(player)).to_have_text(f"1 / {NUM_FRAMES}")
    wait_for_color(player, COLORS[0], 6)


def test_a_picture_of_which_the_server_makes_no_video_moves_by_itself(canvas, clip):
    canvas.page.route("**/sdvideo/clip*", lambda route: route.fulfill(status=404))
    canvas.page.evaluate("() => { window.kept = window.ImageDecoder; delete window.ImageDecoder; }")
    player = show(canvas, clip["gif"])
    canvas.page.evaluate("() => { window.ImageDecoder = window.kept; }")
    assert moves(player)
    pause(player)
    before = picture(player)
    time.sleep(0.25)
    assert np.array_equal(picture(player), before)
    canvas.page.unroute("**/sdvideo/clip*")
    canvas.errors[:] = [error for error in canvas.errors if "/sdvideo/clip" not in error]


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


# Pages that come over plain http have none; others have it as long as the user allows it.
@pytest.mark.parametrize("clipboard", ["undefined", "{ writeText: () => Promise.reject(new Error('no')) }"])
def test_the_path_is_copied_without_the_browsers_clipboard(canvas, player, clipboard):
    pause(player)
    canvas.page.evaluate("navigator.clipboard.writeText('nothing')")
    define = f"Object.defineProperty(navigator, 'clipboard', {{ configurable: true, value: {clipboard} }})"
    canvas.page.evaluate(f"() => {{ {define}; }}")
    player.locator(".sdvideo-stage").click(button="right")
    canvas.page.get_by_text("Copy Path", exact=True).last.click()
    canvas.page.evaluate("() => { delete navigator.clipboard; }")
    script = """async () => {
      let text = "nothing";
      for (let look = 0; text === "nothing" && look < 100; look++) {
        await new Promise((resolve) => setTimeout(resolve, 20));
        text = await navigator.clipboard.readText();
      }
      return text;
    }"""
    assert canvas.page.evaluate(script) == "/of/server/plain.gif"


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
    controls = ["Clip", "Previous frame", "Pause", "Next frame", "Frame", "Speed"]
    assert canvas.tab_through(player, len(controls)) == controls
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
