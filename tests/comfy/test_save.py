"""Save GIF in a running ComfyUI: what the browser is told, what the files are, and the graphs they carry."""

import io
import json
import shutil
from pathlib import Path

import av
import pytest
from PIL import Image

from tests.unit.gif_blocks import parse_gif
from tests.unit.small_clips import frame_numbers, grey_images, noise_images

GRAPH = {
    "frames": {
        "class_type": "SDVideoLoadFrameSequence",
        "inputs": {"source": "greys", "num_frames": 4, "offset": 0, "stride": 1, "width": 64, "height": 64},
    },
    "save": {"class_type": "SDVideoSaveGIF", "inputs": {"images": ["frames", 0], "fps": 12.5}},
}
WORKFLOW = {"nodes": [{"id": 7, "type": "Note", "widgets_values": ["café"]}], "links": []}

# What stands in the node's output for the stock frontend. It takes `animated` for a video unless a .webp is shown.
EXPECTED = {
    "gif": (["clip_00001_.gif"], "", {}),
    "webp": (["clip_00001_.webp"], "", {"animated": [True]}),
    "mp4": (["clip_00001_.mp4"], "", {"animated": [True]}),
    "png sequence": ([f"{index:05}.png" for index in range(4)], "/clip_00001_", {}),
}


@pytest.fixture(scope="module")
def greys(server):
    folder = server.base / "input" / "greys"
    folder.mkdir()
    for index, image in enumerate(grey_images(12, (64, 64))):
        image.save(folder / f"frame{index}.png")
    yield folder
    shutil.rmtree(folder)


def graph(folder, **inputs):
    """The graph that saves into a folder of its own below ComfyUI's output."""
    save = GRAPH["save"] | {"inputs": GRAPH["save"]["inputs"] | {"filename_prefix": f"{folder}/clip"} | inputs}
    return {**GRAPH, "save": save}


def metadata(format, data):
    """The graphs in a file, from where the stock frontend (for GIF, this pack's) reads them."""
    if format == "mp4":
        with av.open(io.BytesIO(data)) as container:
            return {name: json.loads(container.metadata[name]) for name in ("prompt", "workflow")}
    with Image.open(io.BytesIO(data)) as image:
        if format == "gif":
            return json.loads(image.info["comment"])
        texts = image.text if format == "png sequence" else dict(exif_text(image, tag) for tag in (0x0110, 0x010F))
    return {name: json.loads(text) for name, text in texts.items()}


def exif_text(image, tag):
    return image.getexif()[tag].split(":", 1)


@pytest.mark.parametrize("format", EXPECTED)
def test_the_browser_is_told_what_it_can_show_and_files_hold_the_graphs(server, greys, format):
    names, subfolder, mark = EXPECTED[format]
    folder = f"told/{format.split()[0]}"
    queued = graph(folder, format=format)
    output = server.run(queued, workflow=WORKFLOW)["outputs"]["save"]
    images = [{"filename": name, "subfolder": folder + subfolder, "type": "output"} for name in names]
    path = str(server.base / "output" / folder / "clip_00001_") + Path(names[0]).suffix * (len(names) == 1)
    assert output == {"images": images, "sdvideo": [[12.5, 4, format, path]], **mark}
    assert Path(path).exists()
    for image in images:
        stored = metadata(format, server.view(**image))
        stored["prompt"]["frames"].pop("is_changed")  # which ComfyUI notes there
        assert stored == {"prompt": queued, "workflow": WORKFLOW}


@pytest.mark.parametrize("format", EXPECTED)
def test_the_list_of_jobs_counts_the_files_and_shows_the_first(server, greys, format):
    job = server.queue(graph(f"counted/{format.split()[0]}", format=format))
    images = server.wait(job)["outputs"]["save"]["images"]
    listed = json.loads(server.get(f"/api/jobs/{job}"))
    assert listed["outputs_count"] == listed["previewable_outputs_count"] == len(images)
    assert listed["preview_output"]["filename"] == images[0]["filename"]


def test_options_reach_the_file(server, greys):
    options = {"loop": 3, "ping_pong": True, "palette": "frame", "dither": "none"}
    output = server.run(graph("options", **options))["outputs"]["save"]
    assert output["sdvideo"][0][:3] == [12.5, 6, "gif"]
    gif = parse_gif(server.view(**output["images"][0]))
    assert (gif.delays, gif.loops, gif.num_colour_tables) == ([8] * 6, 2, 1 + 6)


def test_a_graph_from_before_the_options_saves_a_gif_as_before(server, greys):
    output = server.run(graph("before"))["outputs"]["save"]
    gif = parse_gif(server.view(**output["images"][0]))
    assert (gif.delays, gif.loops, gif.num_colour_tables) == ([8] * 4, 0, 1)


def test_each_sequence_gets_a_folder_of_its_own_which_can_be_loaded(server, greys):
    for number, order in ((1, [0, 1, 2, 3]), (2, [0, 1, 2, 3, 2, 1])):
        output = server.run(graph("v1.5", format="png sequence", ping_pong=number == 2))["outputs"]["save"]
        assert {image["subfolder"] for image in output["images"]} == {f"v1.5/clip_{number:05}_"}
        frames: list[Image.Image] = [Image.open(io.BytesIO(server.view(**image))) for image in output["images"]]
        assert frame_numbers(frames) == order


def test_the_frames_of_a_folder_come_in_the_order_people_count(server, greys):
    output = server.run({**graph("order"), "frames": GRAPH["frames"] | {"inputs": loaded(num_frames=12)}})
    with Image.open(io.BytesIO(server.view(**output["outputs"]["save"]["images"][0]))) as image:
        seen = []
        for index in range(image.n_frames):
            image.seek(index)
            seen.append(image.convert("RGB"))
    assert frame_numbers(seen) == list(range(12))


def loaded(**inputs):
    return GRAPH["frames"]["inputs"] | inputs


def test_sources_are_listed_in_the_order_people_count(server, greys):
    for name in ("shot10", "shot2", "shot1"):
        shutil.copytree(greys, server.base / "input" / "shots" / name)
    listed = server.object_info("SDVideoLoadFrameSequence")["input"]["required"]["source"][1]["options"]
    assert [name for name in listed if name.startswith("shots/shot")] == ["shots/shot1", "shots/shot2", "shots/shot10"]


def test_saving_tells_how_far_it_is_and_ends_when_cancelled(server):
    (server.base / "input" / "noise").mkdir()
    noise_images(1, (512, 512))[0].save(server.base / "input" / "noise" / "0.png")
    queued = graph("cancelled", palette="frame", dither="bayer", images=["many", 0])
    queued["frames"] = GRAPH["frames"] | {"inputs": loaded(source="noise", num_frames=1, width=512, height=512)}
    queued["many"] = {"class_type": "RepeatImageBatch", "inputs": {"image": ["frames", 0], "amount": 60}}
    job = server.queue(queued)
    assert server.wait_for(job, "progress", value=1)["max"] == 60
    server.interrupt(job)
    with pytest.raises(RuntimeError, match=r"SDVideoSaveGIF \(node save\) was interrupted"):
        server.wait(job, timeout=10)
    assert not list((server.base / "output" / "cancelled").iterdir())


@pytest.mark.parametrize(("format", "fastest"), [("gif", 50), ("webp", 90), ("mp4", 240), ("png sequence", 240)])
def test_each_format_takes_the_fps_it_can_play(server, greys, format, fastest):
    assert server.run(graph("fast", format=format, fps=fastest))["outputs"]["save"]["images"]
    limit = rf"fps is {fastest + 1}\.0, but .* plays 0\.01 to {fastest}; choose one of these"
    with pytest.raises(RuntimeError, match=rf"\(node save\): Custom validation failed .*{limit}"):
        server.run(graph("fast", format=format, fps=fastest + 1))


def test_a_format_that_is_not_there_is_refused(server, greys):
    with pytest.raises(RuntimeError, match="format 'avi' is not known; choose gif, webp, mp4, png sequence"):
        server.run(graph("unknown", format="avi"))
