"""Arguments: what kind of value each may be, and the line that says so where a caller gives another."""

from __future__ import annotations

import functools
import inspect
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any, ParamSpec, TypeVar

PLAIN = (str, int, float, type(None))  # types whose values say more than their name
P = ParamSpec("P")
T = TypeVar("T")


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
    if isinstance(value, type):
        return f"the class {value.__name__}"
    items = value if isinstance(value, list | tuple) else [value]
    if all(isinstance(item, PLAIN) for item in items):
        return reprlib.repr(value)
    names = " and ".join(dict.fromkeys(type(item).__name__ for item in items))
    return f"of type {names}" if items is not value else f"a {type(value).__name__} of {names}"


def takes(kinds: Mapping[str, Kind]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Makes a function check the arguments, by their names, that have a kind, and get the numbers in them `plain`."""

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> T:
            given = signature.bind(*args, **kwargs)
            for name, value in given.arguments.items():
                if name in kinds:
                    given.arguments[name] = plain(value)
                    kinds[name].check(name, given.arguments[name])
            return function(*given.args, **given.kwargs)

        return checked

    return decorate


def plain(value: Any) -> Any:
    """Python's own numbers for those of a tensor or an array with no axes or one; any other value as it is."""
    is_array = hasattr(value, "ndim") and hasattr(value, "tolist")  # torch's and NumPy's, neither of which need be here
    return value.tolist() if is_array and value.ndim < 2 else value


def is_whole(value: Any) -> bool:
    number = plain(value)
    return isinstance(number, Integral) and not isinstance(number, bool)


def is_number(value: Any) -> bool:
    number = plain(value)
    return isinstance(number, Real) and not isinstance(number, bool)


def is_list(value: Any, fits: Callable[[Any], bool]) -> bool:
    """Whether it is a list, or another sequence but a text, of what fits."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes) and all(map(fits, value))


WHOLE = Kind(is_whole, "a whole number (int)")
NUMBER = Kind(is_number, "a number (int or float)")
SIZE = Kind(lambda value: is_list(value, is_whole) and len(value) == 2, "(width, height) in pixels, such as (256, 256)")
