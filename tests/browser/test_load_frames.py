"""Load Frame Sequence in both renderers: files dropped on it or chosen, and the strip of its frames."""

import itertools

import pytest
from PIL import Image

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect

NUM_FRAMES, WIDTH, HEIGHT = 12, 48, 32
SIZE = f"{WIDTH} \N{MULTIPLICATION SIGN} {HEIGHT}"
FOLDERS = (f"walk-{number}" for number in itertools.count())
TITLE = (350, 135)  # a place on the node's title


@pytest.fixture
def pictures(tmp_path):
    """12 frames, each brighter than the one before, in a folder of their own with a note that is no picture."""
    folder = tmp_path / next(FOLDERS)
    folder.mkdir()
    (folder / "notes.txt").write_text("frames of a walk", encoding="utf-8")
    for index in range(NUM_FRAMES):
        Image.new("RGB", (WIDTH, HEIGHT), (20 * index, 0, 0)).save(folder / f"{folder.name}_{index + 1}.png")
    return sorted(folder.glob("*.png"))


@pytest.fixture
def frames(canvas):
    """The part of a Load Frame Sequence node that shows its frames."""
    canvas.add("SDVideoLoadFrameSequence")
    frames = canvas.page.get_by_role("group", name="Frames to load")
    # It begins with the first source there is.
    expect(frames.get_by_role("listitem")).not_to_have_count(0)
    return frames


def wait_for_source(canvas, name):
    canvas.page.wait_for_function("(name) => app.graph.nodes[0].widgets[0].value === name", arg=name)


def picked(frames):
    items = frames.get_by_role("listitem")
    return [index for index in range(items.count()) if items.nth(index).get_attribute("data-picked") is not None]


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


def test_the_strip_marks_what_the_node_picks(canvas, frames, pictures):
    canvas.drop(*pictures, place=TITLE)
    expect(frames.get_by_role("listitem")).to_have_count(NUM_FRAMES)
    canvas.set_widgets({"offset": 2, "stride": 3, "num_frames": 3})
    expect(frames.get_by_role("status")).to_have_text(f"3 of 12 frames, {SIZE}")
    assert picked(frames) == [2, 5, 8]
    names = frames.get_by_role("img").evaluate_all("(images) => images.map((image) => image.alt)")
    assert [name for name in names if "picked" in name] == [f"Frame {frame}, picked" for frame in (2, 5, 8)]
    workflow = canvas.serialize()
    canvas.clear()
    canvas.load(workflow)
    expect(frames.get_by_role("listitem")).to_have_count(NUM_FRAMES)
    assert picked(frames) == [2, 5, 8]


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


def test_all_is_reached_by_keys_and_has_a_name(canvas, frames):
    assert canvas.tab_through(frames, 3) == ["Choose Files", "Choose Folder", "Frames"]


def save_gif(path, num_frames):
    first, *rest = [Image.new("RGB", (WIDTH, HEIGHT), (0, 40 * index, 0)) for index in range(num_frames)]
    first.save(path, save_all=True, append_images=rest)
    return path


def test_a_gif_stays_one_file(canvas, server, frames, tmp_path):
    save_gif(tmp_path / f"one_{canvas.renderer}.gif", 5)
    canvas.drop(tmp_path / f"one_{canvas.renderer}.gif", place=TITLE)
    wait_for_source(canvas, f"sdvideo/one_{canvas.renderer}.gif")
    expect(frames.get_by_role("listitem")).to_have_count(5)
    assert (server.base / "input" / "sdvideo" / f"one_{canvas.renderer}.gif").is_file()
    assert canvas.node_types() == ["SDVideoLoadFrameSequence"]


def test_what_is_no_picture_is_refused(canvas, frames, tmp_path):
    (tmp_path / "graph.json").write_text("{}", encoding="utf-8")
    canvas.drop(tmp_path / "graph.json", place=TITLE)
    expect(frames.get_by_role("status")).to_have_text("Cannot upload nothing: these are no pictures or videos")


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


def test_the_strip_follows_the_files(canvas, server, frames, pictures):
    canvas.drop(*pictures, place=TITLE)
    items = frames.get_by_role("listitem")
    expect(items).to_have_count(NUM_FRAMES)
    folder = server.base / "input" / pictures[0].parent.name
    (folder / pictures[0].name).unlink()
    canvas.page.evaluate("app.refreshComboInNodes()")  # R
    expect(items).to_have_count(NUM_FRAMES - 1)
    (folder / pictures[1].name).unlink()
    number = str(canvas.serialize()["nodes"][0]["id"])
    canvas.report("executing", number)
    expect(items).to_have_count(NUM_FRAMES - 2)
    canvas.report("executing", None)


def test_a_strip_that_could_not_be_read_is_read_again(canvas, frames, pictures):
    canvas.drop(*pictures, place=TITLE)
    status = frames.get_by_role("status")
    expect(status).to_contain_text("12 of 12 frames")
    held = []
    canvas.page.route("**/sdvideo/strip*", lambda route: held.append(route))
    canvas.page.evaluate("app.refreshComboInNodes()")
    expect(status).to_have_text(f"Reading {pictures[0].parent.name} \N{HORIZONTAL ELLIPSIS}")
    held[0].abort()
    expect(status).to_contain_text(f"Cannot read {pictures[0].parent.name}: ")
    canvas.page.unroute("**/sdvideo/strip*")
    canvas.set_widgets({"stride": 1})
    expect(status).to_contain_text("12 of 12 frames")
    canvas.errors[:] = [error for error in canvas.errors if "/sdvideo/strip" not in error]
