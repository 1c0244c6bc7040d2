"""Parts of a model: taken from elsewhere, stored in few bits, missing, or of a kind that works otherwise."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdvideo_core import SDVideo
from sdvideo_core.checkpoint import LOADERS, CheckpointError, load_text_encoder, load_unet, load_vae
from sdvideo_core.config import ModelConfig, VAEConfig
from sdvideo_core.vae import AutoencoderKL
from tests.unit.small_model import (
    TEXT,
    THEIR_FILES,
    assert_same,
    change,
    put_beside_nothing,
    their_text_encoder,
)

UNET_FILE, VAE_FILE, TEXT_FILE = ModelConfig.unet_file, ModelConfig.vae_file, ModelConfig.text_file

VAE_PLACES = ["model folder", "original file", "part's folder", "file of diffusers", "Stable Diffusion checkpoint"]


@pytest.fixture
def places(original_dir, diffusers_dir, tmp_path) -> dict[str, Path]:
    vae = torch.load(original_dir / VAE_FILE, weights_only=True)["state_dict"]
    image = {"model.diffusion_model.input_blocks.1.0.in_layers.0.weight": torch.ones(3)}
    clip = torch.load(original_dir / TEXT_FILE, weights_only=True)
    text = {f"cond_stage_model.model.{key}": value for key, value in clip.items()}
    save_file(vae | image | text, tmp_path / "sd2.safetensors")
    return {
        "model folder": original_dir,
        "original file": original_dir / VAE_FILE,
        "part's folder": diffusers_dir / "vae",
        "file of diffusers": diffusers_dir / THEIR_FILES["vae"],
        "Stable Diffusion checkpoint": tmp_path / "sd2.safetensors",
    }


@pytest.mark.parametrize("place", VAE_PLACES)
def test_an_autoencoder_from_elsewhere(places, loaded, place):
    assert_same(places[place], loaded, ["vae"])


def test_a_text_encoder_from_elsewhere(places, diffusers_dir, original_dir, loaded):
    for path in (places["Stable Diffusion checkpoint"], diffusers_dir / "text_encoder", original_dir / TEXT_FILE):
        assert_same(path, loaded, ["text encoder"])


@torch.no_grad()
def test_a_whole_tower_of_transformers_is_read_at_its_penultimate_block(tmp_path):
    whole = their_text_encoder(layers=24).eval()
    whole.save_pretrained(tmp_path / "whole")
    weights = load_file(tmp_path / "whole" / "model.safetensors")
    (tmp_path / "cut").mkdir()
    kept = {key: value for key, value in weights.items() if "layers.23." not in key}
    assert len(kept) < len(weights)
    save_file(kept, tmp_path / "cut" / "model.safetensors")
    encoders = [load_text_encoder(tmp_path / name) for name in ("whole", "cut")]
    tokens = encoders[0].tokenizer(["a red circle", ""])
    [norm] = [module for name, module in whole.named_modules() if name.endswith("final_layer_norm")]
    expected = norm(whole(tokens, output_hidden_states=True).hidden_states[-2])
    for encoder in encoders:
        assert encoder.config == replace(TEXT, layers=24)
        torch.testing.assert_close(encoder.encode_tokens(tokens), expected, rtol=1e-4, atol=1e-5)


def test_parts_that_are_named_make_a_unet_alone_a_model(original_dir, diffusers_dir, places, tmp_path):
    file = put_beside_nothing(original_dir, tmp_path, "unet.pth")
    alone = SDVideo(file, amp=False, vae=places["Stable Diffusion checkpoint"], text_encoder=diffusers_dir)
    videos = [
        model("a red circle", timesteps=2, image_size=(32, 32), num_frames=2, seed=0)
        for model in (alone, SDVideo(original_dir, amp=False))
    ]
    assert torch.equal(*videos)


def test_a_unet_alone_says_what_to_name(original_dir, tmp_path):
    file = put_beside_nothing(original_dir, tmp_path)
    message = (
        r"is a ModelScope UNet; expected a ModelScope autoencoder, or take the autoencoder from another .*vae=PATH"
    )
    with pytest.raises(CheckpointError, match=message):
        SDVideo(file)
    with pytest.raises(
        CheckpointError, match=r"expected a ModelScope OpenCLIP text tower, or take .*text_encoder=PATH"
    ):
        SDVideo(file, vae=original_dir)


def test_all_parts_are_looked_for_before_gigabytes_are_read(original_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("sdvideo_core.pipeline.load_unet", lambda *_: pytest.fail("the UNet was read"))
    file = put_beside_nothing(original_dir, tmp_path)
    for named, part in (({}, "autoencoder"), ({"vae": original_dir}, "text tower"), ({"vae": file}, "autoencoder")):
        with pytest.raises(CheckpointError, match=rf"expected a ModelScope .*{part}, or take"):
            SDVideo(file, **named)
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        SDVideo(original_dir, text_encoder=tmp_path / "nowhere")


def test_parts_are_never_taken_from_another_model_by_themselves(original_dir, tmp_path):
    shutil.copytree(original_dir, tmp_path / "whole")
    folder = shutil.copytree(original_dir, tmp_path / "without")
    (folder / VAE_FILE).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{VAE_FILE} is missing; .*, or take the autoencoder from another"):
        SDVideo(folder)
    (folder / VAE_FILE).symlink_to(tmp_path / "whole" / VAE_FILE)
    SDVideo(folder)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("form", ["diffusers", "original"])
def test_storage_in_fewer_bits_is_converted_exactly(diffusers_dir, original_dir, loaded, tmp_path, form, dtype):
    folder = shutil.copytree(diffusers_dir if form == "diffusers" else original_dir, tmp_path / "model")
    for file in (folder / name for name in (*THEIR_FILES.values(), UNET_FILE, TEXT_FILE)):
        if file.exists():
            change(file, lambda weights: {key: value.to(dtype) for key, value in weights.items()})
    for part in ("unet", "text encoder"):
        found = LOADERS[part](folder).state_dict()
        assert {value.dtype for value in found.values()} == {torch.float32}
        assert all(torch.equal(value, loaded[part][key].to(dtype).float()) for key, value in found.items())


OTHER_CONFIGS = [
    (
        "vae/config.json",
        {"scaling_factor": 0.13025},
        r"is the autoencoder of Stable Diffusion XL, which scales latents by 0\.13025; expected 0\.18215",
    ),
    ("vae/config.json", {"scaling_factor": 0.5}, r"is the autoencoder of another model, which scales latents by 0\.5"),
    ("text_encoder/config.json", {"hidden_act": "quick_gelu"}, "has quick_gelu activations; expected gelu"),
    (
        "scheduler/scheduler_config.json",
        {"prediction_type": "v_prediction"},
        "has prediction_type 'v_prediction' where",
    ),
    ("unet/config.json", {"attention_head_dim": "wide"}, "has attention_head_dim 'wide' in its config.json"),
]


@pytest.mark.parametrize(("name", "values", "message"), OTHER_CONFIGS)
def test_models_that_work_otherwise_are_refused(diffusers_dir, tmp_path, name, values, message):
    folder = shutil.copytree(diffusers_dir, tmp_path / "model")
    (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | values))
    with pytest.raises(CheckpointError, match=message):
        SDVideo(folder)


def test_predicting_something_else_than_eps_is_refused(original_dir, tmp_path):
    folder = shutil.copytree(original_dir, tmp_path / "model")
    path = folder / "configuration.json"
    path.write_text(path.read_text().replace('"mean_type": "eps"', '"mean_type": "v"'))
    with pytest.raises(CheckpointError, match="says mean_type is 'v'; only models that predict eps are supported"):
        load_unet(folder)


@pytest.mark.parametrize("load", [load_vae, load_text_encoder])
def test_no_part_is_taken_from_a_checkpoint_of_stable_diffusion_xl(places, original_dir, tmp_path, load):
    sd2 = load_file(places["Stable Diffusion checkpoint"])
    xl = {key.replace("cond_stage_model.", "conditioner.embedders.1."): value for key, value in sd2.items()}
    folder = shutil.copytree(original_dir, tmp_path / "model")
    files = [(folder / name).with_suffix(".safetensors") for name in (VAE_FILE, TEXT_FILE)]
    for file in files:
        save_file(xl, file)
    for path in (files[0], folder):
        with pytest.raises(
            CheckpointError, match=r"is a Stable Diffusion XL checkpoint \(an image model\); expected a Mo"
        ):
            load(path)


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_autoencoders_with_other_latents_are_refused(tmp_path, prefix):
    vae = AutoencoderKL(VAEConfig(32, (1, 1, 1, 2), 1, z_channels=16)).state_dict()
    weights = {prefix + key: value for key, value in vae.items() if "quant_conv" not in key}  # Flux has none
    save_file(weights, tmp_path / "ae.safetensors")
    message = "is an autoencoder with 16 latent channels, as those of Stable Diffusion 3 and Flux; expected 4"
    with pytest.raises(CheckpointError, match=message):
        load_vae(tmp_path / "ae.safetensors")


@pytest.mark.parametrize("part", THEIR_FILES)
def test_quantized_weights_are_refused(diffusers_dir, tmp_path, part):
    folder = shutil.copytree(diffusers_dir, tmp_path / "model")
    key = {"unet": "conv_out.bias", "vae": "decoder.conv_out.bias", "text encoder": "final_layer_norm.bias"}[part]

    def quantize(weights):
        [name] = [name for name in weights if name.endswith(key)]
        return weights | {name: weights[name].to(torch.int8)}

    change(folder / THEIR_FILES[part], quantize)
    with pytest.raises(CheckpointError, match=r"\.bias is stored as torch\.int8, expected floating-point numbers$"):
        LOADERS[part](folder)
