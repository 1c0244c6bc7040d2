"""Messages of the command line: what the library says, with options in place of its arguments' names."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping

# `name=value`, or the name alone; no part of a path, of a longer name or of a call in Python.
VALUE = r"=(?P<value>[^\s;,)/\\]*[^\s;,)/\\.:])(?! in Python)"
MENTION = r"(?P<beside>\bwith )?(?<![\w./\\-])(?P<name>{names})(?:{value})?(?![\w/\\=-]|\.\w)"
IS_VALUE = re.compile(r" is ([-'\d]|nan\b|inf\b)")
QUOTES = "'\""


def in_options(message: str, parser: argparse.ArgumentParser) -> str:
    """A message with `--steps 0` for `timesteps=0`, by a command's options: `dest` is an argument's name in Python.

    A name that is a word too, such as seed, counts where the message gives its value, and then wherever it stands.
    """
    options = {action.dest: action for action in parser._actions if action.option_strings}
    mention = re.compile(MENTION.format(names="|".join(options), value=VALUE))
    told = {match["name"] for match in mention.finditer(message) if _is_argument(match)}
    message = mention.sub(lambda match: _told(match, options) if match["name"] in told else match[0], message)
    return re.sub(r"(--[\w-]+) is None\b", r"\1 is not given", message)


def _is_argument(match: re.Match[str]) -> bool:
    has_value = match["value"] is not None or IS_VALUE.match(match.string, match.end())
    return "_" in match["name"] or bool(has_value)


def _told(match: re.Match[str], options: Mapping[str, argparse.Action]) -> str:
    """An option as it is written, with the value that Python shows."""
    option, value, beside = options[match["name"]], match["value"], match["beside"] or ""
    flag, takes_none = option.option_strings[0], option.nargs == 0
    if value == "None" or (takes_none and value not in (None, str(option.const))):
        return f"without {flag}"
    if value is None or takes_none:
        return f"{beside}{flag}"
    return f"{beside}{flag} {value.strip(QUOTES).removeprefix('torch.')}"
