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
    assert main(arguments(small_model_dir, tmp_path / "cache", tmp_path / "out")) == 0  # with the size of the cache
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


def launch(launcher: list[str], *of_process: object) -> None:
    """Runs two processes of tests.unit.process_of_two."""
    command = [sys.executable, "-m", *launcher, "-m", "tests.unit.process_of_two", *map(str, of_process)]
    environment = ENVIRONMENT | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def two(small_model_dir, clips, tmp_path_factory) -> Path:
    """Where two processes wrote that hold all weights each; to out, what `sdvideo train` did."""
    folder = tmp_path_factory.mktemp("two")
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    run = arguments(small_model_dir, clips, folder / "out", "--steps=2", "--ema=0.9")
    launch(launcher, small_model_dir, folder, *run)
    return folder


@pytest.fixture(scope="module")
def split(small_model_dir, tmp_path_factory) -> Path:
    """Where two processes wrote that hold a part of the weights each."""
    folder = tmp_path_factory.mktemp("split")
    fsdp = ["--use_fsdp", "--fsdp_version=2", "--fsdp_auto_wrap_policy=TRANSFORMER_BASED_WRAP"]
    launcher = ["accelerate.commands.launch", *fsdp, "--num_processes=2", "--main_process_port=0"]
    launch(launcher, small_model_dir, folder)
    return folder


def losses(run: Path) -> list[float]:
    """Of each step until the newest state."""
    return json.loads((run / "vid_states" / states(run)[-1] / "progress.json").read_text())["losses"]


def trained(run: Path) -> dict[str, torch.Tensor]:
    """The file of weights; of a LoRA, those that began as zeros."""
    tensors = load_file(next(run.glob("vid_*.safetensors")))
    return {name: value for name, value in tensors.items() if not name.endswith(("lora_down.weight", "alpha"))}


def told(folder: Path, what: str) -> list:
    """What each of the two processes tells."""
    tells = []
    for rank in (0, 1):
        with safe_open(folder / f"rank{rank}.safetensors", "pt") as file:
            tells.append(json.loads(file.metadata()["told"])[what])
    return tells


def test_two_processes_write_the_files_of_one(two):
    weights = load_file(two / "out/vid_unet.safetensors")
    assert all(value.isfinite().all() for value in weights.values())
    assert states(two / "out") == ["step-00000002"]
    progress = json.loads((two / "out/vid_states/step-00000002/progress.json").read_text())
    assert progress["settings"]["processes"] == 2
    assert len(progress["losses"]) == 2


def test_two_processes_share_the_clips_and_end_with_one_model(two, small_model):
    read = told(two, "read")
    assert [len(captions) for captions in read] == [3, 3]
    assert set(chain(*read)) == {f"clip {index}" for index in range(6)}
    first, second = (load_file(two / f"rank{rank}.safetensors") for rank in (0, 1))
    assert not differing(first, second)
    assert differing(first, weights(small_model))


def test_the_first_of_two_processes_draws_samples_and_the_second_has_patience(two):
    assert told(two, "drawn") == [2 * 25, 0]
    assert sorted(path.name for path in (two / "lora/vid_samples").iterdir()) == ["00000001_0.gif", "00000001_1.gif"]
    assert told(two, "patience") == [24 * 3600] * 2


# FSDP


def test_each_process_holds_half_of_the_weights(split, small_model):
    parts = [load_file(split / f"rank{rank}.safetensors") for rank in (0, 1)]
    whole = weights(small_model)
    assert all(len(parts[0][name]) + len(parts[1][name]) == len(value) for name, value in whole.items())
    sizes = [sum(value.numel() for value in part.values()) for part in parts]
    assert max(sizes) < 0.55 * sum(sizes)


@pytest.mark.parametrize("run", [".", "lora"])
def test_training_split_and_resumed_is_that_of_whole_weights_without_a_stop(two, split, small_model, run):
    assert losses(split / run) == pytest.approx(losses(two / run), rel=1e-5)
    expected, found = trained(two / run), trained(split / run)
    before = weights(small_model) if run == "." else {}
    assert found.keys() == expected.keys()
    apart = sum((found[name] - value).square().sum() for name, value in expected.items())
    moved = sum((value - before.get(name, 0)).square().sum() for name, value in expected.items())
    assert apart < 1e-4 * moved  # one hundredth of the way: where a gradient is almost 0, AdamW steps by its sign


def test_split_weights_are_saved_as_a_checkpoint_of_their_average(split, model):
    average = load_file(split / "vid_states/step-00000003/ema.safetensors")
    saved = load_file(split / "vid_unet.safetensors")
    model.unet.load_state_dict(saved)
    assert all(torch.equal(p, average[f"unet.{name}"]) for name, p in model.unet.named_parameters())


def test_what_needs_whole_weights_is_refused_where_they_are_split(split):
    for refused in told(split, "refused"):
        assert "adam8bit=True does not go with weights split by FSDP; leave it out" in refused["adam8bit"]
        assert "sample_every does not go with weights split by FSDP; leave it out" in refused["samples"]
