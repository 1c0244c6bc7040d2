"""Families: the published models, what they were trained on, and settings to begin with.

Names tell which model it is: of the file, its folder, or the model it was made of. The published models all have the
same size, so weights tell nothing, but for the demo model, which is smaller.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .checkpoint import read_network
from .config import TextConfig, UNetConfig
from .layouts import find_layout, names_of

FAR = 2.0  # times more or less frames or pixels than in training are worth a warning


# Of models whose authors suggest nothing.
PIPELINE = "the defaults of ModelScope's pipeline"


@dataclass(frozen=True)
class Family:
    """One published model."""

    name: str
    pattern: str | None  # regular expression for its names, in lower case with - for _ and spaces
    width: int  # of the clips it was trained on, in pixels
    height: int
    source: str  # where the numbers of its training are from
    num_frames: int | None = None  # None where nobody says
    steps: int = 50
    guidance_scale: float = 9.0
    fps: int = 8
    denoise: tuple[float, float] | None = None  # range for video to video, for models made for that
    settings_source: str = PIPELINE  # where steps, guidance_scale, fps and denoise are from
    unet: UNetConfig | None = None  # where its dim, context_dim and dim_mult tell the model
    text: TextConfig | None = None  # where it is not that of all the others
    # Rough red, green and blue, -1..1, of each latent channel, last of latents of 0; None: those of Stable Diffusion.
    latent_rgb_factors: tuple[tuple[float, float, float], ...] | None = None

    @property
    def known_by(self) -> str:
        return "by the size of its UNet" if self.unet else "by its name"


# Least squares of the mean colours of 8x8 pixels on their latents, over one frame of each scene in `demo.clips`.
DEMO_COLORS = (
    (-0.1065, -0.3708, -0.5738),
    (0.0095, -0.0781, 0.3002),
    (1.2875, 0.9533, 0.8033),
    (0.1208, 0.4394, 0.1485),
    (-0.3211, -0.2576, -0.2022),
)

CARD = "huggingface.co/cerspense/"
XL_CARD = f"{CARD}zeroscope_v2_XL"
# The sizes of the demo model that ships.
TRAINED_UNET = UNetConfig(
    dim=64, context_dim=64, dim_mult=(1, 2), num_heads=2, head_dim=32, res_blocks=1, attn_scales=(0.5,), dropout=0.0
)
TRAINED_TEXT = TextConfig(width=64, layers=5, heads=1)
DEMO = Family(
    "SDVideo's demo model",
    None,
    96,
    96,
    "docs/demo-model.md",
    16,
    steps=25,
    guidance_scale=2.0,
    settings_source="docs/demo-model.md",
    unet=TRAINED_UNET,
    text=TRAINED_TEXT,
    latent_rgb_factors=DEMO_COLORS,
)
MODELSCOPE = Family(
    "ModelScope 1.7B",
    r"modelscope|text-to-video-ms|text-to-video-synthesis|ms-1\.7b",
    256,
    256,
    "ModelScope's pipeline, which draws that",
    16,
)

# The first that matches counts.
FAMILIES = (
    DEMO,
    Family(
        "ZeroScope v2 XL",
        "zeroscope-v2-?xl|zs2-xl",
        1024,
        576,
        XL_CARD,
        24,
        denoise=(0.66, 0.85),
        settings_source=f"{PIPELINE}; denoise, as the second pass after 576w with the same prompt: {XL_CARD}",
    ),
    Family("ZeroScope v2 576w", "zeroscope-v2-576w|zs2-576w", 576, 320, f"{CARD}zeroscope_v2_576w", 24),
    Family(
        "ZeroScope v2 30x448x256",
        "zeroscope-v2(-dark)?-30x448x256|zs2-448w",
        448,
        256,
        f"{CARD}zeroscope_v2_30x448x256",
        30,
    ),
    Family("ZeroScope v1 320s", "zeroscope-v1(-1)?-320s", 320, 320, f"{CARD}zeroscope_v1_320s", 16),
    Family("Potat1", "potat1", 1024, 576, "huggingface.co/camenduru/potat1"),
    Family("Animov 512x", "animov-512x", 512, 512, "huggingface.co/strangeman3107/animov-512x"),
    Family("Animov 0.1", r"animov-0\.1", 384, 384, "huggingface.co/strangeman3107/animov-0.1.1"),
    MODELSCOPE,
)


def find_family(path: str | Path) -> Family | None:
    """The family of the model at a path; only headers are read. Raises what `checkpoint.read_network` does."""
    layout = find_layout(path)
    return family_of(names_of(layout), read_network(layout, "unet", "meta").config)


def family_of(names: Sequence[str], unet: UNetConfig | None = None) -> Family | None:
    """The family that a UNet's size tells, else the one that the first telling name names; None where nothing does."""
    size = _size(unet) if unet else None
    if found := next((family for family in FAMILIES if family.unet and _size(family.unet) == size), None):
        return found
    for name in names:
        plain = re.sub(r"[_ ]", "-", name.lower())
        if found := next((f for f in FAMILIES if f.pattern and re.search(f.pattern, plain)), None):
            return found
    return None


def _size(unet: UNetConfig) -> tuple[int, int, tuple[int, ...]]:
    return unet.dim, unet.context_dim, unet.dim_mult


def summary(family: Family | None) -> str:
    """What a user should know of a model before sampling, in three sentences."""
    if family is None:
        return "Which model this is cannot be told from its name. ModelScope's own was trained on 256x256, 16 frames."
    length = f"{family.num_frames} frames" if family.num_frames else "a length that nobody tells"
    denoise = f", denoise {family.denoise[0]} to {family.denoise[1]}" if family.denoise else ""
    return (
        f"{family.name}, {family.known_by}. Trained on {family.width}x{family.height}, {length} ({family.source}). "
        f"Suggested: {family.steps} steps, cfg {family.guidance_scale:g}, {family.fps} frames per second{denoise} "
        f"({family.settings_source})."
    )


def far_from_training(family: Family | None, width: int, height: int, num_frames: int) -> str | None:
    """A warning where a video is far in size or length from what the model was trained on, None where it is not."""
    if family is None:
        return None
    problems = []
    if not _near(width * height, family.width * family.height):
        problems.append(f"{width}x{height} pixels, trained on {family.width}x{family.height}")
    if family.num_frames and not _near(num_frames, family.num_frames):
        problems.append(f"{num_frames} frames, trained on {family.num_frames}")
    if not problems:
        return None
    return (
        f"{family.name} ({family.known_by}) is asked for {' and for '.join(problems)}; expect worse pictures or motion"
    )


def _near(value: int, trained: int) -> bool:
    return trained / FAR <= value <= trained * FAR
