"""Formats: one small model in every layout and naming that this family comes in loads as the same three networks."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sdvideo_core.checkpoint import LOADERS, CheckpointError, load_text_encoder, load_unet, load_vae
from sdvideo_core.config import ModelConfig, UNetConfig
from sdvideo_core.convert import convert
from sdvideo_core.diffusers_format import unet_from_diffusers, unet_to_diffusers
from sdvideo_core.layouts import find_diffusers_weights
from sdvideo_core.unet import UNetSD
from sdvideo_core.weights import unet_config
from tests.unit.small_model import (
    TEXT,
    THEIR_FILES,
    UNET,
    VAE,
    Weights,
    assert_same,
    change,
    put_beside_nothing,
    renamed,
    save_diffusers,
    say_heads,
)

UNET_FILE, VAE_FILE, TEXT_FILE = ModelConfig.unet_file, ModelConfig.vae_file, ModelConfig.text_file


def relative_error(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()


def test_shapes_are_found(diffusers_dir, original_dir):
    for path in (diffusers_dir, original_dir):
        assert [load(path).config for load in LOADERS.values()] == [UNET, VAE, TEXT]


@torch.no_grad()
def test_a_folder_of_diffusers_computes_what_diffusers_does(theirs, diffusers_dir):
    x, t, context = torch.randn(1, 4, 3, 8, 8), torch.tensor([400]), torch.randn(1, 77, 64)
    expected = theirs["unet"](x, t, context).sample
    assert relative_error(load_unet(diffusers_dir)(x, t, context), expected) < 1e-5
    frames = torch.rand(2, 3, 32, 32) * 2 - 1
    vae, their_vae = load_vae(diffusers_dir), theirs["vae"]
    latents = their_vae.encode(frames).latent_dist.mean * 0.18215
    assert relative_error(vae.encode(frames), latents) < 1e-5
    assert relative_error(vae.decode(latents), their_vae.decode(latents / 0.18215).sample) < 1e-5
    encoder = load_text_encoder(diffusers_dir)
    tokens = encoder.tokenizer(["a red circle", ""])
    assert relative_error(encoder.encode_tokens(tokens), theirs["text_encoder"](tokens)[0]) < 1e-5


def as_saved(folder: Path) -> None:
    del folder


def pickles_of_old_versions(folder: Path) -> None:
    for part, name in THEIR_FILES.items():
        stem, prefix = ("pytorch_model", "text_model.") if part == "text encoder" else ("diffusion_pytorch_model", "")
        rename = {"unet": str, "vae": old_attention, "text encoder": lambda key, prefix=prefix: prefix + key}[part]
        renamed(folder / name, rename, (folder / name).with_name(f"{stem}.bin"))
    ids = torch.arange(77)[None]
    text = folder / "text_encoder" / "pytorch_model.bin"
    change(text, lambda weights: weights | {"text_model.embeddings.position_ids": ids})


def old_attention(key: str) -> str:
    for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
        key = key.replace(f"mid_block.attentions.0.{new}", f"mid_block.attentions.0.{old}")
    return key


def unknown_fields(folder: Path) -> None:
    for part in ("unet", "vae", "text_encoder"):
        path = folder / part / "config.json"
        dead = {"mid_block_type": "UNetMidBlock2D", "only_cross_attention": False, "_diffusers_version": "9"}
        path.write_text(json.dumps(json.loads(path.read_text()) | dead))


def without_an_index(folder: Path) -> None:
    (folder / "model_index.json").unlink()


def finetuning_checkpoint(folder: Path) -> None:
    (folder / "lora").mkdir()
    save_file({"a.lora_A": torch.zeros(1)}, folder / "lora" / "webui_100_lora_text_to_video.safetensors")


def convolutions_in_place_of_projections(folder: Path) -> None:
    def expand(weights: Weights) -> Weights:
        return {
            k: v[..., None, None] if k.endswith(("proj_in.weight", "proj_out.weight")) else v
            for k, v in weights.items()
        }

    change(folder / THEIR_FILES["unet"], expand)


def vae_attention_of_convolutions(folder: Path) -> None:
    marks = ("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight")
    change(
        folder / THEIR_FILES["vae"],
        lambda weights: {k: v[..., None, None] if k.endswith(marks) else v for k, v in weights.items()},
    )


DIFFUSERS_FORMS = [
    as_saved,
    pickles_of_old_versions,
    unknown_fields,
    without_an_index,
    finetuning_checkpoint,
    convolutions_in_place_of_projections,
    vae_attention_of_convolutions,
]


@pytest.mark.parametrize("form", DIFFUSERS_FORMS)
def test_folders_of_diffusers(diffusers_dir, loaded, tmp_path, form):
    folder = shutil.copytree(diffusers_dir, tmp_path / "checkpoint-100")
    form(folder)
    assert_same(folder, loaded)


@pytest.mark.parametrize("options", [{"max_shard_size": "400KB"}, {"variant": "fp16"}])
def test_shards_and_variants_that_diffusers_writes(theirs, loaded, tmp_path, options):
    save_diffusers(tmp_path, theirs, **options)
    assert len(list(tmp_path.rglob("*.safetensors"))) >= 3
    assert "variant" in options or (tmp_path / "unet/diffusion_pytorch_model.safetensors.index.json").is_file()
    assert_same(tmp_path, loaded)


@pytest.mark.parametrize(
    ("names", "full", "half"),
    [
        ("model.fp16.safetensors model.safetensors pytorch_model.bin", "model.safetensors", "model.fp16.safetensors"),
        ("model.safetensors pytorch_model.fp16.bin", "model.safetensors", "model.safetensors"),
        ("pytorch_model.bin model.fp16.safetensors", "pytorch_model.bin", "model.fp16.safetensors"),
        ("pytorch_model.bin pytorch_model.fp16.bin", "pytorch_model.bin", "pytorch_model.fp16.bin"),
        ("diffusion_pytorch_model.fp16.bin", *["diffusion_pytorch_model.fp16.bin"] * 2),
        ("diffusion_pytorch_model.bin config.json", *["diffusion_pytorch_model.bin"] * 2),
        ("config.json", "", ""),
    ],
)
def test_the_best_of_several_files_is_taken(tmp_path, names, full, half):
    for name in names.split():
        (tmp_path / name).touch()
    for dtype, best in ((None, full), (torch.float32, full), (torch.bfloat16, full), (torch.float16, half)):
        assert [file.name for file in find_diffusers_weights(tmp_path, dtype)] == best.split()


@pytest.fixture
def with_variant(diffusers_dir, tmp_path) -> Path:
    """A folder of diffusers whose float16 variant, beside the whole files, is all zeros."""
    folder = Path(shutil.copytree(diffusers_dir, tmp_path / "model"))
    for file in map(folder.joinpath, THEIR_FILES.values()):
        zeros = {key: torch.zeros_like(value, dtype=torch.float16) for key, value in load_file(file).items()}
        save_file(zeros, file.with_suffix(".fp16.safetensors"))
    return folder


@pytest.mark.parametrize("part", LOADERS)
def test_the_float16_variant_is_read_for_float16_only(with_variant, part):
    for path in (with_variant, (with_variant / THEIR_FILES[part]).parent):
        read = {
            dtype: any(weight.any() for weight in LOADERS[part](path, dtype).parameters())
            for dtype in (torch.float32, torch.bfloat16, torch.float16)
        }
        assert read == {torch.float32: True, torch.bfloat16: True, torch.float16: False}


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16, torch.float16])
def test_the_float16_variant_is_converted_to_float16_only(with_variant, tmp_path, dtype):
    convert(with_variant, tmp_path / "converted", "modelscope", dtype)
    for part, load in LOADERS.items():
        assert any(weight.any() for weight in load(tmp_path / "converted").parameters()) == (
            dtype is not torch.float16
        ), part


def test_a_missing_shard_is_named(theirs, tmp_path):
    save_diffusers(tmp_path, {"unet": theirs["unet"]}, max_shard_size="400KB")
    gone = sorted((tmp_path / "unet").glob("*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(FileNotFoundError, match=rf"{gone.name} is missing; .*index\.json names it as a shard"):
        load_unet(tmp_path)


def prefixed(prefix: str) -> Callable[[Path], None]:
    return lambda file: renamed(file, lambda key: prefix + key)


def without_json(file: Path) -> None:
    (file.parent / "configuration.json").unlink()


def ldm_downsampling(file: Path) -> None:
    renamed(file, lambda key: key.replace(".op.", ".0.op."))


def spatial_convolutions(file: Path) -> None:
    def expand(key: str, value: Tensor) -> Tensor:
        return value[..., None, None] if ".1.proj_" in key and value.ndim == 2 else value

    change(file, lambda weights: {key: expand(key, value) for key, value in weights.items()})


def as_safetensors(file: Path) -> None:
    renamed(file, str, file.with_suffix(".safetensors"))


ORIGINAL_FORMS = {
    "as it is": lambda _file: None,
    "LDM's names": ldm_downsampling,
    "1x1 convolutions": spatial_convolutions,
    "safetensors": as_safetensors,
    "any prefix": prefixed("student.unet."),
    "model.diffusion_model.": prefixed("model.diffusion_model."),
    "module.": prefixed("module."),
}


@pytest.mark.parametrize("form", ORIGINAL_FORMS)
def test_original_directories(original_dir, loaded, tmp_path, form):
    folder = shutil.copytree(original_dir, tmp_path / "model")
    ORIGINAL_FORMS[form](folder / UNET_FILE)
    assert_same(folder, loaded)


@pytest.mark.parametrize("form", ORIGINAL_FORMS)
def test_a_unet_alone(original_dir, loaded, tmp_path, form):
    file = put_beside_nothing(original_dir, tmp_path)
    ORIGINAL_FORMS[form](file)
    file = file if file.exists() else file.with_suffix(".safetensors")
    assert_same(file, loaded, ["unet"])
    assert load_unet(file).config == UNET


def test_a_unet_alone_under_the_names_of_diffusers(diffusers_dir, loaded, tmp_path):
    file = Path(shutil.copyfile(diffusers_dir / THEIR_FILES["unet"], tmp_path / "zs.safetensors"))
    say_heads(tmp_path)
    assert_same(file, loaded, ["unet"])


def test_original_files_without_a_json(original_dir, loaded, tmp_path):
    folder = shutil.copytree(original_dir, tmp_path / "zs2_XL")
    without_json(folder / UNET_FILE)
    assert_same(folder, loaded, ["vae", "text encoder"])
    message = "does not say how wide its attention heads are; put the configuration.json that belongs to it beside it$"
    with pytest.raises(CheckpointError, match=message):
        load_unet(folder)


def test_full_size_tells_the_width_of_heads_and_is_named_both_ways():
    with torch.device("meta"):
        weights = UNetSD(UNetConfig()).state_dict()
    assert unet_config(weights, Path("file")) == UNetConfig()
    theirs = unet_to_diffusers(weights, UNetConfig())
    assert len(theirs) == 1480
    assert unet_from_diffusers(theirs).keys() == weights.keys()
