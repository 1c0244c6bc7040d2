"""LoRA export: what is written is what the format's own library reads, and what we read again."""

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path

import loralib
import peft
import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sdvideo_core.cli import main
from sdvideo_core.config import TextConfig
from sdvideo_core.configuration import CheckpointError
from sdvideo_core.demo import few_steps_lora
from sdvideo_core.inspection import known_sizes
from sdvideo_core.lcm import LCM
from sdvideo_core.lora_export import EXPORT_FORMATS, convert_lora, write_kohya, write_peft, write_webui
from sdvideo_core.lora_files import describe_lora, read_lora
from sdvideo_core.lora_formats import Pair
from sdvideo_core.lora_layers import TEXT_EMBEDDINGS, Layers, text_shapes
from tests.numerics import relative_error
from tests.unit import lora_makers
from tests.unit.small_lora import exactly, make_unet, random

TOWER = TextConfig(width=8, layers=3, context_length=5, vocab_size=11)
LAYERS = Layers.of(make_unet()).with_text(text_shapes(TOWER, 2))
ALL_BLOCKS = LAYERS.with_text(text_shapes(TOWER, 3))
OTHERS = LAYERS.with_text(text_shapes(TextConfig(width=16), 2))  # of the same names
NAMES = {"kohya": "lora.safetensors", "webui": "lora.safetensors", "peft": "a folder"}


@pytest.fixture(scope="module")
def full_size() -> Iterator[Layers]:
    """What is taken unless another model is given, made once."""
    layers = Layers.full_size()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Layers, "full_size", lambda: layers)
        yield layers


def random_pairs(seed: int = 1, rank: int = 3, layers: Layers = LAYERS) -> dict[str, Pair]:
    """Of every layer; ranks and alphas differ, as those of cut ranks do."""
    pairs = {}
    for index, (path, (out, *rest)) in enumerate(layers.shapes.items()):
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


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
@pytest.mark.parametrize("make", [lora_makers.kohya, lora_makers.stable_lora, lora_makers.webui])
def test_weights_of_one_byte_are_computed_with_in_float32(make, dtype, tmp_path):
    path, _ = make(tmp_path)
    small = {key: tensor.to(dtype) for key, tensor in load_file(path).items()}
    save_file(small, tmp_path / "small.safetensors")
    save_file({key: tensor.float() for key, tensor in small.items()}, tmp_path / "large.safetensors")
    for form in ("kohya", "webui"):
        written = []
        for size in ("small", "large"):
            convert_lora(tmp_path / f"{size}.safetensors", tmp_path / f"{size} {form}.safetensors", form, layers=LAYERS)
            written.append(load_file(tmp_path / f"{size} {form}.safetensors"))
        assert written[0].keys() == written[1].keys()
        assert all(torch.equal(tensor, written[1][key]) for key, tensor in written[0].items())


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


@pytest.mark.parametrize("form", EXPORT_FORMATS)
def test_what_is_there_already_stays(form, tmp_path):
    path = tmp_path / "lora.safetensors"
    write_kohya(PAIRS, path, torch.float32)
    before = path.read_bytes()
    message = f"cannot write the LoRA {path}: it is there already; give another name, or remove it first"
    with pytest.raises(FileExistsError, match=exactly(message)):
        convert_lora(path, path, form, layers=LAYERS)
    assert path.read_bytes() == before
    with pytest.raises(
        FileExistsError, match=f"^cannot write the LoRA {re.escape(str(tmp_path))}: it is there already"
    ):
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
    assert report["unused layers"] == 0
    assert "for" not in report


# Of a model of another size


@pytest.mark.parametrize("form", EXPORT_FORMATS)
def test_what_is_for_a_model_of_another_size_is_described(form, full_size, tmp_path):
    report = describe_lora(write(form, tmp_path))
    assert report["for"] == "a model of another size"
    assert report["layers"] == len(PAIRS)
    assert report["unet layers"] == len(LAYERS.unet)
    assert report["text encoder layers"] == len(LAYERS.text)


@pytest.mark.parametrize("form", EXPORT_FORMATS)
def test_another_known_model_is_named_and_its_layers_are_counted_by_shape(form, full_size, tmp_path):
    path = write(form, tmp_path)
    others = {"the second": OTHERS, "the third": LAYERS, "the fourth": LAYERS}
    report = describe_lora(path, others=others)
    assert report["for"] == "the third"
    assert report["unused layers"] == 0
    assert "for" not in describe_lora(path, LAYERS, others)


def test_a_list_of_a_model_of_another_size_is_described(full_size, tmp_path):
    report = describe_lora(lora_makers.positional(tmp_path)[0])
    assert report["for"] == "another model, or one of another size"
    assert report["ranks"] == [lora_makers.RANK]


def test_another_model_is_named(tmp_path):
    path = tmp_path / "lora.safetensors"
    save_file({f"lora_unet_double_blocks_0.lora_{part}.weight": torch.ones(1, 1) for part in ("up", "down")}, path)
    assert describe_lora(path, LAYERS)["for"] == "Flux or HunyuanVideo"


def test_converting_what_is_for_a_model_of_another_size(full_size, tmp_path):
    message = (
        "; this LoRA belongs to another model. If it is for a model of another size, say which: --model DIR on the "
        "command line, layers=Layers.of(unet, text_encoder) in Python"
    )
    with pytest.raises(CheckpointError, match=re.escape(message)) as caught:
        convert_lora(write("kohya", tmp_path), tmp_path / "new.safetensors")
    assert len(str(caught.value)) < 1200
    with pytest.raises(CheckpointError, match=r"; this LoRA belongs to another model$"):
        convert_lora(tmp_path / "lora.safetensors", tmp_path / "new.safetensors", layers=OTHERS)


# The last block of the text encoder


@pytest.mark.parametrize("form", ["kohya", "positional"])
def test_the_text_encoders_last_block_is_told_to_be_of_no_use(form, tmp_path):
    pairs = {path: pair for path, pair in random_pairs(layers=ALL_BLOCKS).items() if path not in LAYERS.unet}
    path = tmp_path / ("lora.safetensors" if form == "kohya" else "lora.pt")
    if form == "kohya":
        write_kohya(pairs, path, torch.float32)
    else:
        pairs = {path: pair for path, pair in pairs.items() if path not in TEXT_EMBEDDINGS}
        torch.save([factor for pair in pairs.values() for factor in (pair.up, pair.down)], path)
    tower = Layers.of(make_unet()).with_text_tower(TOWER)
    report = read_lora(path).match(tower).report
    assert report.applied == [path for path in pairs if "layers.2" not in path]
    assert report.idle == 6
    assert len(report.unused) == (18 if form == "kohya" else 6)
    assert str(report).endswith("; 6 layers are of the text encoder's last block, which these models never run")
    description = describe_lora(path, tower)
    assert description["text encoder layers"] == len(report.applied)
    assert description["unused layers"] == 6


def test_models_of_full_size_run_23_blocks_of_text(full_size):
    assert len(full_size.text) == 2 + 6 * 23
    assert len(full_size.idle) == 6
    assert all(path.startswith("text_model.encoder.layers.23.") for path in full_size.idle)


# What SDVideo says of a LoRA in its file

FEW_STEPS = {"sdvideo.lcm_timesteps": "20", "sdvideo.lcm_grid": "strided"}


@pytest.mark.parametrize("form", EXPORT_FORMATS)
def test_how_to_sample_is_kept_and_told(form, tmp_path):
    source, path = tmp_path / "source.safetensors", tmp_path / NAMES[form]
    write_kohya(PAIRS, source, torch.float32, {**FEW_STEPS, "caption": "a disc"})
    convert_lora(source, path, form, torch.float32, LAYERS)
    report = describe_lora(path, LAYERS)
    assert report["metadata"] == FEW_STEPS
    assert LCM.from_metadata(read_lora(path).metadata) == LCM(original_steps=20)
    assert report["sample with"] == "--sampler lcm --steps 4 --cfg 1 --lcm-original-steps 20"


@pytest.mark.parametrize("points", ["3", "a lot", "-1", "10000"])
def test_only_what_makes_sense_becomes_options(points, tmp_path):
    path = tmp_path / "lora.safetensors"
    write_kohya(PAIRS, path, torch.float32, {"sdvideo.lcm_timesteps": points})
    report = describe_lora(path, LAYERS)
    assert report["metadata"] == {"sdvideo.lcm_timesteps": points}
    options = "--sampler lcm --steps 3 --cfg 1 --lcm-original-steps 3"
    assert report.get("sample with") == (options if points == "3" else None)


def test_the_command_line_knows_the_demo_model_s_loras(tmp_path, capsys):
    target = tmp_path / "webui.safetensors"
    assert main(["convert-lora", str(few_steps_lora()), str(target), "--format", "webui"]) == 0
    assert "175 layers applied" in capsys.readouterr().err
    assert describe_lora(target, others=known_sizes())["for"] == "SDVideo's demo model"
