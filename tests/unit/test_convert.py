"""Convert: what is written is the same model, for us and for diffusers; whole or not at all; with little memory."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import safetensors
import torch
from diffusers import AutoencoderKL, TextToVideoSDPipeline, UNet3DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer

from sdvideo_core import SDVideo
from sdvideo_core.checkpoint import LOADERS, CheckpointError, load_text_encoder, load_unet
from sdvideo_core.cli import main
from sdvideo_core.config import ModelConfig
from sdvideo_core.configuration import configuration
from sdvideo_core.convert import convert
from sdvideo_core.ddim import draw_noise
from sdvideo_core.layouts import find_layout
from sdvideo_core.state_dict import read_state_dict, write_safetensors
from tests.unit.small_model import say_heads, their_unet

NAMES = (ModelConfig.unet_file, ModelConfig.vae_file, ModelConfig.text_file)
# Without "!", which pads in the published folders of this family, and is read as padding there.
PROMPTS = ["", "a red circle moving left", "A dog, running; 3 cats & 2 birds.", "Café 日本語 naïve", "word " * 90]


@pytest.fixture(scope="module")
def written(original_dir, tmp_path_factory) -> Path:
    """A folder of diffusers that we wrote."""
    folder = tmp_path_factory.mktemp("written") / "model"
    assert convert(original_dir, folder, "diffusers").parts == ["unet", "vae", "text encoder"]
    return folder


def assert_equal_files(found: Path, expected: Path) -> None:
    ours, theirs = read_state_dict(found), read_state_dict(expected)
    assert ours.keys() == theirs.keys()
    assert [k for k in ours if ours[k].dtype != theirs[k].dtype or not torch.equal(ours[k], theirs[k])] == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_there_and_back_is_the_same_bit_for_bit(original_dir, tmp_path, dtype):
    convert(original_dir, tmp_path / "start", "modelscope", dtype)
    convert(tmp_path / "start", tmp_path / "between", "diffusers")
    convert(tmp_path / "between", tmp_path / "end", "modelscope")
    for name in NAMES:
        assert_equal_files(tmp_path / "end" / name, tmp_path / "start" / name)
        assert {w.dtype for w in read_state_dict(tmp_path / "end" / name).values()} == {dtype}
    jsons = [(tmp_path / folder / "configuration.json").read_text() for folder in ("start", "end")]
    assert jsons[0] == jsons[1]


def test_back_and_there_is_the_same_bit_for_bit(diffusers_dir, written):
    for name in ("unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"):
        assert_equal_files(written / name, diffusers_dir / name)
    ours, theirs = (load_file(folder / "text_encoder" / "model.safetensors") for folder in (written, diffusers_dir))
    assert {key.removeprefix("text_model.") for key in ours} == theirs.keys()
    assert all(torch.equal(value, theirs[key.removeprefix("text_model.")]) for key, value in ours.items())


def test_safetensors_are_read_by_their_own_library(original_dir, tmp_path):
    convert(original_dir, tmp_path / "model", "safetensors", torch.float16)
    config = json.loads((tmp_path / "model" / "configuration.json").read_text())
    assert set(config["model"]["model_args"].values()) >= {Path(name).stem + ".safetensors" for name in NAMES}
    for name in NAMES:
        expected = {k.removeprefix("first_stage_model."): v for k, v in read_state_dict(original_dir / name).items()}
        found = load_file((tmp_path / "model" / name).with_suffix(".safetensors"))
        assert found.keys() == expected.keys()
        assert all(torch.equal(value, expected[key].half()) for key, value in found.items())
    assert not list((tmp_path / "model").glob("*.tmp*"))


def test_a_unet_alone_is_one_file(original_dir, tmp_path):
    target = tmp_path / "unet.safetensors"
    assert convert(original_dir, target, "safetensors").parts == ["unet"]
    assert_equal_files(target, original_dir / NAMES[0])
    with safetensors.safe_open(target, "pt") as file:
        assert file.metadata() == {"format": "pt", "sdvideo.head_dim": "16"}


def test_a_unet_alone_says_how_wide_its_heads_are(demo_model_dir, tmp_path):
    target = tmp_path / "alone" / "unet.safetensors"
    target.parent.mkdir()
    assert convert(demo_model_dir, target, "safetensors").notes == []
    (target.parent / "configuration.json").write_text(json.dumps(configuration(ModelConfig())))  # of another model
    assert load_unet(target).config == load_unet(demo_model_dir).config


@pytest.mark.parametrize(("target", "layout"), [("a.pth", "safetensors"), ("a.safetensors", "modelscope")])
def test_a_folder_gets_no_name_of_a_file(original_dir, tmp_path, target, layout):
    with pytest.raises(ValueError, match=f"^{target} is a file's name, but {layout} is a folder; name a folder"):
        convert(original_dir, tmp_path / target, layout)
    assert not (tmp_path / target).exists()


@pytest.mark.parametrize(
    "dtype",
    [
        *(torch.float64, torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
        *(torch.int64, torch.int16, torch.int8, torch.bool),
    ],
)
def test_every_precision_is_written_as_safetensors_has_it(tmp_path, dtype):
    tensors = {
        "bytes": torch.arange(3, dtype=torch.uint8),
        "matrix": torch.arange(6).view(2, 3).to(dtype),
        "turned": torch.arange(6).view(2, 3).to(dtype).t(),
        "number": torch.ones(()).to(dtype),
        "empty": torch.ones(0, 3).to(dtype),
    }
    write_safetensors(tmp_path / "a.safetensors", tensors)
    content = (tmp_path / "a.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    starts = {key: 8 + length + header[key]["data_offsets"][0] for key in tensors}
    assert all(starts[key] % value.element_size() == 0 for key, value in tensors.items())  # as memory maps want it
    found = load_file(tmp_path / "a.safetensors")
    assert found.keys() == tensors.keys()
    for key, value in tensors.items():
        assert (found[key].dtype, found[key].shape) == (value.dtype, value.shape)
        assert torch.equal(found[key].reshape(-1).view(torch.uint8), value.reshape(-1).view(torch.uint8))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fnuz])
def test_a_precision_that_safetensors_cannot_hold_is_named_before_anything_is_written(tmp_path, dtype):
    message = rf"^a is stored as {dtype}, which \.safetensors files cannot hold; convert it to another precision"
    with pytest.raises(CheckpointError, match=message):
        write_safetensors(tmp_path / "a.safetensors", {"b": torch.ones(2), "a": torch.ones(2).to(dtype)})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64])
def test_a_precision_that_weights_cannot_have_is_refused(original_dir, tmp_path, dtype):
    with pytest.raises(
        ValueError, match=rf"^dtype {dtype}; expected one of torch\.float64, .*torch\.float8_e5m2, or None"
    ):
        convert(original_dir, tmp_path / "a", "safetensors", dtype)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("dtype", "largest"), [(torch.float16, "65504"), (torch.float8_e4m3fn, "448")])
def test_values_that_few_bits_cannot_hold_are_named(original_dir, tmp_path, dtype, largest):
    weights = load_file_of(original_dir)
    weights["out.2.bias"] = torch.full_like(weights["out.2.bias"], 1e5)
    source = tmp_path / "unet.safetensors"
    save_file(weights, source)
    say_heads(tmp_path)
    message = rf"^out\.2\.bias has values that \w+ cannot hold \(above {largest}\); use bfloat16 or float32$"
    with pytest.raises(CheckpointError, match=message):
        convert(source, tmp_path / "few.safetensors", "safetensors", dtype)
    assert not (tmp_path / "few.safetensors").exists()
    convert(source, tmp_path / "few.safetensors", "safetensors", torch.bfloat16)
    assert (tmp_path / "few.safetensors").exists()


def load_file_of(original_dir: Path) -> dict[str, torch.Tensor]:
    return torch.load(original_dir / NAMES[0], weights_only=True)


@torch.no_grad()
def test_diffusers_loads_what_is_written_and_computes_the_same(written, original_dir):
    x, t, context = torch.randn(1, 4, 3, 8, 8), torch.tensor([400]), torch.randn(1, 77, 64)
    unet = UNet3DConditionModel.from_pretrained(written / "unet")
    vae = AutoencoderKL.from_pretrained(written / "vae")
    text_encoder = CLIPTextModel.from_pretrained(written / "text_encoder")
    model = SDVideo(original_dir, amp=False)
    tokens = model.text_encoder.tokenizer(["a red circle"])
    latents = torch.randn(2, 4, 4, 4) * 0.18215
    pairs = [
        (model.unet(x, t, context), unet(x, t, context).sample),
        (model.vae.decode(latents), vae.decode(latents / 0.18215).sample),
        (model.text_encoder.encode_tokens(tokens), text_encoder(tokens)[0]),
    ]
    for ours, theirs in pairs:
        assert ((ours - theirs).abs().max() / theirs.abs().max()).item() <= 1e-5


def test_the_tokenizer_is_the_same(written, original_dir):
    theirs, ours = CLIPTokenizer.from_pretrained(written / "tokenizer"), load_text_encoder(original_dir).tokenizer
    found = theirs(PROMPTS, padding="max_length", truncation=True, return_tensors="pt").input_ids
    assert torch.equal(found, ours(PROMPTS))


@pytest.mark.filterwarnings("ignore")  # diffusers' own, about its pipeline
def test_diffusers_pipeline_draws_the_same_video(written, original_dir):
    pipeline = TextToVideoSDPipeline.from_pretrained(written, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    noise = draw_noise((1, 4, 2, 4, 4), torch.Generator().manual_seed(0))
    settings = {"num_inference_steps": 3, "guidance_scale": 5.0, "latents": noise, "output_type": "pt"}
    theirs = pipeline("a red circle", num_frames=2, height=32, width=32, **settings).frames  # (1, F, 3, H, W)
    model = SDVideo(original_dir, amp=False)
    ours = model("a red circle", guidance_scale=5.0, timesteps=3, image_size=(32, 32), num_frames=2, seed=0)
    torch.testing.assert_close(ours, theirs.transpose(1, 2), rtol=0, atol=1e-4)


def test_what_is_missing_is_left_out(diffusers_dir, tmp_path):
    unet = diffusers_dir / "unet"
    assert convert(unet, tmp_path / "a", "diffusers").parts == ["unet"]
    assert json.loads((tmp_path / "a" / "model_index.json").read_text())["vae"] == [None, None]
    assert convert(unet, tmp_path / "b", "modelscope", vae=diffusers_dir).parts == ["unet", "vae"]
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == sorted(["configuration.json", *NAMES[:2]])
    with pytest.raises(CheckpointError, match=r"is an autoencoder in diffusers' format; expected a ModelScope UNet$"):
        convert(diffusers_dir / "vae", tmp_path / "c", "modelscope")


def test_a_shape_that_diffusers_cannot_have_is_told_before_anything_is_written(demo_model_dir, tmp_path):
    message = "its first temporal transformer has 2 heads, UNet3DConditionModel always 8; convert to modelscope"
    with pytest.raises(CheckpointError, match=message):
        convert(demo_model_dir, tmp_path / "a", "diffusers")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target", ["model", "unet.safetensors"])
def test_nothing_is_overwritten(original_dir, tmp_path, target):
    (tmp_path / target).write_text("mine")
    with pytest.raises(FileExistsError, match=r"is there already; give another name, or remove it first$"):
        convert(original_dir, tmp_path / target, "safetensors")
    assert (tmp_path / target).read_text() == "mine"


@pytest.mark.parametrize("layout", ["modelscope", "diffusers", "safetensors"])
def test_interrupted_it_leaves_nothing(original_dir, tmp_path, monkeypatch, layout):
    calls = []

    def interrupt(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return write_safetensors(*arguments)

    monkeypatch.setattr("sdvideo_core.convert.write_safetensors", interrupt)
    with pytest.raises(KeyboardInterrupt):
        convert(original_dir, tmp_path / "model", layout)
    assert list(tmp_path.iterdir()) == []


@contextmanager
def full_after(size: int) -> Iterator[None]:
    """Writing fails past so many bytes of a file, as on a full disk."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("layout", ["modelscope", "diffusers", "safetensors"])
@pytest.mark.parametrize("left", ["nothing", "all but the last bytes"])
def test_on_a_full_disk_it_says_so_and_leaves_nothing(original_dir, tmp_path, layout, left):
    # A pickle takes more than the safetensors file that it is made of.
    size = 2**12 if left == "nothing" else (original_dir / NAMES[0]).stat().st_size - 2**10
    message = rf"^cannot write {tmp_path}/model: .*; choose another place or check its permissions and free space$"
    with pytest.raises(OSError, match=message), full_after(size):
        convert(original_dir, tmp_path / "model", layout)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_do_not_fit_are_told_before_anything_is_written(original_dir, tmp_path):
    weights = load_file_of(original_dir)
    del weights["out.2.bias"]
    torch.save(weights, tmp_path / "unet.pth")
    say_heads(tmp_path)
    with pytest.raises(CheckpointError, match=r"unet\.pth does not fit its model \(1 keys\): out\.2\.bias is missing"):
        convert(tmp_path / "unet.pth", tmp_path / "model", "diffusers")
    assert not (tmp_path / "model").exists()


def test_an_unknown_format_is_refused(original_dir, tmp_path):
    with pytest.raises(ValueError, match="format 'onnx'; expected modelscope, diffusers, safetensors"):
        convert(original_dir, tmp_path / "a", "onnx")


def test_on_the_command_line(original_dir, diffusers_dir, tmp_path, capsys):
    target = tmp_path / "half"
    command = ["convert", str(diffusers_dir / "unet"), str(target), "--format", "modelscope", "--dtype", "float16"]
    assert main([*command, "--vae", str(original_dir), "--clip", str(diffusers_dir / "text_encoder")]) == 0
    assert capsys.readouterr().err.startswith(f"Wrote {target}: unet, vae, text encoder\nsdvideo: note: ")
    for part, load in LOADERS.items():
        expected = load(original_dir, torch.float16).state_dict()
        assert all(torch.equal(value, expected[key]) for key, value in load(target).half().state_dict().items()), part
    assert main(command) == 1
    assert f"{target} is there already" in capsys.readouterr().err


# Converts in a process of its own, and tells the growth of its peak memory and of the part that is no mapped file.
MEASURE = """
import resource, sys, threading, time
from pathlib import Path
import torch
from sdvideo_core import convert, state_dict
source, target, layout, dtype = sys.argv[1:]
state_dict.convert_tensor(torch.ones(2), torch.float16, "warm")
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
private = lambda: 1024 * next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("RssAnon"))
before, start, most, done = peak(), private(), [0], threading.Event()
def watch():
    while not done.wait(0.002):
        most.append(private() - start)
thread = threading.Thread(target=watch); thread.start()
convert.convert(source, target, layout, getattr(torch, dtype, None))
done.set(); thread.join()
sys.stdout.write(f"{peak() - before} {max(most)}")
"""


@pytest.fixture(scope="module")
def large_unet(original_dir, tmp_path_factory) -> Path:
    """A UNet of 240 MB, in diffusers' names."""
    folder = tmp_path_factory.mktemp("large") / "unet"
    their_unet(dim=224).save_pretrained(folder)
    return folder


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system has no /proc to measure with")
@pytest.mark.parametrize(
    ("layout", "dtype"), [("modelscope", "None"), ("modelscope", "float16"), ("safetensors", "float16")]
)
def test_memory_is_that_of_one_file(large_unet, tmp_path, layout, dtype):
    size = sum(path.stat().st_size for path in large_unet.glob("*.safetensors"))
    assert size > 200e6
    command = [sys.executable, "-c", MEASURE, str(large_unet), str(tmp_path / "model"), layout, dtype]
    output = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True).stdout
    peak, private = map(int, output.split())
    assert peak < 1.2 * size  # with the pages of the mapped file, which the system may take back at any time
    assert private < 0.4 * size


def test_a_unet_that_says_its_head_width_does_not_hide_what_the_json_beside_it_says(demo_model_dir, tmp_path):
    target = tmp_path / "diffusion_pytorch_model.safetensors"
    convert(demo_model_dir, target, "safetensors")
    beside = {"_class_name": "UNet3DConditionModel", "_name_or_path": "somebody/zeroscope_v2_576w"}
    (tmp_path / "config.json").write_text(json.dumps(beside))
    assert find_layout(target).based_on == beside["_name_or_path"]
    assert load_unet(target).config == load_unet(demo_model_dir).config
