"""Cache: what comes out equals encoding the clips directly, what goes on after an interruption, what is damaged."""

import copy
import json
import pickle
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from sdvideo_core import SDVideo
from sdvideo_core.training import cache
from sdvideo_core.training.cache import CachedDataset, CacheError, collate_cached, encode_dataset
from sdvideo_core.training.collate import check_batch, collate_fn

SIZE = (16, 24)
OPTIONS: dict[str, Any] = {"num_frames": 5, "image_size": SIZE}

Items = list[dict[str, Any]]


def clip(name: str, text: str, num_frames: int = 6, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (num_frames, 30, 20, 3), np.uint8)
    return {"name": name, "frames": [Image.fromarray(frame) for frame in pixels], "text": text}


@pytest.fixture
def items() -> Items:
    return [clip("10", "ein grüner\nBall 🐼", 9), clip("2", "", 2, 1), clip("a/2", "a square", 6, 2)]


@pytest.fixture(scope="module")
def made(demo_model: SDVideo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    items = [clip("10", "one", 9), clip("2", "two", 2, 1)]
    return encode_dataset(demo_model, items, tmp_path_factory.mktemp("cache"), **OPTIONS)


@pytest.fixture
def directory(made: Path, tmp_path: Path) -> Path:
    """A cache of two clips to break."""
    return Path(shutil.copytree(made, tmp_path / "cache"))


def encode_directly(model: SDVideo, item: dict[str, Any], **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    batch = collate_fn([item], **options)
    with torch.no_grad():
        return model.vae.encode(batch["pixel_values"][0]), model.text_encoder(batch["text"])[0]


def times(directory: Path) -> dict[str, int]:
    """When each file was written, by its path without extension."""
    paths = directory.rglob("*.safetensors")
    return {path.relative_to(directory).with_suffix("").as_posix(): path.stat().st_mtime_ns for path in paths}


def changed(before: dict[str, int], after: dict[str, int]) -> set[str]:
    return {name for name in after if after[name] != before.get(name)}


def copied(model: SDVideo) -> SimpleNamespace:
    vae, text_encoder = copy.deepcopy(model.vae), copy.deepcopy(model.text_encoder)
    return SimpleNamespace(vae=vae, text_encoder=text_encoder, device=model.device)


# What comes out


@pytest.mark.parametrize("stride", [1, 2])
def test_batches_from_the_cache_equal_encoding_directly(demo_model, items, tmp_path, stride):
    options = OPTIONS | {"stride": stride}
    made = encode_dataset(demo_model, items, tmp_path / "new" / "cache", **options)
    assert made == tmp_path / "new" / "cache"
    dataset = CachedDataset(made)
    assert [item["name"] for item in (dataset[0], dataset[1], dataset[2])] == ["10", "2", "a/2"]
    batch = collate_cached([dataset[index] for index in range(3)])
    direct = [encode_directly(demo_model, item, **options) for item in items]
    assert batch["pixel_values"].shape == (3, 5, 4, 3, 2)
    assert torch.equal(batch["pixel_values"], torch.stack([latents for latents, _ in direct]))
    assert torch.equal(batch["text"], torch.stack([context for _, context in direct]))
    check_batch(batch, preencoded_img=True, preencoded_txt=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_tensors_are_stored_in_the_asked_dtype(demo_model, items, tmp_path, dtype):
    item = CachedDataset(encode_dataset(demo_model, items, tmp_path, dtype=dtype, **OPTIONS))[0]
    latents, context = encode_directly(demo_model, items[0], **OPTIONS)
    assert torch.equal(item["pixel_values"], latents.to(dtype))
    assert torch.equal(item["text"], context.to(dtype))


def test_the_model_encodes_in_its_own_precision(demo_model, items, tmp_path):
    half = copied(demo_model)
    half.vae.bfloat16()
    item = CachedDataset(encode_dataset(half, items, tmp_path, **OPTIONS))[0]
    pixels = collate_fn(items[:1], dtype=torch.bfloat16, **OPTIONS)["pixel_values"][0]
    with torch.no_grad():
        assert torch.equal(item["pixel_values"], half.vae.encode(pixels).float())


def test_captions_and_settings_are_in_the_files(demo_model, items, tmp_path):
    encode_dataset(demo_model, items, tmp_path, **OPTIONS)
    with safe_open(tmp_path / "clips" / "10.safetensors", framework="pt") as file:
        assert file.metadata()["text"] == items[0]["text"]
        assert file.metadata()["format"] == "sdvideo-cache-1"
    index = json.loads((tmp_path / "index.json").read_text())
    assert index["clips"] == ["10", "2", "a/2"]
    expected = {"num_frames": 5, "width": 16, "height": 24, "stride": 1, "dtype": "float32"}
    assert {key: index["settings"][key] for key in expected} == expected
    assert CachedDataset(tmp_path).settings == index["settings"]
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]


def test_workers_read_what_the_main_process_reads(directory):
    dataset = pickle.loads(pickle.dumps(CachedDataset(directory)))  # noqa: S301
    [batch] = DataLoader(dataset, batch_size=2, num_workers=2, collate_fn=collate_cached)
    assert torch.equal(batch["pixel_values"][1], dataset[1]["pixel_values"])
    assert len(dataset) == 2


def test_progress_is_shown_when_asked_for(demo_model, items, tmp_path, capsys):
    encode_dataset(demo_model, items[:1], tmp_path, **OPTIONS)
    assert capsys.readouterr().err == ""
    encode_dataset(demo_model, items[:1], tmp_path, bar=True, **OPTIONS)
    assert "1/1" in capsys.readouterr().err


# Going on, and making anew


def test_each_clip_is_told_and_the_telling_may_stop_the_run(demo_model, items, tmp_path):
    told = []

    def callback(done, total):
        told.append((done, total))
        if len(told) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_dataset(demo_model, items, tmp_path, **OPTIONS, callback=callback)
    assert told == [(1, 3), (2, 3)]
    assert set(times(tmp_path)) == {"clips/10", "clips/2"}


def test_a_second_run_keeps_every_file(demo_model, items, tmp_path):
    encode_dataset(demo_model, items, tmp_path, **OPTIONS)
    before = times(tmp_path)
    encode_dataset(demo_model, items, tmp_path, **OPTIONS)
    assert times(tmp_path) == before
    assert len(before) == 3
    assert len(CachedDataset(tmp_path)) == 3


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({"num_frames": 4}, {"10", "2"}),
        ({"image_size": (24, 16)}, {"10", "2"}),
        ({"stride": 2}, {"10", "2"}),
        ({"dtype": torch.bfloat16}, {"10", "2"}),
        ({"items": [clip("10", "other", 9), clip("2", "two", 2, 1)]}, {"10"}),
        ({"items": [clip("10", "one", 9), clip("2", "two", 2, 7)]}, {"2"}),
        ({"items": [clip("2", "two", 2, 1), clip("10", "one", 9)]}, set()),
        ({"items": [clip("10", "one", 9), clip("2", "two", 2, 1), clip("3", "three")]}, {"3"}),
        ({"items": [clip("2", "two", 2, 1)]}, set()),
    ],
)
def test_only_what_changed_is_encoded_again(demo_model, directory, change, again):
    options = OPTIONS | change
    items = options.pop("items", [clip("10", "one", 9), clip("2", "two", 2, 1)])
    before = times(directory)
    encode_dataset(demo_model, items, directory, **options)
    assert changed(before, times(directory)) == {f"clips/{name}" for name in again}
    dataset = CachedDataset(directory)
    assert [item["name"] for item in (dataset[index] for index in range(len(dataset)))] == [i["name"] for i in items]


@pytest.mark.parametrize("part", ["vae", "text_encoder"])
def test_other_weights_encode_everything_again(demo_model, directory, part):
    other = copied(demo_model)
    weights = list(getattr(other, part).parameters())
    with torch.no_grad():
        weights[0].add_(0.01)
    before = times(directory)
    encode_dataset(other, [clip("10", "one", 9)], directory, **OPTIONS)
    assert changed(before, times(directory)) == {"clips/10"}


class Interrupted(Exception):
    pass


def test_an_interrupted_run_goes_on(demo_model, items, tmp_path):
    class Stops(Sequence):
        def __len__(self):
            return len(items)

        def __getitem__(self, index):
            if index == 2:
                raise Interrupted
            return items[index]

    with pytest.raises(Interrupted):
        encode_dataset(demo_model, Stops(), tmp_path, **OPTIONS)
    with pytest.raises(CacheError, match=r"holds no finished cache \(index\.json is missing\); run encode_dataset"):
        CachedDataset(tmp_path)
    before = times(tmp_path)
    assert set(before) == {"clips/10", "clips/2"}
    encode_dataset(demo_model, items, tmp_path, **OPTIONS)
    assert changed(before, times(tmp_path)) == {"clips/a/2"}
    assert len(CachedDataset(tmp_path)) == 3


def test_other_settings_that_are_interrupted_leave_no_mixed_cache(demo_model, directory):
    with pytest.raises(ValueError, match="has no frames"):
        encode_dataset(demo_model, [clip("10", "one", 9), clip("2", "", 0)], directory, num_frames=3, image_size=SIZE)
    with pytest.raises(CacheError, match="no finished cache"):
        CachedDataset(directory)


def test_a_file_that_cannot_be_finished_is_not_there(demo_model, items, tmp_path, monkeypatch):
    def fail(_tensors, path, metadata):
        Path(path).write_bytes(b"half" + str(metadata).encode())
        raise OSError("No space left on device")

    monkeypatch.setattr(cache, "save_file", fail)
    with pytest.raises(OSError, match=r"cannot write .*10\.safetensors: No space left .*; choose another place"):
        encode_dataset(demo_model, items, tmp_path, **OPTIONS)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": (20, 24)}, "width 20 is not usable"),
        ({"num_frames": 0}, "num_frames is 0"),
        ({"stride": 0}, "stride is 0"),
        ({"dtype": torch.int8}, r"dtype is torch\.int8, expected floating point"),
    ],
)
def test_options_out_of_range_leave_the_cache_alone(demo_model, directory, options, message):
    with pytest.raises(ValueError, match=message):
        encode_dataset(demo_model, [clip("10", "one")], directory, **OPTIONS | options)
    assert len(CachedDataset(directory)) == 2


def test_an_empty_dataset_is_refused(demo_model, tmp_path):
    with pytest.raises(CacheError, match=r"cache .* is empty, expected at least 1 clip; add clips"):
        encode_dataset(demo_model, [], tmp_path)


@pytest.mark.parametrize("name", ["", ".", "../a", "/a", "a//b", "a\\..\\b", None, 7])
def test_names_that_are_no_file_names_are_refused(demo_model, tmp_path, name):
    item = clip("", "a caption") | {"name": name}
    with pytest.raises(CacheError, match=r"a clip is named .*, expected a name such as 0001 or folder/0001; rename"):
        encode_dataset(demo_model, [item], tmp_path / "cache", **OPTIONS)


def test_two_clips_of_one_name_are_refused(demo_model, items, tmp_path):
    with pytest.raises(CacheError, match="two clips are named 10, the second is clip 1; give each its own name"):
        encode_dataset(demo_model, [items[0], items[0]], tmp_path, **OPTIONS)


def test_a_file_is_no_folder_for_a_cache(demo_model, items, tmp_path):
    (tmp_path / "cache").write_bytes(b"")
    with pytest.raises(CacheError, match="cache is a file, expected a folder for the cache; give another name"):
        encode_dataset(demo_model, items, tmp_path / "cache", **OPTIONS)


def test_latents_that_overflow_are_refused(demo_model, items, tmp_path):
    broken = copied(demo_model)
    broken.vae.quant_conv.bias.data.fill_(torch.inf)
    with pytest.raises(
        FloatingPointError, match=r"the latents of 10 hold NaN or infinity, .*float32; load the model in"
    ):
        encode_dataset(broken, items, tmp_path, **OPTIONS)


# What is damaged


def test_a_folder_without_a_cache_is_refused(tmp_path):
    with pytest.raises(CacheError, match="lost holds no finished cache"):
        CachedDataset(tmp_path / "lost")


@pytest.mark.parametrize("text", ["{", "[]", '{"clips": []}', '{"format": 1, "settings": 2, "clips": []}'])
def test_a_damaged_index_is_refused(directory, text):
    (directory / "index.json").write_text(text)
    with pytest.raises(CacheError, match=r"index\.json is damaged or no index of a cache; run encode_dataset again"):
        CachedDataset(directory)


def test_an_index_of_another_format_is_refused(directory):
    index = json.loads((directory / "index.json").read_text())
    (directory / "index.json").write_text(json.dumps(index | {"format": "sdvideo-cache-9"}))
    with pytest.raises(CacheError, match="has format sdvideo-cache-9, expected sdvideo-cache-1; run"):
        CachedDataset(directory)


def test_damaged_and_missing_files_are_named_and_made_anew(demo_model, directory):
    path = directory / "clips" / "2.safetensors"
    good, tensors = path.read_bytes(), {key: tensor.clone() for key, tensor in load_file(path).items()}
    for damaged in (good[:-1], good[:20], b"", None):
        path.unlink() if damaged is None else path.write_bytes(damaged)
        what = "is missing" if damaged is None else "is damaged or cut short"
        with pytest.raises(
            CacheError, match=rf"{path.name} {what}; run encode_dataset again, which makes only such files"
        ):
            CachedDataset(directory)
        encode_dataset(demo_model, [clip("10", "one", 9), clip("2", "two", 2, 1)], directory, **OPTIONS)
        assert len(CachedDataset(directory)) == 2
        assert all(torch.equal(tensor, tensors[key]) for key, tensor in load_file(path).items())


def test_a_file_of_another_cache_is_refused(demo_model, directory, tmp_path):
    other = encode_dataset(demo_model, [clip("2", "two", 2, 1)], tmp_path / "other", num_frames=3, image_size=SIZE)
    shutil.copy(other / "clips" / "2.safetensors", directory / "clips")
    with pytest.raises(
        CacheError, match=r'2\.safetensors was made with .*"num_frames": 3.* cache with .*: 5.* mixes two'
    ):
        CachedDataset(directory)


def test_a_file_damaged_later_is_named(directory):
    dataset = CachedDataset(directory)
    path = directory / "clips" / "10.safetensors"
    path.unlink()  # the dataset may still map the old one
    path.write_bytes(b"no tensors")
    with pytest.raises(CacheError, match=r"cannot read .*10\.safetensors: .*; run encode_dataset again"):
        dataset[0]
