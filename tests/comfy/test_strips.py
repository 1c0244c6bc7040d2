"""The route that the browser asks for thumbnails of a sequence."""

import base64
import io
import json
import urllib.error

import pytest
from PIL import Image


def test_a_sequence_in_the_input_folder_comes_as_pictures(server, example_frames):
    strip = json.loads(server.get("/sdvideo/strip", source=example_frames.name))
    thumbnails = strip.pop("thumbnails")
    assert strip == {"num_frames": 16, "width": 96, "height": 80, "every": 1}
    pictures = [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) for url in thumbnails]
    assert [picture.size for picture in pictures] == [(77, 64)] * 16


@pytest.mark.parametrize(
    ("source", "reason"),
    [("gone", "does not exist"), ("../user", "Invalid file path"), ("/etc", "Invalid file path"), ("..", "Invalid")],
)
def test_what_is_not_there_or_not_inside_is_refused(server, source, reason):
    with pytest.raises(urllib.error.HTTPError) as refused:
        server.get("/sdvideo/strip", source=source)
    with refused.value as reply:
        assert reply.code == 404
        assert reason in reply.read().decode()
