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


def save_legacy(weights: dict[str, torch.Tensor], path: Path) -> None:
    torch.save(weights, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("save", [save_file, torch.save, save_legacy])
@pytest.mark.parametrize("suffix", [".safetensors", ".SAFETENSORS", ".sft", ".ckpt", ".bin", ".pth", ""])
def test_what_a_file_holds_tells_how_to_read_it_and_not_its_ending(tmp_path, save, suffix):
    path = tmp_path / f"a_model_with_a_name_that_is_as_long_as_those_of_published_files_are{suffix}"
    save(WEIGHTS, path)
    assert torch.equal(read_state_dict(path)["a"], WEIGHTS["a"])


WRAPPED = {
    "state_dict": ({"state_dict": WEIGHTS, "epoch": 3}, ""),
    "one of two, by Lightning's name": ({"state_dict": WEIGHTS, "ema": {"b": torch.ones(2)}}, ""),
    "model": ({"model": WEIGHTS}, ""),
    "module": ({"module": WEIGHTS, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []}}, ""),
    "ema": ({"ema": {**WEIGHTS, "c": torch.ones(1)}, "step": torch.tensor(5)}, ""),
    "unet": ({"unet": {"state_dict": WEIGHTS}}, ""),
    "beside random states": (
        {"model": {**WEIGHTS, **{str(i): torch.ones(1) for i in range(30)}}, "rng": {"cpu": torch.ones(2)}},
        "",
    ),
    "bare, beside a dict": ({**WEIGHTS, "meta": {"b": torch.ones(2)}}, ""),
    "two": ({"model": WEIGHTS, "ema": WEIGHTS}, "holds 2 sets of weights (model, ema); expected one. Save the one you"),
    "numbered": ({"state": {0: torch.ones(2)}}, "holds no named tensors; expected a checkpoint of named weights"),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_weights_come_out_of_the_dicts_that_tools_put_around_them(tmp_path, name):
    (content, message), path = WRAPPED[name], tmp_path / "model.pth"
    torch.save(content, path)
    if message:
        with pytest.raises(CheckpointError, match=f"^{re.escape(f'{path} {message}')}"):
            read_state_dict(path)
    else:
        assert torch.equal(read_state_dict(path)["a"], WEIGHTS["a"])
        assert "b" not in read_state_dict(path)


def test_a_dict_within_itself_is_no_end(tmp_path):
    content = {"a": 1}
    content["state_dict"] = content
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match="holds no named tensors"):
        read_state_dict(tmp_path / "model.pth")


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
