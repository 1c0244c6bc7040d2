"""LoRA export: what is written is what the format's own library reads, and what we read again."""

import copy
import json
import re
from pathlib import Path

import loralib
import peft
import pytest
import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

from sdvideo_core.config import TextConfig
from sdvideo_core.lora_export import EXPORT_FORMATS, convert_lora, write_kohya, write_peft, write_webui
from sdvideo_core.lora_files import describe_lora, read_lora
from sdvideo_core.lora_formats import Pair
from sdvideo_core.lora_layers import Layers, text_shapes
from tests.unit import lora_makers
from tests.unit.small_lora import exactly, make_unet, random, relative_error

LAYERS = Layers.of(make_unet()).with_text(text_shapes(TextConfig(width=8, context_length=5, vocab_size=11), 2))
NAMES = {"kohya": "lora.safetensors", "webui": "lora.safetensors", "peft": "a folder"}


def random_pairs(seed: int = 1, rank: int = 3) -> dict[str, Pair]:
    """Of every layer; ranks and alphas differ, as those of cut ranks do."""
    pairs = {}
    for index, (path, (out, *rest)) in enumerate(LAYERS.shapes.items()):
        r = min(rank, out)
        up = random(out, r, *(1 for _ in rest[1:]), seed=seed + index)
        pairs[path] = Pair(random(r, *rest, seed=seed + index + 1000), up, 1.5 if index % 7 else 4.0)
    return pairs


PAIRS = random_pairs()


def write(form: str, folder: Path) -> Path:
    path = folder / NAMES[form]
    if form == "kohya":
        write_kohya(PAIRS, path, torch.float64)
    else:
        {"peft": write_peft, "webui": write_webui}[form](PAIRS, LAYERS, path, torch.float64)
    return path


@pytest.mark.parametrize("form", EXPORT_FORMATS)
def test_what_is_written_is_read_again(form, tmp_path):
    file = read_lora(write(form, tmp_path))
    match = file.match(LAYERS)
    assert file.format == form
    assert match.report.unused == []
    read = {**match.unet, **match.text}
    assert list(read) == list(PAIRS)
    for path, pair in PAIRS.items():
        assert relative_error(read[path].delta(), pair.delta()) <= (1e-7 if form == "kohya" else 1e-14)  # its alpha


def delta(name: str) -> Tensor:
    """By diffusers' name, in the shape of diffusers' weight."""
    path = lora_makers.own_name(name)
    return PAIRS[path].delta().view(lora_makers.shape_of(name))


def test_peft_reads_what_is_written_for_it(tmp_path):
    model = peft.PeftModel.from_pretrained(lora_makers.make_diffusers_unet(), write("peft", tmp_path))
    assert model.peft_config["default"].lora_alpha == 1.5
    layers = {name.removeprefix("base_model.model."): m for name, m in model.named_modules() if hasattr(m, "lora_A")}
    assert len(layers) == len(LAYERS.unet)
    for name, layer in layers.items():
        assert relative_error(layer.get_delta_weight("default"), delta(name)) <= 1e-6  # peft loads as float32


def test_loralib_reads_what_is_written_for_the_webui(tmp_path):
    path = write("webui", tmp_path)
    tensors = load_file(path)
    for name in lora_makers.LAYERS:
        out, width, *kernel = lora_makers.shape_of(name)
        a, b = (tensors[f"{lora_makers.own_name(name)}.lora_{part}"] for part in "AB")
        assert a.ndim == b.ndim == (3 if "proj_" in name else 2)  # the webui takes the last axis of projections off
        if "proj_" in name:
            a, b = a.squeeze(-1), b.squeeze(-1)
        if len(kernel) == 3:
            merged = (b @ a).view(out, width, 3, 3, 1).mean(dim=-2, keepdim=True)
        else:
            rank = len(a) // (kernel[0] if kernel else 1)
            options = {"r": rank, "lora_alpha": rank}
            layer = (
                loralib.Conv2d(width, out, kernel[0], **options) if kernel else loralib.Linear(width, out, **options)
            )
            weight = getattr(layer.double(), "conv", layer).weight
            weight.data.zero_()
            layer.load_state_dict({"lora_A": a, "lora_B": b}, strict=False)
            layer.eval()
            merged = weight.data
        assert relative_error(merged, delta(name)) <= 1e-14
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt", "stable_lora_text_to_video": "v1", "lora_name": "lora"}


def test_the_webui_gets_open_clips_names(tmp_path):
    names = {key.rpartition(".")[0] for key in load_file(write("webui", tmp_path))}
    assert {"resblocks.1.attn.out_proj", "resblocks.0.mlp.c_fc", "text_model.embeddings.token_embedding"} <= names


@pytest.mark.parametrize("form", EXPORT_FORMATS)
@pytest.mark.parametrize("make", lora_makers.MAKERS[::3], ids=lambda make: make.__name__)
def test_any_format_is_converted(make, form, tmp_path):
    (tmp_path / "source").mkdir()
    path, deltas = make(tmp_path / "source")
    destination = tmp_path / NAMES[form]
    report = convert_lora(path, destination, form, torch.float32, LAYERS)
    read = read_lora(destination).match(LAYERS)
    assert report.applied == read.report.applied
    for name, expected in deltas.items():
        assert relative_error(read.unet[lora_makers.own_name(name)].delta(), expected.flatten(1)) <= 1e-6


def test_half_precision_is_the_default(tmp_path):
    convert_lora(write("kohya", tmp_path), tmp_path / "half.safetensors", layers=LAYERS)
    tensors = load_file(tmp_path / "half.safetensors")
    assert {value.dtype for key, value in tensors.items() if not key.endswith("alpha")} == {torch.float16}
    assert tensors["lora_unet_out_2.alpha"].dtype is torch.float32


def test_peft_leaves_out_the_part_that_is_not_there(tmp_path):
    text_only = {path: pair for path, pair in PAIRS.items() if path in LAYERS.text}
    write_peft(text_only, LAYERS, tmp_path / "lora", torch.float32)
    assert [path.name for path in (tmp_path / "lora").iterdir()] == ["text_encoder"]
    assert list(read_lora(tmp_path / "lora").match(LAYERS).text) == list(text_only)
    config = json.loads((tmp_path / "lora/text_encoder/adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"


def test_an_unknown_format(tmp_path):
    with pytest.raises(ValueError, match=r"^format='lycoris'; expected one of kohya, peft, webui$"):
        convert_lora(tmp_path, tmp_path, "lycoris")


def test_a_folder_that_is_there_already(tmp_path):
    message = f"cannot write the LoRA {tmp_path}: it is there already; give the name of a new folder"
    with pytest.raises(FileExistsError, match=exactly(message)):
        write_peft(PAIRS, LAYERS, tmp_path, torch.float32)


def test_numbers_that_half_precision_cannot_hold_write_nothing(tmp_path):
    pairs = copy.deepcopy(PAIRS)
    pairs["out.2"].up[0] = 1e6
    for form in EXPORT_FORMATS:
        path = tmp_path / NAMES[form]
        with pytest.raises(FloatingPointError, match=rf"^cannot write the LoRA {re.escape(str(tmp_path))}.*NaN or inf"):
            if form == "kohya":
                write_kohya(pairs, path, torch.float16)
            else:
                {"peft": write_peft, "webui": write_webui}[form](pairs, LAYERS, path, torch.float16)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", EXPORT_FORMATS)
def test_description(form, tmp_path):
    report = describe_lora(write(form, tmp_path), LAYERS)
    kinds = {"kohya": "kohya's format", "peft": "PEFT's format", "webui": "the webui's format (stable_lora)"}
    assert report["is"] == f"a LoRA in {kinds[form]}"
    assert report["layers"] == len(PAIRS)
    assert 3 in report["ranks"]
    assert report["unet layers"] == len(LAYERS.unet)
    assert report["text encoder layers"] == len(LAYERS.text)
