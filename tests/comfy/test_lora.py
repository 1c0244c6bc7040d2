"""LoRA files that core writes are loaded by ComfyUI's stock loaders, every tensor of them, with the same effect."""

import pytest
import torch

from sdvideo_core.checkpoint import load_unet
from sdvideo_core.lora import LoRA, save_lora

NUM_FRAMES, STRENGTH, NAME = 4, 0.8, "from core.safetensors"


def compute_in_comfy(x, context, name, strength):
    """The UNet's output with the LoRA by each stock loader, and what ComfyUI logged of the file meanwhile."""
    import logging

    import comfy.model_management
    from comfy_extras.nodes_lora_debug import LoraLoaderBypassModelOnly

    import nodes
    from tests.comfy import called_nodes as calls

    logged = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: logged.append(record.getMessage())
    logging.getLogger().addHandler(handler)
    model, _, _ = calls.load()
    results = {}
    for kind, node in {"patched": nodes.LoraLoaderModelOnly, "bypass": LoraLoaderBypassModelOnly}.items():
        (strong,) = node().load_lora_model_only(model, name, strength)
        comfy.model_management.load_models_gpu([strong])
        results[kind] = strong.model.diffusion_model(x, torch.full((NUM_FRAMES,), 500.0), context)
    return {**results, "logged": [line for line in logged if "lora" in line.lower()]}


@pytest.fixture(scope="module")
def outputs(in_comfy, comfy_base, comfy_demo):
    """The UNet's outputs: by ComfyUI's loaders, and by core with the LoRA attached, merged, and not at all."""
    generator = torch.Generator().manual_seed(3)
    x, context = torch.randn(NUM_FRAMES, 4, 8, 8, generator=generator), torch.randn(1, 77, 64, generator=generator)
    unet = load_unet(comfy_demo)
    lora = LoRA(unet, 3, alpha=2.0, generator=generator)
    for path in lora.paths:
        up = lora.adapter(path).up
        up.data.copy_(0.3 * torch.randn(up.shape, generator=generator))
    save_lora(lora, comfy_base / "models" / "loras" / NAME, torch.float32)
    results = in_comfy(compute_in_comfy, x=x, context=context, name=NAME, strength=STRENGTH)

    @torch.no_grad()
    def run():
        video = unet(x.transpose(0, 1)[None], torch.tensor([500]), context)
        return video.transpose(1, 2).flatten(0, 1)

    base = run()
    lora.strength = STRENGTH
    with lora:
        attached = run()
    unet.load_state_dict(lora.merge_into(unet.state_dict()))
    return {**results, "base": base, "attached": attached, "merged": run()}


@pytest.mark.parametrize("kind", ["patched", "bypass", "attached"])
def test_a_saved_lora_acts_as_if_merged(outputs, kind):
    expected = outputs["merged"]
    assert (outputs[kind] - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (outputs[kind] - outputs["base"]).abs().max() > 1e-2 * expected.abs().max()


def test_every_tensor_is_known_to_comfyui(outputs):
    assert outputs["logged"] == []
