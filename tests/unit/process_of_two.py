"""One of several processes that train a model together, as a launcher starts them.

    python -m torch.distributed.run ... -m tests.unit.process_of_two MODEL OUT sdvideo's arguments...

Runs `sdvideo` with its arguments, then a trainer of six clips for one epoch. What this process read and the weights it
ended with go to OUT/rank<number>.safetensors.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from sdvideo_core import SDVideo
from sdvideo_core.cli import main
from tests.unit.small_training import collate, loader, make_trainer, train, weights


def train_and_tell(model: SDVideo, out: Path) -> None:
    read: list[str] = []

    def watching(items: list[Any]) -> dict[str, Any]:
        read.extend(caption for _, caption in items)
        return collate(items)

    train(make_trainer(model, out, loader(batch_size=1, collate_fn=watching), ema=0.9), steps=3)
    save_file(weights(model), out / f"rank{os.environ['RANK']}.safetensors", {"read": json.dumps(read)})


if __name__ == "__main__":
    directory, folder, *arguments = sys.argv[1:]
    if main(arguments):
        sys.exit("sdvideo failed")
    train_and_tell(SDVideo(directory, amp=False), Path(folder))
