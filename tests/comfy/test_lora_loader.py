"""Load Video LoRA: LoRAs of every format in ComfyUI, as core applies them and as its own loader does."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdvideo_core.checkpoint import load_text_encoder, load_unet
from sdvideo_core.lora_export import write_kohya, write_peft, write_webui
from sdvideo_core.lora_formats import Pair
from sdvideo_core.lora_layers import TEXT_EMBEDDINGS, Layers
from sdvideo_core.lora_weights import LoRAWeights

NUM_FRAMES, STRENGTH = 4, 0.7
TEXT_ONLY, PARTLY = "formats/text.safetensors", "formats/partly.safetensors"
NAMES = {
    "kohya": "formats/kohya.safetensors",
    "webui": "formats/webui.safetensors",
    "peft": "formats/peft/adapter_model.safetensors",
    "positional": "formats/5000_unet.pt",
}


def compute_in_comfy(x, context, names, partly, text_only, strength):
    """Outputs of the UNet and encoded prompts, with each LoRA and loader; and what was logged."""
    import logging

    import comfy.model_management

    import nodes
    from tests.comfy import called_nodes as calls

    logged = []
    handler = logging.Handler(logging.INFO)
    handler.emit = lambda record: logged.append(record.getMessage())
    logging.getLogger().addHandler(handler)
    logging.getLogger().setLevel(logging.INFO)
    model, clip, _ = calls.load()

    def run(patcher):
        comfy.model_management.load_models_gpu([patcher])
        return patcher.model.diffusion_model(x, torch.full((NUM_FRAMES,), 500.0), context)

    def both(name, strong, strong_clip):
        return {name: run(strong), f"{name}, text": strong_clip and calls.encode(strong_clip)[0][0][0]}

    def load(name, *strengths, base=(model, clip)):
        return calls.call("SDVideoLoRALoader", base[0], names[name], *strengths, clip=base[1])[:2]

    results = both("base", model, clip)
    for name in names:
        results |= both(name, *load(name, strength, strength))
    results |= both("stock", *nodes.LoraLoader().load_lora(model, clip, names["kohya"], strength, strength))
    results |= both("zero", *load("kohya", 0, 0))
    results |= both("model only", *load("kohya", strength, 0))
    results |= both("no clip", *load("kohya", strength, 1.0, base=(model, None)))
    results |= both("twice", *load("webui", strength, strength, base=load("kohya", strength, strength)))
    results |= both("base again", model, clip)
    try:
        calls.call("SDVideoLoRALoader", clip.patcher.clone(), names["kohya"], 1.0, 1.0)
    except (ValueError, AttributeError) as error:
        results["other model"] = str(error)
    try:
        calls.call("SDVideoLoRALoader", model, text_only, 1.0, 1.0)
    except ValueError as error:
        results["text only"] = str(error)
    *_, results["info"] = calls.call("SDVideoLoRALoader", model, partly, 1.0, 1.0)
    return {**results, "logged": [line for line in logged if "LoRA" in line]}


@pytest.fixture(scope="module")
def networks(comfy_demo):
    return load_unet(comfy_demo), load_text_encoder(comfy_demo)


def in_diffusers_order(layers):
    from tests.unit import lora_makers  # brings diffusers, which ComfyUI's interpreter has no need of

    paths = {theirs: path for path, theirs in layers.diffusers_names().items() if path in layers.unet}
    kinds = (torch.nn.Linear, torch.nn.Conv2d, torch.nn.Conv3d)
    names = lora_makers.modules_inside(lora_makers.UNET, "UNet3DConditionModel", kinds=kinds)
    assert set(names) == set(paths)
    return [paths[name] for name in names]


@pytest.fixture(scope="module")
def folder(comfy_base, networks):
    """The same LoRA in several formats; it leaves out what ComfyUI's own loader does not know in kohya's format."""
    folder, generator = comfy_base / "models" / "loras", torch.Generator().manual_seed(7)
    layers, pairs = Layers.of(*networks), {}
    for path, (out, *rest) in layers.shapes.items():
        if path not in TEXT_EMBEDDINGS:
            up = 0.2 * torch.randn(out, 2, *(1 for _ in rest[1:]), generator=generator)
            pairs[path] = Pair(torch.randn(2, *rest, generator=generator) * rest[0] ** -0.5, up, 2.0)
    write_kohya(pairs, folder / NAMES["kohya"], torch.float32)
    write_kohya({path: pairs[path] for path in layers.text if path in pairs}, folder / TEXT_ONLY, torch.float32)
    first = {path: pairs[path] for path in [*layers.unet][:25]}
    write_kohya(first, folder / PARTLY, torch.float32)
    stranger = {f"lora_te_x.lora_{part}.weight": torch.ones(1, 1) for part in ("down", "up")}
    save_file(load_file(folder / PARTLY) | stranger, folder / PARTLY)
    write_webui(pairs, layers, folder / NAMES["webui"], torch.float32)
    write_peft({path: pairs[path] for path in layers.unet}, layers, folder / "formats" / "peft", torch.float32)
    listed = [pairs[path] for path in in_diffusers_order(layers)]
    torch.save([factor for pair in listed for factor in (pair.up, pair.down)], folder / NAMES["positional"])
    yield folder
    shutil.rmtree(folder / "formats")


@pytest.fixture(scope="module")
def outputs(in_comfy, folder, networks):
    generator = torch.Generator().manual_seed(3)
    x, context = torch.randn(NUM_FRAMES, 4, 8, 8, generator=generator), torch.randn(1, 77, 64, generator=generator)
    given = {"names": NAMES, "partly": PARTLY, "text_only": TEXT_ONLY, "strength": STRENGTH}
    results = in_comfy(compute_in_comfy, x=x, context=context, **given)
    loras = LoRAWeights(*networks)
    loras.add(folder / NAMES["kohya"], STRENGTH)
    with torch.no_grad():
        video = networks[0](x.transpose(0, 1)[None], torch.tensor([500]), context)
    loras.remove()
    return {**results, "core": video.transpose(1, 2).flatten(0, 1)}


@pytest.mark.parametrize("name", [*NAMES, "model only", "no clip"])
def test_a_lora_acts_as_in_core(outputs, name):
    expected = outputs["core"]
    assert (outputs[name] - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (outputs["base"] - expected).abs().max() > 1e-2 * expected.abs().max()


@pytest.mark.parametrize("name", ["stock", "stock, text"])
def test_it_does_what_the_stock_loader_does(outputs, name):
    assert torch.equal(outputs[name], outputs[name.replace("stock", "kohya")])


def test_the_text_encoder_gets_its_part(outputs):
    base, changed = outputs["base, text"], outputs["kohya, text"]
    assert (changed - base).abs().max() > 1e-2 * base.abs().max()
    assert torch.allclose(outputs["webui, text"], changed, atol=1e-3 * changed.abs().max())
    assert all(torch.equal(outputs[f"{name}, text"], base) for name in ("peft", "positional", "model only"))
    assert outputs["no clip, text"] is None


def test_strength_0_and_the_model_without_it_are_the_base(outputs):
    for name in ("zero", "base again"):
        assert torch.equal(outputs[name], outputs["base"])
        assert torch.equal(outputs[f"{name}, text"], outputs["base, text"])


def test_several_add_up(outputs):
    assert (outputs["twice"] - outputs["kohya"]).abs().max() > 1e-2 * outputs["kohya"].abs().max()


def test_the_report_is_logged(outputs, folder):
    said = [line for line in outputs["logged"] if line.startswith(str(folder / NAMES["positional"]))]
    assert len(said) == 1
    assert "a LoRA in cloneofsimo's format (a list without names): " in said[0]
    assert said[0].endswith(" layers applied, laid along UNet3DConditionModel")


def test_the_output_info_names_what_was_applied_and_what_was_not(outputs, folder):
    said, applied, unused = outputs["info"].splitlines()
    assert said.startswith(f"{folder / PARTLY}, a LoRA in kohya's format: 25 layers applied; not used (2): lora_te_")
    assert said in outputs["logged"]
    assert applied.startswith("applied: time_embed.0, time_embed.2, input_blocks.0.0, ")
    assert applied.endswith(" and 5 more")
    assert unused == "not used: lora_te_x.lora_down.weight, lora_te_x.lora_up.weight"


def test_a_lora_of_the_text_encoder_alone_wants_one(outputs):
    assert " is a LoRA in kohya's format for the text encoder only, and there is none here " in outputs["text only"]
    assert "; connect clip in ComfyUI" in outputs["text only"]


def test_other_models_are_refused(outputs):
    expected = "expected one of Load ModelScope Video Model. For other models use ComfyUI's own Load LoRA"
    assert outputs["other model"].endswith(expected)
