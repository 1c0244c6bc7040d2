"""LoRA files: kohya's format as training writes it, and what is said of files and options that are wrong."""

from pathlib import Path

import pytest
import safetensors
import torch
from safetensors.torch import load_file

from sdvideo_core.checkpoint import CheckpointError
from sdvideo_core.lora import LoRA, Pair, kohya_name, save_lora
from sdvideo_core.lora_files import read_lora
from sdvideo_core.lora_layers import Layers
from sdvideo_core.unet import UNetSD
from tests.numerics import relative_error
from tests.unit.small_lora import (
    CONV3D,
    LAST,
    LINEAR,
    TEMPORAL_PROJECTION,
    exactly,
    inputs,
    make_lora,
    make_unet,
    rewrite,
    save_three_layers,
)


@pytest.fixture(scope="module")
def unet() -> UNetSD:
    return make_unet()


@pytest.fixture
def file(tmp_path: Path, unet: UNetSD) -> Path:
    return save_three_layers(tmp_path, unet)


def test_a_file_holds_kohyas_names_and_shapes(file):
    shapes = {key: tuple(value.shape) for key, value in load_file(file).items()}
    linear, conv = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn2_to_k", kohya_name(CONV3D)
    assert conv == "lora_unet_input_blocks_1_0_temopral_conv_conv2_3"
    assert shapes == {
        f"{linear}.lora_down.weight": (6, 16),
        f"{linear}.lora_up.weight": (32, 6),
        f"{linear}.alpha": (),
        f"{conv}.lora_down.weight": (6, 32, 3, 1, 1),
        f"{conv}.lora_up.weight": (32, 6, 1, 1, 1),
        f"{conv}.alpha": (),
        "lora_unet_out_2.lora_down.weight": (4, 32, 3, 3),
        "lora_unet_out_2.lora_up.weight": (4, 4, 1, 1),
        "lora_unet_out_2.alpha": (),
    }
    assert load_file(file)["lora_unet_out_2.alpha"] == 2.0  # its rank was cut from 6 to 4


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 0), (torch.float16, 1e-3), (torch.bfloat16, 1e-2)])
@torch.no_grad()
def test_a_saved_lora_acts_the_same(tmp_path, unet, dtype, tolerance):
    lora, path = make_lora(unet, 5, alpha=3.3), tmp_path / "new folder" / "lora.safetensors"
    save_lora(lora, path, dtype)
    with lora:
        expected = unet(*inputs())
    with LoRA.from_file(unet, path) as loaded:
        output = unet(*inputs())
    assert loaded.paths == lora.paths
    assert loaded.unused == []
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    # alpha is kept in float32 in the file.
    assert relative_error(output, expected) <= max(tolerance, 1e-7)
    assert {value.dtype for key, value in load_file(path).items() if "lora_" in key[10:]} == {dtype}


def test_a_loaded_lora_can_be_trained_on_and_draws_no_random_numbers(file, unet):
    before = torch.get_rng_state()
    with LoRA.from_file(unet, file) as lora:
        unet(*inputs()).sum().backward()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is not None for parameter in lora.parameters())


def test_pairs_are_as_the_file_has_them(file, unet):
    pairs = read_lora(file).match(Layers.of(unet)).unet
    assert set(pairs) == {LINEAR, CONV3D, LAST}
    pair = pairs[CONV3D]
    assert pair.down.dtype is pair.up.dtype is torch.float16
    assert pair.alpha == 3.0
    lora = LoRA.from_pairs(unet, {CONV3D: pair})
    assert torch.equal(lora.adapter(CONV3D).down, pair.down)
    assert lora.adapter(CONV3D).scale == 0.5


def test_without_alpha_the_scale_is_1(file, unet):
    rewrite(file, lora_unet_out_2__alpha=None)
    lora = LoRA.from_file(unet, file)
    assert {path: lora.adapter(path).scale for path in lora.paths} == {LINEAR: 0.5, CONV3D: 0.5, LAST: 1.0}


def test_axes_of_length_1_may_be_more_or_fewer(unet):
    pairs = {path: Pair(torch.ones(2, 32, 1), torch.ones(128, 2, 1), 2.0) for path in (TEMPORAL_PROJECTION,)}
    pairs[CONV3D] = Pair(torch.ones(2, 96), torch.ones(32, 2), 2.0)
    lora = LoRA.from_pairs(unet, pairs)
    assert lora.adapter(TEMPORAL_PROJECTION).down.shape == (2, 32)
    assert lora.adapter(CONV3D).down.shape == (2, 32, 3, 1, 1)


def test_metadata_is_kept(tmp_path, unet):
    path = tmp_path / "lora.safetensors"
    save_lora(LoRA(unet, 6, 3.0), path, metadata={"caption": "a disc"})
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert metadata == {"format": "pt", "ss_network_dim": "6", "ss_network_alpha": "3.0", "caption": "a disc"}


def test_a_failed_write_leaves_the_old_file(file, unet, monkeypatch):
    def half_written(path: Path, content: bytes) -> None:
        with path.open("wb") as opened:
            opened.write(content[:10])
        raise OSError(28, "No space left on device")

    before = file.read_bytes()
    monkeypatch.setattr(Path, "write_bytes", half_written)
    message = (
        f"cannot write {file}: No space left on device; choose another place or check its permissions and free space"
    )
    with pytest.raises(OSError, match=exactly(message)):
        save_lora(LoRA(unet), file)
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


def test_what_is_not_used_is_named(file, unet):
    extra = {"lora_te_text_model__alpha": torch.ones(()), "lora_unet_out_2__bias": torch.ones(4)}
    rewrite(file, lora_unet_label_emb__lora_down__weight=torch.ones(2, 3), **extra)
    rewrite(file, lora_unet_label_emb__lora_up__weight=torch.ones(3, 2))
    label = "lora_unet_label_emb.lora_"
    unused = [f"{label}down.weight", f"{label}up.weight", "lora_te_text_model.alpha", "lora_unet_out_2.bias"]
    message = f"{file}, a LoRA in kohya's format: 3 layers applied; not used (4): {', '.join(unused)}"
    with pytest.warns(UserWarning, match=exactly(message)):
        lora = LoRA.from_file(unet, file)
    assert lora.unused == unused
    assert len(lora.paths) == 3


def test_a_pickle_is_mapped_and_read_once(tmp_path, monkeypatch):
    loads = []

    def load(*args, **options):
        loads.append(options["mmap"])
        return torch_load(*args, **options)

    torch_load = torch.load
    monkeypatch.setattr(torch, "load", load)
    factors = {"down": torch.ones(2, 3), "up": torch.ones(3, 2)}
    torch.save({f"lora_unet_out_2.lora_{part}.weight": factor for part, factor in factors.items()}, tmp_path / "a.pt")
    assert list(read_lora(tmp_path / "a.pt").layers) == ["lora_unet_out_2"]
    assert loads == [True]
    torch.save(list(factors.values())[::-1], tmp_path / "list.pt")
    assert list(read_lora(tmp_path / "list.pt").layers) == ["layer 1"]
    assert all(loads)


# Errors


EXPECTED = (
    "expected one of all, attention, spatial, temporal, or a regular expression for paths like "
    "time_embed.0, time_embed.2, ..."
)
BAD_OPTIONS = [
    ({"rank": 0}, "LoRA rank=0; expected 1 or more, such as 8"),
    ({"alpha": 0}, "LoRA alpha=0; expected a number above 0, such as the rank, 8"),
    ({"alpha": float("nan")}, "LoRA alpha=nan; expected a number above 0, such as the rank, 8"),
    ({"targets": "atention"}, f"targets='atention' matches no layer; {EXPECTED}"),
    (
        {"targets": "(to_q"},
        f"targets='(to_q' is no regular expression: missing ), unterminated subpattern at position 0; {EXPECTED}",
    ),
    (
        {"targets": [LINEAR, "out.0"]},
        "targets ['out.0'] are no layers of this UNet; its layers are time_embed.0, time_embed.2, ...",
    ),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS)
def test_bad_options(unet, options, message):
    with pytest.raises(ValueError, match=exactly(message)):
        LoRA(unet, **options)


@pytest.mark.parametrize(("targets", "has"), [([LINEAR], f"{LINEAR}, ..."), ([], "none")])
def test_a_layer_without_adapter_is_named(unet, targets, has):
    with pytest.raises(ValueError, match=exactly(f"this LoRA has no adapter for 'out.2'; it has {has}")):
        LoRA(unet, targets=targets).delta(LAST)


def test_merging_into_other_weights(unet):
    weights = unet.state_dict() | {f"{CONV3D}.weight": torch.zeros(32, 16, 3, 1, 1)}
    del weights[f"{LINEAR}.weight"]
    message = (
        f"the state dict does not fit (2 problems): {CONV3D}.weight is (32, 16, 3, 1, 1), expected (32, 32, 3, 1, 1); "
        f"{LINEAR}.weight is missing, expected (32, 16); merge into the weights of the UNet that the LoRA was made for"
    )
    with pytest.raises(CheckpointError, match=exactly(message)):
        LoRA(unet).merge_into(weights)


def test_other_suffixes_are_not_written(tmp_path, unet):
    path = tmp_path / "lora.pt"
    message = f"cannot write the LoRA {path}: its name ends in '.pt'; use .safetensors"
    with pytest.raises(ValueError, match=exactly(message)):
        save_lora(LoRA(unet), path)


def test_a_lora_of_no_layers_is_not_written(tmp_path, unet):
    path = tmp_path / "lora.safetensors"
    message = f"cannot write the LoRA {path}: it adapts no layer; choose other targets"
    with pytest.raises(ValueError, match=exactly(message)):
        save_lora(LoRA(unet, targets=[]), path)


@pytest.mark.parametrize(("value", "dtype"), [(float("nan"), torch.float32), (1e5, torch.float16)])
def test_numbers_that_a_file_cannot_hold_are_not_written(tmp_path, unet, value, dtype):
    lora, path = LoRA(unet, targets=[LINEAR, LAST]), tmp_path / "lora.safetensors"
    lora.adapter(LAST).up.data[0, 0] = value
    message = (
        f"cannot write the LoRA {path}: lora_unet_out_2.lora_up.weight hold NaN or infinity in {dtype}; "
        "save it in float32, or train with a lower learning rate"
    )
    with pytest.raises(FloatingPointError, match=exactly(message)):
        save_lora(lora, path, dtype)
    assert list(tmp_path.iterdir()) == []
