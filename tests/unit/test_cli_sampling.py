"""Command line for sampling: what is refused before a model is loaded, and rates that follow the input."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from sdvideo_core import load_sequence, save_gif, save_pngs
from sdvideo_core.cli import main
from sdvideo_core.sequence import frame_rate
from sdvideo_core.video_io import save_mp4, save_webp

CLIP = torch.rand(1, 3, 6, 24, 32, generator=torch.Generator().manual_seed(0))

REFUSED = [
    (["--steps", "0"], "--steps 0; a schedule of 1000 takes 1..999 steps"),
    (["--size", "33x24"], "width 33 is not usable: the model needs a positive multiple of 8; try 32"),
    (["--frames", "0"], "--frames is 0, expected at least 1; raise --frames"),
    (["--seed", "-1"], "--seed -1; it must be 0..18446744073709551615"),
    (["--eta", "2"], "--eta 2.0; it must be from 0 (deterministic) to 1 (as much noise as DDPM)"),
    (["--cfg-rescale", "2"], "--cfg-rescale 2.0; it must be from 0 (off) to 1, and 0.7 is usual"),
    (
        ["--dynamic-thresholding", "3"],
        "--dynamic-thresholding 3.0; it must be above 0 and at most 1, and 0.995 is usual",
    ),
    (["--lcm-grid", "even"], "--lcm-grid with --sampler ddim; it belongs to --sampler lcm, leave it out"),
    (["--lora", "gone.safetensors"], "gone.safetensors is not a file; expected a LoRA"),
    (
        ["--lora", __file__],
        f"{__file__} is no file of weights; give a .safetensors, .pth, .bin or .ckpt file in its place",
    ),
]


@pytest.mark.parametrize("command", ["txt2vid", "vid2vid"])
@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_what_no_model_takes_is_refused_before_one_is_looked_for(tmp_path, capsys, command, options, message):
    source = ["--input", str(tmp_path / "gone.gif")] if command == "vid2vid" else []
    assert main([command, "no_model", "a prompt", *options, *source, "-o", str(tmp_path / "a.gif")]) == 1
    assert capsys.readouterr().err == f"sdvideo: {message}\n"


@pytest.mark.parametrize(
    ("prompt", "words", "remedy"),
    [
        ("a", ["red", "circle"], "; put the prompt in quotes"),
        ("a", ["--stepz", "3"], ""),
        ("a red circle", ["out.gif"], ""),
    ],
)
def test_a_prompt_without_quotes_is_told_of(capsys, prompt, words, remedy):
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["txt2vid", "no_model", prompt, *words])
    told = f"unrecognized arguments: {' '.join(words)}{remedy}; see sdvideo txt2vid --help\n"
    assert capsys.readouterr().err == f"sdvideo txt2vid: error: {told}"


@pytest.mark.parametrize(("save", "name"), [(save_gif, "a.gif"), (save_webp, "a.webp"), (save_mp4, "a.mp4")])
@pytest.mark.parametrize("fps", [4, 12.5, 30])
def test_the_rate_of_a_file_is_that_it_was_saved_with(tmp_path, save, name, fps):
    save(CLIP, tmp_path / name, fps)
    assert frame_rate(tmp_path / name) == pytest.approx(fps, rel=0.01)


def test_pictures_have_no_rate(tmp_path):
    save_pngs(CLIP, tmp_path / "pictures")
    assert frame_rate(tmp_path / "pictures") is None
    assert frame_rate(tmp_path / "pictures" / "00000.png") is None


def test_the_rate_is_that_of_the_frames_that_are_taken(tmp_path):
    first, *rest = (Image.new("L", (32, 24), shade) for shade in range(0, 240, 40))
    first.save(tmp_path / "a.gif", save_all=True, append_images=rest, duration=[50, 50, 50, 500, 500, 500])
    assert frame_rate(tmp_path / "a.gif", last=2) == 20
    assert frame_rate(tmp_path / "a.gif") == pytest.approx(6000 / 1650)
    whole = (tmp_path / "a.gif").read_bytes()
    (tmp_path / "cut.gif").write_bytes(whole[:-30])  # within its last frame
    assert frame_rate(tmp_path / "cut.gif", last=2) == 20


def vid2vid(model: Path, source: Path, output: Path, *options: str) -> list[int]:
    """How long each frame of the GIF that it makes is shown, in milliseconds."""
    given = ["--steps", "1", "--size", "32x24", "--device", "cpu", "--no-amp", *options]
    assert main(["vid2vid", str(model), "a red circle", *given, "--input", str(source), "-o", str(output)]) == 0
    frames = len(load_sequence(output, None))
    with Image.open(output) as image:
        return [image.seek(index) or image.info["duration"] for index in range(frames)]


def test_a_changed_video_plays_as_fast_as_the_input(demo_model_dir, tmp_path, capsys):
    save_mp4(CLIP, tmp_path / "a.mp4", 20)
    save_mp4(CLIP, tmp_path / "fast.mp4", 120)
    save_pngs(CLIP, tmp_path / "pictures")
    output = tmp_path / "b.gif"
    assert vid2vid(demo_model_dir, tmp_path / "a.mp4", output) == [50] * 6
    assert vid2vid(demo_model_dir, tmp_path / "a.mp4", output, "--stride", "2") == [100] * 3
    assert vid2vid(demo_model_dir, tmp_path / "a.mp4", output, "--fps", "10") == [100] * 6
    assert "Note" not in capsys.readouterr().err
    assert vid2vid(demo_model_dir, tmp_path / "fast.mp4", output) == [20] * 6
    note = "Note: the input plays 120 frames per second, GIF at most 50; add --stride, or write an MP4\n"
    assert note in capsys.readouterr().err
    assert sum(vid2vid(demo_model_dir, tmp_path / "pictures", output)) == pytest.approx(6 * 1000 / 8, abs=10)
