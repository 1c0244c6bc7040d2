"""The package: what it has by name, and what imports nothing that takes seconds."""

import argparse
import subprocess
import sys

import pytest

import sdvideo_core
from sdvideo_core.cli import build_parser
from sdvideo_core.pipeline import SDVideo


def test_it_has_what_it_names_and_nothing_else():
    assert set(sdvideo_core.__all__) <= set(dir(sdvideo_core))
    assert sdvideo_core.SDVideo is SDVideo
    assert all(getattr(sdvideo_core, name).__name__ == name for name in sdvideo_core.__all__)
    with pytest.raises(AttributeError, match="module 'sdvideo_core' has no attribute 'save_mov'"):
        _ = sdvideo_core.save_mov


@pytest.mark.parametrize("module", ["demo", "pipeline", "video_io", "video_metadata"])
def test_its_modules_are_there_without_an_import_of_their_own(module):
    program = f"import sdvideo_core; print(sdvideo_core.{module}.__name__)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == f"sdvideo_core.{module}\n"


def test_help_and_wrong_calls_wait_for_no_torch():
    [commands] = [
        action.choices for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction)
    ]
    calls = [["--help"], *([name, "--help"] for name in commands), ["txt2vid"], ["train", "--steps", "many"]]
    program = f"""
import contextlib, sys
from sdvideo_core.cli import main
for call in {calls}:
    with contextlib.suppress(SystemExit):
        main(call)
sys.stdout.write("loaded: " + " ".join({{"torch", "numpy", "PIL"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("\nloaded: ")
