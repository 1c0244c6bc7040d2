"""Memory: ComfyUI streams, unloads and splits these models as its own, and the video stays the same.

What needs no GPU for it: weights that are cast for each call, models thrown out between runs, and halves of a batch
that run one after the other. ComfyUI's side is computed in one child for the whole file.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

MEASURED = Path(__file__).parents[2] / "benchmarks" / "results" / "sampling-memory.json"
NUM_FRAMES, SIZE = 4, 64
LORA = "memory.safetensors"
LAYER = "input_blocks.1.1.transformer_blocks.0.attn2.to_k"  # of 32 by 64


def stream_in_comfy(lora):
    """For the model alone and with a LoRA: a video with its weights in place, streamed, split and loaded again."""
    import comfy.model_management

    import nodes
    from tests.comfy import called_nodes as calls

    management = comfy.model_management
    model, clip, _ = calls.load()
    (with_lora, _) = nodes.LoraLoader().load_lora(model, clip, lora, 1.0, 1.0)
    conditioning, latent = calls.encode(clip), calls.empty(SIZE, SIZE, NUM_FRAMES)
    results, layouts, batches = {}, [], []

    def watch(_module, args):
        layouts.append(args[0].is_contiguous(memory_format=torch.channels_last))
        batches.append(len(args[0]))

    def sample(patcher):
        hook = patcher.model.diffusion_model.input_blocks[0].register_forward_pre_hook(watch)
        samples = calls.sample(patcher, conditioning, latent)
        hook.remove()
        return samples

    for name, patcher in {"alone": model, "lora": with_lora}.items():
        results[f"{name}, in place"] = sample(patcher)
        management.unload_all_models()
        patcher.patch_model(torch.device("cpu"), lowvram_model_memory=1)
        results[f"{name}, streams"] = patcher.model.model_lowvram
        cond, _ = conditioning
        x = torch.linspace(-1, 1, NUM_FRAMES * 4 * 64).view(NUM_FRAMES, 4, 8, 8)
        call = patcher.model.diffusion_model, x, torch.full((NUM_FRAMES,), 500.0), cond[0][0]
        results[f"{name}, streamed call"] = call[0](*call[1:])
        patcher.detach()
        management.load_models_gpu([patcher])
        results[f"{name}, call in place"] = call[0](*call[1:])
        management.unload_all_models()
        results[f"{name}, loaded again"] = sample(patcher)
    batches.clear()
    model.model.memory_usage_factor = 1e9  # more than there is, for two prompts at once
    results["alone, split"] = sample(model)
    return {**results, "layouts": layouts, "batches": batches}


@pytest.fixture(scope="module")
def results(in_comfy, comfy_base, comfy_demo):
    generator, folder = torch.Generator().manual_seed(0), comfy_base / "models" / "loras"
    folder.mkdir(exist_ok=True)
    key = f"lora_unet_{LAYER.replace('.', '_')}"
    up, down = torch.randn(32, 2, generator=generator), torch.randn(2, 64, generator=generator)
    save_file({f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down}, folder / LORA)
    yield in_comfy(stream_in_comfy, lora=LORA)
    (folder / LORA).unlink()


def relative_error(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", ["alone", "lora"])
def test_weights_that_are_streamed_give_the_same_video(results, name):
    assert results[f"{name}, streams"]
    assert relative_error(results[f"{name}, streamed call"], results[f"{name}, call in place"]) <= 1e-5


@pytest.mark.parametrize("name", ["alone", "lora"])
def test_a_model_that_was_unloaded_runs_as_before(results, name):
    assert torch.equal(results[f"{name}, loaded again"], results[f"{name}, in place"])


def test_the_lora_acts(results):
    assert relative_error(results["lora, in place"], results["alone, in place"]) > 1e-3
    assert relative_error(results["lora, streamed call"], results["alone, streamed call"]) > 1e-3


def test_prompts_that_run_one_after_the_other_for_want_of_memory_change_nothing(results):
    assert results["batches"] == [NUM_FRAMES] * 4  # two steps, two prompts
    assert relative_error(results["alone, split"], results["alone, in place"]) <= 1e-5


def test_activations_are_in_channels_last(results):
    assert results["layouts"] and all(results["layouts"])


def estimate_in_comfy(shapes):
    """Bytes that ComfyUI makes room for beside the full-size model in float16, where attention stores no scores."""
    import comfy.model_management
    from sdvideo.nodes.comfy_bridge.model import ModelScopeConfig
    from sdvideo.sdvideo_core.config import UNetConfig

    comfy.model_management.xformers_enabled = lambda: True  # as on a GPU
    config = ModelScopeConfig(UNetConfig(), None)
    config.set_inference_dtype(torch.float16, None)
    model = config.get_model({}, device="meta")
    return {"bytes": [model.memory_required(shape) for shape in shapes]}


def test_comfyui_makes_room_for_what_a_step_takes_and_not_for_twice_as_much(in_comfy):
    rows = json.loads(MEASURED.read_text(encoding="utf-8"))["beside_weights"]
    steps = [(row, name, n) for row in rows for n, name in enumerate(("one_prompt", "two_prompts"), 1)]
    shapes = [[n * row["frames"], 4, row["height"] // 8, row["width"] // 8] for row, _, n in steps]
    room = in_comfy(estimate_in_comfy, shapes=shapes)["bytes"]
    ratios = [size / row[name] for size, (row, name, _) in zip(room, steps, strict=True)]
    assert min(ratios) >= 1
    assert max(ratios) <= 2
