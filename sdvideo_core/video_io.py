"""Video files: GIF, PNG sequence, animated WebP and MP4, read and written through Pillow, imageio and PyAV."""

import json
import os
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import OutputContainer
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from .frames import video_to_images
from .gif import save_gif
from .playback import DEFAULT_OPTIONS, Progress, SaveOptions, check_ending, check_fps, delays, no_progress
from .sequence import (
    ANIMATION_EXTENSIONS,
    PICTURE_EXTENSIONS,
    VIDEO_EXTENSIONS,
    StrPath,
    is_sequence,
    load_sequence,
    natural_order,
    sequence_files,
    timed_frames,
)
from .whole_file import check_place, whole_file, whole_folder

__all__ = [
    "ANIMATION_EXTENSIONS",
    "PICTURE_EXTENSIONS",
    "VIDEO_EXTENSIONS",
    "WRITERS",
    "SaveOptions",
    "StrPath",
    "check_output",
    "check_writable",
    "convert_to_mp4",
    "is_sequence",
    "load_sequence",
    "natural_order",
    "save_gif",
    "save_mp4",
    "save_pngs",
    "save_video",
    "save_webp",
    "sequence_files",
]

FILE_EXTENSIONS = {*PICTURE_EXTENSIONS, *ANIMATION_EXTENSIONS, *VIDEO_EXTENSIONS}
FORMATS = {".gif": "GIF", ".webp": "WebP", ".mp4": "MP4"}
MP4_QUALITY = {"crf": "17", "preset": "medium"}
# Without frames that wait for later ones, and often with one that stands alone.
PREVIEW_QUALITY = {"crf": "17", "preset": "veryfast", "bf": "0", "g": "8"}
MILLISECONDS = 1000  # in a second
BT709 = 1  # the number H.264 gives it as matrix, primaries and transfer curve

Metadata = Mapping[str, Any]  # values are what JSON can hold
NO_METADATA: Metadata = {}
# Where ComfyUI looks for it: from the camera's model downwards. Below are tags that hold no text, so that more than
# it writes itself goes into tags of nobody's.
EXIF_TAGS = (0x0110, 0x010F, 0x010E, 0x010D, *range(0xFE00, 0xFF00))


def save_webp(
    video: Tensor,
    path: StrPath,
    fps: float = 8,
    metadata: Metadata = NO_METADATA,
    options: SaveOptions = DEFAULT_OPTIONS,
    progress: Progress = no_progress,
) -> None:
    """Write `video` (1, 3, F, H, W), values 0..1, as an animated WebP.

    Frames equal to their neighbour become one frame shown for longer, which is how libwebp stores them.
    `metadata` goes into EXIF tags as "name:JSON", from Model (0x0110) downwards, as ComfyUI writes and reads it.
    Raises ValueError for a wrong video, a name without .webp or an fps outside 0.01..90, OSError if the file
    cannot be written.
    """
    check_ending(path, ".webp")
    check_fps(fps, "WebP")
    images = _in_play_order(video, options)
    durations = delays(len(images), fps, ticks_per_second=1000)
    settings = {"duration": durations, "loop": options.loop, "quality": 90, "exif": _exif(metadata)}
    with whole_file(path) as temporary, temporary.open("wb") as file:  # which Pillow may leave open
        _Film(images, progress).save(file, "WEBP", save_all=True, **settings)
        progress(len(images), len(images))


def save_mp4(
    video: Tensor,
    path: StrPath,
    fps: float = 8,
    metadata: Metadata = NO_METADATA,
    options: SaveOptions = DEFAULT_OPTIONS,
    progress: Progress = no_progress,
) -> None:
    """Write `video` (1, 3, F, H, W), values 0..1, as H.264 in MP4, which every browser and phone plays.

    H.264 stores colour for 2x2 pixels: an odd width or height grows by one, repeating its last column or row.
    `metadata` becomes tags of the file with JSON as values, as ComfyUI writes and reads it.
    Raises ValueError for a wrong video, a name without .mp4 or an fps outside 0.01..240, OSError if the file
    cannot be written.
    """
    check_ending(path, ".mp4")
    check_fps(fps, "MP4")
    images = _in_play_order(video, options)
    with whole_file(path) as temporary:
        _encode_h264(images, temporary, Fraction(float(fps)).limit_denominator(1001), metadata, progress)


def save_pngs(
    video: Tensor,
    directory: StrPath,
    metadata: Metadata = NO_METADATA,
    options: SaveOptions = DEFAULT_OPTIONS,
    progress: Progress = no_progress,
) -> None:
    """Write `video` (1, 3, F, H, W), values 0..1, as 00000.png, 00001.png ... in a new or empty folder.

    `metadata` becomes text chunks of each file with JSON as values, as ComfyUI writes and reads it.
    Raises ValueError for a wrong video or the name of a file, such as clip.png, unless it ends in a slash,
    FileExistsError if `directory` holds anything, OSError if it cannot be written.
    """
    _check_no_file(directory)
    images = _in_play_order(video, options)
    directory = Path(directory).absolute()
    _check_empty(directory)
    texts = PngInfo()
    for name, value in metadata.items():
        texts.add_text(name, json.dumps(value))
    with whole_folder(directory) as temporary:
        temporary.mkdir()
        for index, image in enumerate(images):
            image.save(temporary / f"{index:05d}.png", pnginfo=texts)
            progress(index + 1, len(images))
        if directory.exists():
            directory.rmdir()  # Windows renames onto no folder, not even an empty one


def save_video(
    video: Tensor,
    path: StrPath,
    fps: float = 8,
    metadata: Metadata = NO_METADATA,
    options: SaveOptions = DEFAULT_OPTIONS,
    progress: Progress = no_progress,
) -> None:
    """Write `video` (1, 3, F, H, W), values 0..1, in the format that the extension of `path` names.

    .gif, .webp and .mp4 make a file; no extension, or a slash at the end, makes a folder of PNG files.
    `metadata` is stored where ComfyUI looks for it; in a GIF it is one JSON object, the comment.
    `progress` is called after each frame; if it raises, nothing is written.
    Raises ValueError for another extension, and what the writer of that format raises.
    """
    WRITERS[_output_extension(path)](video, path, fps, metadata, options, progress)


def check_output(path: StrPath, fps: float = 8) -> None:
    """Raises what `save_video` would for this path and fps, before there is a video."""
    extension = _output_extension(path)
    if extension in FORMATS:
        check_fps(fps, FORMATS[extension])
    else:
        _check_empty(Path(path).absolute())


def check_writable(path: StrPath) -> None:
    """Raises what `save_video` would where nothing can be written, before there is a video."""
    check_place(path, is_folder=_output_extension(path) not in FORMATS)


def _output_extension(path: StrPath) -> str:
    extension = _extension(path)
    if extension not in WRITERS:
        known = " ".join(name for name in WRITERS if name)
        raise ValueError(f"cannot write {path}: unknown extension {extension}; use {known} or none for PNGs")
    return extension


def _extension(path: StrPath) -> str:
    """That of a file, none of what ends in a slash."""
    return "" if os.fspath(path).endswith(("/", os.sep)) else Path(path).suffix.lower()


def _check_no_file(directory: StrPath) -> None:
    extension = _extension(directory)
    if extension in FILE_EXTENSIONS and not Path(directory).is_dir():
        raise ValueError(
            f"cannot write {directory}: PNGs go into a folder, expected its name, without {extension}; "
            "rename it, or use save_video, which takes the format from the name"
        )


def _check_empty(directory: Path) -> None:
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise FileExistsError(f"{directory} exists and is not an empty folder; choose a new or empty one")


def _save_gif(
    video: Tensor, path: StrPath, fps: float, metadata: Metadata, options: SaveOptions, progress: Progress
) -> None:
    save_gif(video, path, fps, json.dumps(dict(metadata)) if metadata else None, options, progress)


def _save_pngs(
    video: Tensor, path: StrPath, _fps: float, metadata: Metadata, options: SaveOptions, progress: Progress
) -> None:
    save_pngs(video, path, metadata, options, progress)


WRITERS: dict[str, Callable[[Tensor, StrPath, float, Metadata, SaveOptions, Progress], None]] = {
    ".gif": _save_gif,
    ".webp": save_webp,
    ".mp4": save_mp4,
    "": _save_pngs,
}


class _Film(Image.Image):
    """Images as one of many frames, such as Pillow reads from a file, for it says which frame it takes next."""

    def __init__(self, images: list[Image.Image], progress: Progress) -> None:
        super().__init__()
        self._images, self._progress, self._index = images, progress, 0
        self.n_frames = len(images)
        self.seek(0)

    def seek(self, frame: int) -> None:
        # Pillow goes back to where it began.
        if frame > self._index:
            self._progress(frame, self.n_frames)
        self._index, image = frame, self._images[frame]
        self.im, self._mode, self._size = image.im, image.mode, image.size

    def tell(self) -> int:
        return self._index


def _in_play_order(video: Tensor, options: SaveOptions) -> list[Image.Image]:
    images = video_to_images(video)
    return [images[index] for index in options.play_order(len(images))]


def _exif(metadata: Metadata) -> bytes:
    exif = Image.Exif()
    for tag, (name, value) in zip(EXIF_TAGS, metadata.items(), strict=False):
        exif[tag] = f"{name}:{json.dumps(value)}"
    return exif.tobytes() if metadata else b""


def _encode_h264(images: list[Image.Image], path: Path, rate: Fraction, metadata: Metadata, progress: Progress) -> None:
    # Without the second flag MP4 has room for a few tags only, such as a title.
    with av.open(path, "w", format="mp4", options={"movflags": "+faststart+use_metadata_tags"}) as container:
        container.metadata.update({name: json.dumps(value) for name, value in metadata.items()})
        stream = _add_h264(container, rate, images[0].size, MP4_QUALITY)
        for done, image in enumerate(images, 1):
            container.mux(stream.encode(_h264_frame(image)))
            progress(done, len(images))
        container.mux(stream.encode(None))


def _add_h264(
    container: OutputContainer, rate: Fraction, size: tuple[int, int], quality: dict[str, str]
) -> av.VideoStream:
    stream = container.add_stream("libx264", rate, options=quality)
    stream.width, stream.height = (side + side % 2 for side in size)
    stream.pix_fmt = "yuv420p"
    # imageio writes no colour tags, and each player then guesses its own colours.
    context = stream.codec_context
    context.colorspace = context.color_primaries = context.color_trc = BT709
    return stream


def _h264_frame(image: Image.Image) -> av.VideoFrame:
    odd = (0, image.height % 2), (0, image.width % 2), (0, 0)
    frame = av.VideoFrame.from_ndarray(np.pad(np.asarray(image), odd, mode="edge"), format="rgb24")
    return frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG)


def convert_to_mp4(source: StrPath, path: StrPath) -> None:
    """Write a GIF, WebP or animated PNG as H.264 in MP4, each frame as long as it is shown there.

    For players that take videos only; it is quick to make and to seek in. Sizes are made even as by `save_mp4`.
    Raises what `load_sequence` does, ValueError for a folder or a video, OSError if it cannot be written.
    """
    source = Path(source)
    if source.is_dir() or source.suffix.lower() not in ANIMATION_EXTENSIONS:
        raise ValueError(f"{source} is not an animation; give one of {' '.join(ANIMATION_EXTENSIONS)}")
    start, lengths = 0, {}
    with whole_file(path) as temporary, av.open(temporary, "w", format="mp4") as container:
        stream = None
        for image, milliseconds in timed_frames(source):
            stream = stream or _add_h264(container, Fraction(MILLISECONDS), image.size, PREVIEW_QUALITY)
            frame = _h264_frame(image)
            frame.pts, frame.time_base = start, Fraction(1, MILLISECONDS)
            lengths[start] = milliseconds
            start += milliseconds
            _mux(container, stream.encode(frame), lengths)
        if stream:
            _mux(container, stream.encode(None), lengths)


def _mux(container: OutputContainer, packets: list[av.Packet], lengths: dict[int, int]) -> None:
    for packet in packets:
        packet.duration = lengths[packet.pts or 0]  # without it the last frame is one millisecond long
        container.mux(packet)
