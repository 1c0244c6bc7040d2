"""Demo model: a small model of moving shapes that ships with the package, and how it is made."""

from __future__ import annotations

from pathlib import Path

ASSETS = Path(__file__).parents[1] / "assets"
DIRECTORY = ASSETS / "demo_model"
FEW_STEPS_LORA = ASSETS / "demo_few_steps.safetensors"
EXAMPLES = ASSETS / "examples"  # frames and clips that the example graphs start from


def demo_model() -> Path:
    """The directory of the demo model, for `SDVideo(demo_model())`."""
    if not DIRECTORY.is_dir():
        raise FileNotFoundError(f"{DIRECTORY} is missing, with the demo model in it; install the package again")
    return DIRECTORY


def few_steps_lora() -> Path:
    """The file of the LoRA with which the demo model draws in 4 steps; `demo.few_steps.SAMPLING` is how."""
    if not FEW_STEPS_LORA.is_file():
        raise FileNotFoundError(
            f"{FEW_STEPS_LORA} is missing, the demo model's few-step LoRA; install the package again, "
            "or make it with python -m sdvideo_core.demo.few_steps"
        )
    return FEW_STEPS_LORA
