"""State of a run: everything that going on exactly where it stopped needs, saved whole or not at all."""

from __future__ import annotations

import json
import random
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .ema import EMA
from .network import Network, own_name

NAME = "step-{:08d}"
PATTERN = re.compile(r"step-(\d{8})")
PROGRESS_NAME, EMA_NAME = "progress.json", "ema.safetensors"
MODEL_NAME = "model.safetensors"  # as accelerate names it
KEPT = 2  # newest states
TORCHS_WRITER = "inline_container"  # in the RuntimeError of a torch.save that cannot write


@dataclass
class Progress:
    """Where a run is. All randomness follows from the seed and the step, so no generator is part of it."""

    settings: dict[str, Any]  # what must stay equal for the run to stay the same run
    step: int = 0
    losses: list[float] = field(default_factory=list)  # of each step


def newest_state(directory: Path) -> Path | None:
    """The state with the highest step in a run's folder of states; None without one."""
    return max(_states(directory), default=None)


def remove_leftovers(directory: Path) -> None:
    """Removes what runs left that were killed while they wrote a state."""
    for leftover in directory.glob(".*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)


def check_newest(directory: Path, step: int) -> None:
    """Refuses to start at a step below saved ones: a later resume would mix two runs."""
    newest = newest_state(directory)
    if newest and newest.name > NAME.format(step):
        raise ValueError(
            f"{directory} has {newest.name} of an earlier run, and this one starts at step {step}; "
            "resume it, give the run another name, or remove the folder"
        )


def save_state(accelerator: Accelerator, directory: Path, progress: Progress, ema: EMA | None) -> Path:
    """Writes a state under a temporary name, renames it, and removes all but the newest; called by every process."""
    final = directory / NAME.format(progress.step)
    temporary = directory / f".{final.name}.tmp"
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
        with _whole(temporary, final):
            temporary.mkdir(parents=True)
    accelerator.wait_for_everyone()
    with _whole(temporary, final):
        accelerator.save_state(str(temporary))
        average = ema.state_dict() if ema else {}  # gathered from every process
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            if average:
                save_file(average, temporary / EMA_NAME)
            (temporary / PROGRESS_NAME).write_text(json.dumps(asdict(progress)), encoding="utf-8")
            _replace(temporary, final)
    if accelerator.is_main_process:
        for old in sorted(_states(directory))[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)
    accelerator.wait_for_everyone()
    return final


def load_state(accelerator: Accelerator, state: Path, settings: dict[str, Any], ema: EMA | None) -> Progress:
    """Puts a saved state into what the accelerator prepared; refuses one of another run."""
    if not (state / PROGRESS_NAME).is_file():
        raise FileNotFoundError(
            f"{state} is no state of a training run: it has no {PROGRESS_NAME}; name a step-* folder"
        )
    progress = Progress(**json.loads((state / PROGRESS_NAME).read_text(encoding="utf-8")))
    for name, value in settings.items():
        if (saved := progress.settings.get(name, value)) != value:  # states of older versions hold fewer settings
            raise ValueError(
                f"{state} was saved with {name}={saved}, this run starts with {name}={value}; "
                "resume with the same settings"
            )
    with _generators_untouched():
        accelerator.load_state(str(state))
    if ema:
        ema.load_state_dict(load_file(state / EMA_NAME))
    progress.settings = settings
    return progress


def keep_only_trained(accelerator: Accelerator, network: Network) -> None:
    """States leave frozen weights out, such as the UNet under a LoRA; not where accelerate splits the weights."""

    def save(_models: list[nn.Module], weights: list[dict[str, Tensor]], _directory: str) -> None:
        for state in weights:
            for key in [key for key in state if own_name(key) not in trained]:
                del state[key]

    def load(models: list[nn.Module], directory: str) -> None:
        models.clear()  # accelerate would ask for every weight
        state = load_file(Path(directory) / MODEL_NAME)
        network.load_state_dict({own_name(key): value for key, value in state.items()}, strict=False)

    trained = set(network.trainable())
    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


def _states(directory: Path) -> list[Path]:
    return [path for path in directory.glob("step-*") if PATTERN.fullmatch(path.name)]


@contextmanager
def _generators_untouched() -> Iterator[None]:
    """accelerate's states hold the process's random generators, which a run neither uses nor changes."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _replace(temporary: Path, final: Path) -> None:
    """Renames a folder onto another, which rename alone refuses when that one has files."""
    if final.exists():
        final.rename(final.with_name(f".{uuid.uuid4().hex}.tmp"))
    temporary.rename(final)
    remove_leftovers(final.parent)


@contextmanager
def _whole(temporary: Path, final: Path) -> Iterator[None]:
    """Removes what was written where not all of it could be, and says so in one kind of error."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and TORCHS_WRITER not in str(error):
            raise
        shutil.rmtree(temporary, ignore_errors=True)
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise OSError(
            f"cannot write the state {final}: {reason}; make room or mend its permissions and resume, "
            "or train without states (save_states=False)"
        ) from error
