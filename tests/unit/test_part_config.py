"""Part config: JSON beside weights is believed where it is theirs, and a stranger's in a shared folder is not."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sdvideo_core.checkpoint import CheckpointError, load_text_encoder, load_unet, load_vae, read_network
from sdvideo_core.config import ModelConfig, UNetConfig
from sdvideo_core.configuration import CONFIG_NAME, configuration
from sdvideo_core.convert import convert
from sdvideo_core.layouts import find_layout, names_of
from sdvideo_core.unet import UNetSD
from tests.unit.small_model import THEIR_FILES, UNET

THEIR_NAME, OWN_NAME = "diffusion_pytorch_model.safetensors", "zeroscope_v1_320s.safetensors"
SD15 = {"_class_name": "UNet2DConditionModel", "attention_head_dim": 8, "cross_attention_dim": 768}
OURS = {"_class_name": "UNet3DConditionModel", "attention_head_dim": 16, "cross_attention_dim": 64}
XL = {"_class_name": "AutoencoderKL", "scaling_factor": 0.13025, "block_out_channels": [32, 32, 32, 64]}


@pytest.fixture(scope="module")
def published_heads(tmp_path_factory) -> Path:
    """A UNet whose first temporal transformer is as wide as the published ones, so that it loads without any JSON."""
    wide = UNetConfig(dim=64, context_dim=64, dim_mult=(1,), num_heads=8, head_dim=64, res_blocks=1, attn_scales=(1.0,))
    file = tmp_path_factory.mktemp("published") / "unet.safetensors"
    save_file(UNetSD(wide).state_dict(), file)
    return file


def head_dim(file: Path) -> int:
    return read_network(file, "unet", "meta").config.head_dim


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (THEIR_NAME, json.dumps(SD15)),
        (THEIR_NAME, json.dumps(OURS | {"cross_attention_dim": 768})),
        (THEIR_NAME, json.dumps({"attention_head_dim": 16})),
        (THEIR_NAME, ""),
        (THEIR_NAME, "[]"),
        (OWN_NAME, json.dumps(SD15)),
        (OWN_NAME, json.dumps(OURS)),
        (OWN_NAME, "<html>"),
        ("model_of_mine.safetensors", json.dumps(OURS)),
    ],
)
def test_a_strangers_json_changes_nothing(published_heads, tmp_path, name, text):
    file = Path(shutil.copyfile(published_heads, tmp_path / name))
    (tmp_path / "config.json").write_text(text)
    assert head_dim(file) == 64


@pytest.mark.parametrize(
    "name", [THEIR_NAME, "diffusion_pytorch_model.fp16.safetensors", "model-00001-of-00001.safetensors"]
)
def test_json_of_its_class_and_sizes_beside_a_name_of_diffusers_is_believed(published_heads, tmp_path, name):
    file = Path(shutil.copyfile(published_heads, tmp_path / name))
    (tmp_path / "config.json").write_text(json.dumps(OURS))
    assert head_dim(file) == 16


def test_a_configuration_is_believed_beside_any_name_where_its_sizes_are_those_of_the_weights(original_dir, tmp_path):
    file = Path(shutil.copyfile(original_dir / ModelConfig.unet_file, tmp_path / "zs.pth"))
    for unet, message in ((UNET, None), (replace(UNET, context_dim=1024), "does not say how wide its attention heads")):
        (tmp_path / CONFIG_NAME).write_text(json.dumps(configuration(ModelConfig(unet=unet))))
        if message:
            with pytest.raises(CheckpointError, match=message):
                load_unet(file)
        else:
            assert load_unet(file).config == UNET


@pytest.mark.parametrize("text", ["", '{"model": {"model_cfg": {"mean_type": "v"}}}'])
def test_a_configuration_that_cannot_be_read_is_an_error_only_beside_the_unet_that_it_is_for(
    published_heads, tmp_path, text
):
    (tmp_path / CONFIG_NAME).write_text(text)
    assert head_dim(Path(shutil.copyfile(published_heads, tmp_path / OWN_NAME))) == 64
    with pytest.raises(CheckpointError, match=r"is empty|only models that predict eps"):
        head_dim(Path(shutil.copyfile(published_heads, tmp_path / "text2video_pytorch_model.safetensors")))


def test_an_autoencoder_in_a_shared_folder_is_not_refused_for_its_neighbours_json(diffusers_dir, tmp_path):
    other_size = XL | {"block_out_channels": [128, 256, 512, 512]}
    for name, config in (("sd_vae.safetensors", XL), (THEIR_NAME, other_size), (THEIR_NAME, SD15)):
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert load_vae(Path(shutil.copyfile(diffusers_dir / THEIR_FILES["vae"], tmp_path / name)))
    (tmp_path / "config.json").write_text(json.dumps(XL))
    with pytest.raises(CheckpointError, match="is the autoencoder of Stable Diffusion XL"):
        load_vae(tmp_path / THEIR_NAME)


def test_the_activation_of_a_whole_clip_model_is_read(diffusers_dir, tmp_path):
    file = Path(shutil.copyfile(diffusers_dir / THEIR_FILES["text encoder"], tmp_path / "model.safetensors"))
    for activation in ("gelu", "quick_gelu"):
        text = {"hidden_act": activation, "hidden_size": 64}
        (tmp_path / "config.json").write_text(json.dumps({"architectures": ["CLIPModel"], "text_config": text}))
        if activation == "gelu":
            assert load_text_encoder(file)
        else:
            with pytest.raises(CheckpointError, match="has quick_gelu activations; expected gelu"):
                load_text_encoder(file)


def test_a_stranger_does_not_tell_the_family(published_heads, tmp_path):
    for config in (OURS, SD15):
        file = Path(shutil.copyfile(published_heads, tmp_path / THEIR_NAME))
        (tmp_path / "config.json").write_text(json.dumps(config | {"_name_or_path": "camenduru/potat1"}))
        assert ("camenduru/potat1" in names_of(find_layout(file))) == (config is OURS)


SCHEDULES = [
    ("beta_schedule", "linear", "scaled_linear"),
    ("beta_start", 0.0001, 0.00085),
    ("beta_end", 0.02, 0.012),
    ("num_train_timesteps", 100, 1000),
    ("rescale_betas_zero_snr", True, False),
    ("trained_betas", [0.1, 0.2], None),
    ("prediction_type", "v_prediction", "epsilon"),
]


@pytest.fixture
def folder(diffusers_dir, tmp_path) -> Path:
    """A folder of diffusers, of links but for its scheduler_config.json."""
    for name in ("unet", "vae", "text_encoder", "model_index.json"):
        (tmp_path / name).symlink_to(diffusers_dir / name)
    shutil.copytree(diffusers_dir / "scheduler", tmp_path / "scheduler")
    return tmp_path


def schedule(folder: Path, **values) -> None:
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(("name", "value", "expected"), SCHEDULES)
@pytest.mark.parametrize("place", ["", "unet", THEIR_FILES["unet"]])
def test_another_noise_schedule_is_refused_wherever_the_unet_is_taken_from(folder, name, value, expected, place):
    schedule(folder, **{name: value})
    message = rf"trained on another noise schedule: its scheduler_config\.json has {name} .* where {expected!r} is expe"
    with pytest.raises(CheckpointError, match=message.replace("[", r"\[")):
        load_unet(folder / place, device="meta")


def test_fields_of_schedulers_that_change_no_schedule_are_not_looked_at(folder):
    schedule(folder, rescale_betas_zero_snr=None, trained_betas=None, _class_name="DPMSolver", steps_offset=0, new=1)
    assert load_unet(folder, device="meta")


def test_the_schedule_of_a_folder_that_the_file_is_not_in_is_not_looked_at(folder):
    schedule(folder, prediction_type="v_prediction")
    for name in ("unets", "vae2"):
        (folder / name).symlink_to(folder / "unet")
        assert load_unet(folder / name, device="meta")


def test_the_schedule_that_is_written_is_that_of_this_family(original_dir, tmp_path):
    from diffusers import DDIMScheduler

    from sdvideo_core.schedule import NoiseSchedule

    convert(original_dir, tmp_path / "model", "diffusers")
    theirs = DDIMScheduler.from_pretrained(tmp_path / "model" / "scheduler")
    torch.testing.assert_close(theirs.alphas_cumprod.double(), NoiseSchedule().alphas_cumprod, rtol=1e-5, atol=0)
