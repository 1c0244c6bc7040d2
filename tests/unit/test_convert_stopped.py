"""Convert, in a world that changes meanwhile: what appears at the target stays, and what stops it leaves nothing."""

import os
import signal
import weakref
from pathlib import Path

import pytest
import torch

from sdvideo_core.cli import main
from sdvideo_core.convert import convert
from sdvideo_core.state_dict import write_safetensors
from sdvideo_core.whole_file import whole_file, whole_folder

THERE = r"is there already; give another name, or remove it first$"


def appear(target: Path, kind: str) -> None:
    target.mkdir() if kind == "folder" else target.write_text("mine")
    if kind == "folder":
        (target / "mine").touch()


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize(
    ("name", "layout"), [("unet.safetensors", "safetensors"), ("model", "modelscope"), ("model", "diffusers")]
)
def test_what_appears_at_the_target_meanwhile_is_not_replaced(original_dir, tmp_path, monkeypatch, name, layout, kind):
    target = tmp_path / name

    def write(*arguments):
        if not target.exists():
            appear(target, kind)
        write_safetensors(*arguments)

    monkeypatch.setattr("sdvideo_core.convert.write_safetensors", write)
    with pytest.raises(FileExistsError, match=THERE):
        convert(original_dir, target, layout)
    assert list(tmp_path.iterdir()) == [target]
    assert (target / "mine").exists() if kind == "folder" else target.read_text() == "mine"


@pytest.mark.parametrize("late", [False, True])
def test_without_hard_links_a_new_file_replaces_none(tmp_path, monkeypatch, late):
    def no_links(*_):
        raise PermissionError("this drive has none")

    monkeypatch.setattr(os, "link", no_links)
    target = tmp_path / "a.txt"
    if late:
        with pytest.raises(FileExistsError, match=THERE), whole_file(target, exclusive=True) as temporary:
            temporary.write_text("new")
            target.write_text("mine")
    else:
        with whole_file(target, exclusive=True) as temporary:
            temporary.write_text("new")
    assert target.read_text() == ("mine" if late else "new")
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_where_a_file_should_be_made_is_told_as_ever(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"^cannot write .*file/model: "), whole_folder(tmp_path / "file" / "model", True):
        pass


def test_sigterm_leaves_nothing_and_is_as_before_afterwards(original_dir, tmp_path, monkeypatch, capsys):
    reached, before = [], signal.getsignal(signal.SIGTERM)

    def handler(*_):
        reached.append("the default would have ended Python at once")

    def killed(*arguments):
        write_safetensors(*arguments)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("sdvideo_core.convert.write_safetensors", killed)
    signal.signal(signal.SIGTERM, handler)
    try:
        code = main(["convert", str(original_dir), str(tmp_path / "model"), "--format", "modelscope"])
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (code, reached, list(tmp_path.iterdir())) == (130, [], [])
    assert capsys.readouterr().err == "sdvideo: stopped\n"


def test_after_a_failed_pickle_nothing_holds_the_mapped_file(original_dir, tmp_path, monkeypatch):
    """Windows deletes no file that is mapped."""
    held = []

    def full(content, path):
        held.append(weakref.ref(next(iter(content.values()))))
        raise RuntimeError("no space left\nat some line of C++")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"not all of text2video\S+ could be written \(no space left\)") as caught:
        convert(original_dir, tmp_path / "model", "modelscope")
    assert caught.value.__cause__ is not None
    assert [reference() for reference in held] == [None]


def test_eight_bit_floats_on_the_command_line(original_dir, tmp_path):
    command = ["convert", str(original_dir), str(tmp_path / "a.safetensors"), "--format", "safetensors"]
    assert main([*command, "--dtype", "float8_e4m3fn"]) == 0
    with (tmp_path / "a.safetensors").open("rb") as file:
        assert b'"dtype":"F8_E4M3"' in file.read(500)
