"""Vocabulary of the demo model: the words of its captions, and those of a prompt that mean nothing to it."""

from __future__ import annotations

import re
from collections.abc import Iterable

from .clips import BACKGROUNDS, COLORS, MOTION_WORDS, NOUNS, SHAPES, TEMPLATES

WORD = re.compile(r"[^\W_]+")


def known_words() -> set[str]:
    """Every word that a caption may hold."""
    frames = (template.format(color="", noun="", motion="", background="") for template in TEMPLATES)
    said = (word for words in (*NOUNS.values(), *MOTION_WORDS.values()) for word in words)
    return set(WORD.findall(" ".join((*frames, *said, *COLORS, *BACKGROUNDS, "an"))))


def unknown_words(prompt: str) -> list[str]:
    """The words of a prompt that no caption holds, in their order, each once."""
    known = known_words()
    return [word for word in dict.fromkeys(WORD.findall(prompt.lower())) if word not in known]


def turns_a_circle(prompt: str) -> bool:
    """Whether a prompt asks for what no clip shows, as a circle that turns looks like one that does not."""
    words = set(WORD.findall(prompt.lower()))
    turning = {phrase.split()[0] for phrase in MOTION_WORDS["turning"]}
    return bool(words & set(NOUNS["circle"]) and words & turning)


def what_it_knows() -> str:
    """Shapes, colours, motions and backgrounds, in words."""
    return (
        f"a {_either(SHAPES)} in {_either(COLORS)} that is moving left, right, up or down, growing, shrinking, "
        f"turning or standing still, on a {_either(BACKGROUNDS)} background"
    )


def _either(words: Iterable[str]) -> str:
    *others, last = words
    return f"{', '.join(others)} or {last}"
