"""Arguments: what kind of value each may be, and the line that says so where a caller gives another."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any

PLAIN = (str, int, float, type(None))  # types whose values say more than their name


@dataclass(frozen=True)
class Kind:
    """What an argument may be: a test, and in words, with what to do instead where that helps."""

    fits: Callable[[Any], bool]
    expected: str

    def check(self, name: str, value: Any) -> None:
        """Raises TypeError, which names the argument, unless the value is of this kind."""
        if not self.fits(value):
            raise TypeError(f"{name} is {_described(value)}, expected {self.expected}")

    def or_none(self) -> Kind:
        return replace(self, fits=lambda value: value is None or self.fits(value))


def _described(value: Any) -> str:
    items = value if isinstance(value, list | tuple) else [value]
    if all(isinstance(item, PLAIN) for item in items):
        return reprlib.repr(value)
    names = " and ".join(dict.fromkeys(type(item).__name__ for item in items))
    return f"of type {names}" if items is not value else f"a {type(value).__name__} of {names}"


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


WHOLE = Kind(is_whole, "a whole number (int)")
NUMBER = Kind(is_number, "a number (int or float)")
SIZE = Kind(lambda value: is_list(value, is_whole) and len(value) == 2, "(width, height) in pixels, such as (256, 256)")
