"""Sequences: frames read from folders of pictures, GIF, WebP, PNG and video files, through Pillow and imageio."""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path

import av
import imageio.v3 as iio
import numpy as np
from PIL import Image

from .arguments import SIZE
from .frames import check_selection, frame_indices, resize_image, to_rgb

PICTURE_EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
ANIMATION_EXTENSIONS = (".gif", ".webp", ".png", ".apng")
VIDEO_EXTENSIONS = (".mp4", ".webm", ".mov", ".mkv", ".avi", ".m4v")
CLIP_EXTENSIONS = (".gif", ".webp", ".apng", *VIDEO_EXTENSIONS)

WORTH_A_SEEK = 100  # frames; of most videos at least each 250th stands alone
TOO_SHORT, SHOWN_INSTEAD = 10, 100  # milliseconds

# As a filter, for PyAV before 17 converts every video to RGB as if its colours were BT.601.
TO_RGB: list[tuple[str, str | dict[str, str]]] = [("format", "rgb24")]

StrPath = str | os.PathLike[str]


def load_sequence(
    path: StrPath,
    frames: int | None = 16,
    offset: int = 0,
    stride: int = 1,
    image_size: tuple[int, int] | None = (256, 256),
    progress: Callable[[int], object] | None = None,
) -> list[Image.Image]:
    """Read RGB frames from a folder of pictures, a GIF, WebP or animated PNG, or a video file.

    Takes `frames` frames (None: all), every `stride`-th from `offset` on. A folder is read in natural order,
    frame2 before frame10, without hidden files. Each frame is scaled to cover `image_size` (width, height)
    and its centre cropped; None keeps the size. `progress` is called with the number
    of frames read, after each.

    Raises FileNotFoundError for a missing path or a folder without pictures, OSError naming a file that
    cannot be read, ValueError for too few frames, frames of different sizes, an unknown extension or
    arguments out of range, TypeError for arguments of another kind.
    """
    SIZE.or_none().check("image_size", image_size)
    return to_one_size(read_frames(Path(path), frames, offset, stride), image_size, progress)


def read_frames(
    path: Path, frames: int | None = None, offset: int = 0, stride: int = 1
) -> Iterator[tuple[str, Image.Image]]:
    """The frames that `load_sequence` takes, one at a time and as large as they are, each with its name."""
    check_selection(frames, offset, stride)
    _check_kind(path)
    if path.is_dir():
        pictures = _list_pictures(path)
        picked = frame_indices(len(pictures), frames, offset, stride, path.name)
        return _read_pictures([pictures[index] for index in picked])
    if path.suffix.lower() in VIDEO_EXTENSIONS:
        return _read_video(path, frames, offset, stride)
    return _read_animation(path, frame_indices(_count_animation(path), frames, offset, stride, path.name))


def count_frames(path: Path) -> int:
    """How many frames there are to read; raises what `load_sequence` does."""
    _check_kind(path)
    if path.is_dir():
        return len(_list_pictures(path))
    if path.suffix.lower() not in VIDEO_EXTENSIONS:
        return _count_animation(path)
    with naming(path):
        return len(_frame_times(path))


def frame_rate(path: Path, last: int | None = None) -> float | None:
    """Frames per second of an animation up to its frame `last` (None: all), or of a video.

    None of what has no rate, such as a folder of pictures.
    """
    if path.is_dir():
        return None
    with naming(path):
        if path.suffix.lower() in VIDEO_EXTENSIONS:
            with av.open(path) as container:
                return float(container.streams.video[0].average_rate or 0) or None
        with Image.open(path) as image:
            first = _first_frame(image)
            end = getattr(image, "n_frames", 1) if last is None else first + last + 1
            shown = [_milliseconds(image, index) for index in range(first, end)]
            return 1000 * len(shown) / sum(shown) if getattr(image, "n_frames", 1) > 1 else None


def _frame_times(path: Path) -> list[int]:
    """When each frame of a video starts, in its own time base, without decoding any: containers often misstate
    their length."""
    with av.open(path) as container:
        return sorted(packet.pts or 0 for packet in container.demux(video=0) if packet.size > 0)


def sample_frames(path: Path, every: int) -> Iterator[Image.Image]:
    """Every `every`-th frame, as `read_frames` gives them; of a long video without decoding all between them."""
    times: list[int] = []
    if every >= WORTH_A_SEEK and path.suffix.lower() in VIDEO_EXTENSIONS and path.is_file():
        with naming(path):
            times = _frame_times(path)[::every]
    if len(set(times)) > 1:  # some containers have no times
        yield from _frames_at(path, times)
    else:
        yield from (image for _, image in read_frames(path, stride=every))


def _frames_at(path: Path, times: list[int]) -> Iterator[Image.Image]:
    with naming(path):
        turns = _quarter_turns(path)
        with av.open(path) as container:
            stream = container.streams.video[0]
            for time in times:
                container.seek(time, stream=stream)  # to the frame before it that stands alone
                frame = next(f for f in container.decode(stream) if f.pts is not None and f.pts >= time)
                yield Image.fromarray(np.rot90(frame.to_ndarray(format="rgb24"), turns))


def sequence_files(path: Path) -> list[Path]:
    """The files whose frames these are, in order: of a folder its pictures, else the file itself."""
    return _list_pictures(path) if path.is_dir() else [path]


def _check_kind(path: Path) -> None:
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; give a folder of pictures, a GIF or a video file")
    known = dict.fromkeys(ANIMATION_EXTENSIONS + VIDEO_EXTENSIONS)
    if not path.is_dir() and path.suffix.lower() not in known:
        raise ValueError(f"{path} is not a known kind of video; give a folder of pictures or one of {' '.join(known)}")


def is_sequence(path: Path) -> bool:
    """Whether `load_sequence` would take a path: a folder with pictures, a GIF, an animation or a video."""
    if path.is_dir():
        with suppress(PermissionError):
            return any(file.suffix.lower() in PICTURE_EXTENSIONS for file in path.iterdir())
        return False
    extension = path.suffix.lower()
    return extension in (".gif", ".apng", *VIDEO_EXTENSIONS) or (extension == ".webp" and path.is_file())


def has_captions(folder: Path) -> bool:
    """Whether a folder is meant as a dataset, good or bad, by a look at it and its folders, not at all below them."""
    if (folder / "frames").is_dir() and (folder / "text").is_dir():
        return True
    with suppress(PermissionError):
        near = [folder, *(path for path in folder.iterdir() if path.is_dir())]
        clips = (file for place in near for file in place.iterdir() if file.suffix.lower() in CLIP_EXTENSIONS)
        return any(file.with_suffix(".txt").is_file() or file.with_name(f"{file.name}.txt").is_file() for file in clips)
    return False


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
        with naming(path), Image.open(path) as image:
            rgb = to_rgb(image)
        yield path.name, rgb


def _count_animation(path: Path) -> int:
    with naming(path), Image.open(path) as image:
        return getattr(image, "n_frames", 1) - _first_frame(image)


def _first_frame(image: Image.Image) -> int:
    """An animated PNG may begin with a picture for old viewers, which is no part of the animation."""
    return int(image.info.get("default_image", False))


def _read_animation(path: Path, picked: list[int]) -> Iterator[tuple[str, Image.Image]]:
    with naming(path), Image.open(path) as image:
        for index in picked:
            image.seek(_first_frame(image) + index)
            yield f"frame {index}", to_rgb(image)


def timed_frames(path: Path) -> Iterator[tuple[Image.Image, int]]:
    """The frames of an animation, each with how many milliseconds browsers show it."""
    with naming(path), Image.open(path) as image:
        for index in range(_first_frame(image), getattr(image, "n_frames", 1)):
            milliseconds = _milliseconds(image, index)
            yield to_rgb(image), milliseconds


def _milliseconds(image: Image.Image, index: int) -> int:
    """How long browsers show a frame, which the image is at then."""
    image.seek(index)
    image.load()  # only then a WebP tells it
    milliseconds = round(image.info.get("duration", 0))
    return milliseconds if milliseconds > TOO_SHORT else SHOWN_INSTEAD


def _read_video(path: Path, frames: int | None, offset: int, stride: int) -> Iterator[tuple[str, Image.Image]]:
    stop = None if frames is None else offset + (frames - 1) * stride + 1
    seen = 0
    with naming(path):
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


def to_one_size(
    sequence: Iterable[tuple[str, Image.Image]],
    image_size: tuple[int, int] | None,
    progress: Callable[[int], object] | None = None,
) -> list[Image.Image]:
    """The pictures of named ones, resized if so wanted. ValueError where one is of another size than the first."""
    images: list[Image.Image] = []
    first_name, first_size = "", (0, 0)
    for name, image in sequence:
        if not images:
            first_name, first_size = name, image.size
        if image.size != first_size:
            raise ValueError(
                f"{name} is {image.width}x{image.height}, {first_name} is {first_size[0]}x{first_size[1]}; "
                "all frames of a clip must have one size, resize or remove the odd ones"
            )
        images.append(image if image_size is None else resize_image(image, image_size))
        if progress:
            progress(len(images))
    return images


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Say which file could not be read."""
    try:
        yield
    except Exception as error:  # on broken bytes decoders raise nearly anything, even SyntaxError
        reason = " ".join(str(error).split()) or type(error).__name__
        raise OSError(f"cannot read {path}: {reason}; replace or remove the file") from error
