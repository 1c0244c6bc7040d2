"""Demo model: a small model of moving shapes that ships with the package, and how it is made."""

from __future__ import annotations

from pathlib import Path

ASSETS = Path(__file__).parents[1] / "assets"
DIRECTORY = ASSETS / "demo_model"
EXAMPLES = ASSETS / "examples"  # frames and clips that the example graphs start from


def demo_model() -> Path:
    """The directory of the demo model, for `SDVideo(demo_model())`."""
    if not DIRECTORY.is_dir():
        raise FileNotFoundError(f"{DIRECTORY} is missing, with the demo model in it; install the package again")
    return DIRECTORY
