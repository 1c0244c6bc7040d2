"""MODEL, CLIP and VAE are native: batching, masks, prompt travel, patches, wrappers and LoRA reach the UNet.

ComfyUI's side is computed in one child for the whole file.
"""

import pytest
import torch
from safetensors.torch import save_file

from sdvideo_core.checkpoint import load_unet

NUM_FRAMES, SIZE = 4, 64
LATENT = (NUM_FRAMES, 4, SIZE // 8, SIZE // 8)
CONTEXT = (1, 77, 64)

# Layers of every kind: Linear in space and in time, Linear that files hold as Conv1d, and Conv3d.
LORA_LAYERS = {
    "spatial": "input_blocks.1.1.transformer_blocks.0.attn2.to_k",
    "temporal": "input_blocks.1.2.transformer_blocks.0.attn1.to_q",
    "temporal projection": "input_blocks.1.2.proj_in",
    "temporal convolution": "input_blocks.1.0.temopral_conv.conv2.3",
}
TEXT_LAYER = "lora_te_text_model_encoder_layers_0_mlp_fc1"
RANK, ALPHA, STRENGTH = 2, 1.0, 0.8

KINDS = ("MODEL", "CLIP", "VAE")


def call_unet(unet, x, y, context, context_2):
    """The UNet called with every layout of frames, videos, chunks and contexts that ComfyUI may choose."""
    t, chunks = torch.full((NUM_FRAMES,), 500.0), {"cond_or_uncond": [1, 0]}
    both, video, video_2 = torch.cat([context, context_2]), as_video(x), as_video(y)
    rows = both.repeat_interleave(NUM_FRAMES, dim=0)
    return {
        "frames": unet(x, t, context),
        "frames, a row each": unet(x, t, rows[:NUM_FRAMES]),
        "video": as_frames(unet(video, t[:1], context)),
        "second frames": unet(y, t, context_2),
        "chunks": unet(torch.cat([x, y]), t.repeat(2), both, transformer_options=chunks),
        "chunks, a row each": unet(torch.cat([x, y]), t.repeat(2), rows, transformer_options=chunks),
        "videos": as_frames(unet(torch.cat([video, video_2]), t[:2], both)),
        "videos in chunks": as_frames(unet(torch.cat([video, video_2]), t[:2], both, transformer_options=chunks)),
    }


def as_video(frames):
    return frames.transpose(0, 1)[None]


def as_frames(videos):
    return videos.transpose(1, 2).flatten(0, 1)


def sample_with_settings(calls, model, clip, latents):
    """Samples under conditions that ComfyUI handles itself, as long as the UNet plays along."""
    import nodes

    latent, pair = calls.empty(SIZE, SIZE, NUM_FRAMES), calls.encode(clip)
    other = calls.encode(clip, negative="something else")
    row, row_negative = (conditioning[0][0] for conditioning in pair)  # (1, 77, 64)
    travel = torch.linspace(0, 1, NUM_FRAMES)[:, None, None]
    two, varied = torch.cat([row, row_negative]), row.lerp(row_negative, travel)
    equal, equal_negative = (rows.expand(NUM_FRAMES, -1, -1) for rows in (row, row_negative))
    mask = torch.ones(NUM_FRAMES, SIZE, SIZE)
    mask[:2] = 0
    (masked,) = nodes.SetLatentNoiseMask().set_mask({"samples": latents}, mask)
    stock = nodes.common_ksampler(model, 0, 2, 9.0, "euler", "normal", *pair, masked)
    videos = as_video(latents).repeat(2, 1, 1, 1, 1)
    return {
        "base": calls.sample(model, pair, latent),
        "other negative": calls.sample(model, other, latent),
        "cfg 1": calls.sample(model, pair, latent, cfg=1.0),
        "cfg 1, other negative": calls.sample(model, other, latent, cfg=1.0),
        "equal rows": calls.sample(model, ([[equal, {}]], pair[1]), latent),
        "equal rows in both": calls.sample(model, ([[equal, {}]], [[equal_negative, {}]]), latent),
        "varied rows": calls.sample(model, ([[varied, {}]], pair[1]), latent),
        "two rows": calls.sample(model, ([[two, {}]], pair[1]), latent),
        "two rows, repeated": calls.sample(model, ([[two.repeat(NUM_FRAMES // 2, 1, 1), {}]], pair[1]), latent),
        "long prompt": calls.sample(model, calls.encode(clip, "a red circle " * 40), latent),
        "masked": calls.sample(model, pair, masked),
        "masked, KSampler": stock[0]["samples"],
        "denoise 0": calls.sample(model, pair, {"samples": latents}, denoise=0.0),
        "two videos": calls.sample(model, pair, {"samples": videos}, denoise=0.5),
        "largest seed": calls.sample(model, pair, latent, seed=2**64 - 2, eta=1.0),
    }


def sample_with_patches(calls, model, clip):
    """Samples of models with patches, and what the patches saw."""
    import comfy.patcher_extension
    from comfy_extras.nodes_easycache import EasyCacheNode
    from comfy_extras.nodes_freelunch import FreeU_V2

    conditioning, latent = calls.encode(clip), calls.empty(SIZE, SIZE, NUM_FRAMES)
    blocks, attentions, batches = [], [], []

    def wrapper(executor, x, *arguments, **named):
        batches.append(len(x))
        return executor(x, *arguments, **named)

    def attention(function, *arguments, **named):
        attentions.append(arguments[0].shape[1])
        return function(*arguments, **named)

    def block(h, options):
        blocks.append([*options["block"], *options["original_shape"]])
        return h * 1.1

    results = {}
    wrapped, attended, blocked = model.clone(), model.clone(), model.clone()
    wrapped.add_wrapper(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, wrapper)
    attended.model_options["transformer_options"]["optimized_attention_override"] = attention
    blocked.set_model_input_block_patch(block)
    for name, patched in {"wrapped": wrapped, "attended": attended, "input block": blocked}.items():
        results[name] = calls.sample(patched, conditioning, latent)
    calls.sample(wrapped, conditioning, latent, cfg=1.0)
    (free,) = calls.call(FreeU_V2, model, 1.3, 1.4, 0.9, 0.2)
    (cached,) = calls.call(EasyCacheNode, model, 10.0, 0.0, 1.0, False)
    results["FreeU"] = calls.sample(free, conditioning, latent)
    results["EasyCache"] = calls.sample(cached, conditioning, latent, steps=8)
    results["no EasyCache"] = calls.sample(model, conditioning, latent, steps=8)
    return {**results, "batches": batches, "attentions": attentions, "blocks": blocks}


def clones(calls, model, clip, vae):
    """Whether the copies that ComfyUI makes of a model in dynamic memory, to have one in plain memory, are right."""
    import comfy.model_patcher

    plain, before = (model, clip.patcher, vae.patcher), comfy.model_patcher.CoreModelPatcher
    calls.use_dynamic_memory()
    model, clip, vae = calls.load()
    right = {}
    for kind, expected, patcher in zip(KINDS, plain, (model, clip.patcher, vae.patcher), strict=True):
        copy = patcher.clone(disable_dynamic=True)
        found, wanted = copy.model.state_dict(), expected.model.state_dict()
        same = [torch.equal(found[key], wanted[key]) and found[key].dtype == wanted[key].dtype for key in wanted]
        right[kind] = patcher.is_dynamic() and not copy.is_dynamic() and found.keys() == wanted.keys() and all(same)
    comfy.model_patcher.CoreModelPatcher = before
    return right


def sample_with_loras(calls, model, clip, x, context):
    """For every LoRA file: what the UNet and a sampler return with it, and the sampler at strength 0."""
    import comfy.model_management

    import nodes

    conditioning, latent = calls.encode(clip), calls.empty(SIZE, SIZE, NUM_FRAMES)
    results = {}
    for name in (*LORA_LAYERS, "text"):
        loader = nodes.LoraLoader()
        strong, strong_clip = loader.load_lora(model, clip, f"{name}.safetensors", STRENGTH, STRENGTH)
        comfy.model_management.load_models_gpu([strong])
        results[f"unet, {name}"] = strong.model.diffusion_model(x, torch.full((NUM_FRAMES,), 500.0), context)
        results[name] = calls.sample(strong, conditioning, latent)
        results[f"text, {name}"] = calls.encode(strong_clip)[0][0][0]
    return {**results, "text, base": calls.encode(clip)[0][0][0]}


def compute_in_comfy(x, y, context, context_2):
    from tests.comfy import called_nodes as calls

    model, clip, vae = calls.load()
    return {
        **call_unet(model.model.diffusion_model, x, y, context, context_2),
        **sample_with_settings(calls, model, clip, x),
        **sample_with_patches(calls, model, clip),
        "clones": clones(calls, model, clip, vae),
        **{f"lora {name}": value for name, value in sample_with_loras(calls, model, clip, x, context).items()},
    }


@pytest.fixture(scope="module")
def inputs():
    generator = torch.Generator().manual_seed(3)
    shapes = {"x": LATENT, "y": LATENT, "context": CONTEXT, "context_2": CONTEXT}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def unet(comfy_demo):
    return load_unet(comfy_demo)


@pytest.fixture(scope="module")
def loras(comfy_base, unet):
    """Layer -> (up, down) of a LoRA file of that name in models/loras, with the names that kohya's trainer gives."""
    folder, generator = comfy_base / "models" / "loras", torch.Generator().manual_seed(4)
    folder.mkdir(exist_ok=True)
    shapes = {name: unet.state_dict()[f"{layer}.weight"].shape for name, layer in LORA_LAYERS.items()}
    keys = {name: f"lora_unet_{layer.replace('.', '_')}" for name, layer in LORA_LAYERS.items()}
    matrices = {}
    for name, (out, inner, *kernel) in {**shapes, "text": (256, 64)}.items():
        up = torch.randn(out, RANK, *(1 for _ in kernel), generator=generator)
        down = torch.randn(RANK, inner, *kernel, generator=generator)
        key = keys.get(name, TEXT_LAYER)
        tensors = {"lora_up.weight": up, "lora_down.weight": down, "alpha": torch.tensor(ALPHA)}
        save_file({f"{key}.{part}": tensor for part, tensor in tensors.items()}, folder / f"{name}.safetensors")
        matrices[name] = up, down
    return matrices


@pytest.fixture(scope="module")
def results(in_comfy, inputs, loras):
    return in_comfy(compute_in_comfy, **inputs)


def assert_equal(found, expected, tolerance=1e-5):
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


def assert_different(found, expected):
    assert torch.isfinite(found).all()
    assert (found - expected).abs().max() > 1e-3 * expected.abs().max()


def test_the_unet_is_core_s(results, inputs, unet):
    with torch.no_grad():
        video = unet(as_video(inputs["x"]), torch.tensor([500]), inputs["context"])
    assert_equal(results["frames"], as_frames(video))


@pytest.mark.parametrize("layout", ["video", "frames, a row each"])
def test_frames_and_videos_of_five_axes_are_the_same(results, layout):
    assert_equal(results[layout], results["frames"])


@pytest.mark.parametrize("layout", ["chunks", "chunks, a row each", "videos", "videos in chunks"])
def test_videos_of_a_batch_do_not_mix(results, layout):
    separate = torch.cat([results["frames"], results["second frames"]])
    assert_different(results["frames"], results["second frames"])
    assert_equal(results[layout], separate)


def test_cfg_1_is_the_prompt_alone(results):
    assert_different(results["other negative"], results["base"])
    assert torch.equal(results["cfg 1, other negative"], results["cfg 1"])
    # Two steps with both prompts in a batch, then two with one.
    assert results["batches"] == [2 * NUM_FRAMES, 2 * NUM_FRAMES, NUM_FRAMES, NUM_FRAMES]


@pytest.mark.parametrize("rows", ["equal rows", "equal rows in both"])
def test_a_prompt_for_each_frame_that_is_the_same_is_one_prompt(results, rows):
    assert_equal(results[rows], results["base"])


def test_prompts_for_fewer_frames_are_repeated_as_by_other_models(results):
    assert_different(results["two rows"], results["base"])
    assert_equal(results["two rows"], results["two rows, repeated"])


def test_a_prompt_may_travel_and_be_long(results):
    assert_different(results["varied rows"], results["base"])
    assert_different(results["long prompt"], results["base"])


@pytest.mark.parametrize("sampler", ["masked", "masked, KSampler"])
def test_masked_frames_stay(results, inputs, sampler):
    assert_equal(results[sampler][:2], inputs["x"][:2])
    assert_different(results[sampler][2:], inputs["x"][2:])


def test_denoise_0_returns_the_latents(results, inputs):
    assert torch.equal(results["denoise 0"], inputs["x"])


def test_latents_of_five_axes_are_sampled(results):
    videos = results["two videos"]
    assert videos.shape == (2, 4, NUM_FRAMES, *LATENT[2:])
    assert_different(videos[0], videos[1])


def test_the_largest_seed_works_with_fresh_noise(results):
    assert_different(results["largest seed"], results["base"])


def test_wrappers_and_attention_overrides_are_called(results):
    assert_equal(results["wrapped"], results["base"])
    assert_equal(results["attended"], results["base"])
    # Attention in time is among what an override sees: as many tokens as frames.
    assert NUM_FRAMES in results["attentions"]
    assert LATENT[2] * LATENT[3] in results["attentions"]


def test_block_patches_change_the_video_and_see_where_they_are(results, unet):
    assert_different(results["input block"], results["base"])
    shape = [2 * NUM_FRAMES, *LATENT[1:]]
    once = [["input", index, *shape] for index in range(len(unet.input_blocks))]
    assert results["blocks"] == once * 2


def test_stock_patch_nodes_work(results):
    assert_different(results["FreeU"], results["base"])
    assert_different(results["EasyCache"], results["no EasyCache"])


@pytest.mark.parametrize("kind", KINDS)
def test_copies_out_of_dynamic_memory_have_the_same_weights(results, kind):
    assert results["clones"][kind]


@pytest.mark.parametrize("name", LORA_LAYERS)
def test_a_lora_acts_as_if_merged_into_the_weights(results, inputs, loras, unet, comfy_demo, name):
    up, down = loras[name]
    merged, key = load_unet(comfy_demo), f"{LORA_LAYERS[name]}.weight"
    weights = dict(merged.state_dict())
    change = up.flatten(1) @ down.flatten(1) * STRENGTH * ALPHA / RANK
    weights[key] = weights[key] + change.reshape(weights[key].shape)
    merged.load_state_dict(weights)
    with torch.no_grad():
        expected = as_frames(merged(as_video(inputs["x"]), torch.tensor([500]), inputs["context"]))
    assert_equal(results[f"lora unet, {name}"], expected)
    assert_different(results[f"lora unet, {name}"], results["frames"])
    assert_different(results[f"lora {name}"], results["base"])


def test_a_lora_of_the_text_encoder_changes_the_prompt(results):
    assert_different(results["lora text, text"], results["lora text, base"])
    assert torch.equal(results["lora text, spatial"], results["lora text, base"])
