"""Load Frame Sequence in both renderers: the strip of its frames, and which of them the node picks."""

from tests.browser.sequences import NUM_FRAMES, SIZE, TITLE, expect, wait_for_source


def picked(frames):
    items = frames.get_by_role("listitem")
    return [index for index in range(items.count()) if items.nth(index).get_attribute("data-picked") is not None]


def test_the_strip_marks_what_the_node_picks(canvas, frames, pictures):
    canvas.drop(*pictures, place=TITLE)
    wait_for_source(canvas, pictures[0].parent.name)
    expect(frames.get_by_role("listitem")).to_have_count(NUM_FRAMES)
    canvas.set_widgets({"offset": 2, "stride": 3, "num_frames": 3})
    expect(frames.get_by_role("status")).to_have_text(f"3 of 12 frames, {SIZE}")
    assert picked(frames) == [2, 5, 8]
    names = frames.get_by_role("img").evaluate_all("(images) => images.map((image) => image.alt)")
    assert [name for name in names if "picked" in name] == [f"Frame {frame}, picked" for frame in (2, 5, 8)]
    workflow = canvas.serialize()
    canvas.clear()
    asked = []

    def note(request):
        asked.append(request.url)

    canvas.page.on("request", note)
    canvas.load(workflow)
    expect(frames.get_by_role("listitem")).to_have_count(NUM_FRAMES)
    canvas.page.remove_listener("request", note)
    assert picked(frames) == [2, 5, 8]
    # Another source's strip would make this one wait.
    assert len([url for url in asked if "/sdvideo/strip" in url]) == 1


def test_the_strip_marks_what_a_user_sets(canvas, frames, pictures):
    canvas.drop(*pictures, place=TITLE)
    wait_for_source(canvas, pictures[0].parent.name)
    expect(frames.get_by_role("listitem")).to_have_count(NUM_FRAMES)
    if canvas.renderer == "vue":
        canvas.page.locator("[data-node-id]").get_by_test_id("increment").nth(1).click()
    else:
        place = """() => {
          const [node] = app.graph.nodes;
          const widget = node.widgets.find(({ name }) => name === "offset");
          return [node.pos[0] + node.size[0] - 25, node.pos[1] + widget.last_y + 10];
        }"""
        canvas.page.mouse.click(*canvas.page.evaluate(place))
    expect(frames.get_by_role("status")).to_contain_text("11 of 12 frames")
    assert picked(frames) == list(range(1, NUM_FRAMES))


def test_the_strip_marks_nothing_where_a_link_decides(canvas, frames, pictures):
    canvas.drop(*pictures, place=TITLE)
    wait_for_source(canvas, pictures[0].parent.name)
    status = frames.get_by_role("status")
    expect(status).to_contain_text("12 of 12 frames")
    (node,) = canvas.serialize()["nodes"]
    canvas.connect(canvas.add("PrimitiveInt", (800, 150)), node["id"], "offset")
    expect(status).to_have_text(f"12 frames, {SIZE}; a link decides which are picked")
    assert picked(frames) == []
    canvas.page.evaluate("app.graph.nodes[0].inputs.forEach((_, index) => app.graph.nodes[0].disconnectInput(index))")
    expect(status).to_contain_text("12 of 12 frames")
    assert picked(frames) == list(range(NUM_FRAMES))


def test_the_wheel_moves_the_strip_that_was_clicked(canvas, frames, pictures):
    canvas.drop(*pictures, place=TITLE)
    wait_for_source(canvas, pictures[0].parent.name)
    expect(frames.get_by_role("listitem")).to_have_count(NUM_FRAMES)
    strip = frames.get_by_role("list")
    strip.click()
    canvas.page.mouse.wheel(0, 120)
    canvas.page.wait_for_function("document.activeElement.scrollLeft === 120")
    assert canvas.page.evaluate("app.canvas.ds.scale") == 1
    strip.evaluate("(strip) => strip.blur()")
    canvas.page.mouse.wheel(0, 120)
    canvas.page.wait_for_function("app.canvas.ds.scale < 1")
    assert strip.evaluate("(strip) => strip.scrollLeft") == 120


def test_all_is_reached_by_keys_and_has_a_name(canvas, frames):
    assert canvas.tab_through(frames, 3) == ["Choose Files", "Choose Folder", "Frames"]


def test_the_strip_follows_the_files(canvas, server, frames, pictures):
    canvas.drop(*pictures, place=TITLE)
    wait_for_source(canvas, pictures[0].parent.name)
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
    wait_for_source(canvas, pictures[0].parent.name)
    status = frames.get_by_role("status")
    expect(status).to_contain_text("12 of 12 frames")
    canvas.page.route("**/sdvideo/strip*", lambda route: route.abort())
    canvas.page.evaluate("app.refreshComboInNodes()")
    expect(status).to_contain_text(f"Cannot read {pictures[0].parent.name}: ")
    canvas.page.unroute("**/sdvideo/strip*")
    canvas.set_widgets({"stride": 1})
    expect(status).to_contain_text("12 of 12 frames")
    canvas.errors[:] = [error for error in canvas.errors if "/sdvideo/strip" not in error]


def test_what_is_read_again_is_said_once(canvas, frames, pictures):
    canvas.drop(*pictures, place=TITLE)
    wait_for_source(canvas, pictures[0].parent.name)
    status = frames.get_by_role("status")
    expect(status).to_contain_text("12 of 12 frames")
    script = """(status) => {
      window.said = [];
      window.observer = new MutationObserver(() => window.said.push(status.textContent));
      window.observer.observe(status, { childList: true, characterData: true, subtree: true });
    }"""
    status.evaluate(script)
    with canvas.page.expect_response("**/sdvideo/strip*"):
        canvas.page.evaluate("app.refreshComboInNodes()")
    canvas.wait_for_frames()
    # As another source, it is said to be read first.
    held = []
    canvas.page.route("**/sdvideo/strip*", lambda route: held.append(route))
    canvas.set_widgets({"source": "another"})
    expect(status).to_have_text("Reading another \N{HORIZONTAL ELLIPSIS}")
    held[0].continue_()
    canvas.page.unroute("**/sdvideo/strip*")
    expect(status).not_to_contain_text("Reading")
    said = canvas.page.evaluate("() => (window.observer.disconnect(), window.said)")
    assert said[0] == "Reading another \N{HORIZONTAL ELLIPSIS}"
    canvas.errors[:] = [error for error in canvas.errors if "/sdvideo/strip" not in error]
