"""LoRA files that are wrong: what is said of them."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdvideo_core.checkpoint import CheckpointError
from sdvideo_core.lora import LoRA, save_lora
from sdvideo_core.lora_files import read_lora
from sdvideo_core.unet import UNetSD
from tests.unit.small_lora import exactly, make_unet, rewrite, save_three_layers


@pytest.fixture(scope="module")
def unet() -> UNetSD:
    return make_unet()


@pytest.fixture
def file(tmp_path: Path, unet: UNetSD) -> Path:
    return save_three_layers(tmp_path, unet)


def test_a_missing_file(tmp_path, unet):
    path = tmp_path / "nowhere.safetensors"
    with pytest.raises(FileNotFoundError, match=exactly(f"{path} is not a file; expected a LoRA")):
        LoRA.from_file(unet, path)


EMPTY = {  # as two that are public: 16 and 104 bytes
    "16 bytes.safetensors": lambda path: save_file({}, path),
    "104 bytes.safetensors": lambda path: save_file({}, path, {"stable_lora_text_to_video": "v1"}),
    "list.pt": lambda path: torch.save([], path),
    "dict.bin": lambda path: torch.save({}, path),
}


@pytest.mark.parametrize("name", EMPTY)
def test_an_empty_file(tmp_path, unet, name):
    path = tmp_path / name
    EMPTY[name](path)
    message = f"{path}: this LoRA contains no tensors; download it again, or get another file"
    with pytest.raises(CheckpointError, match=exactly(message)):
        LoRA.from_file(unet, path)


def test_a_damaged_file(file, unet):
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(file))} cannot be read"):
        LoRA.from_file(unet, file)


FOLDER_STEMS = ("adapter_model", "pytorch_lora_weights")
OURS = "expected a LoRA for ModelScope, ZeroScope or a relative"
UP_DOWN = (".lora_up.weight", ".lora_down.weight")
OTHER_MODELS = [
    (
        ["lora_unet_a.lora_up.weight", "lora_unet_a.lora_down.weight"],
        "is a LoRA in kohya's format of another model: none of its 1 layers (lora_unet_a) is one of this model's; "
        f"{OURS}",
    ),
    (
        [f"lora_unet_{name}{part}" for name in ("double_blocks_0_img_attn_qkv", "b", "c") for part in UP_DOWN],
        "is a LoRA in kohya's format for Flux or HunyuanVideo, by the names of its 3 layers (lora_unet_b, lora_unet_c, "
        f"...); {OURS}",
    ),
    (
        [f"down_blocks.0.motion_modules.0.x.processor.to_q_lora.{part}.weight" for part in ("up", "down")],
        "is a LoRA in diffusers' format for AnimateDiff, by the names of its 1 layers "
        f"(down_blocks.0.motion_modules.0.x.processor.to_q); {OURS}",
    ),
    (
        [f"diffusion_model.blocks.0.cross_attn.k.lora_{part}.weight" for part in "AB"],
        "is a LoRA in diffusers' format for Wan, by the names of its 1 layers (diffusion_model.blocks.0.cross_attn.k); "
        f"{OURS}",
    ),
    (  # of which a layer has a name of ours
        [f"lora_unet_input_blocks_1_1_transformer_blocks_{n}_attn1_to_q{part}" for n in (0, 1) for part in UP_DOWN],
        "is a LoRA in kohya's format for SDXL, by the names of its 2 layers (lora_unet_input_blocks_1_1_"
        "transformer_blocks_0_attn1_to_q, lora_unet_input_blocks_1_1_transformer_blocks_1_attn1_to_q); " + OURS,
    ),
]
NO_PAIRS = [
    ("decoder.up.0.weight", "an autoencoder"),
    ("unet.mid_block.attn.lora.weight", "a LoRA"),
    ("something", "unknown (its first tensor is something)"),
]


@pytest.mark.parametrize(("keys", "message"), OTHER_MODELS)
def test_a_lora_of_another_model(tmp_path, unet, keys, message):
    path = tmp_path / "lora.safetensors"
    save_file({key: torch.ones(1, 1) for key in keys}, path)
    with pytest.raises(CheckpointError, match=exactly(f"{path} {message}")):
        LoRA.from_file(unet, path)


TEXT_ONLY = {
    "names.safetensors": lambda path: save_file(
        {f"lora_te_text_model_encoder_layers_{n}_mlp_fc1{part}": torch.ones(1, 1) for n in (0, 23) for part in UP_DOWN},
        path,
    ),
    "list.pt": lambda path: torch.save([torch.ones(1024, 2), torch.ones(2, 1024)] * 2, path),
}


@pytest.mark.parametrize(
    ("name", "kind", "layers"),
    [
        (
            "names.safetensors",
            "kohya's format",
            "lora_te_text_model_encoder_layers_0_mlp_fc1, lora_te_text_model_encoder_layers_23_mlp_fc1",
        ),
        ("list.pt", "cloneofsimo's format (a list without names)", "layer 1, layer 2"),
    ],
)
def test_a_lora_of_a_text_encoder_where_there_is_none(tmp_path, unet, name, kind, layers):
    path = tmp_path / name
    TEXT_ONLY[name](path)
    message = (
        f"{path} is a LoRA in {kind} for the text encoder only, and there is none here to apply its 2 layers "
        f"({layers}) to; connect clip in ComfyUI, or use SDVideo.load_lora in Python"
    )
    with pytest.raises(CheckpointError, match=exactly(message)):
        LoRA.from_file(unet, path)


def test_a_lora_of_more_than_a_text_encoder_is_not_taken_for_one(tmp_path, unet):
    path = tmp_path / "lora.safetensors"
    names = ("te_text_model_encoder_layers_0_mlp_fc1", "unet_double_blocks_0_img_attn_qkv")
    save_file({f"lora_{name}{part}": torch.ones(1, 1) for name in names for part in UP_DOWN}, path)
    with pytest.raises(
        CheckpointError, match="is a LoRA in kohya's format for Flux or HunyuanVideo, by the names of its 2 "
    ):
        LoRA.from_file(unet, path)


@pytest.mark.parametrize(
    ("name", "kind", "reason"),
    [
        ("lora_unet_out_2.dora_scale", "a DoRA", "its magnitudes change all of a layer's weights"),
        ("base_model.model.x.lora_magnitude_vector", "a DoRA", "its magnitudes change all of a layer's weights"),
        ("lora_unet_out_2.lora_mid.weight", "a LoCon with a Tucker decomposition", "it has three factors a layer"),
        ("lora_unet_out_2.hada_w1_a", "a LoHa", "it multiplies two products of weights"),
        ("lora_unet_out_2.lokr_w1", "a LoKr", "it is of Kronecker products"),
        ("lora_unet_out_2.oft_blocks", "an OFT", "it rotates a layer's weights"),
        ("lora_unet_out_2.on_input", "an (IA)^3", "it scales a layer's values"),
    ],
)
def test_another_kind_of_adapter(file, unet, name, kind, reason):
    rewrite(file, **{name.replace(".", "__"): torch.ones(4, 4)})
    message = (
        f"{file} is {kind} (it has {name}): {reason}, which is not read; expected a plain LoRA. Train it as one, or "
        "extract one from the merged weights"
    )
    with pytest.raises(CheckpointError, match=exactly(message)):
        LoRA.from_file(unet, file)


@pytest.mark.parametrize(("key", "kind"), NO_PAIRS)
def test_a_file_that_is_something_else(tmp_path, unet, key, kind):
    path = tmp_path / "lora.safetensors"
    save_file({key: torch.ones(1)}, path)
    message = (
        f"{path} is {kind}, without pairs of low-rank weights; expected a LoRA, with names such as "
        "lora_unet_input_blocks_0_0.lora_down.weight"
    )
    with pytest.raises(CheckpointError, match=exactly(message)):
        LoRA.from_file(unet, path)


def test_a_pickle_is_not_opened_where_that_can_run_code(tmp_path, monkeypatch):
    path = tmp_path / "lora.pt"
    torch.save([torch.ones(2, 2)] * 2, path)
    monkeypatch.setattr(torch, "__version__", "2.5.1")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("opened"))
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(path))} is no .safetensors file and was not opened, "):
        read_lora(path)


def test_a_list_of_something_else(tmp_path):
    path = tmp_path / "lora.pt"
    torch.save([torch.ones(2, 2)] * 3, path)
    message = f"{path} is a list of 3; expected up and down weights in turn. Download it again."
    with pytest.raises(CheckpointError, match=exactly(message)):
        read_lora(path)


def test_a_folder_without_a_lora(tmp_path):
    files = ", ".join(f"{stem}.{kind}" for stem in FOLDER_STEMS for kind in ("safetensors", "bin"))
    message = f"{tmp_path} holds no LoRA; expected one of {files} in it"
    with pytest.raises(FileNotFoundError, match=exactly(message)):
        read_lora(tmp_path)


AGAIN = "Download it again."
BAD_CONFIGURATIONS = [
    ("[]", " holds a list; expected a JSON object"),
    ('{"lora_alpha": [8, 8]}', f": lora_alpha is [8, 8]; expected a number. {AGAIN}"),
    ('{"lora_alpha": true}', f": lora_alpha is True; expected a number. {AGAIN}"),
    ('{"lora_alpha": NaN}', f": lora_alpha is nan; expected a number. {AGAIN}"),
    (
        '{"lora_alpha": 1%s}' % ("0" * 99),
        f": lora_alpha is 100000000000000000...0000000000000000000; expected a number. {AGAIN}",
    ),
    ('{"alpha_pattern": ["a"]}', f": alpha_pattern is ['a']; expected an object of patterns and numbers. {AGAIN}"),
    ('{"alpha_pattern": {"a": "8"}}', f": alpha_pattern of a is '8'; expected a number. {AGAIN}"),
    (
        '{"alpha_pattern": {"(a": 8}}',
        f": alpha_pattern is '(a'; expected a regular expression (missing ), unterminated subpattern). {AGAIN}",
    ),
]


def save_pair(path: Path, name: str, **metadata: str) -> None:
    save_file({f"{name}.lora_{part}.weight": torch.ones(1, 1) for part in "AB"}, path, metadata)


@pytest.mark.parametrize(("text", "message"), BAD_CONFIGURATIONS)
def test_a_wrong_peft_configuration(tmp_path, text, message):
    save_pair(tmp_path / "adapter_model.safetensors", "base_model.model.conv_in")
    config = tmp_path / "adapter_config.json"
    config.write_text(text)
    with pytest.raises(CheckpointError, match=exactly(f"{config}{message}")):
        read_lora(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", " has a broken lora_adapter_metadata: Expecting property name enclosed in double quotes: "),
        ("3", f": lora_adapter_metadata is 3; expected a JSON object. {AGAIN}"),
        ('{"unet.lora_alpha": {}}', f": lora_alpha is {{}}; expected a number. {AGAIN}"),
    ],
)
def test_wrong_metadata_of_diffusers(tmp_path, text, message):
    path = tmp_path / "lora.safetensors"
    save_pair(path, "unet.conv_in", lora_adapter_metadata=text)
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(path) + message)}"):
        read_lora(path)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"lora_up__weight": None}, "lora_unet_out_2.lora_up.weight is missing"),
        ({"lora_down__weight": None}, "lora_unet_out_2.lora_down.weight is missing"),
        ({"alpha": torch.ones(2)}, "lora_unet_out_2.alpha is not one number"),
    ],
)
def test_an_incomplete_file(file, changes, problem):
    rewrite(file, **{f"lora_unet_out_2__{key}": value for key, value in changes.items()})
    with pytest.raises(
        CheckpointError, match=exactly(f"{file} does not fit (1 problems): {problem}; download it again")
    ):
        read_lora(file)


@pytest.mark.parametrize(
    ("down", "up"),
    [
        ((4, 64, 3, 3), (4, 4, 1, 1)),
        ((4, 32, 1, 1), (4, 4, 1, 1)),
        ((4, 32, 3, 3), (8, 4, 1, 1)),
        ((4, 32, 3, 3), (4, 2, 1, 1)),
        ((0, 32, 3, 3), (4, 0, 1, 1)),
        ((288,), (4, 4)),
        ((), (4,)),
    ],
)
def test_shapes_of_another_model(file, unet, down, up):
    rewrite(file, lora_unet_out_2__lora_down__weight=torch.ones(down), lora_unet_out_2__lora_up__weight=torch.ones(up))
    message = (
        f"{file} does not fit (1 problems): out.2 has down {down} and up {up}, "
        "expected a product of shape (4, 32, 3, 3); this LoRA belongs to another model"
    )
    with pytest.raises(CheckpointError, match=exactly(message)):
        LoRA.from_file(unet, file)


def test_of_many_problems_the_first_are_named(tmp_path, unet):
    path = tmp_path / "lora.safetensors"
    save_lora(LoRA(unet, 2, targets="temporal"), path)
    weights = load_file(path)
    save_file({key: weight[:, :1].clone() if "down" in key else weight for key, weight in weights.items()}, path)
    paths = LoRA(unet, targets="temporal").paths
    with pytest.raises(CheckpointError) as caught:
        LoRA.from_file(unet, path)
    message = str(caught.value)
    assert message.startswith(f"{path} does not fit ({len(paths)} problems): {paths[0]} has down (2, 1)")
    assert message.endswith(f" and {len(paths) - 5} more; this LoRA belongs to another model")
    assert [path for path in paths if f"{path} has" in message] == paths[:5]
