"""Save GIF's player, in both renderers: it plays, pauses, steps and seeks what the node saved."""

import time

import numpy as np
import pytest

from tests.browser.player import COLORS, NUM_FRAMES, counter, expect, moves, pause, picture, show, wait_for_color


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
    slider = player.get_by_label("Frame", exact=True)
    slider.fill("1")
    expect(player.get_by_role("button", name="Play")).to_be_visible()
    expect(counter(player)).to_have_text(f"1 / {NUM_FRAMES}")
    for step, frame in zip("NNPPPN", (2, 3, 2, 1, NUM_FRAMES, 1), strict=True):
        player.get_by_role("button", name={"N": "Next frame", "P": "Previous frame"}[step]).click()
        expect(counter(player)).to_have_text(f"{frame} / {NUM_FRAMES}")
        expect(slider).to_have_value(str(frame))
        wait_for_color(player, COLORS[frame - 1], tolerance)


def test_keys_step_and_play(player):
    pause(player)
    player.get_by_label("Frame", exact=True).fill("1")
    button = player.get_by_role("button", name="Play")
    button.press("ArrowRight")
    button.press("ArrowRight")
    button.press("ArrowLeft")
    expect(counter(player)).to_have_text(f"2 / {NUM_FRAMES}")
    button.press("Space")
    expect(player.get_by_role("button", name="Pause")).to_be_visible()


def test_a_frame_on_its_way_is_shown_though_the_page_is_hidden_or_seen_meanwhile(player):
    pause(player)
    script = """(slider) => {
      slider.value = slider.value === "3" ? 5 : 3;
      slider.dispatchEvent(new Event("input"));
      document.dispatchEvent(new Event("visibilitychange"));
      return Number(slider.value);
    }"""
    frame = player.get_by_label("Frame", exact=True).evaluate(script)
    expect(counter(player)).to_have_text(f"{frame} / {NUM_FRAMES}")
    wait_for_color(player, COLORS[frame - 1], 2)


def test_the_keys_that_run_a_graph_do_so_from_a_button(canvas, player):
    (saver,) = canvas.serialize()["nodes"]
    canvas.connect(canvas.add("EmptyImage", (700, 150)), saver["id"], "images")
    canvas.set_widgets({"batch_size": 2, "width": 64, "height": 64})
    canvas.watch()
    player.get_by_role("button", name="Next frame").press("Control+Enter")
    canvas.finish()
    expect(counter(player)).to_contain_text("/ 2")


def test_all_is_reached_by_keys_and_has_a_name(canvas, player):
    expected = ["Previous frame", "Pause", "Next frame", "Frame", "Speed"]
    assert canvas.tab_through(player, len(expected)) == expected


def test_the_speed_menu_changes_how_long_a_frame_stays(player):
    # By a time that stands still while a frame is decoded, so that it does not matter how busy the machine is. It never
    # goes back, and what the player still waited for at the old speed is over before frames count.
    script = """async (counter) => {
      const { now } = performance, request = window.requestAnimationFrame;
      const shown = [], asked = [];
      let time = Math.max(now.call(performance), window.lastTime ?? 0);
      const start = time + 500;
      const observer = new MutationObserver(() => time > start && shown.push(time));
      observer.observe(counter, { childList: true });
      performance.now = () => time;
      window.requestAnimationFrame = (action) =>
        new Error().stack.includes("clock.js") ? asked.push(action) : request.call(window, action);
      while (shown.length < 5) {
        while (!asked.length) await new Promise((resolve) => setTimeout(resolve));
        time += 10;
        asked.splice(0).forEach((action) => action(time));
        await null;
      }
      observer.disconnect();
      window.lastTime = time;
      performance.now = now;
      window.requestAnimationFrame = request;
      asked.forEach((action) => request.call(window, action));
      return shown.slice(1).map((time, index) => time - shown[index]);
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


def test_a_video_goes_at_the_speed_that_is_chosen_after_a_pause_too(canvas, clip):
    player = show(canvas, clip["mp4"])
    video = player.get_by_role("img", name="plain.mp4")
    player.get_by_label("Speed").select_option("2")
    expect(video).to_have_js_property("playbackRate", 2)
    pause(player)
    expect(video).to_have_js_property("paused", True)
    player.get_by_role("button", name="Play").click()
    expect(video).to_have_js_property("paused", False)
    expect(video).to_have_js_property("playbackRate", 2)


COUNT_LISTENERS = """() => {
  window.listening = new Set();
  const count = (name, note) => {
    document[name] = function (type, listener) {
      if (type === "visibilitychange" && new Error().stack.includes("player.js")) note(listener);
      return Document.prototype[name].apply(this, arguments);
    };
  };
  count("addEventListener", (listener) => window.listening.add(listener));
  count("removeEventListener", (listener) => window.listening.delete(listener));
}"""


def test_no_player_that_is_gone_listens_to_the_page(canvas, clip):
    """ComfyUI tells no node that its subgraph is gone."""
    canvas.page.evaluate(COUNT_LISTENERS)
    inner = canvas.add("SDVideoSaveGIF")
    outer = canvas.wrap(inner)
    canvas.enter(outer)
    path = f"{outer}:{inner}"
    output = {"images": clip["gif"], "sdvideo": [[10, NUM_FRAMES, "gif"]]}
    canvas.report("executed", {"node": path, "display_node": path, "output": output})
    canvas.page.wait_for_function("window.listening.size === 1")
    canvas.clear()
    canvas.page.wait_for_function("window.listening.size === 0")
    canvas.page.evaluate("() => { delete document.addEventListener; delete document.removeEventListener; }")
