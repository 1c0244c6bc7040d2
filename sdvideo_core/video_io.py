"""Video files: GIF, PNG sequence, animated WebP and MP4, read and written through imageio and Pillow."""

import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from itertools import islice, pairwise
from pathlib import Path

import av
import imageio.v3 as iio
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image, ImageChops
from PIL.GifImagePlugin import getdata, getheader
from torch import Tensor

from .frames import check_selection, frame_indices, resize_image, to_rgb, video_to_images
from .whole_file import whole_file, whole_folder

PICTURE_EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
ANIMATION_EXTENSIONS = (".gif", ".webp", ".png", ".apng")
VIDEO_EXTENSIONS = (".mp4", ".webm", ".mov", ".mkv", ".avi", ".m4v")

SLOWEST_FPS = 0.01
# Browsers play GIF frames shorter than 20 ms at 10 fps, and WebP frames of 10 ms and less.
FASTEST_FPS = {".gif": (50, "GIF"), ".webp": (90, "WebP"), ".mp4": (240, "MP4")}
PALETTE_SAMPLE = 1 << 17  # pixels; more cost seconds and choose no better
MP4_QUALITY = {"crf": "17", "preset": "medium"}
# As a filter, for PyAV before 17 converts every video to RGB as if its colours were BT.601.
TO_RGB: list[tuple[str, str | dict[str, str]]] = [("format", "rgb24")]
BT709 = 1  # the number H.264 gives it as matrix, primaries and transfer curve

StrPath = str | os.PathLike[str]


def load_sequence(
    path: StrPath,
    frames: int | None = 16,
    offset: int = 0,
    stride: int = 1,
    image_size: tuple[int, int] | None = (256, 256),
) -> list[Image.Image]:
    """Read RGB frames from a folder of pictures, a GIF, WebP or animated PNG, or a video file.

    Takes `frames` frames (None: all), every `stride`-th from `offset` on. A folder is read in natural order,
    frame2 before frame10, without hidden files. Each frame is scaled to cover `image_size` (width, height)
    and its centre cropped; None keeps the size.

    Raises FileNotFoundError for a missing path or a folder without pictures, OSError naming a file that
    cannot be read, ValueError for too few frames, frames of different sizes, an unknown extension or
    arguments out of range.
    """
    path = Path(path)
    check_selection(frames, offset, stride)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; give a folder of pictures, a GIF or a video file")
    extension = path.suffix.lower()
    if path.is_dir():
        pictures = _list_pictures(path)
        picked = frame_indices(len(pictures), frames, offset, stride, path.name)
        sequence = _read_pictures([pictures[index] for index in picked])
    elif extension in ANIMATION_EXTENSIONS:
        picked = frame_indices(_count_frames(path), frames, offset, stride, path.name)
        sequence = _read_animation(path, picked)
    elif extension in VIDEO_EXTENSIONS:
        sequence = _read_video(path, frames, offset, stride)
    else:
        known = " ".join(dict.fromkeys(ANIMATION_EXTENSIONS + VIDEO_EXTENSIONS))
        raise ValueError(f"{path} is not a known kind of video; give a folder of pictures or one of {known}")
    return _to_one_size(sequence, image_size)


def is_sequence(path: Path) -> bool:
    """Whether `load_sequence` would take a path: a folder with pictures, a GIF, an animation or a video."""
    if path.is_dir():
        with suppress(PermissionError):
            return any(file.suffix.lower() in PICTURE_EXTENSIONS for file in path.iterdir())
        return False
    extension = path.suffix.lower()
    return extension in (".gif", ".apng", *VIDEO_EXTENSIONS) or (extension == ".webp" and path.is_file())


def save_gif(video: Tensor, path: StrPath, fps: float = 8, comment: str | None = None) -> None:
    """Write `video` (1, 3, F, H, W), values 0..1, as a GIF of exactly F frames that loops forever.

    GIF counts in 10 ms, so delays alternate around 1/fps without drift. `comment` is stored in the file.
    Raises ValueError for a wrong video or an fps outside 0.01..50, OSError if the file cannot be written.
    """
    _check_fps(fps, *FASTEST_FPS[".gif"])
    images = video_to_images(video)
    with whole_file(path) as temporary:
        temporary.write_bytes(b"".join(_gif_blocks(images, fps, comment)))


def save_webp(video: Tensor, path: StrPath, fps: float = 8) -> None:
    """Write `video` (1, 3, F, H, W), values 0..1, as an animated WebP that loops forever.

    Frames equal to their neighbour become one frame shown for longer, which is how libwebp stores them.
    Raises ValueError for a wrong video or an fps outside 0.01..90, OSError if the file cannot be written.
    """
    _check_fps(fps, *FASTEST_FPS[".webp"])
    first, *others = video_to_images(video)
    delays = _delays(1 + len(others), fps, ticks_per_second=1000)
    with whole_file(path) as temporary:
        first.save(temporary, "WEBP", save_all=True, append_images=others, duration=delays, loop=0, quality=90)


def save_mp4(video: Tensor, path: StrPath, fps: float = 8) -> None:
    """Write `video` (1, 3, F, H, W), values 0..1, as H.264 in MP4, which every browser and phone plays.

    H.264 stores colour for 2x2 pixels: an odd width or height grows by one, repeating its last column or row.
    Raises ValueError for a wrong video or an fps outside 0.01..240, OSError if the file cannot be written.
    """
    _check_fps(fps, *FASTEST_FPS[".mp4"])
    images = video_to_images(video)
    with whole_file(path) as temporary:
        _encode_h264(images, temporary, Fraction(fps).limit_denominator(1001))


def save_pngs(video: Tensor, directory: StrPath) -> None:
    """Write `video` (1, 3, F, H, W), values 0..1, as 00000.png, 00001.png ... in a new or empty folder.

    Raises ValueError for a wrong video, FileExistsError if `directory` holds anything, OSError if it cannot
    be written.
    """
    images = video_to_images(video)
    directory = Path(directory).absolute()
    _check_empty(directory)
    with whole_folder(directory) as temporary:
        temporary.mkdir()
        for index, image in enumerate(images):
            image.save(temporary / f"{index:05d}.png")
        if directory.exists():
            directory.rmdir()  # Windows renames onto no folder, not even an empty one


def save_video(video: Tensor, path: StrPath, fps: float = 8) -> None:
    """Write `video` (1, 3, F, H, W), values 0..1, in the format that the extension of `path` names.

    .gif, .webp and .mp4 make a file; no extension, or a slash at the end, makes a folder of PNG files.
    Raises ValueError for another extension, and what the writer of that format raises.
    """
    WRITERS[_output_extension(path)](video, path, fps)


def check_output(path: StrPath, fps: float = 8) -> None:
    """Raises what `save_video` would for this path and fps, before there is a video."""
    extension = _output_extension(path)
    if extension in FASTEST_FPS:
        _check_fps(fps, *FASTEST_FPS[extension])
    else:
        _check_empty(Path(path).absolute())


def _output_extension(path: StrPath) -> str:
    is_folder = os.fspath(path).endswith(("/", os.sep))
    extension = "" if is_folder else Path(path).suffix.lower()
    if extension not in WRITERS:
        known = " ".join(name for name in WRITERS if name)
        raise ValueError(f"cannot write {path}: unknown extension {extension}; use {known} or none for PNGs")
    return extension


def _check_empty(directory: Path) -> None:
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise FileExistsError(f"{directory} exists and is not an empty folder; choose a new or empty one")


WRITERS: dict[str, Callable[[Tensor, StrPath, float], None]] = {
    ".gif": save_gif,
    ".webp": save_webp,
    ".mp4": save_mp4,
    "": lambda video, path, fps: save_pngs(video, path),
}


def _list_pictures(folder: Path) -> list[Path]:
    pictures = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in PICTURE_EXTENSIONS and not path.name.startswith(".") and path.is_file()
    ]
    if not pictures:
        raise FileNotFoundError(f"folder {folder} has no pictures; expected files named {' '.join(PICTURE_EXTENSIONS)}")
    return sorted(pictures, key=natural_order)


def natural_order(path: Path) -> tuple[list[str | int], str]:
    """A sorting key that puts frame2 before frame10, as people count."""
    name = path.as_posix()
    parts = re.split(r"(\d+)", name.lower())  # text and digits take turns, so like is compared with like
    return [int(part) if part.isdecimal() else part for part in parts], name


def _read_pictures(paths: list[Path]) -> Iterator[tuple[str, Image.Image]]:
    for path in paths:
        with _naming(path), Image.open(path) as image:
            rgb = to_rgb(image)
        yield path.name, rgb


def _count_frames(path: Path) -> int:
    with _naming(path), Image.open(path) as image:
        return getattr(image, "n_frames", 1) - _first_frame(image)


def _first_frame(image: Image.Image) -> int:
    """An animated PNG may begin with a picture for old viewers, which is no part of the animation."""
    return int(image.info.get("default_image", False))


def _read_animation(path: Path, picked: list[int]) -> Iterator[tuple[str, Image.Image]]:
    with _naming(path), Image.open(path) as image:
        for index in picked:
            image.seek(_first_frame(image) + index)
            yield f"frame {index}", to_rgb(image)


def _read_video(path: Path, frames: int | None, offset: int, stride: int) -> Iterator[tuple[str, Image.Image]]:
    stop = None if frames is None else offset + (frames - 1) * stride + 1
    seen = 0
    with _naming(path):
        turns = _quarter_turns(path)
        with iio.imopen(path, "r", plugin="pyav") as file:
            for pixels in islice(file.iter(filter_sequence=TO_RGB), stop):
                if seen >= offset and (seen - offset) % stride == 0:
                    yield f"frame {seen}", Image.fromarray(np.rot90(pixels, turns))
                seen += 1
    # Containers often misstate their length, so a short video is known only at its end.
    frame_indices(seen, frames, offset, stride, path.name)


def _quarter_turns(path: Path) -> int:
    """Counterclockwise quarter turns that set a video upright: phones film sideways and note the angle."""
    with av.open(path) as container:
        if not container.streams.video:
            raise ValueError("it has no video stream")
        first = next(container.decode(video=0), None)
        if first is None:
            raise ValueError("it has no frames")
        return round(first.rotation / 90) % 4


def _to_one_size(sequence: Iterable[tuple[str, Image.Image]], image_size: tuple[int, int] | None) -> list[Image.Image]:
    images: list[Image.Image] = []
    first_name, first_size = "", (0, 0)
    for name, image in sequence:
        if not images:
            first_name, first_size = name, image.size
        if image.size != first_size:
            raise ValueError(
                f"{name} is {image.width}x{image.height}, {first_name} is {first_size[0]}x{first_size[1]}; "
                "all frames of a sequence must have one size, resize or remove the odd ones"
            )
        images.append(image if image_size is None else resize_image(image, image_size))
    return images


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Say which file could not be read."""
    try:
        yield
    except Exception as error:  # on broken bytes decoders raise nearly anything, even SyntaxError
        reason = " ".join(str(error).split()) or type(error).__name__
        raise OSError(f"cannot read {path}: {reason}; replace or remove the file") from error


def _check_fps(fps: float, fastest: float, name: str) -> None:
    if not SLOWEST_FPS <= fps <= fastest:
        raise ValueError(f"fps is {fps}, but {name} plays {SLOWEST_FPS} to {fastest}; choose one of these")


def _delays(num_frames: int, fps: float, ticks_per_second: int) -> list[int]:
    """Give each frame whole ticks such that every frame starts less than a tick before its exact time."""
    starts = [math.floor(ticks_per_second * index / fps) for index in range(num_frames + 1)]
    return [after - start for start, after in pairwise(starts)]


def _gif_blocks(images: list[Image.Image], fps: float, comment: str | None) -> Iterator[bytes]:
    # Pillow's own writer merges equal frames, and then the file has fewer frames than the video.
    palette = _shared_palette(images)
    delays = _delays(len(images), fps, ticks_per_second=100)
    before: Image.Image | None = None
    for image, delay in zip(images, delays, strict=True):
        frame = image.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
        if before is None:
            changed = (0, 0, *frame.size)
            yield from getheader(frame, info={"loop": 0, "comment": comment})[0]
        else:
            changed = ImageChops.difference(before, frame).getbbox() or (0, 0, 1, 1)
        yield from getdata(frame.crop(changed), changed[:2], duration=delay * 10)
        before = frame
    yield b";"


def _shared_palette(images: list[Image.Image]) -> Image.Image:
    """Choose 256 colours for the whole clip: a palette for each frame flickers."""
    num_pixels = len(images) * images[0].width * images[0].height
    step = math.ceil(math.sqrt(num_pixels / PALETTE_SAMPLE))
    sample = np.concatenate([np.asarray(image)[::step, ::step] for image in images])
    # Dithering mixes only what lies between palette entries. Median cut, Pillow's default, averages rare and
    # strong colours away; maximum coverage keeps the ends of the range.
    return Image.fromarray(sample).quantize(256, Image.Quantize.MAXCOVERAGE)


def _encode_h264(images: list[Image.Image], path: Path, rate: Fraction) -> None:
    width, height = images[0].size
    odd = (0, height % 2), (0, width % 2), (0, 0)
    with av.open(path, "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate, options=MP4_QUALITY)
        stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
        # imageio writes no colour tags, and each player then guesses its own colours.
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = BT709
        for image in images:
            frame = av.VideoFrame.from_ndarray(np.pad(np.asarray(image), odd, mode="edge"), format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
