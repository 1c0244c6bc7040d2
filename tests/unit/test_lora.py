"""LoRA: adapters that act as if merged into the weights, and leave no trace."""

import re

import pytest
import torch
from torch import Tensor, nn

from sdvideo_core.blocks import TemporalConv, TemporalTransformer
from sdvideo_core.config import UNetConfig
from sdvideo_core.lora import TARGETS, LoRA, kohya_name, target_layers
from sdvideo_core.unet import UNetSD
from tests.numerics import relative_error
from tests.unit.small_lora import (
    CONFIG,
    CONV3D,
    DOWNSAMPLE,
    LAST,
    LINEAR,
    TEMPORAL_PROJECTION,
    inputs,
    make_lora,
    make_unet,
    merged_unet,
)

# One layer of every kind, and all of them.
CHOICES = {
    "Linear": [LINEAR],
    "Linear in time": ["middle_block.2.transformer_blocks.0.attn1.to_out.0"],
    "time embedding": ["time_embed.2"],
    "projection of time attention": [TEMPORAL_PROJECTION],
    "feed-forward": ["middle_block.1.transformer_blocks.0.ff.net.0.proj"],
    "Conv2d": ["middle_block.0.in_layers.2"],
    "Conv2d of kernel size 1": ["output_blocks.0.0.skip_connection"],
    "Downsample": [DOWNSAMPLE],
    "Upsample": ["output_blocks.1.3.conv"],
    "Conv3d": [CONV3D],
    "the last layer": [LAST],
    "all": "all",
}


@pytest.fixture(scope="module")
def unet() -> UNetSD:
    return make_unet()


@pytest.fixture(scope="module")
def base(unet: UNetSD) -> Tensor:
    with torch.no_grad():
        return unet(*inputs())


# What it computes


@pytest.mark.parametrize(
    ("dtype", "size"),
    [
        (torch.bfloat16, (6, 5)),
        (torch.float32, (6, 5)),
        (torch.float32, (12, 10)),
        (torch.float64, (1, 1)),  # where the layout in memory is ambiguous
    ],
    ids=str,
)
@torch.no_grad()
def test_a_fresh_lora_and_strength_0_change_nothing(dtype, size):
    unet = make_unet(dtype)
    expected = unet(*inputs(dtype, size))
    with LoRA(unet):
        assert torch.equal(unet(*inputs(dtype, size)), expected)
    with make_lora(unet) as lora:
        lora.strength = 0.0
        assert torch.equal(unet(*inputs(dtype, size)), expected)


def test_strength_0_computes_nothing(unet):
    lora, expected = make_lora(unet), unet(*inputs())
    for parameter in lora.parameters():
        parameter.data.fill_(float("nan"))
    lora.strength = 0
    with lora:
        output = unet(*inputs())
    assert torch.equal(output, expected)
    assert not output.requires_grad


@pytest.mark.parametrize("choice", CHOICES)
@torch.no_grad()
def test_an_attached_lora_acts_as_if_merged(unet, base, choice):
    lora = make_lora(unet, alpha=3.0, targets=CHOICES[choice])
    lora.strength = 0.7
    with lora:
        output = unet(*inputs())
    assert relative_error(output, merged_unet(unet, lora)(*inputs())) <= 1e-12
    assert relative_error(output, base) > 1e-4


@pytest.mark.parametrize("size", [(6, 5), (12, 10)], ids=str)
@torch.no_grad()
def test_an_attached_lora_acts_as_if_merged_in_float32(size):
    unet = make_unet(torch.float32)
    with make_lora(unet) as lora:
        output = unet(*inputs(torch.float32, size))
    assert relative_error(output, merged_unet(unet, lora)(*inputs(torch.float32, size))) <= 1e-5


@torch.no_grad()
def test_a_lora_of_half_a_models_precision_is_kept_in_float32():
    unet = make_unet(torch.bfloat16)
    with make_lora(unet) as lora:
        output = unet(*inputs(torch.bfloat16))
    assert output.dtype is torch.bfloat16
    assert {parameter.dtype for parameter in lora.parameters()} == {torch.float32}
    assert relative_error(output, merged_unet(unet, lora)(*inputs(torch.bfloat16))) <= 0.05


@pytest.mark.parametrize("strength", [-1.0, 0.5, 2.0])
@torch.no_grad()
def test_strength_scales_what_is_added_to_the_weights(unet, strength):
    lora = make_lora(unet, targets="attention")
    lora.strength = strength
    with lora:
        output = unet(*inputs())
    assert relative_error(output, merged_unet(unet, lora)(*inputs())) <= 1e-12
    lora.strength = 1.0
    assert relative_error(output, merged_unet(unet, lora, strength)(*inputs())) <= 1e-12


@torch.no_grad()
def test_two_loras_add_up(unet):
    first, second = make_lora(unet, targets="temporal"), make_lora(unet, 2, seed=4)
    with first, second:
        output = unet(*inputs())
    expected = merged_unet(merged_unet(unet, first), second)(*inputs())
    assert relative_error(output, expected) <= 1e-12


@torch.no_grad()
def test_delta_and_merge_are_the_product_scaled(unet):
    lora = make_lora(unet, alpha=6.0, targets=[LINEAR, TEMPORAL_PROJECTION, CONV3D])
    weights = unet.state_dict()
    merged = lora.merge_into(weights, 0.5)
    for path in lora.paths:
        adapter, layer = lora.adapter(path), unet.get_submodule(path)
        product = torch.einsum("or,r...->o...", adapter.up.double().flatten(1), adapter.down.double())
        delta = lora.delta(path)
        assert delta.dtype is torch.float64
        assert delta.shape == layer.weight.shape
        assert relative_error(delta, product * 6 / 4) <= 1e-12
        key = f"{path}.weight"
        assert merged[key].shape == weights[key].shape
        assert relative_error(merged[key] - weights[key], (delta * 0.5).view(weights[key].shape)) <= 1e-12
    assert all(merged[key] is weights[key] for key in weights if key.removesuffix(".weight") not in lora.paths)
    assert torch.equal(weights[f"{LINEAR}.weight"], unet.get_submodule(LINEAR).weight)


@torch.no_grad()
def test_a_merge_is_rounded_once(unet):
    lora = make_lora(unet, targets=[LINEAR])
    half = {key: weight.half() for key, weight in unet.state_dict().items()}
    merged = lora.merge_into(half)[f"{LINEAR}.weight"]
    assert torch.equal(merged, (half[f"{LINEAR}.weight"].double() + lora.delta(LINEAR)).half())


@torch.no_grad()
def test_a_state_dict_without_kernel_axes_is_merged_too(unet):
    lora = make_lora(unet, targets=[TEMPORAL_PROJECTION])
    key = f"{TEMPORAL_PROJECTION}.weight"
    merged = lora.merge_into({key: unet.get_submodule(TEMPORAL_PROJECTION).weight})
    assert torch.equal(merged[key], lora.merge_into(unet.state_dict())[key].squeeze(2))


# What it is made of


def test_full_size_adapts_every_layer_by_its_own_name():
    unet = UNetSD(UNetConfig(), device="meta")
    layers = target_layers(unet)
    kinds = [sum(isinstance(layer, kind) for layer in layers.values()) for kind in (nn.Linear, nn.Conv2d, nn.Conv3d)]
    assert kinds == [420, 66, 88]
    weights = [key.removesuffix(".weight") for key, weight in unet.state_dict().items() if weight.ndim > 1]
    assert sorted(layers) == sorted(weights)
    assert len({kohya_name(path) for path in layers}) == 574


@pytest.mark.parametrize("config", [CONFIG, UNetConfig()], ids=["small", "full size"])
def test_targets_are_what_they_say(config):
    unet = UNetSD(config, device="meta")
    temporal_modules = [module for module in unet.modules() if isinstance(module, TemporalTransformer | TemporalConv)]
    in_time = {id(layer) for module in temporal_modules for layer in module.modules()}
    named = {name: target_layers(unet, name) for name in TARGETS}
    layers = named["all"]
    assert named["temporal"] == {path: layer for path, layer in layers.items() if id(layer) in in_time}
    assert named["spatial"] == {path: layer for path, layer in layers.items() if id(layer) not in in_time}
    attention = [path for path in layers if re.search(r"attn[12]\.to_(q|k|v|out\.0)$", path)]
    assert list(named["attention"]) == attention
    assert 0 < len(attention) < len(layers)


def test_targets_may_be_a_pattern_or_paths(unet):
    assert LoRA(unet, targets=r"\.op$").paths == [DOWNSAMPLE]
    assert LoRA(unet, targets=[CONV3D, LINEAR]).paths == [CONV3D, LINEAR]
    assert LoRA(unet, targets=[LINEAR, CONV3D]).paths == [CONV3D, LINEAR]


def test_shapes_are_those_of_kohya(unet):
    lora = LoRA(unet, 4)
    shapes = {
        LINEAR: [(4, 16), (32, 4)],
        TEMPORAL_PROJECTION: [(4, 32), (128, 4)],
        DOWNSAMPLE: [(4, 32, 3, 3), (32, 4, 1, 1)],
        CONV3D: [(4, 32, 3, 1, 1), (32, 4, 1, 1, 1)],
    }
    for path, expected in shapes.items():
        adapter = lora.adapter(path)
        assert [tuple(adapter.down.shape), tuple(adapter.up.shape)] == expected


def test_first_weights_are_a_function_of_the_generator(unet):
    before = torch.get_rng_state()
    first, same, other = (LoRA(unet, 4, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    for path in first.paths:
        down = first.adapter(path).down
        assert torch.equal(down, same.adapter(path).down)
        assert not torch.equal(down, other.adapter(path).down)
        assert 0.7 < down.abs().max() * down[0].numel() ** 0.5 <= 1
        assert first.adapter(path).up.count_nonzero() == 0


@torch.no_grad()
def test_a_rank_above_what_a_layer_can_use_is_cut_at_the_same_scale(unet):
    lora = make_lora(unet, 40, alpha=20.0)
    ranks = {path: lora.adapter(path).rank for path in ("input_blocks.0.0", LINEAR, TEMPORAL_PROJECTION, LAST)}
    assert list(ranks.values()) == [32, 16, 32, 4]
    assert {lora.adapter(path).scale for path in lora.paths} == {0.5}
    assert lora.adapter(LAST).alpha == 2.0
    with lora:
        output = unet(*inputs())
    assert relative_error(output, merged_unet(unet, lora)(*inputs())) <= 1e-12


# Attaching and detaching


@torch.no_grad()
def test_nothing_is_left_on_the_unet(unet, base):
    def state() -> list:
        return [(name, sorted(vars(module)), len(module._forward_hooks)) for name, module in unet.named_modules()]

    before, keys = state(), list(unet.state_dict())
    lora = make_lora(unet)
    assert state() == before
    assert torch.equal(unet(*inputs()), base)
    for _ in range(2):
        assert lora.attach() is lora
        assert list(unet.state_dict()) == keys
        assert not torch.equal(unet(*inputs()), base)
        lora.detach()
        assert state() == before
        assert torch.equal(unet(*inputs()), base)
    lora.detach()


@torch.no_grad()
def test_attached_twice_acts_once(unet, base):
    lora = make_lora(unet).attach()
    once = unet(*inputs())
    with lora.attach():
        assert torch.equal(unet(*inputs()), once)
    assert torch.equal(unet(*inputs()), base)


@torch.no_grad()
def test_an_error_detaches(unet, base):
    with pytest.raises(KeyError), make_lora(unet):
        raise KeyError
    assert torch.equal(unet(*inputs()), base)


def test_the_units_weights_are_no_part_of_the_lora(unet):
    lora = LoRA(unet, targets=[LINEAR])
    names = [name for name, _ in lora.named_parameters()]
    assert names == [f"adapters.{LINEAR.replace('.', '_')}.{part}" for part in ("down", "up")]
    assert sorted(lora.state_dict()) == names
