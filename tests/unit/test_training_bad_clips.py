"""Bad clips: refused with what to do, or skipped and counted, for every way a clip can be bad."""

import warnings
from pathlib import Path

import pytest
from PIL import Image

from sdvideo_core.training.datasets import (
    ClipError,
    FrameSequenceDataset,
    MiniTestSet,
    VideoFolderDataset,
)
from sdvideo_core.video_io import save_gif
from tests.unit.small_clips import names, noise_images, save_clip, save_sequence, to_video


def cut_in_half(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


BAD = {
    "no caption": r"bad\.gif has no caption, expected .*bad\.gif\.txt or .*bad\.txt; write one, it may be empty",
    "not utf-8": r"bad\.gif\.txt is not UTF-8 \(byte 1\); save the caption as UTF-8",
    "no bytes": r"bad\.gif is empty \(0 bytes\), expected at least 1 frame; replace or remove it",
    "no clip": r"bad\.gif\.txt is a caption without a clip; add the clip or remove this file",
}
UNREADABLE = {
    "cut short": r"cannot read .*bad\.gif: .*; replace or remove the file",
    "no gif": r"cannot read .*bad\.gif: .*; replace or remove the file",
}


def make_bad(folder: Path, fault: str) -> None:
    path = folder / "bad.gif"
    if fault != "no clip":
        save_gif(to_video(noise_images(3, (64, 64))), path)
    if fault != "no caption":
        path.with_name("bad.gif.txt").write_bytes(b"a\xff" if fault == "not utf-8" else b"a caption")
    if fault == "no bytes":
        path.write_bytes(b"")
    if fault == "cut short":
        cut_in_half(path)
    if fault == "no gif":
        path.write_bytes(b"<html>Not found</html>" * 9)


@pytest.mark.parametrize("fault", BAD)
def test_bad_clips_are_refused_at_once(tmp_path, fault):
    save_clip(tmp_path / "good.gif")
    make_bad(tmp_path, fault)
    with pytest.raises(ClipError, match=BAD[fault]) as caught:
        MiniTestSet(tmp_path)
    assert str(caught.value).endswith("; or leave bad clips out with skip_bad=True")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fault", UNREADABLE)
def test_unreadable_clips_are_refused_when_read(tmp_path, fault):
    save_clip(tmp_path / "good.gif")
    make_bad(tmp_path, fault)
    dataset = MiniTestSet(tmp_path)
    assert dataset[1]["text"] == "a caption"
    with pytest.raises(ClipError, match=UNREADABLE[fault] + "; or leave bad clips out with skip_bad=True") as caught:
        dataset[0]
    assert str(caught.value).startswith("cannot read ")


@pytest.mark.parametrize("fault", [*BAD, *UNREADABLE])
def test_bad_clips_are_skipped_and_counted(tmp_path, fault):
    for name in ("1.gif", "zebra.gif"):
        save_clip(tmp_path / name)
    make_bad(tmp_path, fault)
    reason = (BAD | UNREADABLE)[fault]
    with pytest.warns(UserWarning, match=rf"1 of 3 clips of .* are skipped; the first, bad\.gif.*: .*{reason}") as seen:
        dataset = MiniTestSet(tmp_path, skip_bad=True)
    assert len(seen) == 1
    assert seen[0].filename == __file__
    assert names(dataset) == ["1.gif", "zebra.gif"]
    [(name, why)] = dataset.skipped
    assert name == ("bad.gif.txt" if fault == "no clip" else "bad.gif")
    assert "bad.gif" in why


def test_nothing_is_said_where_nothing_is_skipped(tmp_path):
    save_clip(tmp_path / "1.gif")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert MiniTestSet(tmp_path, skip_bad=True).skipped == []


def test_the_number_of_bad_clips_is_in_the_error(tmp_path):
    for number in range(5):
        save_clip(tmp_path / f"{number}.gif", "text" if number < 2 else None)
    with pytest.raises(ClipError, match=r"2\.gif has no caption.* \(and 2 more bad of 5 clips\); or leave"):
        MiniTestSet(tmp_path)


def test_nothing_left_is_an_error(tmp_path):
    for number in (1, 2):
        save_clip(tmp_path / f"{number}.gif", None)
    with pytest.raises(ClipError, match=r"all 2 clips of .* are bad, nothing is left to train on; 1\.gif: .*caption"):
        MiniTestSet(tmp_path, skip_bad=True)


@pytest.mark.parametrize("skip_bad", [False, True])
def test_an_empty_dataset_is_an_error(tmp_path, skip_bad):
    (tmp_path / "frames").mkdir()
    (tmp_path / "text").mkdir()
    for kind, layout in ((MiniTestSet, r"0001\.gif"), (VideoFolderDataset, r"mp4"), (FrameSequenceDataset, "ID")):
        with pytest.raises(ClipError, match=rf"has no clips, expected .*{layout}.*; add clips or give another folder"):
            kind(tmp_path, skip_bad)


def test_gifs_are_not_mixed_with_captions_of_other_videos(tmp_path):
    save_clip(tmp_path / "1.gif")
    for name in ("2.mp4", "2.mp4.txt"):
        (tmp_path / name).write_bytes(b"not read")
    with pytest.raises(ClipError, match=r"2\.mp4\.txt is a caption without a clip"):
        MiniTestSet(tmp_path)


def test_bad_frame_sequences_are_named(tmp_path):
    save_sequence(tmp_path, "1", text=None)
    (tmp_path / "frames" / "2").mkdir()
    (tmp_path / "text" / "2.txt").write_text("a caption")
    save_clip(tmp_path / "frames" / "3.gif", None)
    save_sequence(tmp_path, "4")
    Image.new("RGB", (8, 8)).save(tmp_path / "frames" / "4" / "1.png")
    save_sequence(tmp_path, "5")
    cut_in_half(tmp_path / "frames" / "5" / "2.png")
    save_sequence(tmp_path, "6")
    (tmp_path / "text" / "7.txt").write_text("a caption")
    with pytest.warns(UserWarning, match="6 of 7 clips"):
        dataset = FrameSequenceDataset(tmp_path, skip_bad=True)
    assert names(dataset) == ["6"]
    expected = {
        "1": "expected " + str(tmp_path / "text" / "1.txt"),
        "2": str(tmp_path / "frames" / "2") + " has no pictures, expected at least 1 frame; fill or remove it",
        "3.gif": "3.gif is a file, expected a folder of pictures; move it into a folder frames/ID",
        "4": str(tmp_path / "frames" / "4") + ": 1.png is 8x8, 0.png is 32x16",
        "5": "cannot read " + str(tmp_path / "frames" / "5" / "2.png"),
        "7.txt": "7.txt is a caption without a clip",
    }
    assert [name for name, _ in dataset.skipped] == list(expected)
    for name, reason in dataset.skipped:
        assert expected[name] in reason


@pytest.mark.parametrize("missing", ["frames", "text"])
def test_a_missing_half_of_frame_sequences_is_named(tmp_path, missing):
    (tmp_path / ({"frames", "text"} - {missing}).pop()).mkdir()
    with pytest.raises(ClipError, match=rf"has no folder {missing}, expected .*frames/ID/\*\.png and text/ID.txt; add"):
        FrameSequenceDataset(tmp_path)


def test_a_clip_that_vanishes_is_named(tmp_path):
    save_clip(tmp_path / "1.gif")
    dataset = MiniTestSet(tmp_path)
    (tmp_path / "1.gif").unlink()
    with pytest.raises(ClipError, match=r"1\.gif does not exist"):
        dataset[0]


def test_an_unreadable_caption_is_named(tmp_path, monkeypatch):
    def refuse(_):
        raise PermissionError(13, "Permission denied")

    save_clip(tmp_path / "1.gif")
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(ClipError, match=r"1\.gif\.txt cannot be read \(Permission denied\); check its permissions"):
        MiniTestSet(tmp_path)
