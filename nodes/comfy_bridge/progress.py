"""Progress: the bar of the node that runs, and the user's wish to stop it."""

from __future__ import annotations

import comfy.model_management
import comfy.utils

from ...sdvideo_core.playback import Progress


def node_progress() -> Progress:
    """Moves the bar after each frame, and raises what ends a node where its graph was cancelled."""
    bar = comfy.utils.ProgressBar(1)

    def step(done: int, total: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, total)

    return step
