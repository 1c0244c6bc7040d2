"""Arguments: what kind of value each may be, and the line that says so where a caller gives another."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any

TELLING = (str, int, float, list, tuple, dict, type(None))  # types whose values say more than their name


@dataclass(frozen=True)
class Kind:
    """What an argument may be: a test, and in words, with what to do instead where that helps."""

    fits: Callable[[Any], bool]
    expected: str

    def check(self, name: str, value: Any) -> None:
        """Raises TypeError, which names the argument, unless the value is of this kind."""
        if not self.fits(value):
            got = reprlib.repr(value) if isinstance(value, TELLING) else f"of type {type(value).__name__}"
            raise TypeError(f"{name} is {got}, expected {self.expected}")

    def or_none(self) -> Kind:
        return replace(self, fits=lambda value: value is None or self.fits(value))


def check_kinds(kinds: Mapping[str, Kind], values: Mapping[str, Any]) -> None:
    """Checks the values, by their names, that have a kind."""
    for name, kind in kinds.items():
        kind.check(name, values[name])


def is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def is_list(value: Any, fits: Callable[[Any], bool]) -> bool:
    """Whether it is a list, or another sequence but a text, of what fits."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes) and all(map(fits, value))


WHOLE = Kind(is_whole, "a whole number, such as 16")
NUMBER = Kind(is_number, "a number, such as 1.0")
SIZE = Kind(lambda value: is_list(value, is_whole) and len(value) == 2, "(width, height) in pixels, such as (256, 256)")
