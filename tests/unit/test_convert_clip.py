"""Convert, of CLIP: between OpenCLIP's files all of it comes through, and what cannot is told."""

import shutil
from pathlib import Path

import pytest
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from safetensors.torch import load_file, save_file

from sdvideo_core.checkpoint import load_text_encoder
from sdvideo_core.cli import main
from sdvideo_core.config import ModelConfig
from sdvideo_core.convert import convert
from sdvideo_core.state_dict import read_state_dict

TEXT = ModelConfig.text_file
NO_PLACE = (
    "a folder of diffusers has no place for all of the text encoder; left out: its last block, which never runs, "
    "image tower, text_projection, logit_scale"
)
LACKING = (
    "the text encoder's file lacks image tower, text_projection, logit_scale, as its source does, and its last blo"
)


def whole_clip() -> CLIP:
    """What ModelScope's and A1111's tools build, and load strictly: both towers."""
    return CLIP(
        embed_dim=32,
        vision_cfg=CLIPVisionCfg(layers=1, width=64, head_width=64, image_size=32, patch_size=16),
        text_cfg=CLIPTextCfg(context_length=77, vocab_size=49408, width=64, heads=1, layers=3),
    )


@pytest.fixture(scope="module")
def whole_dir(original_dir, tmp_path_factory) -> Path:
    """A model in the original layout whose CLIP file is whole, as the published one is."""
    folder = Path(shutil.copytree(original_dir, tmp_path_factory.mktemp("whole") / "model"))
    torch.save(whole_clip().state_dict(), folder / TEXT)
    return folder


def test_a_whole_clip_model_comes_through_for_tools_that_load_it_strictly(whole_dir, tmp_path):
    expected = torch.load(whole_dir / TEXT, weights_only=True)
    assert convert(whole_dir, tmp_path / "there", "safetensors").notes == []
    assert convert(tmp_path / "there", tmp_path / "back", "modelscope").notes == []
    found = torch.load(tmp_path / "back" / TEXT, weights_only=True)
    whole_clip().load_state_dict(found, strict=True)
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in found.items())
    half = load_file(next(convert_half(whole_dir, tmp_path / "half").glob("open_clip*")))
    whole_clip().load_state_dict(half, strict=True)
    assert all(torch.equal(value, expected[key].half()) for key, value in half.items())


def convert_half(source: Path, target: Path) -> Path:
    convert(source, target, "safetensors", torch.float16)
    return target


def test_what_is_not_there_is_told_both_ways(whole_dir, tmp_path, capsys):
    there, back = tmp_path / "there", tmp_path / "back"
    assert convert(whole_dir, there, "diffusers").notes == [NO_PLACE]
    assert main(["convert", str(there), str(back), "--format", "modelscope"]) == 0
    written, note = capsys.readouterr().err.splitlines()
    assert written == f"Wrote {back}: unet, vae, text encoder"
    assert note.startswith(f"sdvideo: note: {LACKING}")
    encoders = [load_text_encoder(folder).state_dict() for folder in (whole_dir, back)]
    assert all(torch.equal(value, encoders[1][key]) for key, value in encoders[0].items())
    assert convert(there / "unet", tmp_path / "unet", "modelscope").notes == []
    assert convert(back, tmp_path / "again", "diffusers").notes == [NO_PLACE.split(", image tower")[0]]


def test_out_of_a_stable_diffusion_2_checkpoint_comes_what_it_has(whole_dir, tmp_path):
    clip = torch.load(whole_dir / TEXT, weights_only=True)
    text = {key: value for key, value in clip.items() if not key.startswith("visual.")}
    save_file({f"cond_stage_model.model.{key}": value for key, value in text.items()}, tmp_path / "sd2.safetensors")
    report = convert(whole_dir, tmp_path / "model", "modelscope", text_encoder=tmp_path / "sd2.safetensors")
    assert read_state_dict(tmp_path / "model" / TEXT).keys() == text.keys()
    [note] = report.notes
    assert note.startswith("the text encoder's file lacks image tower, as its source does. SDVideo needs none")
