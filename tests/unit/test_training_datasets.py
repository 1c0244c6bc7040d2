"""Datasets: the three layouts, captions as they are written, and folders of none."""

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Subset

from sdvideo_core import sequence
from sdvideo_core.cli import main
from sdvideo_core.training.cache import CachedDataset, encode_dataset
from sdvideo_core.training.collate import collate_fn
from sdvideo_core.training.datasets import (
    ClipError,
    FrameSequenceDataset,
    MiniTestSet,
    VideoFolderDataset,
    open_dataset,
)
from sdvideo_core.video_io import save_gif, save_mp4, save_webp
from tests.unit.small_clips import frame_numbers, grey_images, names, save_clip, save_sequence, to_video

# GIFs


def test_gifs_come_in_natural_order_with_their_frames_and_captions(tmp_path):
    for number in (10, 9, 2):
        save_clip(tmp_path / f"{number}.gif", f"clip {number}", num_frames=number)
    dataset = MiniTestSet(str(tmp_path))
    assert len(dataset) == 3
    assert names(dataset) == ["2.gif", "9.gif", "10.gif"]
    for item, number in zip((dataset[0], dataset[1], dataset[2]), (2, 9, 10), strict=True):
        assert item["text"] == f"clip {number}"
        assert frame_numbers(item["frames"]) == list(range(number))
        assert all(image.mode == "RGB" and image.size == (32, 16) for image in item["frames"])
    assert dataset.skipped == []


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("a red  square, \n", "a red  square, "),
        ("first\nsecond\n\n", "first\nsecond\n"),
        ("first\r\nsecond\r\n", "first\r\nsecond"),
        (" a\t", " a\t"),
        ("a\r", "a\r"),
        ("\ufeffgrün 🐼", "grün 🐼"),
        ("", ""),
        ("\n", ""),
    ],
)
def test_captions_are_as_written_less_the_last_line_end(tmp_path, written, read):
    save_clip(tmp_path / "0001.gif", written.encode())
    assert MiniTestSet(tmp_path)[0]["text"] == read


def test_the_caption_with_the_whole_name_wins(tmp_path):
    for name in ("1.gif", "2.gif"):
        save_clip(tmp_path / name, None)
    (tmp_path / "1.txt").write_text("short")
    (tmp_path / "2.txt").write_text("short")
    (tmp_path / "2.gif.txt").write_text("whole")
    dataset = MiniTestSet(tmp_path)
    assert [dataset[0]["text"], dataset[1]["text"]] == ["short", "whole"]


def test_hidden_files_and_other_files_are_no_clips(tmp_path):
    save_clip(tmp_path / "1.gif")
    save_clip(tmp_path / ".trash" / "2.gif", None)
    (tmp_path / "._1.gif").write_bytes(b"resource fork")
    (tmp_path / ".1.txt").write_bytes(b"")
    (tmp_path / "preview.jpg").write_bytes(b"")
    assert names(MiniTestSet(tmp_path)) == ["1.gif"]


def test_folders_that_are_linked_count_too_and_a_circle_of_them_once(tmp_path):
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    save_clip(data / "a.gif")
    save_clip(elsewhere / "b.gif")
    (data / "more").symlink_to(elsewhere, target_is_directory=True)
    (elsewhere / "back").symlink_to(data, target_is_directory=True)
    assert names(MiniTestSet(data)) == ["a.gif", "more/b.gif"]


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    def walk(_folder, onerror, followlinks):
        onerror(PermissionError(13, "Permission denied", "data/locked"))  # nothing is locked to root
        return iter(())

    monkeypatch.setattr("os.walk", walk)
    with pytest.raises(ClipError, match=r"^data/locked cannot be read \(Permission denied\); check its permissions$"):
        MiniTestSet(tmp_path)


def test_clips_in_subfolders_are_named_by_their_path(tmp_path):
    save_clip(tmp_path / "b" / "1.gif", "second", first=4)
    save_clip(tmp_path / "a" / "1.gif", "first")
    dataset = MiniTestSet(tmp_path)
    assert names(dataset) == ["a/1.gif", "b/1.gif"]
    assert dataset[1]["text"] == "second"
    assert frame_numbers(dataset[1]["frames"]) == [4, 5, 6]


# Frame sequences and videos


def test_frame_sequences_are_read_from_frames_and_text(tmp_path):
    for name, extension in (("clip10", "jpg"), ("clip2", "png"), ("clip.3", "webp")):
        save_sequence(tmp_path, name, extension, f"text of {name}\n")
    dataset = FrameSequenceDataset(tmp_path)
    assert names(dataset) == ["clip2", "clip10", "clip.3"]
    for index, name in enumerate(names(dataset)):
        assert dataset[index]["text"] == f"text of {name}"
        assert frame_numbers(dataset[index]["frames"]) == [0, 1, 2]


def test_videos_of_every_kind_are_read(tmp_path):
    video = to_video(grey_images(3))
    save_mp4(video, tmp_path / "1.mp4")
    save_webp(video, tmp_path / "2.webp")
    save_gif(video, tmp_path / "3.GIF")
    for name in ("1.mp4", "2", "3.GIF"):
        (tmp_path / f"{name}.txt").write_text(f"text {name}")
    dataset = VideoFolderDataset(tmp_path)
    assert names(dataset) == ["1.mp4", "2.webp", "3.GIF"]
    assert [dataset[index]["text"] for index in range(3)] == ["text 1.mp4", "text 2", "text 3.GIF"]
    assert [frame_numbers(dataset[index]["frames"]) for index in range(3)] == [[0, 1, 2]] * 3


@pytest.mark.parametrize(
    ("name", "max_frames", "read"),
    [("clip.gif", 2, 2), ("clip.gif", 5, 5), ("clip.gif", 9, 5), ("clip.gif", None, 5), ("clip.mp4", 9, 5)],
)
def test_no_more_than_max_frames_are_read(tmp_path, name, max_frames, read):
    save_clip(tmp_path / name, num_frames=5)
    assert frame_numbers(VideoFolderDataset(tmp_path, max_frames=max_frames)[0]["frames"]) == list(range(read))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_frames": 0}, "max_frames is 0, expected at least 1, or None for all"),
        ({"stride": 0}, "stride is 0, expected at least 1"),
    ],
)
def test_counts_of_frames_below_one_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        MiniTestSet(tmp_path, **options)


@pytest.mark.parametrize("skip_bad", [False, True])
@pytest.mark.parametrize("max_frames", [2.5, "2", True])
def test_a_max_frames_of_another_kind_is_told_before_the_clips_are_read(tmp_path, skip_bad, max_frames):
    save_clip(tmp_path / "clip.gif")
    with pytest.raises(TypeError, match=rf"^max_frames is {max_frames!r}, expected a whole number \(int\)$"):
        MiniTestSet(tmp_path, skip_bad, max_frames)


@pytest.fixture
def decoded(monkeypatch) -> list[Image.Image]:
    """The pictures that are made of what files hold, as they are made."""
    made: list[Image.Image] = []

    def noting(function: Callable[..., Image.Image]) -> Callable[..., Image.Image]:
        def noted(*args: Any, **kwargs: Any) -> Image.Image:
            made.append(function(*args, **kwargs))
            return made[-1]

        return noted

    monkeypatch.setattr(sequence, "to_rgb", noting(sequence.to_rgb))  # of animations and pictures
    monkeypatch.setattr(Image, "fromarray", noting(Image.fromarray))  # of videos
    return made


@pytest.mark.parametrize("name", ["clip.gif", "clip.webp", "clip.mp4"])
@pytest.mark.parametrize(
    ("length", "stride", "used"),
    [(9, 1, [0, 1, 2, 3]), (20, 3, [0, 3, 6, 9]), (3, 1, [0, 1, 2]), (8, 3, [0, 3, 6])],
)
def test_only_frames_that_are_used_are_made_and_once(tmp_path, decoded, name, length, stride, used):
    save_clip(tmp_path / name, num_frames=length)
    dataset = VideoFolderDataset(tmp_path, max_frames=4, stride=stride)
    decoded.clear()
    assert frame_numbers(dataset[0]["frames"]) == used
    assert len(decoded) == len(used)


def test_pictures_that_a_stride_leaves_out_are_not_read(tmp_path, decoded):
    save_sequence(tmp_path, "1")
    (tmp_path / "frames" / "1" / "1.png").write_bytes(b"no picture")
    assert frame_numbers(open_dataset(tmp_path, stride=2)[0]["frames"]) == [0, 2]
    assert len(decoded) == 2


@pytest.mark.parametrize("length", [1, 4, 7, 9])
def test_a_stride_of_the_dataset_is_that_of_collate(tmp_path, length):
    save_clip(tmp_path / "clip.gif", num_frames=length)
    whole, strided = MiniTestSet(tmp_path), MiniTestSet(tmp_path, max_frames=3, stride=3)
    expected = collate_fn([whole[0]], num_frames=3, image_size=(16, 24), stride=3)["pixel_values"]
    assert torch.equal(collate_fn([strided[0]], num_frames=3, image_size=(16, 24))["pixel_values"], expected)


def test_a_stride_of_the_dataset_makes_the_files_of_a_cache_with_a_stride(small_model, tmp_path):
    save_clip(tmp_path / "clips" / "1.gif", num_frames=9)
    folder, written = tmp_path / "cache", []
    for own, stride in ((1, 4), (2, 2), (4, 1)):
        dataset = MiniTestSet(tmp_path / "clips", stride=own)
        for clips in (dataset, Subset(dataset, [0])):
            encode_dataset(small_model, clips, folder, num_frames=3, image_size=(16, 16), stride=stride)
            [file] = (folder / "clips").iterdir()
            written.append((file.stat().st_mtime_ns, CachedDataset(folder).settings["stride"]))
    assert written == [(written[0][0], 4)] * 6


def test_the_command_line_reads_no_more_than_it_uses(tmp_path, decoded, small_model_dir):
    save_clip(tmp_path / "clips" / "clip.mp4", num_frames=20)
    decoded.clear()
    options = ["--frames=2", "--stride=5", "--size=16x16", "--device=cpu"]
    places = {"model": small_model_dir, "data": tmp_path / "clips", "out": tmp_path / "cache"}
    assert main(["cache", *options, *(f"--{name}={place}" for name, place in places.items())]) == 0
    assert frame_numbers(decoded) == [0, 5]


def test_workers_read_what_the_main_process_reads(tmp_path):
    for number in range(4):
        save_clip(tmp_path / f"{number}.gif", f"clip {number}", first=number)
    dataset = pickle.loads(pickle.dumps(open_dataset(tmp_path)))  # noqa: S301
    items = [item for batch in DataLoader(dataset, batch_size=2, num_workers=2, collate_fn=list) for item in batch]
    assert [(item["text"], frame_numbers(item["frames"])) for item in items] == [
        (f"clip {number}", [number, number + 1, number + 2]) for number in range(4)
    ]


# Which layout


def test_the_layout_of_a_folder_is_found(tmp_path):
    save_clip(tmp_path / "gifs" / "1.gif")
    save_sequence(tmp_path / "sequences", "1")
    save_clip(tmp_path / "videos" / "2.gif")
    for name in ("1.mp4", "1.mp4.txt"):
        (tmp_path / "videos" / name).write_bytes(b"not read yet")
    save_clip(tmp_path / "nested" / "a" / "1.gif")
    kinds = {name: open_dataset(tmp_path / name) for name in ("gifs", "sequences", "videos", "nested")}
    assert {name: type(dataset) for name, dataset in kinds.items()} == {
        "gifs": MiniTestSet,
        "sequences": FrameSequenceDataset,
        "videos": VideoFolderDataset,
        "nested": MiniTestSet,
    }
    assert [clip.name for clip in kinds["videos"].clips] == ["1.mp4", "2.gif"]


def test_a_folder_of_no_layout_is_told_all_three(tmp_path):
    for name in ("1.png", "2.png", "1.txt"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ClipError, match=r"is no dataset: found 2 \.png, 1 \.txt; expected .*; arrange the") as caught:
        open_dataset(tmp_path)
    for layout in ("0001.gif and 0001.gif.txt", "clip.mp4 and clip.mp4.txt", "frames/ID/*.png and text/ID.txt"):
        assert layout in str(caught.value)


def test_an_empty_folder_is_no_dataset(tmp_path):
    with pytest.raises(ClipError, match="found no files; expected"):
        open_dataset(tmp_path)


def test_two_layouts_in_one_folder_are_refused(tmp_path):
    save_sequence(tmp_path, "1")
    save_clip(tmp_path / "2.gif")
    with pytest.raises(ClipError, match=r"has a folder frames and also \.gif files; separate the two"):
        open_dataset(tmp_path)


def test_options_reach_the_dataset_that_is_opened(tmp_path):
    save_clip(tmp_path / "gifs" / "1.gif", num_frames=5)
    save_sequence(tmp_path / "sequences", "1")
    for name in ("gifs", "sequences"):
        assert len(open_dataset(tmp_path / name, max_frames=2)[0]["frames"]) == 2
        assert frame_numbers(open_dataset(tmp_path / name, stride=2)[0]["frames"])[:2] == [0, 2]
    (tmp_path / "gifs" / "2.gif").write_bytes(b"")
    save_sequence(tmp_path / "sequences", "2", text=None)
    for name in ("gifs", "sequences"):
        with pytest.warns(UserWarning, match="1 of 2 clips"):
            assert len(open_dataset(tmp_path / name, skip_bad=True)) == 1


@pytest.mark.parametrize("opened", [open_dataset, MiniTestSet, FrameSequenceDataset, VideoFolderDataset])
def test_a_path_that_is_no_folder_is_refused(tmp_path, opened):
    (tmp_path / "clip.gif").write_bytes(b"")
    with pytest.raises(ClipError, match="lost does not exist, expected a folder of clips; give one"):
        opened(tmp_path / "lost")
    with pytest.raises(ClipError, match=r"clip\.gif is a file, expected a folder of clips"):
        opened(tmp_path / "clip.gif")
