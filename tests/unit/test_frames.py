"""Frames: sizes, ranges and layouts, held against Pillow and NumPy."""

import numpy as np
import pytest
import torch
from PIL import Image

from sdvideo_core.frames import (
    check_selection,
    check_size,
    frame_indices,
    frames_to_video,
    images_to_frames,
    resize_image,
    to_rgb,
    video_to_frames,
    video_to_images,
)

TRANSPOSE = Image.Transpose
ORIENTATIONS = {  # EXIF tag value: what was done to the upright picture (EXIF 2.32, section 4.6.5)
    1: None,
    2: TRANSPOSE.FLIP_LEFT_RIGHT,
    3: TRANSPOSE.ROTATE_180,
    4: TRANSPOSE.FLIP_TOP_BOTTOM,
    5: TRANSPOSE.TRANSPOSE,
    6: TRANSPOSE.ROTATE_90,
    7: TRANSPOSE.TRANSVERSE,
    8: TRANSPOSE.ROTATE_270,
}


def noise_image(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


# check_size


@pytest.mark.parametrize("size", [(8, 8), (256, 256), (1024, 576)])
def test_check_size_accepts_multiples_of_8(size):
    check_size(*size)


@pytest.mark.parametrize(
    ("width", "height", "message"),
    [
        (250, 256, "width 250 .* positive multiple of 8; try 248"),
        (252, 256, "width 252 .*; try 256"),
        (256, 261, "height 261 .*; try 264"),
        (0, 256, "width 0 .*; try 8"),
        (256, -16, "height -16 .*; try 8"),
    ],
)
def test_check_size_names_the_side_and_the_nearest_multiple(width, height, message):
    with pytest.raises(ValueError, match=message):
        check_size(width, height)


# resize_image and to_rgb


def test_resize_gives_exactly_the_size_for_any_shape():
    rng = np.random.default_rng(0)
    for width, height, new_width, new_height in rng.integers(1, 70, (40, 4)).tolist():
        assert resize_image(noise_image(width, height), (new_width, new_height)).size == (
            new_width,
            new_height,
        )


def test_resize_to_the_same_size_keeps_every_pixel():
    image = noise_image(24, 16)
    assert np.array_equal(pixels(resize_image(image, (24, 16))), pixels(image))


def test_resize_covers_and_crops_the_centre():
    # Soft noise: at 0 and 255 Pillow's clipping between its two passes would show.
    wide, tall = (
        noise_image(*size).point([64 + level // 2 for level in range(256)] * 3) for size in ((64, 32), (32, 64))
    )
    lanczos = Image.Resampling.LANCZOS
    expected_wide = wide.resize((32, 16), lanczos).crop((8, 0, 24, 16))
    expected_tall = tall.resize((16, 32), lanczos).crop((0, 8, 16, 24))
    assert np.abs(pixels(resize_image(wide, (16, 16))) - pixels(expected_wide)).max() <= 1
    assert np.abs(pixels(resize_image(tall, (16, 16))) - pixels(expected_tall)).max() <= 1


@pytest.mark.parametrize("size", [(0, 8), (8, -1)])
def test_resize_refuses_an_empty_size(size):
    with pytest.raises(ValueError, match=f"cannot resize to {size[0]}x{size[1]}: .*at least 1"):
        resize_image(noise_image(8, 8), size)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_pictures_are_turned_upright_by_their_exif(tmp_path, orientation):
    upright = noise_image(6, 4)
    stored = upright if ORIENTATIONS[orientation] is None else upright.transpose(ORIENTATIONS[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "photo.png", exif=exif)
    with Image.open(tmp_path / "photo.png") as image:
        assert np.array_equal(pixels(to_rgb(image)), pixels(upright))


def test_transparency_is_laid_on_black():
    image = Image.new("RGBA", (4, 4), (200, 100, 50, 128))
    assert np.abs(pixels(to_rgb(image)) - [100, 50, 25]).max() <= 1
    assert to_rgb(Image.new("LA", (1, 1), (255, 0))).getpixel((0, 0)) == (0, 0, 0)


def test_colour_hidden_under_transparency_does_not_bleed_into_edges():
    image = Image.new("RGBA", (32, 32), (255, 0, 0, 0))
    image.paste((255, 255, 255, 255), (0, 0, 16, 32))
    red, green, _ = np.moveaxis(pixels(resize_image(image, (9, 9))), -1, 0)
    assert np.array_equal(red, green)


def test_palette_pictures_keep_their_colours_and_their_transparent_index():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 250, 240, 230])
    image.putdata([0, 1])
    assert pixels(to_rgb(image)).tolist() == [[[10, 20, 30], [250, 240, 230]]]
    image.info["transparency"] = 1
    assert pixels(to_rgb(image)).tolist() == [[[10, 20, 30], [0, 0, 0]]]


@pytest.mark.parametrize("extension", [".png", ".tif"])
def test_16_bit_pictures_are_scaled_not_clipped(tmp_path, extension):
    levels = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    Image.fromarray(levels).save(tmp_path / f"deep{extension}")
    with Image.open(tmp_path / f"deep{extension}") as image:
        assert image.mode.startswith("I")
        assert pixels(to_rgb(image))[0].tolist() == [[v] * 3 for v in (0, 0, 1, 1, 128, 255)]


def test_pictures_of_32_bit_integers_count_as_16_bit():
    levels = np.array([[-5, 128, 129, 32768, 65535, 70000]], np.int32)
    assert pixels(to_rgb(Image.fromarray(levels)))[0, :, 0].tolist() == [0, 0, 1, 128, 255, 255]


def test_big_endian_16_bit_pictures_are_scaled_too():
    image = Image.frombytes("I;16B", (2, 1), bytes([0x80, 0x00, 0x01, 0x01]))
    assert pixels(to_rgb(image))[0].tolist() == [[128] * 3, [1] * 3]


@pytest.mark.parametrize(("mode", "colour"), [("L", 77), ("1", 1), ("CMYK", (0, 255, 255, 0))])
def test_other_modes_become_rgb(mode, colour):
    expected = {"L": (77, 77, 77), "1": (255, 255, 255), "CMYK": (255, 0, 0)}[mode]
    assert to_rgb(Image.new(mode, (1, 1), colour)).getpixel((0, 0)) == expected


def test_floating_point_pictures_are_refused():
    with pytest.raises(ValueError, match=r"floating-point pixels \(mode F\), expected 8 or 16 bits"):
        resize_image(Image.new("F", (8, 8)), (8, 8))


# images <-> frames <-> video


def test_frames_are_float32_in_minus_one_to_one_with_channels_second():
    image = Image.new("RGB", (5, 3), (0, 51, 255))
    frames = images_to_frames([image, image])
    assert frames.shape == (2, 3, 3, 5)
    assert frames.dtype == torch.float32
    torch.testing.assert_close(frames[1, :, 2, 4], torch.tensor([-1.0, -0.6, 1.0]))


def test_every_level_survives_the_way_to_video_and_back():
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    images = [Image.fromarray(np.stack([ramp, ramp.T, ramp[::-1]], -1)), noise_image(16, 16)]
    back = video_to_images(frames_to_video(images_to_frames(images)))
    assert [image.mode for image in back] == ["RGB", "RGB"]
    for image, expected in zip(back, images, strict=True):
        assert np.array_equal(pixels(image), pixels(expected))


def test_video_axes_are_batch_colour_frame_row_column():
    frames = torch.rand(4, 3, 2, 5) * 2 - 1
    video = frames_to_video(frames)
    assert video.shape == (1, 3, 4, 2, 5)
    torch.testing.assert_close(video[0, 1, 3], (frames[3, 1] + 1) / 2)
    torch.testing.assert_close(video_to_frames(video), frames)
    torch.testing.assert_close(video_to_frames(video[0]), frames)


def test_frames_beyond_the_range_are_clamped_in_the_video():
    video = frames_to_video(torch.tensor([-3.0, 3.0, 0.0]).reshape(1, 3, 1, 1))
    assert video.flatten().tolist() == [0.0, 1.0, 0.5]


def test_images_to_frames_refuses_an_empty_list():
    with pytest.raises(ValueError, match=r"list of images is empty"):
        images_to_frames([])


def test_images_to_frames_names_the_image_of_another_size():
    images = [noise_image(8, 8), noise_image(8, 8), noise_image(16, 8)]
    with pytest.raises(ValueError, match=r"image 2 is 16x8, but image 0 is 8x8"):
        images_to_frames(images)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_video_to_images_rounds_to_the_nearest_level(dtype):
    levels = torch.tensor([0.0, 0.4, 0.6, 1.0, 99.6, 100.4, 254.4, 254.6, 255.0], dtype=torch.float64)
    video = (levels / 255).to(dtype).reshape(1, 1, 1, 1, -1).expand(1, 3, 1, 1, -1)
    expected = np.rint((levels / 255).to(dtype).double().numpy() * 255)
    (image,) = video_to_images(video)
    assert np.array_equal(pixels(image)[0, :, 0], expected)


def test_video_to_images_clamps():
    video = torch.tensor([-0.5, 1.5, 0.2]).reshape(3, 1, 1, 1)
    assert video_to_images(video)[0].getpixel((0, 0)) == (0, 255, 51)


def test_video_to_images_takes_a_video_that_needs_gradients():
    video = torch.full((1, 3, 2, 4, 4), 0.2, requires_grad=True)
    assert [image.getpixel((3, 3)) for image in video_to_images(video)] == [(51, 51, 51)] * 2


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_video_to_images_reports_values_that_are_no_numbers(bad):
    video = torch.rand(1, 3, 6, 4, 4)
    video[0, 1, 2, 3, 0] = video[0, 0, 4, 1, 1] = bad
    with pytest.raises(ValueError, match=r"infinite values in 2 of 6 frames, the first is frame 2; .*bfloat16"):
        video_to_images(video)


def test_video_to_images_refuses_integers():
    with pytest.raises(ValueError, match=r"video holds torch.uint8, expected floating point in 0..1; divide by 255"):
        video_to_images(torch.zeros(1, 3, 2, 4, 4, dtype=torch.uint8))


@pytest.mark.parametrize("convert", [video_to_images, video_to_frames])
@pytest.mark.parametrize("shape", [(16, 3, 8, 8), (3, 8, 8), (1, 4, 2, 8, 8), (1, 3, 0, 8, 8), (1, 1, 3, 2, 8, 8)])
def test_a_video_of_another_shape_is_refused(convert, shape):
    message = rf"video has shape \({', '.join(map(str, shape))}\), expected \(1, 3, F, H, W\)"
    with pytest.raises(ValueError, match=message):
        convert(torch.zeros(shape))


@pytest.mark.parametrize("convert", [video_to_images, video_to_frames])
def test_more_than_one_video_is_refused(convert):
    with pytest.raises(ValueError, match=r"video \(2, 3, 4, 8, 8\) is a batch of 2, expected 1"):
        convert(torch.zeros(2, 3, 4, 8, 8))


@pytest.mark.parametrize("shape", [(1, 3, 4, 8, 8), (4, 1, 8, 8)])
def test_frames_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"frames have shape .*, expected \(F, 3, H, W\)"):
        frames_to_video(torch.zeros(shape))


# frame_indices


def test_frame_indices_follow_offset_and_stride():
    assert frame_indices(9, 4, 2, 2, "clip.gif") == [2, 4, 6, 8]
    assert frame_indices(9, 9, 0, 1, "clip.gif") == list(range(9))
    assert frame_indices(9, 1, 8, 5, "clip.gif") == [8]


def test_frame_indices_without_a_count_take_all():
    assert frame_indices(9, None, 1, 3, "clip.gif") == [1, 4, 7]


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (
            (9, 16, 0, 1),
            "clip.gif has 9 frames; 16 frames from offset 0 with stride 1 need 16. Take fewer frames or a lower stride.",  # noqa: E501
        ),
        (
            (9, 4, 2, 3),
            "clip.gif has 9 frames; 4 frames from offset 2 with stride 3 need 12. Take fewer frames, lower offset or stride.",  # noqa: E501
        ),
        (
            (1, 1, 1, 1),
            "clip.gif has 1 frame; 1 frame from offset 1 with stride 1 need 2. Take fewer frames, lower offset or stride.",  # noqa: E501
        ),
        ((9, None, 9, 1), "clip.gif has 9 frames; offset 9 is past the end. Lower offset."),
    ],
)
def test_frame_indices_say_what_is_missing_in_one_line(selection: tuple[int, int | None, int, int], message: str):
    with pytest.raises(ValueError) as caught:
        frame_indices(*selection, "clip.gif")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ((0, 0, 1), "num_frames is 0, expected at least 1"),
        ((4, -1, 1), "offset is -1, expected at least 0"),
        ((None, 0, 0), "stride is 0, expected at least 1"),
    ],
)
def test_arguments_out_of_range_are_refused(selection: tuple[int | None, int, int], message: str):
    with pytest.raises(ValueError, match=message):
        check_selection(*selection)
    with pytest.raises(ValueError, match=message):
        frame_indices(100, *selection, "clip.gif")
