"""Datasets: folders of clips and captions, in three layouts, as items for a torch DataLoader."""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import ClassVar, NamedTuple, TypedDict

from PIL import Image
from torch.utils.data import Dataset

from ..arguments import WHOLE
from ..frames import check_selection
from ..sequence import CLIP_EXTENSIONS, read_frames, to_one_size
from ..video_io import PICTURE_EXTENSIONS, StrPath, natural_order

GIF_EXTENSIONS = (".gif",)

GIF_LAYOUT = "GIFs with captions: 0001.gif and 0001.gif.txt (or 0001.txt)"
VIDEO_LAYOUT = "videos with captions: clip.mp4 and clip.mp4.txt (or clip.txt)"
FRAMES_LAYOUT = "folders of pictures with captions: frames/ID/*.png and text/ID.txt"
REMEDY = "or leave bad clips out with skip_bad=True"


class ClipError(ValueError):
    """A clip or a folder of clips that cannot be trained on; the message names the file and the remedy."""


class ClipItem(TypedDict):
    """name: unique in its dataset. frames: RGB pictures of one size. text: the caption, which may be empty."""

    name: str
    frames: list[Image.Image]
    text: str


class Clip(NamedTuple):
    name: str
    source: Path
    text: str


class Found(NamedTuple):
    """A clip in a folder, and where its caption may lie; the first of these that exists is its caption."""

    name: str
    source: Path
    captions: tuple[Path, ...]


class ClipDataset(Dataset[ClipItem]):
    """What the three layouts share: clips in natural order, checked when the dataset is made.

    path: the folder. stride: take every `stride`-th frame of a clip from its first on, as `collate_fn` does with all of
    them. max_frames: how many frames of each clip to take at most, None: all; long videos need it, as an item holds all
    its frames in memory.

    skip_bad=False: captions and empty clips are checked at once, pixels when they are read; ClipError names the
    first bad clip. skip_bad=True: every clip is decoded at once; the bad ones are left out, listed as (name, reason)
    in `skipped`, and counted in one warning.
    """

    layout: ClassVar[str]

    def __init__(self, path: StrPath, skip_bad: bool = False, max_frames: int | None = None, stride: int = 1):
        WHOLE.or_none().check("max_frames", max_frames)
        if max_frames is not None and max_frames < 1:
            raise ValueError(f"max_frames is {max_frames}, expected at least 1, or None for all; raise max_frames")
        check_selection(None, 0, stride)
        self.path, self.max_frames, self.stride = _folder(path), max_frames, stride
        self.clips: list[Clip] = []
        self.skipped: list[tuple[str, str]] = []
        found, texts = self._find()
        for entry in found:
            try:
                self.clips.append(self._checked(entry, decode=skip_bad))
            except ClipError as error:
                self.skipped.append((entry.name, str(error)))
        claimed = {caption for entry in found for caption in entry.captions}
        for text in sorted(set(texts) - claimed, key=natural_order):
            self.skipped.append((text.name, f"{text} is a caption without a clip; add the clip or remove this file"))
        self._report(skip_bad)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> ClipItem:
        clip = self.clips[index]
        try:
            frames = self._read(clip.source)
        except ClipError as error:
            raise ClipError(f"{error}; {REMEDY}") from error
        return {"name": clip.name, "frames": frames, "text": clip.text}

    def _find(self) -> tuple[list[Found], list[Path]]:
        """The clips in natural order, and all the text files."""
        raise NotImplementedError

    def _checked(self, entry: Found, decode: bool) -> Clip:
        _check_not_empty(entry.source)
        text = _read_caption(entry)
        if decode:
            self._read(entry.source)
        return Clip(entry.name, entry.source, text)

    def _read(self, source: Path) -> list[Image.Image]:
        try:
            return to_one_size(islice(read_frames(source, stride=self.stride), self.max_frames), None)
        except (OSError, ValueError) as error:
            named = str(source) in str(error)
            raise ClipError(str(error) if named else f"{source}: {error}") from error

    def _report(self, skip_bad: bool) -> None:
        total = len(self.clips) + len(self.skipped)
        if not total:
            raise ClipError(f"{self.path} has no clips, expected {self.layout}; add clips or give another folder")
        if not self.skipped:
            return
        name, reason = self.skipped[0]
        if not skip_bad:
            others = f" (and {len(self.skipped) - 1} more bad of {total} clips)" if len(self.skipped) > 1 else ""
            raise ClipError(f"{reason}{others}; {REMEDY}")
        if not self.clips:
            raise ClipError(f"all {total} clips of {self.path} are bad, nothing is left to train on; {name}: {reason}")
        warnings.warn(
            f"{len(self.skipped)} of {total} clips of {self.path} are skipped; the first, {name}: {reason}",
            stacklevel=3,
        )


class _VideoFiles(ClipDataset):
    """Files with captions beside them, also in subfolders; a clip's name is its path from the dataset's folder."""

    extensions: ClassVar[tuple[str, ...]]

    def _find(self) -> tuple[list[Found], list[Path]]:
        files = _visible_files(self.path)
        clips = [
            Found(
                file.relative_to(self.path).as_posix(),
                file,
                (file.with_name(f"{file.name}.txt"), file.with_suffix(".txt")),
            )
            for file in files
            if file.suffix.lower() in self.extensions
        ]
        return clips, _texts(files)


class MiniTestSet(_VideoFiles):
    """A folder of GIFs with captions: 0001.gif and 0001.gif.txt, or 0001.txt; the former wins."""

    layout = GIF_LAYOUT
    extensions = GIF_EXTENSIONS


class VideoFolderDataset(_VideoFiles):
    """A folder of videos with captions: clip.mp4 and clip.mp4.txt, or clip.txt; also GIF and animated WebP."""

    layout = VIDEO_LAYOUT
    extensions = CLIP_EXTENSIONS


class FrameSequenceDataset(ClipDataset):
    """A folder with the pictures of each clip in frames/ID/ and its caption in text/ID.txt."""

    layout = FRAMES_LAYOUT

    def _find(self) -> tuple[list[Found], list[Path]]:
        for part in ("frames", "text"):
            if not (self.path / part).is_dir():
                raise ClipError(f"{self.path} has no folder {part}, expected {self.layout}; add it")
        media = (*CLIP_EXTENSIONS, *PICTURE_EXTENSIONS)
        sources = [s for s in _visible(self.path / "frames") if s.is_dir() or s.suffix.lower() in media]
        clips = [Found(source.name, source, (self.path / "text" / f"{source.name}.txt",)) for source in sources]
        return clips, _texts(_visible(self.path / "text"))

    def _checked(self, entry: Found, decode: bool) -> Clip:
        if not entry.source.is_dir():
            raise ClipError(f"{entry.source} is a file, expected a folder of pictures; move it into a folder frames/ID")
        return super()._checked(entry, decode)


def open_dataset(path: StrPath, skip_bad: bool = False, max_frames: int | None = None, stride: int = 1) -> ClipDataset:
    """The dataset in a folder, whichever of the three layouts it has; arguments as of ClipDataset.

    Raises ClipError where the folder has none of the layouts, or two.
    """
    folder = _folder(path)
    has_frames = (folder / "frames").is_dir()
    files = _visible(folder) if has_frames else _visible_files(folder)
    clips = {file.suffix.lower() for file in files if file.suffix.lower() in CLIP_EXTENSIONS}
    if has_frames:
        if clips:
            raise ClipError(f"{folder} has a folder frames and also {' '.join(sorted(clips))} files; separate the two")
        return FrameSequenceDataset(folder, skip_bad, max_frames, stride)
    if not clips:
        raise ClipError(
            f"{folder} is no dataset: found {_count_kinds(files)}; expected {GIF_LAYOUT}, or {VIDEO_LAYOUT}, "
            f"or {FRAMES_LAYOUT}; arrange the clips so, or give another folder"
        )
    kind = MiniTestSet if clips <= set(GIF_EXTENSIONS) else VideoFolderDataset
    return kind(folder, skip_bad, max_frames, stride)


def _folder(path: StrPath) -> Path:
    folder = Path(path)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise ClipError(f"{folder} {what}, expected a folder of clips; give one")
    return folder


def _visible(folder: Path) -> list[Path]:
    return sorted((path for path in folder.iterdir() if not path.name.startswith(".")), key=natural_order)


def _visible_files(folder: Path) -> list[Path]:
    """Files here and in subfolders, without hidden ones, in natural order."""
    files = list(_files_below(folder))
    visible = [file for file in files if not any(part.startswith(".") for part in file.relative_to(folder).parts)]
    return sorted(visible, key=natural_order)


def _files_below(folder: Path) -> Iterator[Path]:
    """Files here and in subfolders, also in linked ones, each folder once. ClipError for one that cannot be read."""

    def refuse(error: OSError) -> None:
        raise ClipError(f"{error.filename} cannot be read ({error.strerror}); check its permissions") from error

    seen = set()
    for root, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        place = os.path.realpath(root)
        if place in seen:
            folders.clear()
            continue
        seen.add(place)
        yield from (Path(root, name) for name in names)


def _texts(files: list[Path]) -> list[Path]:
    return [file for file in files if file.suffix.lower() == ".txt"]


def _check_not_empty(source: Path) -> None:
    if source.is_dir() and not any(file.suffix.lower() in PICTURE_EXTENSIONS for file in _visible(source)):
        raise ClipError(f"{source} has no pictures, expected at least 1 frame; fill or remove it")
    if source.is_file() and not source.stat().st_size:
        raise ClipError(f"{source} is empty (0 bytes), expected at least 1 frame; replace or remove it")


def _read_caption(entry: Found) -> str:
    """The caption as it is written, less the line end at the very end."""
    path = next((path for path in entry.captions if path.is_file()), None)
    if path is None:
        expected = " or ".join(map(str, entry.captions))
        raise ClipError(f"{entry.source} has no caption, expected {expected}; write one, it may be empty")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ClipError(f"{path} is not UTF-8 (byte {error.start}); save the caption as UTF-8") from error
    except OSError as error:
        raise ClipError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
    return re.sub(r"\r?\n\Z", "", text)


def _count_kinds(files: list[Path]) -> str:
    kinds = Counter(file.suffix.lower() or "no extension" for file in files)
    return ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(6)) or "no files"
