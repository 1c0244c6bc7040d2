"""The route that the browser asks for thumbnails of a sequence."""

import base64
import io
import json
import os
import urllib.error

import av
import pytest
from PIL import Image

from tests.unit.small_clips import frame_numbers, grey_images


def test_a_sequence_in_the_input_folder_comes_as_pictures(server, example_frames):
    strip = json.loads(server.get("/sdvideo/strip", source=example_frames.name))
    thumbnails = strip.pop("thumbnails")
    assert strip == {"num_frames": 16, "width": 96, "height": 80, "every": 1}
    pictures = [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) for url in thumbnails]
    assert [picture.size for picture in pictures] == [(77, 64)] * 16


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("gone", "gone does not exist; give"),
        ("broken.gif", "cannot read broken.gif: "),
        ("back\\slash.gif", "cannot read back\\slash.gif: "),  # which repr writes otherwise
        (300 * "a", "too long"),
        ("../user", "Invalid file path"),
        ("/etc", "Invalid file path"),
        ("..", "Invalid"),
    ],
)
def test_what_is_not_there_or_not_inside_is_refused(server, source, reason):
    for name in ("broken.gif", "back\\slash.gif"):
        (server.base / "input" / name).write_bytes(b"GIF89a, not")
    with pytest.raises(urllib.error.HTTPError) as refused:
        server.get("/sdvideo/strip", source=source)
    with refused.value as reply:
        assert reply.code == 404
        told = reply.read().decode()
    assert reason in told
    assert str(server.base) not in told


def test_a_strip_is_made_again_when_its_pictures_change_and_only_then(server):
    folder = server.base / "input" / "kept"
    folder.mkdir()
    grey_images(2)[1].save(folder / "0.png")

    def strip():
        return server.get("/sdvideo/strip", source="kept")

    first = strip()
    stat = (folder / "0.png").stat()
    # The same size and time, so that only who looks again can tell.
    (folder / "0.png").write_bytes(bytes(stat.st_size))
    os.utime(folder / "0.png", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert strip() == first
    grey_images(9)[8].save(folder / "0.png")
    assert strip() != first


@pytest.fixture(scope="module")
def odd_gif(server):
    """Three frames of an odd size, for 100, 300 and 50 ms."""
    first, *rest = grey_images(3, (33, 21), first=5)
    folder = server.base / "output" / "odd"
    folder.mkdir()
    first.save(folder / "clip.gif", save_all=True, append_images=rest, duration=[100, 300, 50])


def test_an_animation_comes_as_a_video_with_its_frames_and_times(server, odd_gif):
    data = server.get("/sdvideo/clip", filename="clip.gif", subfolder="odd", type="output")
    with av.open(io.BytesIO(data)) as video:
        frames = list(video.decode(video=0))
        assert float(video.duration / av.time_base) == pytest.approx(0.45, abs=0.005)
    assert [round(1000 * frame.time) for frame in frames] == [0, 100, 400]
    assert [(frame.width, frame.height, frame.format.name) for frame in frames] == [(34, 22, "yuv420p")] * 3
    assert frame_numbers([frame.to_image() for frame in frames]) == [5, 6, 7]
    made = list((server.base / "temp" / "sdvideo_clips").iterdir())
    assert server.get("/sdvideo/clip", filename="clip.gif", subfolder="odd", type="output") == data
    assert list((server.base / "temp" / "sdvideo_clips").iterdir()) == made


@pytest.mark.parametrize(
    "query",
    [
        {"filename": "gone.gif", "type": "output"},
        {"filename": "../../user/x.gif", "type": "output"},
        {"filename": "clip.gif", "subfolder": "../input", "type": "output"},
        {"filename": "passwd", "subfolder": "/etc", "type": "output"},
        {"filename": "clip.gif", "subfolder": "odd", "type": "models"},
        {"filename": "", "subfolder": "odd", "type": "output"},
    ],
)
def test_no_other_file_comes_as_a_video(server, odd_gif, query):
    with pytest.raises(urllib.error.HTTPError) as refused:
        server.get("/sdvideo/clip", **query)
    with refused.value as reply:
        assert reply.code == 404
        assert str(server.base) not in reply.read().decode()
