"""Runs of `sdvideo train` as users start them: killed at any moment and resumed, from a cache, in two processes."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from sdvideo_core.cli import main
from sdvideo_core.demo.untrained import make_demo_model
from tests.unit.small_training import differing, weights

ROOT = Path(__file__).parents[2]
STEPS = 16
OPTIONS = [
    "--frames=3",
    "--size=32x32",
    f"--steps={STEPS}",
    "--save-every=2",
    "--seed=3",
    "--lr=1e-3",
    "--batch-size=2",
]
# Sums over other numbers of threads round differently.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for index in range(6):
        frames = [Image.new("RGB", (32, 32), (40 * index, 40 * frame, 99)) for frame in range(4)]
        frames[0].save(folder / f"{index:04}.gif", save_all=True, append_images=frames[1:])
        (folder / f"{index:04}.txt").write_text(f"clip {index}\n", encoding="utf-8")
    return folder


def arguments(model, data, out, *more) -> list[str]:
    return ["train", "--model", str(model), "--data", str(data), "--out", str(out), *OPTIONS, *more]


def states(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "vid_states").glob("step-*"))


@pytest.fixture(scope="module")
def whole(small_model_dir, clips, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    assert main(arguments(small_model_dir, clips, out)) == 0
    return out


def test_a_run_ends_with_weights_state_and_plot(whole):
    assert (whole / "vid_unet.safetensors").is_file()
    assert (whole / "vid_loss.png").is_file()
    assert states(whole) == ["step-00000014", "step-00000016"]


def test_killed_at_any_moment_it_resumes_to_the_same_weights(small_model_dir, clips, whole, tmp_path):
    command = [sys.executable, "-m", "sdvideo_core", *arguments(small_model_dir, clips, tmp_path, "--resume")]
    delays = random.Random(0)
    for kill in range(3):
        with subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.DEVNULL) as process:
            before, deadline = states(tmp_path), time.monotonic() + 120
            while states(tmp_path) == before and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.002)
            time.sleep(delays.uniform(0, 0.1))  # now a step, now the middle of a save
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL, f"kill {kill} came too late"
    assert states(tmp_path)[-1] < "step-00000016"
    assert main(arguments(small_model_dir, clips, tmp_path, "--resume")) == 0
    assert not differing(*(load_file(out / "vid_unet.safetensors") for out in (whole, tmp_path)))
    assert not differing(*(load_file(out / "vid_states/step-00000016/model.safetensors") for out in (whole, tmp_path)))
    assert not list((tmp_path / "vid_states").glob(".*"))


def test_from_a_cache_it_is_the_same_training(small_model_dir, clips, whole, tmp_path, capsys):
    made = ["--frames=3", "--size=32x32"]
    cache = ["cache", "--model", str(small_model_dir), "--data", str(clips), "--out", str(tmp_path / "cache"), *made]
    assert main(cache) == 0
    assert "6 clips of 3 frames" in capsys.readouterr().err
    from_cache = [o for o in arguments(small_model_dir, tmp_path / "cache", tmp_path / "out") if "--size" not in o]
    assert main(from_cache) == 0
    assert not differing(*(load_file(out / "vid_unet.safetensors") for out in (whole, tmp_path / "out")))


def test_a_cache_of_another_model_or_with_another_size_is_refused(small_model_dir, clips, tmp_path, capsys):
    folder = tmp_path / "cache"
    other = make_demo_model(tmp_path / "other", seed=1, dtype=torch.float32)
    made = ["--data", str(clips), "--out", str(folder), "--frames=2", "--size=16x16"]
    assert main(["cache", "--model", str(other), *made]) == 0
    run = ["train", "--model", str(small_model_dir), "--data", str(folder), "--out", str(tmp_path / "out")]
    assert main(run) == 1
    assert "was encoded by another model's autoencoder or text encoder" in capsys.readouterr().err
    assert main([*run, "--size=32x32"]) == 1
    assert "--size cannot change what" in capsys.readouterr().err
    (folder / "index.json").unlink()
    assert main(run) == 1
    assert "holds no finished cache" in capsys.readouterr().err


def test_a_lora_is_written_as_one(small_model_dir, clips, tmp_path, capsys):
    options = ["--lora-rank=2", "--name=style", "--dtype=bfloat16", "--mixed-precision=bf16"]
    samples = ["--sample-every=4", "--sample-prompt=a star"]
    assert main(arguments(small_model_dir, clips, tmp_path, *options, *samples, "--steps=4")) == 0
    assert "style_lora.safetensors" in capsys.readouterr().err
    assert all(key.startswith("lora_unet_") for key in load_file(tmp_path / "style_lora.safetensors"))
    assert (tmp_path / "style_samples/00000004_0.gif").is_file()


def test_bad_clips_are_named_or_skipped(small_model_dir, clips, tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    for path in clips.iterdir():
        (data / path.name).symlink_to(path)
    (data / "0009.gif").write_bytes(b"GIF89a broken")
    (data / "0009.txt").write_text("broken")
    assert main(arguments(small_model_dir, data, tmp_path / "out", "--steps=4")) == 1
    assert "0009.gif" in capsys.readouterr().err
    with pytest.warns(UserWarning, match=r"1 of 7 clips .* are skipped; the first, 0009"):
        assert main(arguments(small_model_dir, data, tmp_path / "out", "--steps=1", "--skip-bad")) == 0


@pytest.fixture(scope="module")
def two(small_model_dir, clips, tmp_path_factory) -> Path:
    """What two processes wrote: out, of `sdvideo train`, and what each of them tells of an epoch of six clips."""
    folder = tmp_path_factory.mktemp("two")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    run = arguments(small_model_dir, clips, folder / "out", "--steps=2", "--ema=0.9")
    program = ["-m", "tests.unit.process_of_two", str(small_model_dir), str(folder), *run]
    done = subprocess.run([*launch, *program], env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_two_processes_write_the_files_of_one(two):
    weights = load_file(two / "out/vid_unet.safetensors")
    assert all(value.isfinite().all() for value in weights.values())
    assert states(two / "out") == ["step-00000002"]
    progress = json.loads((two / "out/vid_states/step-00000002/progress.json").read_text())
    assert progress["settings"]["processes"] == 2
    assert len(progress["losses"]) == 2


def test_two_processes_share_the_clips_and_end_with_one_model(two, small_model):
    read = []
    for path in (two / "rank0.safetensors", two / "rank1.safetensors"):
        with safe_open(path, "pt") as file:
            read.append(json.loads(file.metadata()["read"]))
    assert [len(captions) for captions in read] == [3, 3]
    assert set(chain(*read)) == {f"clip {index}" for index in range(6)}
    first, second = (load_file(two / f"rank{rank}.safetensors") for rank in (0, 1))
    assert not differing(first, second)
    assert differing(first, weights(small_model))
