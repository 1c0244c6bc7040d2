"""LoRA files that are wrong: what is said of them."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sdvideo_core.checkpoint import CheckpointError
from sdvideo_core.lora import LoRA, save_lora
from sdvideo_core.lora_files import read_lora
from sdvideo_core.unet import UNetSD
from tests.unit.small_lora import CONV3D, LAST, LINEAR, exactly, make_lora, make_unet, rewrite


@pytest.fixture(scope="module")
def unet() -> UNetSD:
    return make_unet()


@pytest.fixture
def file(tmp_path: Path, unet: UNetSD) -> Path:
    path = tmp_path / "lora.safetensors"
    save_lora(make_lora(unet, targets=[LINEAR, CONV3D, LAST], rank=6, alpha=3.0), path)
    return path


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
        "is a LoRA in kohya's format for Flux or HunyuanVideo: none of its 3 layers (lora_unet_b, lora_unet_c, ...) is "
        f"one of this model's; {OURS}",
    ),
    (
        [f"down_blocks.0.motion_modules.0.x.processor.to_q_lora.{part}.weight" for part in ("up", "down")],
        "is a LoRA in diffusers' format for AnimateDiff: none of its 1 layers "
        f"(down_blocks.0.motion_modules.0.x.processor.to_q) is one of this model's; {OURS}",
    ),
    (
        [f"diffusion_model.blocks.0.cross_attn.k.lora_{part}.weight" for part in "AB"],
        "is a LoRA in diffusers' format for Wan: none of its 1 layers (diffusion_model.blocks.0.cross_attn.k) is one "
        f"of this model's; {OURS}",
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


def test_a_broken_peft_configuration(tmp_path):
    key = "base_model.model.conv_in.lora_"
    save_file(
        {f"{key}A.weight": torch.ones(1, 1), f"{key}B.weight": torch.ones(1, 1)}, tmp_path / "adapter_model.safetensors"
    )
    config = tmp_path / "adapter_config.json"
    config.write_text("{")
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(config))} has a broken configuration \\("):
        read_lora(tmp_path)


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
