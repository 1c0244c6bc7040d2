"""One of several processes that train a model together, as a launcher starts them.

    accelerate launch ... -m tests.unit.process_of_two MODEL OUT [sdvideo's arguments...]

Runs `sdvideo` with its arguments, if any, then trainers of six clips: one of an epoch, to OUT, which is stopped and
resumed where FSDP splits the weights, and one of a LoRA, to OUT/lora, with samples where weights are whole. To
OUT/rank<number>.safetensors go the weights that this process holds after the first, with what it read, what it drew and
what it refuses to do.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from sdvideo_core import SDVideo
from sdvideo_core.checkpoint import use_channels_last
from sdvideo_core.cli import main
from sdvideo_core.training import SDVideoTrainer
from tests.unit.small_training import collate, loader, make_trainer, train, weights

SPLIT = "ACCELERATE_USE_FSDP" in os.environ
SAMPLES = {"sample_every": 1, "sample_prompts": ["a star", "a square"]}
REFUSED = {"adam8bit": ({"adam8bit": True}, {}), "samples": ({}, SAMPLES)}


class Process:
    def __init__(self, model: str, out: str):
        self.model, self.out = model, Path(out)
        self.read: list[str] = []

    def trainer(self, folder: str, model: SDVideo | None = None, **options: Any) -> SDVideoTrainer:
        def watching(items: list[Any]) -> dict[str, Any]:
            self.read.extend(caption for _, caption in items)
            return collate(items)

        data = loader(batch_size=1, collate_fn=watching)
        model = model or self.load()
        return make_trainer(model, self.out / folder, data, save_dtype=torch.float32, **options)

    def load(self) -> SDVideo:
        model = SDVideo(self.model, amp=False)
        if SPLIT:
            use_channels_last(model.unet)  # as weights lie on a GPU, which FSDP refuses
        return model

    def run(self) -> None:
        for steps in (2, 3) if SPLIT else (3,):
            first = train(self.trainer(".", ema=0.9, load_state=True), steps)
        told = {"read": list(self.read), "patience": patience()}
        told["drawn"] = self.train_lora({} if SPLIT else SAMPLES)
        told["refused"] = {name: self.refusal(name, first.model) for name in REFUSED} if SPLIT else {}
        held = {name: part(value) for name, value in weights(first.model).items()}
        save_file(held, self.out / f"rank{os.environ['RANK']}.safetensors", {"told": json.dumps(told)})

    def train_lora(self, samples: dict[str, Any]) -> int:
        """Trains it, and tells how many passes of the UNet this process took for samples."""
        model, drawn = self.load(), []
        options = {"lora_rank": 2, "train_only": "temporal", "gradient_accumulation": 2}
        trainer = self.trainer("lora", model, **options, before_pass=lambda: drawn.append(not model.unet.training))
        train(trainer, steps=1, **samples)
        return sum(drawn)

    def refusal(self, name: str, model: Any) -> str:
        options, more = REFUSED[name]
        try:
            train(self.trainer(name, model, **options), steps=1, **more)
        except ValueError as error:
            return str(error)
        return ""


def patience() -> float:
    """Seconds that this process waits for the other."""
    group: Any = torch.distributed.group.WORLD
    return group._get_backend(torch.device("cpu")).options._timeout.total_seconds()


def part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    local: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor  # pyright: ignore
    return local.contiguous()


if __name__ == "__main__":
    directory, folder, *arguments = sys.argv[1:]
    if arguments and main(arguments):
        sys.exit("sdvideo failed")
    Process(directory, folder).run()
