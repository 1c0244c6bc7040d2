"""LoRA formats: every one acts as its own library merges it, in the UNet and in the text encoder."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from sdvideo_core.checkpoint import CheckpointError
from sdvideo_core.config import TextConfig
from sdvideo_core.lora_weights import LoRAWeights
from sdvideo_core.text_encoder import TextEncoder
from sdvideo_core.unet import UNetSD
from tests.numerics import relative_error
from tests.unit import lora_makers
from tests.unit.small_lora import inputs, make_unet, random

TEXT = TextConfig(width=64, layers=3, heads=1, context_length=9, vocab_size=50)
TOKENS = torch.arange(18).view(2, 9)


@pytest.fixture(scope="module")
def unet() -> UNetSD:
    return make_unet()


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    torch.manual_seed(6)
    encoder = TextEncoder(TEXT).double().eval().requires_grad_(False)
    for parameter in encoder.parameters():
        parameter.normal_(std=0.2)
    return encoder


@pytest.fixture
def loras(unet, encoder):
    """LoRAs on the networks of this module; afterwards none, and not a bit of the networks is changed."""
    networks = (unet, encoder)
    before = [copy.deepcopy(network.state_dict()) for network in networks]
    loras = LoRAWeights(unet, encoder)
    yield loras
    loras.remove()
    for network, weights in zip(networks, before, strict=True):
        assert all(torch.equal(value, weights[key]) for key, value in network.state_dict().items())


def merged_output(unet: UNetSD, *changes: tuple[float, dict[str, Tensor]]) -> Tensor:
    """What the UNet computes with changes of its weights, by diffusers' names."""
    weights = {key: weight.clone() for key, weight in unet.state_dict().items()}
    for strength, deltas in changes:
        for name, delta in deltas.items():
            weight = weights[f"{lora_makers.own_name(name)}.weight"]
            weight += strength * delta.view(weight.shape)
    merged = copy.deepcopy(unet)
    merged.load_state_dict(weights)
    return merged(*inputs())


@pytest.mark.parametrize("make", lora_makers.MAKERS, ids=lambda make: make.__name__)
@torch.no_grad()
def test_a_file_acts_as_merged_weights(make, tmp_path, unet, loras):
    path, deltas = make(tmp_path)
    expected, base = merged_output(unet, (0.7, deltas)), unet(*inputs())
    report = loras.add(path, 0.7)
    assert report.format == lora_makers.FORMATS[make.__name__]
    assert sorted(report.applied) == sorted(map(lora_makers.own_name, deltas))
    assert report.unused == []
    output = unet(*inputs())
    assert relative_error(output, expected) <= 1e-12
    assert relative_error(output, base) > 1e-3


@torch.no_grad()
def test_several_add_up_in_any_order(tmp_path, unet, loras):
    strengths = {lora_makers.kohya: 0.5, lora_makers.webui: -1.0, lora_makers.positional: 0.2}
    made = [(strength, *make(tmp_path)) for make, strength in strengths.items()]
    expected = merged_output(unet, *((strength, deltas) for strength, _, deltas in made))
    for order in (made, made[::-1]):
        for strength, path, _ in order:
            loras.add(path, strength)
        assert relative_error(unet(*inputs()), expected) <= 1e-12
        loras.remove()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@torch.no_grad()
def test_weights_of_any_precision_are_rounded_once(dtype, tmp_path, encoder):
    unet = make_unet(dtype)
    path, deltas = lora_makers.positional(tmp_path)
    before = copy.deepcopy(unet.state_dict())
    loras = LoRAWeights(unet, encoder)
    loras.add(path, 0.5)
    changed = dict(unet.state_dict())
    for name, delta in deltas.items():
        key = f"{lora_makers.own_name(name)}.weight"
        expected = (before[key].double() + 0.5 * delta.view(before[key].shape)).to(dtype)
        assert (changed[key] != expected).sum() <= 1e-3 * expected.numel()  # of sums in another order
        assert torch.allclose(changed[key].double(), expected.double(), rtol=torch.finfo(dtype).eps, atol=1e-12)
    loras.remove()
    assert all(torch.equal(value, before[key]) for key, value in unet.state_dict().items())


@torch.no_grad()
def test_strength_0_touches_nothing(tmp_path, unet, loras):
    pointers = [parameter.data_ptr() for parameter in unet.parameters()]
    assert len(loras.add(lora_makers.kohya(tmp_path)[0], 0).applied) == len(lora_makers.LAYERS)
    assert [parameter.data_ptr() for parameter in unet.parameters()] == pointers


@pytest.mark.parametrize("strength", [float("nan"), float("inf")])
def test_a_strength_that_is_no_number(strength, loras):
    with pytest.raises(ValueError, match=f"^LoRA strength={strength}; expected a number, such as 1.0$"):
        loras.add("lora.safetensors", strength)


# Lists without names


@pytest.mark.parametrize(
    ("classes", "without"),
    [
        (("TransformerTemporalModel",), ("proj_in", "proj_out")),  # MotionDirector
        (("TransformerTemporalModel",), ()),
        (("Transformer2DModel",), ()),
        (("Transformer2DModel",), ("proj_in", "proj_out")),
        (("Transformer2DModel", "ResnetBlock2D"), ()),
        (("TemporalConvLayer",), ()),
        (("ResnetBlock2D", "TransformerTemporalModel", "TemporalConvLayer"), ()),
    ],
    ids=str,
)
@pytest.mark.parametrize("kinds", [(nn.Linear,), (nn.Linear, nn.Conv2d, nn.Conv3d)], ids=["Linear", "all kinds"])
def test_a_list_of_some_layers_finds_them(classes, without, kinds, tmp_path, loras):
    names = lora_makers.modules_inside(lora_makers.UNET, *classes, kinds=kinds)
    names = [name for name in names if not name.endswith(without or ("-",))]
    if not names:
        return
    pairs = [lora_makers.factors(name, seed) for seed, name in enumerate(names)]
    report = loras.add(lora_makers.listed(tmp_path, names, pairs)[0])
    assert sorted(report.applied) == sorted(map(lora_makers.own_name, names))


def turbo_list(folder: Path) -> tuple[Path, list[str]]:
    """As T2V-Turbo has it: the layers of a UNet with an embedding of the guidance scale."""
    unet = lora_makers.make_diffusers_unet(time_cond_proj_dim=256)
    kinds = (nn.Linear, nn.Conv2d, nn.Conv3d)
    names = lora_makers.modules_inside(unet, "UNet3DConditionModel", kinds=kinds)
    shapes = [tuple(unet.get_submodule(name).weight.shape) for name in names]
    ones = ((torch.ones(2, *rest), torch.ones(out, 2, *(1 for _ in rest[1:]))) for out, *rest in shapes)
    return lora_makers.listed(folder, names, list(ones), "unet_lora.pt")[0], names


@pytest.mark.parametrize("has_layer", [False, True])
def test_the_guidance_embedding_of_t2v_turbo_is_part_of_it(tmp_path, encoder, has_layer):
    path, names = turbo_list(tmp_path)
    assert names[2] == "time_embedding.cond_proj"
    unet = make_unet()
    if has_layer:
        unet.add_guidance_embedding().requires_grad_(False)
    loras = LoRAWeights(unet, encoder)
    report = loras.add(path)
    assert report.unused == []
    others = [lora_makers.own_name(name) for name in names if name != names[2]]
    assert sorted(report.applied) == sorted([*others, "cond_proj"])
    assert torch.equal(unet.cond_proj.weight, torch.full((32, 256), 2.0, dtype=torch.float64))
    loras.remove()
    assert (unet.cond_proj is not None) == has_layer
    assert loras.add(path).unused == []
    assert torch.equal(unet.cond_proj.weight, torch.full((32, 256), 2.0, dtype=torch.float64))
    loras.remove()
    assert not has_layer or not unet.cond_proj.weight.any()


def test_a_layer_of_a_list_that_fits_nowhere_is_told_by_its_number(tmp_path, loras):
    names = ["conv_in", "conv_out"]
    first, last = (lora_makers.factors(name, 1) for name in names)
    path, _ = lora_makers.listed(tmp_path, ["a", "b", "c"], [first, (torch.ones(2, 7), torch.ones(5, 2)), last])
    with pytest.warns(UserWarning, match="layers stay empty"):
        report = loras.add(path)
    assert report.applied == [lora_makers.own_name(name) for name in names]
    assert report.unused == ["layer 2 (5, 7)"]


def test_a_list_of_another_model_is_not_taken_for_ours(tmp_path, loras):
    ours, theirs = lora_makers.factors("conv_in", 1), (torch.ones(2, 7), torch.ones(5, 2))
    path, _ = lora_makers.listed(tmp_path, ["a", "b", "c"], [ours, theirs, theirs])
    with pytest.raises(CheckpointError, match=r"\(a list without names\) of another model: none of its 3 layers"):
        loras.add(path)


# The text encoder


def clip_of(encoder: TextEncoder) -> CLIPTextModel:
    """transformers' text model with an encoder's weights."""
    config = CLIPTextConfig(
        vocab_size=TEXT.vocab_size,
        hidden_size=TEXT.width,
        intermediate_size=4 * TEXT.width,
        num_hidden_layers=TEXT.layers - 1,
        num_attention_heads=TEXT.heads,
        max_position_embeddings=TEXT.context_length,
        hidden_act="gelu",
    )
    weights = encoder.state_dict()
    theirs = {
        "embeddings.token_embedding.weight": weights["token_embedding.weight"],
        "embeddings.position_embedding.weight": weights["positional_embedding"],
    }
    kinds = ("weight", "bias")
    theirs |= {f"final_layer_norm.{kind}": weights[f"ln_final.{kind}"] for kind in kinds}
    names = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    for layer in range(TEXT.layers - 1):
        ours, block = f"transformer.resblocks.{layer}", f"encoder.layers.{layer}"
        for kind in kinds:
            qkv = weights[f"{ours}.attn.in_proj_{kind}"].chunk(3)
            theirs |= {f"{block}.self_attn.{c}_proj.{kind}": part for c, part in zip("qkv", qkv, strict=True)}
            theirs[f"{block}.self_attn.out_proj.{kind}"] = weights[f"{ours}.attn.out_proj.{kind}"]
            theirs |= {f"{block}.{a}.{kind}": weights[f"{ours}.{b}.{kind}"] for a, b in names.items()}
    clip = CLIPTextModel(config).double().eval().requires_grad_(False)
    prefix = next(iter(clip.state_dict())).partition("embeddings.")[0]
    clip.load_state_dict({prefix + key: value for key, value in theirs.items()}, strict=True)
    return clip


TEXT_LAYERS = (
    *("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
    *("token_embedding", "position_embedding"),
)


@torch.no_grad()
def test_a_peft_folder_acts_on_the_text_encoder(tmp_path, encoder, loras):
    adapted = lora_makers.adapted(clip_of(encoder), TEXT_LAYERS, lora_alpha=7)
    adapted.save_pretrained(tmp_path / "text_encoder")
    assert relative_error(clip_of(encoder)(TOKENS).last_hidden_state, encoder.encode_tokens(TOKENS)) <= 1e-12
    report = loras.add(tmp_path)
    assert len(report.applied) == 2 * 6 + 2
    assert report.unused == []
    expected = adapted.merge_and_unload()(TOKENS).last_hidden_state
    assert relative_error(encoder.encode_tokens(TOKENS), expected) <= 1e-12


def text_deltas(clip: CLIPTextModel) -> dict[str, tuple[Tensor, Tensor]]:
    """Random down and up for every layer, by names that start with `text_model.`."""
    names = [name for name, module in clip.named_modules() if isinstance(module, nn.Linear)]
    shapes = [clip.get_submodule(name).weight.shape for name in names]
    pairs = [(random(2, n, seed=i), random(out, 2, seed=i + 50)) for i, (out, n) in enumerate(shapes)]
    return {"text_model." + name.removeprefix("text_model."): pair for name, pair in zip(names, pairs, strict=True)}


OPEN_CLIP = (("text_model.encoder.layers", "resblocks"), ("self_attn", "attn"), ("fc1", "c_fc"), ("fc2", "c_proj"))


def webui_name(name: str) -> str:
    for theirs, ours in OPEN_CLIP:
        name = name.replace(theirs, ours)
    return name


TEXT_NAMES = {
    "kohya": lambda name: [f"lora_te_{name.replace('.', '_')}.lora_{part}.weight" for part in ("down", "up")],
    "diffusers": lambda name: [f"text_encoder.{name}.lora_{part}.weight" for part in "AB"],
    "old diffusers": lambda name: [f"text_encoder.{name}.lora_linear_layer.{part}.weight" for part in ("down", "up")],
    "stable_lora": lambda name: [f"{name}.lora_{part}" for part in "AB"],
    "webui": lambda name: [f"{webui_name(name)}.lora_{part}" for part in "AB"],
    "webui, longer": lambda name: [f"model.transformer.{webui_name(name)}.lora_{part}" for part in "AB"],
    "positional": None,
}


@pytest.mark.parametrize("names", TEXT_NAMES.values(), ids=TEXT_NAMES)
@torch.no_grad()
def test_text_layers_of_each_format(names, tmp_path, encoder, loras):
    clip = clip_of(encoder)
    pairs = text_deltas(clip)
    if names:
        tensors = {key: tensor for name, pair in pairs.items() for key, tensor in zip(names(name), pair, strict=True)}
        path = tmp_path / "lora.safetensors"
        save_file(tensors, path)
    else:
        path, _ = lora_makers.listed(tmp_path, list(pairs), list(pairs.values()), "5000_text_encoder.pt")
    for name, module in clip.named_modules():
        if isinstance(module, nn.Linear):
            module.weight += lora_makers.product(*pairs["text_model." + name.removeprefix("text_model.")])
    report = loras.add(path)
    assert sorted(report.applied) == sorted(pairs)
    assert report.unused == []
    assert relative_error(encoder.encode_tokens(TOKENS), clip(TOKENS).last_hidden_state) <= 1e-12
