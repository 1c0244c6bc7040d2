"""Attention patches act on the transformers of frames as they do on ComfyUI's own, and stock nodes that need them work.

ComfyUI's side is computed in one child for the whole file.
"""

import pytest
import torch

NUM_FRAMES, SIZE = 4, 128  # latents of 16x16: attention at 16x16 and 8x8
DIM, HEADS, CONTEXT_DIM, FRAMES, TOKENS = 32, 2, 24, 6, 16
HERE, BLOCK = ("middle", 0, 0), ("middle", 0)

# Kinds of patches, and the fields of transformer_options they are in. `attn1_patch` lets k be another tensor than q,
# as HyperTile does, and v another than k; `shorter` leaves fewer queries, as ToMe does.
CASES = {
    "none": {},
    "attn1_patch": {"patches": {"attn1_patch": ["mix"]}},
    "attn1_patch twice": {"patches": {"attn1_patch": ["mix", "mix"]}},
    "attn1_output_patch": {"patches": {"attn1_output_patch": ["double"]}},
    "fewer queries": {"patches": {"attn1_patch": ["shorter"], "attn1_output_patch": ["longer"]}},
    "middle_patch": {"patches": {"middle_patch": ["double"]}},
    "attn2_patch": {"patches": {"attn2_patch": ["mix"]}},
    "attn2_patch without values": {"patches": {"attn2_patch": ["no_values"]}},
    "attn2_output_patch": {"patches": {"attn2_output_patch": ["double"]}},
    "a note": {"patches": {"attn1_patch": ["write"], "attn2_output_patch": ["read"]}},
    "attn1 replaced in the block": {"patches_replace": {"attn1": {BLOCK: "values"}}},
    "attn1 replaced in the transformer": {"patches_replace": {"attn1": {HERE: "values", BLOCK: "fail"}}},
    "attn2 replaced": {"patches_replace": {"attn2": {HERE: "queries"}}},
    "replaced elsewhere": {"patches_replace": {"attn1": {("output", 3): "fail"}, "attn2": {("input", 1, 0): "fail"}}},
    "all": {
        "patches": {"attn1_patch": ["mix"], "middle_patch": ["double"], "attn2_patch": ["mix"]},
        "patches_replace": {"attn2": {BLOCK: "queries"}},
    },
}


def write(q, k, v, options):
    options["note"] = 3.0
    return q, k, v


def read(x, options):
    return x * options["note"]


def fail(*_):
    raise AssertionError("a patch of another block")


def patch_functions(seen):
    """By name; each notes the shapes it saw and what it was told."""

    def told(options, *tensors):
        keys = ("n_heads", "dim_head", "block", "block_index", "cond_or_uncond")
        seen.append([[list(tensor.shape) for tensor in tensors], {key: options[key] for key in keys}, sorted(options)])

    def mix(q, k, v, options):
        told(options, q, k, v)
        return q * 1.5, k.flip(1), v * 0.5

    def no_values(q, k, v, options):
        return q, k * 2, None

    def double(x, options):
        told(options, x)
        return x * 2

    def shorter(q, k, v, options):
        return q[:, ::2], k, v

    def longer(x, options):
        return x.repeat_interleave(2, dim=1)

    def values(q, k, v, options):
        told(options, q, k, v)
        return v

    def queries(q, k, v, options):
        told(options, q, k, v)
        return q

    functions = (mix, no_values, double, shorter, longer, write, read, values, queries, fail)
    return {function.__name__: function for function in functions}


def transformer_options(case, functions):
    options = {"block": BLOCK, "block_index": 0, "cond_or_uncond": [1, 0]}
    options["patches"] = {key: [functions[name] for name in names] for key, names in case.get("patches", {}).items()}
    replaced = case.get("patches_replace", {})
    options["patches_replace"] = {
        key: {tuple(place): functions[name] for place, name in places.items()} for key, places in replaced.items()
    }
    return options


def compare_blocks():
    """For every case: a block of ours and ComfyUI's own with the same weights, and what the patches in them saw."""
    import comfy.ops
    from comfy.ldm.modules.attention import BasicTransformerBlock
    from sdvideo.nodes.comfy_bridge.attention_patches import ComfyAttention, PatchedSpatialTransformer
    from sdvideo.sdvideo_core.blocks import Conditioning

    generator = torch.Generator().manual_seed(0)
    ops = comfy.ops.disable_weight_init
    ours = PatchedSpatialTransformer(DIM, CONTEXT_DIM, DIM // HEADS, ops)
    (block,) = ours.transformer_blocks
    for weight in block.parameters():
        weight.copy_(torch.randn(weight.shape, generator=generator) / 4)
    theirs = BasicTransformerBlock(DIM, HEADS, DIM // HEADS, context_dim=CONTEXT_DIM, operations=ops)
    theirs.load_state_dict(block.state_dict(), strict=True)
    tokens = torch.randn(FRAMES, TOKENS, DIM, generator=generator)
    context = torch.randn(2, 77, CONTEXT_DIM, generator=generator)  # two videos of three frames, a row each
    rows = context.repeat_interleave(FRAMES // 2, dim=0)
    results, rows_of_text = {}, []
    block.attn2.to_k.register_forward_pre_hook(lambda _layer, args: rows_of_text.append(len(args[0])))
    for name, case in CASES.items():
        rows_of_text.clear()
        for kind in ("ours", "theirs"):
            results[f"{kind}, {name}, seen"] = seen = []
            options = transformer_options(case, patch_functions(seen))
            if kind == "ours":
                cond = Conditioning(torch.empty(0), context, (2, FRAMES // 2), ComfyAttention(options))
                results[f"{kind}, {name}"] = ours.transform(block, tokens.clone(), cond)
            else:
                results[f"{kind}, {name}"] = theirs(tokens.clone(), rows, options)
        results[f"rows of text, {name}"] = list(rows_of_text)
    return results


def sample_with_nodes():
    """Samples of models that stock nodes patch, and the shapes and places that an attention patch saw."""
    from comfy_extras.nodes_hypertile import HyperTile
    from comfy_extras.nodes_pag import PerturbedAttentionGuidance
    from comfy_extras.nodes_sag import SelfAttentionGuidance
    from comfy_extras.nodes_tomesd import TomePatchModel

    from tests.comfy import called_nodes as calls

    model, clip, _ = calls.load()
    conditioning, latent = calls.encode(clip), calls.empty(SIZE, SIZE, NUM_FRAMES)
    seen, noted = [], model.clone()

    def note(q, k, v, options):
        seen.append([*options["block"], options["transformer_index"], list(q.shape), options["activations_shape"]])
        return q, k, v

    noted.set_model_attn1_patch(note)
    patched = {
        "base": (model,),
        "ToMe 0": calls.call(TomePatchModel, model, 0.0),
        "ToMe": calls.call(TomePatchModel, model, 0.5),
        "HyperTile": calls.call(HyperTile, model, 32, 2, 1, False),
        "HyperTile of one tile": calls.call(HyperTile, model, 2048, 2, 1, False),
        "PAG 0": calls.call(PerturbedAttentionGuidance, model, 0.0),
        "PAG": calls.call(PerturbedAttentionGuidance, model, 3.0),
        "SAG 0": calls.call(SelfAttentionGuidance, model, 0.0, 2.0),
        "SAG": calls.call(SelfAttentionGuidance, model, 0.5, 2.0),
        "noted": (noted,),
    }
    samples = {name: calls.sample(other, conditioning, latent) for name, (other,) in patched.items()}
    return {**samples, "seen": seen}


@pytest.fixture(scope="module")
def blocks(in_comfy, comfy_demo):
    return in_comfy(compare_blocks)


@pytest.fixture(scope="module")
def samples(in_comfy, comfy_demo):
    return in_comfy(sample_with_nodes)


def relative_error(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", CASES)
def test_a_patched_block_is_comfyui_s_own(blocks, name):
    assert relative_error(blocks[f"ours, {name}"], blocks[f"theirs, {name}"]) <= 1e-5
    if name not in ("none", "replaced elsewhere"):
        assert relative_error(blocks[f"ours, {name}"], blocks["ours, none"]) > 1e-2


@pytest.mark.parametrize("name", CASES)
def test_patches_see_what_comfyui_s_own_block_shows_them(blocks, name):
    assert blocks[f"ours, {name}, seen"] == blocks[f"theirs, {name}, seen"]


@pytest.mark.parametrize("name", CASES)
def test_a_prompt_is_projected_once_a_video_unless_its_attention_is_patched(blocks, name):
    patched = any(kind in ("attn2_patch", "attn2") for field in CASES[name].values() for kind in field)
    of_this_block = name != "replaced elsewhere"
    assert blocks[f"rows of text, {name}"] == [FRAMES if patched and of_this_block else 2]


@pytest.mark.parametrize("name", ["ToMe", "HyperTile", "PAG", "SAG"])
def test_stock_nodes_change_the_video(samples, name):
    assert torch.isfinite(samples[name]).all()
    assert relative_error(samples[name], samples["base"]) > 1e-3


@pytest.mark.parametrize("name", ["ToMe 0", "HyperTile of one tile", "PAG 0", "SAG 0", "noted"])
def test_without_effect_they_leave_it_as_it_is(samples, name):
    assert relative_error(samples[name], samples["base"]) <= 1e-5


def test_a_patch_sees_tokens_of_frames_and_where_they_are(samples):
    places = (("input", 1, 16), ("input", 3, 8), ("middle", 0, 8), ("output", 0, 8), ("output", 1, 8))
    seen = samples["seen"][: len(samples["seen"]) // 2]  # of the first of two steps
    assert [[name, index] for name, index, *_ in seen][:5] == [[name, index] for name, index, _ in places]
    assert [transformer for _, _, transformer, *_ in seen] == list(range(len(seen)))
    for (*_, side), (*_, tokens, activations) in zip(places, seen, strict=False):
        assert tokens[:2] == [2 * NUM_FRAMES, side * side]
        assert activations == [2 * NUM_FRAMES, tokens[2], side, side]
