"""Vocabulary of the demo model: the words of its captions, and what of a prompt it was never shown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from .clips import BACKGROUNDS, COLORS, MOTION_WORDS, NOUNS, SHAPES, TEMPLATES, UNSEEN

WORD = re.compile(r"[^\W_]+")
BACKGROUND = re.compile(
    r"\b(?!the\b)(\w+)[\s-]+background|background is (\w+)|\b(?:on|over|in front of|against) (?:(?:an?|the) )?(\w+)"
)
SPELLINGS = {"grey": "gray"}


def known_words() -> set[str]:
    """Every word that a caption may hold."""
    frames = (template.format(color="", noun="", motion="", background="") for template in TEMPLATES)
    said = (word for words in (*NOUNS.values(), *MOTION_WORDS.values()) for word in words)
    return set(WORD.findall(" ".join((*frames, *said, *COLORS, *BACKGROUNDS, "an"))))


def unknown_words(prompt: str) -> list[str]:
    """The words of a prompt that no caption holds, in their order, each once."""
    known = known_words()
    return [word for word in dict.fromkeys(WORD.findall(prompt.lower())) if word not in known]


def hints(prompt: str) -> Iterator[str]:
    """What will keep a video from showing what a prompt asks for, each in a line; nothing of a caption."""
    unknown = unknown_words(prompt)
    if strange := [word for word in unknown if word not in SPELLINGS]:
        words = ", ".join(f'"{word}"' for word in strange)
        yield f"does not know {words}; it knows {what_it_knows()}"
    prompt = WORD.sub(lambda found: SPELLINGS.get(found[0], found[0]), prompt.lower())
    background, rest = _background(prompt)
    yield from (
        f'does not know "{w}"; write "{SPELLINGS[w]}"' for w in SPELLINGS if w in unknown and SPELLINGS[w] == background
    )
    words = set(WORD.findall(prompt))
    colors = [color for color in COLORS if color in WORD.findall(rest)]
    shapes = [shape for shape in SHAPES if words & set(NOUNS[shape])]
    if not strange and not (shapes and colors):
        missing = " and ".join(f"no {name}" for name, named in (("shape", shapes), ("colour", colors)) if not named)
        yield f"is told {missing} that it knows, and guesses; it knows {what_it_knows()}"
    if len(shapes) > 1 or len(colors) > 1:
        named = _listed(shapes if len(shapes) > 1 else colors, "and")
        yield f"draws one shape of one colour, and is told {named}"
    yield from _background_hints(colors, background)
    if "circle" in shapes and words & {phrase.split()[0] for phrase in MOTION_WORDS["turning"]}:
        # No clip shows it, as a circle that turns looks like one that does not.
        yield "knows no circle that turns, and draws another shape; let a square turn"


def _background(prompt: str) -> tuple[str | None, str]:
    """The colour of the background where one is named, and the rest of the prompt."""
    for match in BACKGROUND.finditer(prompt):
        word = match[match.lastindex or 0]
        if word in COLORS or word in BACKGROUNDS:
            return word, prompt[: match.start()] + prompt[match.end() :]
    return None, prompt


def _background_hints(colors: list[str], background: str | None) -> Iterator[str]:
    if background and background not in BACKGROUNDS:
        yield f"knows no {background} background; it knows {_listed(BACKGROUNDS, 'or')}"
    for color in colors:
        if background and (background, color) in UNSEEN:
            yield f"was never shown {color} on {background}, which look alike, and draws blots; name another background"


def what_it_knows() -> str:
    """Shapes, colours, motions and backgrounds, in words."""
    return (
        f"a {_listed(SHAPES, 'or')} in {_listed(COLORS, 'or')} that is moving left, right, up or down, growing, "
        f"shrinking, turning or standing still, on a {_listed(BACKGROUNDS, 'or')} background"
    )


def _listed(words: Iterable[str], joint: str) -> str:
    *others, last = words
    return f"{', '.join(others)} {joint} {last}"
