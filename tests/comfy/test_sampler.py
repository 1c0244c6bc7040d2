"""DDIM node: soft masks, partial denoising, ControlNet's prompt, and models restored after a LoRA."""

import pytest
import torch

SIZE, NUM_FRAMES, SCALE = 64, 4, 0.18215


def sample_in_comfy(lora_key, up, down):
    import comfy.sd
    import comfy.utils

    import nodes
    from tests.comfy import called_nodes as calls

    model, clip, vae = calls.load()
    pair, latent = calls.encode(clip), calls.empty(SIZE, SIZE, NUM_FRAMES)
    perfect = model.clone()
    perfect.set_model_unet_function_wrapper(lambda _apply, arguments: torch.ones_like(arguments["input"]))
    start = {"samples": torch.full((NUM_FRAMES, 4, SIZE // 8, SIZE // 8), 3.0)}
    results = {}
    for strength in (0.0, 0.25, 0.5, 0.75, 1.0):
        mask = torch.full((1, SIZE, SIZE), strength)
        (masked,) = nodes.SetLatentNoiseMask().set_mask(start, mask)
        results[f"mask {strength}"] = calls.sample(perfect, pair, masked, steps=20, cfg=1.0)
        stock = nodes.common_ksampler(perfect, 0, 20, 1.0, "ddim", "ddim_uniform", *pair, masked)
        results[f"stock {strength}"] = stock[0]["samples"]
    attempts = {
        "error": lambda: calls.sample(model, pair, latent, denoise=0.5),
        "no frames": lambda: calls.call("SDVideoLatentInit", SIZE, SIZE, 4, torch.zeros(0, SIZE, SIZE, 3), vae),
        "no latents": lambda: calls.call("SDVideoVAEDecode", {"samples": torch.zeros(0, 4, 8, 8)}, vae),
    }
    for name, attempt in attempts.items():
        try:
            attempt()
        except ValueError as error:
            results[name] = str(error)
    results["start"], results["little"] = start["samples"], calls.sample(model, pair, start, denoise=0.01)
    results["base"] = calls.sample(model, pair, latent)
    lora = {f"{lora_key}.lora_up.weight": up, f"{lora_key}.lora_down.weight": down}
    changed, _ = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)
    results["with lora"] = calls.sample(changed, pair, latent)
    results["without lora"] = calls.sample(model, pair, latent)
    return results


def control_in_comfy():
    """What a ControlNet and the UNet are given as text, for a prompt of one row."""
    from tests.comfy import called_nodes as calls

    model, clip, _vae = calls.load()
    (text, _pooled), *_ = calls.encode(clip)[0]
    noise = torch.zeros(NUM_FRAMES, 4, 8, 8)
    conds = model.model.extra_conds(cross_attn=text, control=object(), noise=noise, device=noise.device)
    rows = {name: cond.process_cond(batch_size=NUM_FRAMES, area=None).cond for name, cond in conds.items()}
    output = model.model.apply_model(
        noise + 1.0,
        torch.tensor([1.0] * NUM_FRAMES),
        c_crossattn=text,
        crossattn_controlnet=rows["crossattn_controlnet"],
    )
    return {"output": output, **rows}


@pytest.fixture(scope="module")
def results(in_comfy, comfy_demo):
    up, down = torch.ones(32, 2), torch.ones(2, 32)
    return in_comfy(sample_in_comfy, lora_key="lora_unet_input_blocks_1_1_proj_in", up=up, down=down)


@pytest.mark.parametrize("strength", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_a_soft_mask_blends_once_as_in_the_stock_sampler(results, strength):
    """The last step leaves 3 % of noise, which the stock sampler takes away."""
    found, stock = results[f"mask {strength}"], results[f"stock {strength}"]
    assert (found - stock).abs().mean() <= 0.03 / SCALE
    assert (found.mean() - stock.mean()).abs() <= 0.01 / SCALE


def test_frames_that_a_mask_protects_come_back_exactly(results):
    torch.testing.assert_close(results["mask 0.0"], results["start"], rtol=1e-6, atol=1e-6)


def test_part_of_an_empty_latent_cannot_be_kept(results):
    assert results["error"] == (
        "denoise=0.5 keeps part of the latent, but the latent is empty; "
        "set denoise to 1, or connect frames to start from"
    )


def test_a_video_without_a_frame_is_refused(results):
    assert results["no frames"] == "frames holds no picture; connect at least one"
    assert results["no latents"] == "the latents hold no frame; sample at least one"


def test_a_little_denoising_runs_a_step(results):
    assert (results["little"] - results["start"]).abs().max() > 1e-3


def test_a_model_is_itself_again_after_a_lora(results):
    assert (results["with lora"] - results["base"]).abs().max() > 1e-3
    assert torch.equal(results["without lora"], results["base"])


def test_a_controlnet_gets_a_row_of_text_for_every_frame(in_comfy, comfy_demo):
    found = in_comfy(control_in_comfy)
    assert found["c_crossattn"].shape[0] == 1
    assert found["crossattn_controlnet"].shape[0] == NUM_FRAMES
    assert torch.equal(found["crossattn_controlnet"][3], found["c_crossattn"][0])
    assert torch.isfinite(found["output"]).all()
