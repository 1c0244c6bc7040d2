"""Whole files: what is being written is not there until it is complete, and nothing else is left behind."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdvideo_core.whole_file import whole_file, whole_folder


def test_a_file_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "new" / "notes.txt"
    with whole_file(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        assert temporary.parent == path.parent  # a rename within one disk
    assert path.read_text() == "half"
    assert list(path.parent.iterdir()) == [path]


def test_an_old_file_stays_until_it_is_replaced(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file({"old": torch.zeros(1)}, path)
    with pytest.raises(KeyboardInterrupt), whole_file(path) as temporary:
        save_file({"new": torch.zeros(1)}, temporary)
        raise KeyboardInterrupt
    assert list(load_file(path)) == ["old"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "frames"
    with pytest.raises(ZeroDivisionError), whole_folder(path) as temporary:
        temporary.mkdir()
        (temporary / "0.png").touch()
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with whole_folder(path) as temporary:
        temporary.mkdir()
        (temporary / "0.png").touch()
    assert [file.name for file in path.iterdir()] == ["0.png"]


def test_what_cannot_be_written_is_named_with_a_remedy(tmp_path):
    (tmp_path / "file").touch()
    remedy = "; choose another place or check its permissions and free space$"
    with (
        pytest.raises(OSError, match=f"^cannot write {tmp_path}/file/a.txt: .*{remedy}"),
        whole_file(tmp_path / "file" / "a.txt"),
    ):
        pass
    with (
        pytest.raises(OSError, match=f"^cannot write {tmp_path}/a.safetensors: .*No such file.*{remedy}"),
        whole_file(tmp_path / "a.safetensors") as temporary,
    ):
        save_file({"a": torch.zeros(1)}, temporary / "nowhere")
    with pytest.raises(IsADirectoryError, match="it is a folder; give the name of a file"), whole_file(tmp_path):
        pass
