"""LoRA lists: which layers the weights of a list without names are for (cloneofsimo's format).

Such a list follows the order of modules in diffusers' UNet3DConditionModel, of all layers or of a choice of them that
its trainer made. Shapes are all there is to tell which: a list is laid along every choice that trainers offer.
"""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from .lora_layers import COND_PROJ, Layers, Shape

# Siblings in the order in which diffusers' UNet3DConditionModel declares them.
# fmt: off
ORDER = (
    "conv_in", "time_embedding", "transformer_in", "down_blocks", "up_blocks", "mid_block", "conv_out",
    "linear_1", "cond_proj", "linear_2",
    "resnets", "temp_convs", "attentions", "temp_attentions", "downsamplers", "upsamplers", "conv",
    "conv1", "time_emb_proj", "conv2", "conv_shortcut", "conv3", "conv4",
    "proj_in", "transformer_blocks", "proj_out", "attn1", "attn2", "ff",
    "to_q", "to_k", "to_v", "to_out", "net", "proj",
)
# fmt: on

# Classes of diffusers whose layers a trainer may have chosen, by where they are.
TRANSFORMERS = {
    "TransformerTemporalModel": r"transformer_in\.|\.temp_attentions\.",
    "Transformer2DModel": r"\.attentions\.",
}
CLASSES = TRANSFORMERS | {"ResnetBlock2D": r"\.resnets\.", "TemporalConvLayer": r"\.temp_convs\."}
ALL = "UNet3DConditionModel"
# What of a transformer's layers a trainer may have chosen.
ATTENTION = {
    "attn1": r"\.attn1\.",
    "attn2": r"\.attn2\.",
    "attn1 and attn2": r"\.attn[12]\.",
    "attn1, attn2 and GEGLU": r"\.attn[12]\.|\.ff\.net\.0\.",
}
# Layers that were of diffusers' own classes for a time (LoRACompatibleLinear, LoRACompatibleConv), those of the time
# embedding in some releases only. Trainers that looked for torch's classes passed them by.
COMPATIBLE = r"\.attn[12]\.|\.ff\.|\.resnets\.|samplers\.|\.attentions\.\d+\.proj_"
TIME = "time_embedding.linear"
PROJECTIONS = r"\.proj_(in|out)$"
NOTHING = r"(?!)"
TEXT_PARTS = {"layers": r"\.layers\.", "attention": r"\.self_attn\.", "MLPs": r"\.mlp\.", "modules": ""}

TOLERATED = 0.1  # share of what may be unclear; one always may


@dataclass(frozen=True)
class Choice:
    """Layers that a trainer may have adapted."""

    name: str
    paths: tuple[str, ...]  # in the order of a list


@dataclass(frozen=True)
class Placement:
    """Where the weights of a list belong."""

    places: dict[int, str] = field(default_factory=dict)  # index in the list -> path
    choice: str = ""
    empty: int = 0  # layers of the choice that got nothing
    unsure: int = 0  # weights that may be for another layer just as well
    rival: str = ""  # another choice, which fits as well

    def __str__(self) -> str:
        said = f"laid along {self.choice}"
        if self.empty:
            said += f", of which {self.empty} layers stay empty"
        if self.unsure:
            said += f", but {self.unsure} of its weights may be for others" + (f" ({self.rival})" if self.rival else "")
        return said

    @property
    def is_refused(self) -> bool:
        return self.unsure > tolerated(len(self.places))

    @property
    def is_doubtful(self) -> bool:
        return bool(self.unsure) or self.empty > tolerated(len(self.places))


def tolerated(number: int) -> float:
    """How many of so many may be unclear."""
    return max(1, TOLERATED * number)


def place(shapes: Sequence[Shape], layers: Layers) -> Placement:
    """The layers for the weights of a list, by the shapes of what they add to.

    A list may leave layers out and hold others than ours. In each choice, weights go in turn to the next layer of
    their shape. The choice that leaves the fewest weights without a layer, then the fewest layers without weights, is
    taken; where more weights are left than is tolerated, the list is of another model, and nothing is placed. A weight
    is unsure if it comes elsewhere when laid from the end, or along another choice that fits as well.
    """
    known = layers.known
    tried: dict[tuple[int, int], list[tuple[Choice, dict[int, str]]]] = {}
    for choice in _choices(layers):
        places = _align(shapes, [(path, known[path]) for path in choice.paths])
        rank = (len(shapes) - len(places), len(choice.paths) - len(places))
        tried.setdefault(rank, []).append((choice, places))
    left, empty = min(tried)
    if left > tolerated(len(shapes)):
        return Placement()
    (choice, places), *others = tried[left, empty]
    rivals = [(other.name, elsewhere) for other, elsewhere in others if elsewhere != places]
    backward = _align(shapes[::-1], [(path, known[path]) for path in reversed(choice.paths)])
    rivals.append(("", {len(shapes) - 1 - index: path for index, path in backward.items()}))
    unsure = sum(any(rival.get(index) != path for _, rival in rivals) for index, path in places.items())
    return Placement(places, choice.name, empty, unsure, rivals[0][0])


def _align(shapes: Sequence[Shape], layers: Sequence[tuple[str, Shape]]) -> dict[int, str]:
    """Index -> path."""
    positions: dict[Shape, list[int]] = {}
    for position, (_, shape) in enumerate(layers):
        positions.setdefault(shape, []).append(position)
    places, start = {}, 0
    for index, shape in enumerate(shapes):
        later = positions.get(shape, [])
        next_one = bisect.bisect_left(later, start)
        if next_one < len(later):
            places[index] = layers[later[next_one]][0]
            start = later[next_one] + 1
    return places


def _choices(layers: Layers) -> Iterator[Choice]:
    """Every choice once, the plainest first."""
    seen: set[tuple[str, ...]] = {()}
    for choice in itertools.chain(_unet_choices(layers), _text_choices(layers)):
        if choice.paths not in seen:
            seen.add(choice.paths)
            yield choice


def _unet_choices(layers: Layers) -> Iterator[Choice]:
    names = COND_PROJ | layers.diffusers_names()
    unet = sorted({*COND_PROJ, *layers.unet}, key=lambda path: _position(names[path]))

    def choice(name: str, pattern: str, without: str = NOTHING, only_linear: bool = False) -> Choice:
        chosen = [path for path in unet if re.search(pattern, names[path]) and not re.search(without, names[path])]
        return Choice(name, tuple(path for path in chosen if not only_linear or len(layers.unet.get(path, ())) < 4))

    counts = range(1, len(CLASSES) + 1)
    sets = [some for count in counts for some in itertools.combinations(CLASSES, count)]
    areas = {ALL: "^(?!.*cond_proj$)", f"{ALL} with cond_proj": ""}
    areas |= {" and ".join(some): "|".join(CLASSES[name] for name in some) for some in sets}
    for name, pattern in areas.items():
        yield choice(name, pattern)
        yield choice(f"{name} without convolutions", pattern, only_linear=True)
        yield choice(f"{name} without projections", pattern, PROJECTIONS)
        yield choice(f"{name} without projections and convolutions", pattern, PROJECTIONS, only_linear=True)
    for area, inside in {"all transformers": "|".join(TRANSFORMERS.values()), **TRANSFORMERS}.items():
        for part, pattern in ATTENTION.items():
            yield choice(f"{part} of {area}", f"^(?=.*({inside})).*({pattern})")
    for name, without in ((ALL, f"{COMPATIBLE}|cond_proj$"), (f"{ALL} with cond_proj", COMPATIBLE)):
        yield choice(f"torch's own classes in {name}", "", without)
        yield choice(f"torch's own classes in {name} without time_embedding", "", f"{without}|{TIME}")


def _text_choices(layers: Layers) -> Iterator[Choice]:
    for blocks, paths in (("", layers.text), (" with its last block", {**layers.text, **layers.idle})):
        for part, pattern in TEXT_PARTS.items():
            yield Choice(f"{part} of the text encoder{blocks}", tuple(p for p in paths if re.search(pattern, p)))


def _position(diffusers_name: str) -> list[int]:
    return [int(part) if part.isdecimal() else ORDER.index(part) for part in diffusers_name.split(".")]
