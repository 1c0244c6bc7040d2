"""Collate: ping-pong, sizes and ranges of batches, and what is said of batches that cannot be trained on."""

import random
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from sdvideo_core.frames import images_to_frames, resize_image
from sdvideo_core.training.cache import collate_cached
from sdvideo_core.training.collate import check_batch, collate_fn, ping_pong
from tests.unit.small_clips import grey_images, noise_images


def clip(num_frames: int, size: tuple[int, int] = (32, 16), text: str = "a caption") -> dict[str, Any]:
    return {"name": "clip", "frames": grey_images(num_frames, size), "text": text}


def noise(num_frames: int, size: tuple[int, int]) -> dict[str, Any]:
    return {"name": "noise", "frames": noise_images(num_frames, size), "text": "noise"}


def frame_numbers(pixels: torch.Tensor) -> list[int]:
    return [round(float(frame.mean() + 1) * 127.5 / 10) for frame in pixels]


# Ping-pong


@pytest.mark.parametrize(
    ("length", "num_frames", "expected"),
    [
        (3, 8, [0, 1, 2, 1, 0, 1, 2, 1]),
        (2, 5, [0, 1, 0, 1, 0]),
        (1, 4, [0, 0, 0, 0]),
        (4, 4, [0, 1, 2, 3]),
        (9, 2, [0, 1]),
    ],
)
def test_ping_pong_goes_to_the_end_and_back(length, num_frames, expected):
    assert ping_pong(length, num_frames) == expected


@pytest.mark.parametrize("seed", range(30))
def test_ping_pong_moves_one_step_and_turns_only_at_the_ends(seed):
    rng = random.Random(seed)
    length, num_frames = rng.randint(2, 12), rng.randint(1, 60)
    order = ping_pong(length, num_frames)
    assert len(order) == num_frames
    assert order[: min(length, num_frames)] == list(range(min(length, num_frames)))
    assert all(abs(after - before) == 1 for before, after in pairwise(order))
    turns = [b for a, b, c in zip(order, order[1:], order[2:], strict=False) if a == c]
    assert all(turn in (0, length - 1) for turn in turns)
    assert max(order) <= length - 1
    counts = [ping_pong(length, 2 * (length - 1) * 3).count(index) for index in range(length)]
    assert counts == [3, *[6] * (length - 2), 3]


@pytest.mark.parametrize(
    ("length", "num_frames", "message"),
    [(0, 4, "has 0 frames, expected at least 1; leave"), (4, 0, "num_frames is 0, expected at least 1")],
)
def test_ping_pong_needs_frames(length, num_frames, message):
    with pytest.raises(ValueError, match=message):
        ping_pong(length, num_frames)


# Batches


def test_a_batch_has_the_seed_s_layout():
    batch = collate_fn([clip(16, text="one"), clip(20, text="two")])
    assert set(batch) == {"pixel_values", "text"}
    assert batch["pixel_values"].shape == (2, 16, 3, 256, 256)
    assert batch["pixel_values"].dtype == torch.float32
    assert batch["text"] == ["one", "two"]
    check_batch(batch)


def test_frames_are_consecutive_from_the_first_on():
    pixels = collate_fn([clip(9)], num_frames=4, image_size=(32, 16))["pixel_values"]
    assert frame_numbers(pixels[0]) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("length", "stride", "expected"),
    [(20, 3, [0, 3, 6, 9, 12]), (9, 3, [0, 3, 6, 3, 0]), (5, 4, [0, 4, 0, 4, 0]), (3, 8, [0] * 5), (1, 1, [0] * 5)],
)
def test_short_clips_ping_pong_over_every_stride_th_frame(length, stride, expected):
    pixels = collate_fn([clip(length)], 5, (32, 16), stride=stride)["pixel_values"]
    assert frame_numbers(pixels[0]) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_pixels_are_the_resized_frames_in_the_asked_dtype(dtype):
    item = noise(3, (50, 30))
    pixels = collate_fn([item], 3, (24, 40), dtype)["pixel_values"]
    expected = images_to_frames([resize_image(frame, (24, 40)) for frame in item["frames"]])
    assert pixels.shape == (1, 3, 3, 40, 24)
    assert torch.equal(pixels[0], expected.to(dtype))
    assert -1 <= pixels.min() < -0.5
    assert 0.5 < pixels.max() <= 1
    check_batch({"pixel_values": pixels, "text": ["noise"]})


def test_clips_of_all_lengths_and_sizes_make_one_batch():
    items = [noise(2, (50, 30)), noise(1, (8, 90)), noise(7, (24, 16))]
    pixels = collate_fn(items, 5, (24, 16))["pixel_values"]
    for index, item in enumerate(items):
        assert torch.equal(pixels[index], collate_fn([item], 5, (24, 16))["pixel_values"][0])
    assert torch.equal(pixels[0, 0], pixels[0, 2])
    assert torch.equal(pixels[2], images_to_frames(items[2]["frames"][:5]))


def test_it_runs_in_workers():
    collate = partial(collate_fn, num_frames=3, image_size=(16, 8), dtype=torch.float32)
    items: Any = [clip(n, text=str(n)) for n in (1, 2, 3, 4)]
    batches = list(DataLoader(items, batch_size=2, num_workers=2, collate_fn=collate))
    assert [batch["text"] for batch in batches] == [["1", "2"], ["3", "4"]]
    assert frame_numbers(batches[0]["pixel_values"][1]) == [0, 1, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": (30, 16)}, "width 30 is not usable: .* multiple of 8; try 32"),
        ({"image_size": (32, 0)}, "height 0 is not usable"),
        ({"num_frames": 0}, "num_frames is 0, expected at least 1"),
        ({"stride": 0}, "stride is 0, expected at least 1"),
        ({"dtype": torch.uint8}, r"dtype is torch\.uint8, expected floating point .*; use torch\.float32"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        collate_fn([clip(2)], **options)


@pytest.mark.parametrize("size", [256, "256", (256,), (32.0, 32.0)])
def test_a_size_of_another_kind_is_told(size):
    with pytest.raises(TypeError, match=r"^image_size is .*, expected \(width, height\) in pixels, such as"):
        collate_fn([clip(2)], image_size=size)


def test_a_clip_without_frames_is_named():
    with pytest.raises(ValueError, match="clip clip has no frames, expected at least 1; leave the clip out"):
        collate_fn([clip(0)])


def test_an_item_of_another_form_is_refused():
    with pytest.raises(ValueError, match=r"lacks frames and text, it has \['video'\]; see ClipItem"):
        collate_fn([{"video": 1}])


# Batches of cached items


def cached(frames: int = 4, tokens: int = 7, name: str = "a") -> dict[str, Any]:
    return {"pixel_values": torch.randn(frames, 4, 2, 3), "text": torch.randn(tokens, 8), "name": name}


def test_cached_clips_may_be_shortened():
    items = [cached(), cached()]
    batch = collate_cached(items, num_frames=3)
    assert torch.equal(batch["pixel_values"], torch.stack([item["pixel_values"][:3] for item in items]))
    assert batch["text"].shape == (2, 7, 8)


@pytest.mark.parametrize("num_frames", [0, -1, 5])
def test_cached_clips_cannot_grow(num_frames):
    with pytest.raises(
        ValueError, match=rf"num_frames is {num_frames}, but the cache has 4 frames a clip; .*1\.\.4 or"
    ):
        collate_cached([cached()], num_frames)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            cached(frames=3, name="b"),
            r"pixel_values of b has shape \(3, 4, 2, 3\), of a \(4, 4, 2, 3\); .*same settings",
        ),
        (cached(tokens=9, name="b"), r"text of b has shape \(9, 8\), of a \(7, 8\)"),
    ],
)
def test_cached_clips_of_two_shapes_are_refused(other, message):
    with pytest.raises(ValueError, match=message):
        collate_cached([cached(), other])


# What the trainer takes


def batch(pixels: Any = None, text: Any = None) -> dict[str, Any]:
    return {
        "pixel_values": torch.zeros(2, 4, 3, 16, 24) if pixels is None else pixels,
        "text": ["one", ""] if text is None else text,
    }


LATENTS = torch.full((2, 4, 4, 3, 5), -7.0)
CONTEXT = torch.full((2, 77, 8), 9.0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_good_batches_pass(dtype):
    check_batch(batch(torch.full((2, 4, 3, 16, 24), 1.5, dtype=dtype)))
    check_batch(batch(text=("one", "two")))
    check_batch(batch(torch.zeros(2, 4, 1, 8, 8)), channels=1)
    check_batch(batch(LATENTS.to(dtype)), preencoded_img=True)
    check_batch(batch(LATENTS), channels=4, preencoded_img=True)
    check_batch(batch(text=CONTEXT.to(dtype)), preencoded_txt=True)
    check_batch(batch(LATENTS, CONTEXT), preencoded_img=True, preencoded_txt=True)


WRONG = [
    ([1, 2], r"a batch has list, expected a dict with pixel_values and text; see collate_fn"),
    ({"video": 1, "text": 2}, r"a batch has the keys \['video', 'text'\], expected a dict with pixel_values and text"),
    (batch(np.zeros(3)), r"pixel_values is ndarray, expected a tensor \(b, f, 3, h, w\); see collate_fn"),
    (batch(torch.zeros(4, 3, 8, 8)), r"has shape \(4, 3, 8, 8\), expected \(b, f, 3, h, w\); add .*unsqueeze\(0\)"),
    (batch(torch.zeros(2, 3, 4, 8, 8)), r"has shape \(2, 3, 4, 8, 8\), .*; latents need preencoded_img=True"),
    (batch(torch.zeros(2, 3, 7, 8, 8)), r"\(2, 3, 7, 8, 8\), .*; put frames before channels with \.transpose\(1, 2\)"),
    (batch(torch.zeros(2, 7, 8, 8, 3)), r"\(2, 7, 8, 8, 3\), expected .*; change the collate function"),
    (batch(torch.zeros(2, 0, 3, 8, 8)), r"\(2, 0, 3, 8, 8\), expected .*; change the collate function"),
    (batch(LATENTS), r"latents need preencoded_img=True, pixels preencoded_img=False"),
    (batch(torch.zeros(2, 1, 3, 8, 8).byte()), r"pixel_values holds torch\.uint8, expected floating point; convert"),
    (batch(torch.full((2, 1, 3, 8, 8), torch.nan)), r"pixel_values has NaN or infinite values, .*; look for the clip"),
    (batch(torch.full((2, 1, 3, 8, 8), -torch.inf)), r"pixel_values has NaN or infinite values"),
    (batch(torch.zeros(2, 1, 3, 8, 30)), r"pixel_values are 30x8 pixels, expected multiples of 8; set collate_fn's"),
    (batch(torch.zeros(2, 1, 3, 12, 8)), r"pixel_values are 8x12 pixels"),
    (
        batch(torch.full((2, 1, 3, 8, 8), 255.0)),
        r"in 255\.\.255, expected -1\.\.1; .* x / 127\.5 - 1, 0\.\.1 with x \* 2",
    ),
    (batch(torch.full((2, 1, 3, 8, 8), -1.6)), r"in -1\.6\.\.-1\.6, expected -1\.\.1"),
    (batch(text="ab"), r"text is str, expected a list of 2 captions; put captions in a list"),
    (batch(text=["one"]), r"text has 1 captions, expected 2; give one for each clip"),
    (batch(text=["one", b"two"]), r"text\[1\] is bytes, expected str"),
    (batch(text=CONTEXT), r"text is a tensor, expected a list of 2 captions; encoded text needs preencoded_txt=True"),
]
WRONG_ENCODED = [
    (batch(LATENTS), r"text is list, expected a tensor \(2, N, D\); captions need preencoded_txt=False"),
    (batch(LATENTS, CONTEXT[0]), r"text has shape \(77, 8\), expected \(2, N, D\); give one encoded caption for each"),
    (batch(LATENTS, CONTEXT[:1]), r"text has shape \(1, 77, 8\), expected \(2, N, D\)"),
    (batch(LATENTS, CONTEXT.int()), r"text holds torch\.int32, expected floating point"),
    (batch(LATENTS, CONTEXT / 0), r"text has NaN or infinite values"),
    (batch(LATENTS / 0, CONTEXT), r"pixel_values has NaN or infinite values"),
    (batch(torch.zeros(2, 1, 3, 8, 8), CONTEXT), r"expected \(b, f, 4, h, w\); .* pixels preencoded_img=False"),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG)
def test_a_wrong_batch_is_explained(wrong, message):
    with pytest.raises(ValueError, match=message) as caught:
        check_batch(wrong)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("wrong", "message"), WRONG_ENCODED)
def test_a_wrong_encoded_batch_is_explained(wrong, message):
    with pytest.raises(ValueError, match=message):
        check_batch(wrong, preencoded_img=True, preencoded_txt=True)
