"""LoRA lists without names: which layers of a full-size UNet they are laid along, and what is said of doubts."""

import re

import pytest
import torch
from diffusers import UNet3DConditionModel
from torch import nn

from sdvideo_core.checkpoint import CheckpointError
from sdvideo_core.config import TextConfig
from sdvideo_core.lora import LoRA
from sdvideo_core.lora_files import describe_lora, read_lora
from sdvideo_core.lora_layers import Layers
from sdvideo_core.lora_lists import place
from sdvideo_core.lora_weights import LoRAWeights
from sdvideo_core.text_encoder import TextEncoder
from tests.unit import lora_makers
from tests.unit.small_lora import exactly, make_unet

TEXT = TextConfig(width=64, layers=2, heads=1, context_length=9, vocab_size=50)
KINDS = (nn.Linear, nn.Conv2d, nn.Conv3d)
# What old releases of diffusers had classes of their own for.
COMPATIBLE = r"\.attn[12]\.|\.ff\.|\.resnets\.|samplers\.|\.attentions\.\d+\.proj_"


@pytest.fixture(scope="module")
def layers() -> Layers:
    return Layers.full_size()


@pytest.fixture(scope="module")
def names() -> list[str]:
    """The layers of diffusers' full-size UNet, in its own order."""
    with torch.device("meta"):
        unet = UNet3DConditionModel(cross_attention_dim=1024, attention_head_dim=64)
    return lora_makers.modules_inside(unet, "UNet3DConditionModel", kinds=KINDS)


def laid(chosen: list[str], layers: Layers):
    """Where a list of these layers is laid, and where it belongs."""
    paths = {theirs: path for path, theirs in layers.diffusers_names().items()}
    expected = {index: paths[name] for index, name in enumerate(chosen)}
    return place([layers.unet[path] for path in expected.values()], layers), expected


CHOICES = {
    "UNet3DConditionModel": ("", "^$"),
    "UNet3DConditionModel without convolutions": ("", r"conv(?!_shortcut)|^$"),
    "torch's own classes in UNet3DConditionModel": ("", COMPATIBLE),
    "torch's own classes in UNet3DConditionModel without time_embedding": ("", f"{COMPATIBLE}|time_embedding"),
    "attn1 of all transformers": (r"\.attn1\.", "^$"),
    "attn2 of all transformers": (r"\.attn2\.", "^$"),
    "attn1 of Transformer2DModel": (r"\.attentions\..*\.attn1\.", "^$"),
    "attn2 of Transformer2DModel": (r"\.attentions\..*\.attn2\.", "^$"),
    "attn1 and attn2 of all transformers": (r"\.attn[12]\.", "^$"),
    "attn1 and attn2 of TransformerTemporalModel": (r"(transformer_in|temp_attentions)\..*\.attn[12]\.", "^$"),
    "attn1, attn2 and GEGLU of all transformers": (r"\.attn[12]\.|\.ff\.net\.0\.", "^$"),
    "TransformerTemporalModel and Transformer2DModel without projections": (r"\.transformer_blocks\.", "^$"),
}


@pytest.mark.parametrize("choice", CHOICES)
def test_a_list_of_a_usual_choice_finds_its_layers(choice, names, layers):
    pattern, without = CHOICES[choice]
    chosen = [name for name in names if re.search(pattern, name) and not re.search(without, name)]
    if choice.endswith("without convolutions"):
        chosen = [name for name in names if len(layers.unet[own(layers)[name]]) == 2]
    placement, expected = laid(chosen, layers)
    assert placement.places == expected
    assert str(placement) == f"laid along {choice}"
    assert not placement.is_doubtful


def own(layers: Layers) -> dict[str, str]:
    return {theirs: path for path, theirs in layers.diffusers_names().items()}


def test_a_list_that_leaves_out_a_layer_that_its_shape_tells_is_sure(names, layers):
    placement, expected = laid(names[1:], layers)
    assert placement.places == expected
    assert str(placement) == "laid along UNet3DConditionModel, of which 1 layers stay empty"
    assert not placement.is_doubtful


def test_a_list_that_leaves_out_one_of_several_alike_is_doubtful(names, layers):
    missing = names.index("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_k")
    placement, _ = laid([*names[:missing], *names[missing + 1 :]], layers)
    assert placement.empty == 1
    assert 0 < placement.unsure < 10
    assert placement.is_doubtful and not placement.is_refused


@pytest.mark.parametrize("pattern", [r"(transformer_in|temp_att).*\.attn1\.", r"\.to_q$", r"\.to_[qv]$", "^down_"])
def test_a_list_that_may_be_for_other_layers_is_refused(pattern, names, layers):
    placement, _ = laid([name for name in names if re.search(pattern, name)], layers)
    assert placement.is_refused


# Files


def write(folder, pattern: str):
    names = lora_makers.modules_inside(lora_makers.UNET, "UNet3DConditionModel", kinds=KINDS)
    names = [name for name in names if re.search(pattern, name)]
    return lora_makers.listed(folder, names, [lora_makers.factors(name, 1) for name in names])[0]


def test_a_list_that_fits_two_choices_is_refused_with_their_names(tmp_path):
    path, layers = write(tmp_path, r"(transformer_in|temp_attentions).*\.attn2\."), Layers.of(make_unet())
    number = len(read_lora(path).layers)
    said = (
        f"laid along attn1 of TransformerTemporalModel, but {number} of its weights may be for others "
        "(attn2 of TransformerTemporalModel)"
    )
    message = (
        f"{path} is a LoRA in cloneofsimo's format (a list without names): {said}. Its shapes do not tell which layers "
        "it is for; expected one with names, such as the same LoRA in kohya's or PEFT's format"
    )
    with pytest.raises(CheckpointError, match=exactly(message)):
        read_lora(path).match(layers)
    assert describe_lora(path, layers)["layers by shape"] == said


def test_the_report_says_which_choice_was_taken_and_doubts_are_warned_of(tmp_path):
    unet, path = make_unet(), write(tmp_path, r"\.ff\.")
    number = len(read_lora(path).layers)
    warning = f"{number} layers applied, laid along .*, of which {4 * number} layers stay empty"
    with pytest.warns(UserWarning, match=warning):
        LoRA.from_file(unet, path)
    with pytest.warns(UserWarning, match=warning):
        LoRAWeights(unet, TextEncoder(TEXT)).add(path)
    path = write(tmp_path, "")
    report = read_lora(path).match(Layers.of(unet)).report
    assert str(report).endswith(f"{len(report.applied)} layers applied, laid along UNet3DConditionModel")
    assert report.details().splitlines()[1].startswith("applied: time_embed.0, time_embed.2, ")
