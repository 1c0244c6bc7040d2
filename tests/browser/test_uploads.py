"""Load Frame Sequence in both renderers: files and folders that are dropped on it or chosen."""

import re

import pytest
import torch
from PIL import Image

from sdvideo_core.video_io import save_mp4
from tests.browser.sequences import FOLDERS, HEIGHT, NUM_FRAMES, SIZE, TITLE, WIDTH, expect, save_gif, wait_for_source

DROP_TEXT = """([clientX, clientY]) => {
  const dataTransfer = new DataTransfer();
  dataTransfer.setData("text/plain", "a walk");
  for (const kind of ["dragenter", "dragover", "drop"]) {
    const event = { bubbles: true, cancelable: true, dataTransfer, clientX, clientY };
    document.elementFromPoint(clientX, clientY).dispatchEvent(new DragEvent(kind, event));
  }
}"""


def test_pictures_dropped_on_the_node_become_a_folder_and_a_strip(canvas, server, frames, pictures):
    canvas.drop(*pictures, place=TITLE)
    # 16 frames are wanted when a node is new.
    expect(frames.get_by_role("status")).to_have_text(f"12 of 12 frames, {SIZE}; 4 too few")
    wait_for_source(canvas, pictures[0].parent.name)
    folder = server.base / "input" / pictures[0].parent.name
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == {p.name: p.read_bytes() for p in pictures}
    assert frames.get_by_role("listitem").count() == NUM_FRAMES
    shades = frames.get_by_role("img").evaluate_all(
        """(images) => images.map((image) => {
          const context = new OffscreenCanvas(1, 1).getContext("2d");
          context.drawImage(image, 0, 0);
          return context.getImageData(0, 0, 1, 1).data[0];
        })"""
    )
    assert shades == [pytest.approx(20 * index, abs=6) for index in range(NUM_FRAMES)]


def test_a_folder_is_chosen_without_what_is_no_picture_or_deeper(canvas, server, frames, pictures):
    (pictures[0].parent / "masks").mkdir()
    Image.new("RGB", (WIDTH, HEIGHT)).save(pictures[0].parent / "masks" / "deeper.png")
    with canvas.page.expect_file_chooser() as chooser:
        frames.get_by_role("button", name="Choose Folder").click()
    chooser.value.set_files(pictures[0].parent)
    expect(frames.get_by_role("listitem")).to_have_count(NUM_FRAMES)
    wait_for_source(canvas, pictures[0].parent.name)
    assert len(list((server.base / "input" / pictures[0].parent.name).iterdir())) == NUM_FRAMES


def test_a_large_set_goes_with_a_progress_bar(canvas, frames, tmp_path):
    folder = tmp_path / next(FOLDERS)
    folder.mkdir()
    many = [folder / f"{index}.png" for index in range(60)]
    for path in many:
        Image.new("RGB", (8, 8)).save(path)
    sent, held = [], []

    def hold_the_second_half(route):
        sent.append(route)
        route.continue_() if len(sent) <= 30 or held is None else held.append(route)

    canvas.page.route("**/upload/image", hold_the_second_half)
    bar = frames.get_by_role("progressbar", name="Upload")
    expect(bar).to_be_hidden()
    canvas.drop(*many, place=TITLE)
    expect(bar).to_have_js_property("value", 0.5)
    expect(bar).to_be_visible()
    assert bar.bounding_box()["width"] > 40
    waiting, held = held, None
    for route in waiting:
        route.continue_()
    expect(bar).to_be_hidden()
    expect(frames.get_by_role("status")).to_have_text("16 of 60 frames, 8 \N{MULTIPLICATION SIGN} 8")
    canvas.page.unroute("**/upload/image")


def test_a_gif_stays_one_file(canvas, server, frames, tmp_path):
    save_gif(tmp_path / f"one_{canvas.renderer}.gif", 5)
    canvas.drop(tmp_path / f"one_{canvas.renderer}.gif", place=TITLE)
    wait_for_source(canvas, f"sdvideo/one_{canvas.renderer}.gif")
    expect(frames.get_by_role("listitem")).to_have_count(5)
    assert (server.base / "input" / "sdvideo" / f"one_{canvas.renderer}.gif").is_file()
    assert canvas.node_types() == ["SDVideoLoadFrameSequence"]


def test_what_is_no_picture_is_refused_and_the_strip_stays(canvas, frames, tmp_path):
    status, items = frames.get_by_role("status"), frames.get_by_role("listitem")
    said, num_frames = status.inner_text(), items.count()
    strip = frames.get_by_role("list").bounding_box()
    place = [strip["x"] + 20, strip["y"] + 20]
    canvas.page.evaluate(DROP_TEXT, place)
    assert (status.inner_text(), items.count()) == (said, num_frames)
    (tmp_path / "graph.json").write_text("{}", encoding="utf-8")
    canvas.drop(tmp_path / "graph.json", place=place)
    expect(status).to_have_text("Cannot upload nothing: these are no pictures or videos")
    assert items.count() == num_frames


def test_pictures_dropped_twice_become_two_folders(canvas, server, frames, pictures):
    canvas.drop(*pictures, place=TITLE)
    canvas.drop(*pictures[:3], place=TITLE)
    name = pictures[0].parent.name
    wait_for_source(canvas, f"{name} (2)")
    assert [len(list((server.base / "input" / folder).iterdir())) for folder in (name, f"{name} (2)")] == [12, 3]


def test_after_a_failure_no_more_is_sent(canvas, frames, pictures):
    sent = []
    canvas.page.route("**/upload/image", lambda route: sent.append(route))
    canvas.drop(*pictures, place=TITLE)
    while len(sent) < 4:
        canvas.page.wait_for_timeout(20)
    first, *others = sent
    first.fulfill(status=500)
    expect(frames.get_by_role("status")).to_have_text(re.compile(r"^Cannot upload .*: HTTP 500$"))
    for route in others:
        with canvas.page.expect_response("**/upload/image"):
            route.continue_()
    canvas.wait_for_frames()
    assert len(sent) == 4
    canvas.page.unroute("**/upload/image")
    canvas.errors[:] = [error for error in canvas.errors if "/upload/image" not in error]


# Some systems know no type of a .mkv.
@pytest.mark.parametrize("ending", [".mp4", ".mkv"])
def test_a_video_dropped_on_the_strip_is_its_source(canvas, frames, tmp_path, ending):
    strip = frames.get_by_role("list").bounding_box()
    path = tmp_path / f"video_{canvas.renderer}.mp4"
    save_mp4(torch.rand(1, 3, 7, 32, 48, generator=torch.Generator().manual_seed(0)), path, fps=8)
    path = path.rename(path.with_suffix(ending))
    canvas.drop(path, place=(strip["x"] + 20, strip["y"] + 20))
    wait_for_source(canvas, f"sdvideo/{path.name}")
    expect(frames.get_by_role("listitem")).to_have_count(7)


def test_files_are_chosen(canvas, frames, pictures):
    with canvas.page.expect_file_chooser() as chooser:
        frames.get_by_role("button", name="Choose Files").click()
    chooser.value.set_files(pictures[:5])
    wait_for_source(canvas, pictures[0].parent.name)
    expect(frames.get_by_role("listitem")).to_have_count(5)


def test_a_folder_is_dropped_without_what_is_deeper_and_runs(canvas, frames, pictures):
    folder = pictures[0].parent
    (folder / "masks").mkdir()
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "masks" / "deeper.png")
    strip = frames.get_by_role("list").bounding_box()
    browser = canvas.page.context.new_cdp_session(canvas.page)
    for kind in ("dragEnter", "dragOver", "dragOver", "drop"):
        data = {"items": [], "files": [str(folder)], "dragOperationsMask": 1}
        place = {"x": strip["x"] + 20, "y": strip["y"] + 20}
        browser.send("Input.dispatchDragEvent", {"type": kind, **place, "data": data})
    browser.detach()
    wait_for_source(canvas, folder.name)
    expect(frames.get_by_role("listitem")).to_have_count(NUM_FRAMES)
    (node,) = canvas.serialize()["nodes"]
    canvas.connect(node["id"], canvas.add("SDVideoSaveGIF", (800, 150)), "images")
    canvas.set_widgets({"num_frames": 3, "width": 64, "height": 64})
    canvas.run()
    expect(canvas.player.get_by_label("Frame counter")).to_contain_text("/ 3")


def test_of_several_clips_the_first_is_taken_and_the_user_told(canvas, frames, tmp_path):
    names = [f"{which}_{canvas.renderer}.gif" for which in ("first", "second")]
    canvas.drop(*[save_gif(tmp_path / name, 3) for name in names], place=TITLE)
    wait_for_source(canvas, f"sdvideo/{names[0]}")
    expect(canvas.page.get_by_text(f"Only {names[0]} is loaded")).to_be_visible()
    expect(frames.get_by_role("listitem")).to_have_count(3)


def test_pictures_go_without_the_clips_among_them(canvas, frames, pictures, tmp_path):
    canvas.drop(save_gif(tmp_path / "among.gif", 3), *pictures, place=TITLE)
    wait_for_source(canvas, pictures[0].parent.name)
    expect(canvas.page.get_by_text("Only the pictures are loaded")).to_be_visible()
    expect(frames.get_by_role("listitem")).to_have_count(NUM_FRAMES)


def test_a_folder_gets_a_name_that_differs_in_more_than_its_case(canvas, server, frames, pictures):
    name = f"Case-{canvas.renderer}"
    (server.base / "input" / name.lower()).mkdir()
    Image.new("RGB", (WIDTH, HEIGHT)).save(server.base / "input" / name.lower() / "0.png")
    named = [path.rename(path.with_name(f"{name}_{index}.png")) for index, path in enumerate(pictures)]
    canvas.drop(*named, place=TITLE)
    wait_for_source(canvas, f"{name} (2)")


def test_what_is_dropped_elsewhere_after_it_was_over_the_strip_is_not_the_nodes(canvas, frames, pictures):
    canvas.add("SDVideoTextEncode", (700, 150))
    text = canvas.page.locator("textarea").first.bounding_box()
    strip = frames.get_by_role("list").bounding_box()
    before = canvas.serialize()["nodes"][0]["widgets_values"]
    way = [TITLE, (strip["x"] + 20, strip["y"] + 20)]
    canvas.drop(pictures[0], place=(text["x"] + 20, text["y"] + 20), way=way)
    # ComfyUI opens it as a picture.
    canvas.page.wait_for_function("app.graph.nodes.some((node) => node.type === 'LoadImage')")
    assert canvas.serialize()["nodes"][0]["widgets_values"] == before
