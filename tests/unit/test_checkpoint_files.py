"""Files given as weights that hold none, or hold them in a way that is not safe to read: each is told what it is."""

import re
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.torch_version import TorchVersion

from sdvideo_core.checkpoint import CheckpointError, load_unet, read_state_dict
from sdvideo_core.cli import main
from sdvideo_core.video_io import save_video

INSTEAD = "not weights; give a .safetensors, .pth, .bin or .ckpt file in its place"
WEIGHTS = {"a": torch.ones(3)}


def exactly(text: str) -> str:
    return f"^{re.escape(text)}$"


def zip_of_notes(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("model/readme.txt", "notes")


def picture(kind: str):
    return lambda path: Image.new("RGB", (16, 16), "red").save(path, kind)


def video(path: Path) -> None:
    """An MP4, under the name of weights."""
    save_video(torch.zeros(1, 3, 4, 32, 32), movie := path.with_name("video.mp4"), 8)
    movie.rename(path)


def text(content: bytes):
    return lambda path: path.write_bytes(content)


OTHER_FILES = {
    "GIF": (picture("GIF"), f"is a GIF picture, {INSTEAD}"),
    "PNG": (picture("PNG"), f"is a PNG picture, {INSTEAD}"),
    "JPEG": (picture("JPEG"), f"is a JPEG picture, {INSTEAD}"),
    "WebP": (picture("WEBP"), f"is a WebP picture, {INSTEAD}"),
    "MP4": (video, f"is an MP4 or MOV video, {INSTEAD}"),
    "zip": (zip_of_notes, "is an archive, not weights; unpack it, and give the file of weights in it"),
    "web page": (
        text(b"\xef\xbb\xbf\n<!DOCTYPE html><html>"),
        "is a web page, not weights; download the raw file instead of its page",
    ),
    "Git LFS": (
        text(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
        "is a Git LFS pointer, not weights; run `git lfs pull`, or download the file itself",
    ),
    "JSON": (
        text(b'{"error": "not found"}'),
        "cannot be read (22 bytes): it is damaged, cut short or no file of weights. Download it again.",
    ),
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kind", OTHER_FILES)
def test_what_is_no_weights_is_named(tmp_path, kind, suffix):
    (write, message), path = OTHER_FILES[kind], tmp_path / f"model{suffix}"
    write(path)
    with pytest.raises(CheckpointError, match=exactly(f"{path} {message}")):
        read_state_dict(path)


@pytest.mark.parametrize(
    ("save", "suffix", "ending"), [(save_file, ".ckpt", ".safetensors"), (torch.save, ".safetensors", ".pth")]
)
def test_weights_under_another_ending_are_to_be_renamed(tmp_path, save, suffix, ending):
    path = tmp_path / f"a_model_with_a_name_that_is_as_long_as_those_of_published_files_are{suffix}"
    save(WEIGHTS, path)
    with pytest.raises(
        CheckpointError, match=exactly(f"{path} holds weights as {ending} files do; rename it to end in {ending}")
    ):
        read_state_dict(path)
    assert read_state_dict(path.rename(path.with_suffix(ending))).keys() == WEIGHTS.keys()


@pytest.mark.parametrize("version", ["2.4.0", "2.5.1+cu121"])
def test_a_torch_that_lets_pickles_run_code_opens_none(tmp_path, monkeypatch, version):
    monkeypatch.setattr(torch, "__version__", TorchVersion(version))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was opened"))
    path = tmp_path / "model.pth"
    torch.save(WEIGHTS, path)
    message = (
        f"{path} is no .safetensors file and was not opened, as torch {version} lets a pickle run code "
        "(CVE-2025-32434); expected torch 2.6 or newer, or the .safetensors that `sdvideo convert` makes of it there"
    )
    with pytest.raises(CheckpointError, match=exactly(message)):
        read_state_dict(path)
    save_file(WEIGHTS, path := path.with_suffix(".safetensors"))
    assert read_state_dict(path).keys() == WEIGHTS.keys()


def test_a_torch_that_lets_pickles_run_code_is_told_on_the_command_line(demo_model_dir, monkeypatch, capsys):
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.5.1"))
    assert main(["txt2vid", str(demo_model_dir), "a prompt", "--output", "video.gif"]) == 1
    assert "torch 2.5.1 lets a pickle run code (CVE-2025-32434); expected torch 2.6" in capsys.readouterr().err


@pytest.mark.parametrize("version", ["2.6.0+cu124", "2.14.0"])
def test_newer_torch_opens_pickles(demo_model_dir, monkeypatch, version):
    monkeypatch.setattr(torch, "__version__", TorchVersion(version))
    assert load_unet(demo_model_dir, device="meta")
