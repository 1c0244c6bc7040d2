"""Messages of the command line: what the library says, with options in place of its arguments' names."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

# Up to where a word ends, and no name of a file: a point or a colon only before digits, as in 0.5 and cuda:1.
VALUE = r"=(?P<value>(?:torch\.|[.:](?=\d+(?:e-?\d+)?\b)|[^\s;,)/\\.:])+)(?=\.?(?:[\s;,]|\)(?!\.?\w)|$))(?! in Python)"
# `name=value`, or the name alone; no part of a path, of a longer name, of a call in Python or of a dict that is shown.
NAME = r"(?<![\w./\\'\"-])(?P<name>{names})(?:{value}|(?P<unset> is None\b))?(?![\w/\\=-]|\.\w)"
MENTION = rf"(?P<beside>\bwith )?{NAME}|(?P<or_none>\bor None (?=for\b))"
KEPT = r"(?:{kept})(?![\w=])(?:[/\\]\S*)?"  # with what follows it as a path
IS_VALUE = re.compile(r" is ([-'\d]|nan\b|inf\b)")
QUOTES = "'\""


def in_options(message: str, args: argparse.Namespace) -> str:
    """A message with `--steps 0` for `timesteps=0`, by a command's options: `dest` is an argument's name in Python.

    A name that is a word too, such as seed, counts where the message gives its value, and then wherever it stands.
    What the user named, such as a file `seed=1.gif`, stays as it is.
    """
    options = {action.dest: action for action in args.parser._actions if action.option_strings}
    kept = "|".join(map(re.escape, sorted(_named_by_user(message, args), key=len, reverse=True)))
    pattern = re.compile(f"{KEPT.format(kept=kept)}|{MENTION.format(names='|'.join(options), value=VALUE)}")
    told = {match["name"] for match in pattern.finditer(message) if match["name"] and _is_argument(match)}

    def shown(match: re.Match[str]) -> str:
        if match["or_none"] and told:
            return "or leave it out "
        return _told(match, options) if match["name"] in told else match[0]

    return pattern.sub(shown, message)


def _named_by_user(message: str, args: argparse.Namespace) -> set[str]:
    """The texts among the arguments, and the files in them that the message names; also by their names alone."""
    given = {text for value in vars(args).values() for text in _texts(value) if text}
    named = given | {file for text in given for file in _files(text, message)}
    return {way for text in named for way in (text, Path(text).stem) if way}


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, tuple)):  # of --sample-prompt and --lora
        for part in value:
            yield from _texts(part)


def _files(folder: str, message: str) -> Iterator[str]:
    """What a message names in a folder and is there: such names may hold spaces."""
    for start in re.finditer(re.escape(str(Path(folder))) + r"[/\\]", message):
        ends = re.finditer(r"[\s;:,)'\"]|$", message[start.end() :])
        yield from filter(os.path.exists, (message[start.start() : start.end() + end.start()] for end in ends))


def _is_argument(match: re.Match[str]) -> bool:
    has_value = match["value"] or match["unset"] or IS_VALUE.match(match.string, match.end())
    return "_" in match["name"] or bool(has_value)


def _told(match: re.Match[str], options: Mapping[str, argparse.Action]) -> str:
    """An option as it is written, with the value that Python shows."""
    option, value, beside = options[match["name"]], match["value"], match["beside"] or ""
    flag, takes_none = option.option_strings[0], option.nargs == 0
    if match["unset"]:
        return f"{beside}{flag} is not given"
    if value == "None" or (takes_none and value not in (None, str(option.const))):
        return f"without {flag}"
    if value is None or takes_none:
        return f"{beside}{flag}"
    return f"{beside}{flag} {value.strip(QUOTES).removeprefix('torch.')}"
