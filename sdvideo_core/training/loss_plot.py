"""Loss plot: the curve of a training run as a picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

SMOOTHING = 0.02  # of the steps go into one point of the smooth line


def plot_loss(losses: Sequence[float], title: str = "", size: tuple[int, int] = (800, 450)) -> Image.Image:
    """The loss of each step, pale, and its running mean, as an RGB picture of (width, height) pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not losses:
        raise ValueError("a loss plot needs at least one step, got none; train first")
    figure = Figure(figsize=(size[0] / 100, size[1] / 100), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    steps = np.arange(1, len(losses) + 1)
    axes.plot(steps, losses, color="#9bb8d3", linewidth=0.6)
    axes.plot(steps, running_mean(losses), color="#1f5f99", linewidth=1.8)
    axes.set(xlabel="step", ylabel="loss", title=title)
    if min(losses) > 0:
        axes.set_yscale("log")
    axes.grid(alpha=0.3, which="both")
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def running_mean(losses: Sequence[float]) -> np.ndarray:
    """Mean of the steps up to each one, over a window of 2 % of the run."""
    window = max(1, round(len(losses) * SMOOTHING))
    sums = np.cumsum(np.concatenate([[0.0], np.asarray(losses, np.float64)]))
    ends = np.arange(1, len(losses) + 1)
    starts = np.maximum(ends - window, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)
