"""TextEncoder against open_clip's own text forward, read one block before its end."""

import warnings

import open_clip
import pytest
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from sdvideo_core.checkpoint import CheckpointError, load_text_encoder
from sdvideo_core.config import TextConfig
from sdvideo_core.text_encoder import TextEncoder
from tests.numerics import relative_error

CONFIGS = {
    "three blocks": TextConfig(width=64, layers=3, heads=4),
    "two wide blocks": TextConfig(width=96, layers=2, heads=2),
    "short context": TextConfig(width=32, layers=4, heads=4, context_length=16),
}
PROMPTS = {
    "plain": "a panda eats bamboo on a rock",
    "empty": "",
    "punctuation": "A  CAT,\n(the black one) &amp; 2 dogs: 50% off!",
    "unicode": "ein Bär im Fluß, 夕焼けの海, здравствуй 🐼",
    "longer than the context": "a very long walk " * 60,
}
TOGETHER = list(PROMPTS.values())

pytestmark = pytest.mark.filterwarnings("ignore:a prompt has .* tokens and is cut")


def open_clip_model(config: TextConfig) -> CLIP:
    text = CLIPTextCfg(
        context_length=config.context_length,
        vocab_size=config.vocab_size,
        width=config.width,
        heads=config.heads,
        layers=config.layers,
    )
    vision = CLIPVisionCfg(layers=1, width=32, head_width=32, patch_size=8, image_size=16)
    return CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text).eval()


def is_read(key: str, last_block: int) -> bool:
    """Whether a weight of open_clip's model bears on its text before the last block."""
    last, others = f"transformer.resblocks.{last_block}.", ("visual.", "text_projection", "logit_scale")
    return not key.startswith((last, *others))


def pair(config: TextConfig) -> tuple[TextEncoder, CLIP]:
    torch.manual_seed(0)
    reference = open_clip_model(config)
    with torch.no_grad():
        for weight in reference.parameters():  # its own small values would hide a position or a bias left out
            weight.add_(0.1 * torch.randn_like(weight))
    encoder = TextEncoder(config).eval()
    state = {k: v for k, v in reference.state_dict().items() if is_read(k, config.layers - 1)}
    encoder.load_state_dict(state, strict=True)
    return encoder, reference


@pytest.fixture(scope="module", params=CONFIGS.values(), ids=CONFIGS.keys())
def encoders(request: pytest.FixtureRequest) -> tuple[TextEncoder, CLIP]:
    return pair(request.param)


def penultimate(reference: CLIP, prompts: list[str]) -> Tensor:
    """What open_clip's own forward hands to its last block, normalised by its last norm."""
    seen: list[Tensor] = []
    block = reference.transformer.resblocks[-2]
    hook = block.register_forward_hook(lambda _module, _args, output: seen.append(output))
    reference.encode_text(SimpleTokenizer(context_length=reference.context_length)(prompts))
    hook.remove()
    return reference.ln_final(seen[0])


@pytest.mark.parametrize("prompts", [*([prompt] for prompt in TOGETHER), TOGETHER], ids=[*PROMPTS, "several at once"])
@torch.no_grad()
def test_output(encoders, prompts):
    encoder, reference = encoders
    output = encoder(prompts)
    assert output.shape == (len(prompts), encoder.config.context_length, encoder.config.width)
    assert relative_error(output, penultimate(reference, prompts)) <= 1e-5


@pytest.mark.parametrize(("width", "heads"), [(128, 2), (256, 4), (512, 8)])
@torch.no_grad()
def test_a_file_of_open_clips_tells_the_shape_of_its_tower(tmp_path, width, heads):
    config = TextConfig(width=width, layers=2, heads=heads)
    _, reference = pair(config)
    torch.save(reference.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    encoder = load_text_encoder(tmp_path / "open_clip_pytorch_model.bin")
    assert encoder.config == config
    assert relative_error(encoder(TOGETHER), penultimate(reference, TOGETHER)) <= 1e-5


def test_a_tower_whose_heads_are_of_another_width_is_refused(tmp_path):
    config = TextConfig(width=1152, layers=1, heads=16, vocab_size=8)
    torch.save(open_clip_model(config).state_dict(), tmp_path / "tower.bin")
    with pytest.raises(CheckpointError, match=r"tower.bin is a text tower 1152 wide, as SigLIP.*; expected a CLIP"):
        load_text_encoder(tmp_path / "tower.bin")


def test_every_other_tower_of_open_clip_has_heads_64_wide():
    towers = [open_clip.get_model_config(name)["text_cfg"] for name in open_clip.list_models()]
    own = [(tower["width"], tower["heads"]) for tower in towers if {"width", "heads"} <= tower.keys()]
    assert len(own) > 50
    assert {width for width, heads in own if width != 64 * heads} == {1152}


@torch.no_grad()
def test_every_prompt_matters_and_is_the_same_alone_and_among_others(encoders):
    encoder, _ = encoders
    together = encoder(TOGETHER)
    for index, prompt in enumerate(TOGETHER):
        assert relative_error(encoder([prompt]), together[index : index + 1]) <= 1e-5
        for other in range(index):
            assert relative_error(together[other], together[index]) > 1e-2


@torch.no_grad()
def test_text_beyond_the_context_is_cut(encoders):
    encoder, _ = encoders
    length = encoder.config.context_length - 2  # the first token and the last one mark start and end
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        full = encoder(["cat " * length])
    with pytest.warns(UserWarning, match=f"^a prompt has {length + 1} tokens and is cut to {length}; shorten 'cat "):
        assert torch.equal(encoder(["cat " * length + "dog"]), full)
    assert not torch.equal(encoder(["cat " * (length - 1) + "dog"]), full)


@torch.no_grad()
def test_a_token_sees_no_later_ones(encoders):
    encoder, _ = encoders
    cat, dog = encoder(["a big cat", "a big dog"])
    assert relative_error(cat[:3], dog[:3]) <= 1e-6
    assert relative_error(cat[3], dog[3]) > 1e-2


@pytest.mark.parametrize("config", [TextConfig(), *CONFIGS.values()], ids=["ViT-H-14", *CONFIGS.keys()])
def test_keys_and_shapes_are_open_clips_less_what_never_runs(config):
    with torch.device("meta"):
        encoder, reference = TextEncoder(config), open_clip_model(config)
    expected = {key: value.shape for key, value in reference.state_dict().items() if is_read(key, config.layers - 1)}
    assert {key: value.shape for key, value in encoder.state_dict().items()} == expected
    assert f"transformer.resblocks.{config.layers - 2}.mlp.c_fc.weight" in expected
    assert len(expected) == 4 + 12 * (config.layers - 1)
