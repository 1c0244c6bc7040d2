"""Output of the command line: its options reach the file, wrong ones are refused before there is a video."""

import argparse

import pytest

from sdvideo_core import cli_output
from sdvideo_core.playback import DEFAULT_OPTIONS, SaveOptions
from tests.unit.gif_blocks import parse_gif
from tests.unit.small_clips import grey_images, to_video


def parse(*options):
    parser = argparse.ArgumentParser()
    cli_output.add_options(parser, "video.gif")
    parser.set_defaults(parser=parser)
    return parser.parse_args([str(option) for option in options])


def test_options_reach_the_file_and_the_line_that_tells_of_it(tmp_path, capsys):
    options = ("--loop", 3, "--ping-pong", "--palette", "frame", "--dither", "none")
    args = parse("--output", tmp_path / "clip.gif", "--fps", 10, *options)
    assert cli_output.settings(args) == SaveOptions(loop=3, ping_pong=True, palette="frame", dither="none")
    cli_output.check(args)
    cli_output.save(to_video(grey_images(4)), args, seed=7)
    gif = parse_gif((tmp_path / "clip.gif").read_bytes())
    assert (gif.delays, gif.loops, gif.num_colour_tables) == ([10] * 6, 2, 1 + 6)
    *_, told = capsys.readouterr().err.splitlines()
    assert told == f"Wrote {tmp_path / 'clip.gif'}: 6 frames of 32x16, seed 7"


def test_without_options_a_clip_is_saved_as_in_python():
    assert cli_output.settings(parse()) == DEFAULT_OPTIONS


def test_a_loop_that_no_file_holds_is_refused_before_there_is_a_video(tmp_path):
    with pytest.raises(ValueError, match="loop is -1, expected 0"):
        cli_output.check(parse("--output", tmp_path / "clip.gif", "--loop", -1))
