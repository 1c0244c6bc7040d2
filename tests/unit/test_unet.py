"""UNetSD: its keys, layouts, conditioning and independence of videos."""

import itertools
from hashlib import sha256
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from sdvideo_core import attention
from sdvideo_core.attention import Attention, sdpa
from sdvideo_core.blocks import Conditioning, SpatialTransformer, TemporalConv, TemporalTransformer
from sdvideo_core.config import UNetConfig
from sdvideo_core.unet import UNetSD
from tests.numerics import relative_error

CONFIG = UNetConfig(dim=64, context_dim=16, dim_mult=(1, 2), head_dim=16, res_blocks=1)
BATCH, FRAMES = 2, 3


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X = random(BATCH, 4, FRAMES, 6, 5)
TIMESTEPS = torch.tensor([981, 20])
CONTEXT = random(BATCH, 7, CONFIG.context_dim, seed=2)


def make_unet(config: UNetConfig = CONFIG, dtype: torch.dtype = torch.float64, **options) -> UNetSD:
    """In float64, where what is equal in theory is equal to 1e-12."""
    torch.manual_seed(0)
    return UNetSD(config, dtype=dtype, **options).eval()


@pytest.fixture(scope="module")
def unet() -> UNetSD:
    return make_unet()


@pytest.fixture(scope="module")
def expected(unet: UNetSD) -> Tensor:
    with torch.no_grad():
        return unet(X, TIMESTEPS, CONTEXT)


# The weights of the full-size network


@pytest.fixture(scope="module")
def full_size() -> dict[str, Tensor]:
    return UNetSD(UNetConfig(), device="meta").state_dict()


def test_full_size_has_the_published_number_of_tensors_and_parameters(full_size):
    assert len(full_size) == 1480
    assert sum(weight.numel() for weight in full_size.values()) == 1_411_233_860


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("time_embed.0.weight", (1280, 320)),
        ("input_blocks.0.0.weight", (320, 4, 3, 3)),
        ("input_blocks.0.1.norm.weight", (320,)),
        ("input_blocks.0.1.proj_in.weight", (512, 320, 1)),
        ("input_blocks.0.1.proj_out.weight", (320, 512, 1)),
        ("input_blocks.0.1.transformer_blocks.0.attn2.to_k.weight", (512, 512)),
        ("input_blocks.1.0.temopral_conv.conv1.2.weight", (320, 320, 3, 1, 1)),
        ("input_blocks.1.0.temopral_conv.conv4.3.bias", (320,)),
        ("input_blocks.1.1.proj_in.weight", (320, 320)),
        ("input_blocks.1.1.transformer_blocks.0.attn2.to_v.weight", (320, 1024)),
        ("input_blocks.1.1.transformer_blocks.0.ff.net.0.proj.weight", (2560, 320)),
        ("input_blocks.1.2.proj_in.weight", (320, 320, 1)),
        ("input_blocks.3.op.weight", (320, 320, 3, 3)),
        ("input_blocks.4.0.skip_connection.weight", (640, 320, 1, 1)),
        ("input_blocks.11.0.out_layers.3.weight", (1280, 1280, 3, 3)),
        ("middle_block.2.transformer_blocks.0.attn1.to_out.0.weight", (1280, 1280)),
        ("middle_block.3.emb_layers.1.weight", (1280, 1280)),
        ("output_blocks.0.0.in_layers.2.weight", (1280, 2560, 3, 3)),
        ("output_blocks.2.1.conv.weight", (1280, 1280, 3, 3)),
        ("output_blocks.5.3.conv.weight", (1280, 1280, 3, 3)),
        ("output_blocks.8.3.conv.weight", (640, 640, 3, 3)),
        ("output_blocks.11.2.proj_out.weight", (320, 320, 1)),
        ("out.0.weight", (320,)),
        ("out.2.weight", (4, 320, 3, 3)),
    ],
)
def test_full_size_has_the_published_shapes(full_size, key, shape):
    assert full_size[key].shape == shape


# Loading and saving


def test_full_size_has_every_published_key_and_shape(full_size):
    """The digest is of the names and shapes of ModelScope's own UNetSD, built with its configuration.json."""
    lines = sorted(f"{key} {'x'.join(map(str, weight.shape))}" for key, weight in full_size.items())
    digest = sha256("\n".join(lines).encode()).hexdigest()
    assert digest == "2fc535177373c9286b4b6d602735e90aefb4d63cc8ab96653f063f614370d99c"


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("kernel_axes", [True, False], ids=["(out, in, 1)", "(out, in)"])
@torch.no_grad()
def test_a_state_dict_loads_with_and_without_the_kernel_axes(unet, expected, kernel_axes, assign):
    state = unet.state_dict()
    temporal = [key for key, weight in state.items() if weight.ndim == 3]
    assert len(temporal) == 2 * 8
    given = state if kernel_axes else {k: v.squeeze(2) if k in temporal else v for k, v in state.items()}
    shapes = {key: weight.shape for key, weight in given.items()}

    other = UNetSD(CONFIG, dtype=torch.float64, device="meta" if assign else "cpu").eval()
    other.load_state_dict(given, strict=True, assign=assign)
    assert torch.equal(other(X, TIMESTEPS, CONTEXT), expected)
    assert {key: weight.shape for key, weight in given.items()} == shapes
    saved = other.state_dict()
    assert list(saved) == list(state)
    assert all(torch.equal(saved[key], weight) for key, weight in state.items())


@pytest.mark.parametrize("kernel", [2, 3])
def test_a_kernel_of_another_size_is_refused(unet, kernel):
    key = "input_blocks.0.1.proj_in.weight"
    state = unet.state_dict()
    state[key] = state[key].repeat(1, 1, kernel)
    with pytest.raises(RuntimeError, match=f"size mismatch for {key}"):
        make_unet().load_state_dict(state)


# How it is built


def test_layers_come_from_operations():
    names = ("Linear", "Conv2d", "Conv3d", "GroupNorm", "LayerNorm")
    operations = SimpleNamespace(**{name: type(name, (getattr(nn, name),), {}) for name in names})
    unet = make_unet(operations=operations)
    layers = [module for module in unet.modules() if next(module.parameters(recurse=False), None) is not None]
    assert {type(layer) for layer in layers} == set(vars(operations).values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@torch.no_grad()
def test_dtype_is_that_of_weights_and_output(dtype):
    unet = make_unet(dtype=dtype)
    output = unet(X.to(dtype), TIMESTEPS, CONTEXT.to(dtype))
    assert {weight.dtype for weight in unet.parameters()} == {output.dtype} == {dtype}
    assert output.isfinite().all()


@torch.no_grad()
def test_attention_function_is_read_at_every_forward_and_used_by_every_layer(expected):
    calls: list[int] = []

    def recorder(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        calls.append(heads)
        return sdpa(q, k, v, heads)

    unet = make_unet(attention=recorder)
    assert torch.equal(unet(X, TIMESTEPS, CONTEXT), expected)
    assert len(calls) == sum(isinstance(module, Attention) for module in unet.modules())
    unet.attention = lambda q, k, v, heads: torch.zeros_like(q)
    assert relative_error(unet(X, TIMESTEPS, CONTEXT), expected) > 1e-2


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@torch.no_grad()
def test_dropout_is_that_of_the_configuration_while_training(dropout):
    unet = make_unet(UNetConfig(**{**vars(CONFIG), "dropout": dropout}))
    before = unet(X, TIMESTEPS, CONTEXT)
    assert torch.equal(unet.train()(X, TIMESTEPS, CONTEXT), before) == (dropout == 0)
    assert torch.equal(unet.eval()(X, TIMESTEPS, CONTEXT), before)


# What it computes


@pytest.mark.parametrize("max_heads", [1, 5, 64])
@torch.no_grad()
def test_splitting_heads_among_calls_changes_nothing(unet, expected, max_heads, monkeypatch):
    heads: list[int] = []

    def recorder(q: Tensor, k: Tensor, v: Tensor, count: int) -> Tensor:
        heads.append(count)
        return sdpa(q, k, v, count)

    monkeypatch.setattr(attention, "MAX_HEADS", max_heads)
    monkeypatch.setattr(unet, "attention", recorder)
    assert relative_error(unet(X, TIMESTEPS, CONTEXT), expected) <= 1e-12
    assert max(heads) == max_heads


@torch.no_grad()
def test_inputs_are_left_as_they_were(unet):
    inputs = X.clone(), TIMESTEPS.clone(), CONTEXT.clone()
    projected = unet.project_context(inputs[2])
    before = [pair[0].clone() for pair in projected.values()]
    unet(*inputs)
    unet(inputs[0], inputs[1], projected)
    assert all(torch.equal(a, b) for a, b in zip(inputs, (X, TIMESTEPS, CONTEXT), strict=True))
    assert all(torch.equal(pair[0], k) for pair, k in zip(projected.values(), before, strict=True))


@pytest.mark.parametrize("per_frame", [False, True])
@torch.no_grad()
def test_projected_context_equals_the_context_itself(unet, expected, per_frame):
    context = CONTEXT.repeat_interleave(FRAMES, dim=0) if per_frame else CONTEXT
    assert relative_error(unet(X, TIMESTEPS, unet.project_context(context)), expected) <= 1e-12


@torch.no_grad()
def test_a_context_per_frame_is_each_frames_own(unet, expected):
    contexts = CONTEXT.repeat_interleave(FRAMES, dim=0)  # (B*F, N, D)
    assert relative_error(unet(X, TIMESTEPS, contexts), expected) <= 1e-12
    contexts[FRAMES + 1] += 1  # the second frame of the second video
    changed = unet(X, TIMESTEPS, contexts)
    assert relative_error(changed[:1], expected[:1]) <= 1e-12
    change = (changed - expected)[1].flatten(2).norm(dim=(0, 2))
    assert change.argmax() == 1


@torch.no_grad()
def test_a_timestep_per_frame_is_each_frames_own(unet, expected):
    timesteps = TIMESTEPS.repeat_interleave(FRAMES)  # (B*F,)
    assert relative_error(unet(X, timesteps, CONTEXT), expected) <= 1e-12
    timesteps[FRAMES + 2] = 500  # the last frame of the second video
    changed = unet(X, timesteps, CONTEXT)
    assert relative_error(changed[:1], expected[:1]) <= 1e-12
    change = (changed - expected)[1].flatten(2).norm(dim=(0, 2))
    assert change.argmax() == 2


@torch.no_grad()
def test_context_and_timestep_matter(unet, expected):
    assert relative_error(unet(X, TIMESTEPS, CONTEXT.flip(0)), expected) > 1e-2
    assert relative_error(unet(X, TIMESTEPS.flip(0), CONTEXT), expected) > 1e-2


@torch.no_grad()
def test_videos_of_a_batch_do_not_affect_each_other(unet, expected):
    alone = [unet(X[i : i + 1], TIMESTEPS[i : i + 1], CONTEXT[i : i + 1]) for i in range(BATCH)]
    assert relative_error(torch.cat(alone), expected) <= 1e-12


@torch.no_grad()
def test_frames_of_a_video_affect_each_other(unet, expected):
    changed = X.clone()
    changed[0, :, 2] += 1
    change = (unet(changed, TIMESTEPS, CONTEXT) - expected).flatten(3).norm(dim=(1, 3))  # (B, F)
    assert (change[0] > 1e-2).all()
    assert change[1].max() <= 1e-12


@torch.no_grad()
def test_a_reversed_video_under_reversed_temporal_kernels_is_the_video_reversed(expected):
    unet = make_unet()
    for module in unet.modules():
        if isinstance(module, nn.Conv3d):
            module.weight.copy_(module.weight.flip(2))
    assert relative_error(unet(X.flip(2), TIMESTEPS, CONTEXT).flip(2), expected) <= 1e-12


@pytest.mark.parametrize("order", list(itertools.permutations(range(FRAMES)))[1:], ids=str)
@pytest.mark.parametrize(
    ("transformer", "shape"), [(TemporalTransformer, (64, 3, 8)), (SpatialTransformer, (64, CONFIG.context_dim, 32))]
)
@torch.no_grad()
def test_transformers_know_no_order_of_frames(transformer, shape, order):
    torch.manual_seed(0)
    block = transformer(*shape).double()
    frames = random(BATCH, FRAMES, 64, 4, 5)
    cond = Conditioning(torch.empty(0), CONTEXT, (BATCH, FRAMES), sdpa)

    def run(x: Tensor) -> Tensor:
        h = block(x.flatten(0, 1).contiguous(memory_format=torch.channels_last), cond)
        return h.unflatten(0, (BATCH, FRAMES))

    assert relative_error(run(frames[:, list(order)]), run(frames)[:, list(order)]) <= 1e-12


@torch.no_grad()
def test_temporal_convolution_knows_the_order_of_frames_and_mixes_no_pixels():
    torch.manual_seed(0)
    conv = TemporalConv(64, 0.1).double().eval()
    frames = random(BATCH * FRAMES, 64, 4, 5).contiguous(memory_format=torch.channels_last)
    output = conv(frames, (BATCH, FRAMES))
    mirrored = conv(frames.flip(3).contiguous(memory_format=torch.channels_last), (BATCH, FRAMES))
    assert relative_error(mirrored.flip(3), output) <= 1e-12
    swapped = conv(frames.flip(0).contiguous(memory_format=torch.channels_last), (BATCH, FRAMES))
    assert relative_error(swapped.flip(0), output) > 1e-2
