"""Kinds of settings: what each may hold, and how it is written on a command line."""

import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Sweep = float | tuple[float, ...]  # one value, or one a setting


@dataclass(frozen=True)
class Kind:
    """What a field may hold."""

    expected: str  # for error messages
    convert: Callable[[Any], Any]  # to the field's own type; ValueError where it does not fit
    parse: Callable[[str], Any]  # the same for a word of the command line
    choices: tuple[str, ...] = ()


def _option(default: Any, help: str, kind: Kind) -> Any:
    metadata = {"help": help, "kind": kind}
    return dataclasses.field(
        metadata=metadata, **({"default_factory": dict} if default == {} else {"default": default})
    )


def _number(x: Any, low: float, high: float, whole: bool) -> float:
    x = _plain(x)
    if isinstance(x, bool) or not isinstance(x, int | float) or not low <= x <= high or not math.isfinite(x):
        raise ValueError
    if whole and x != int(x):
        raise ValueError
    return int(x) if whole else float(x)


def _plain(x: Any) -> Any:
    """NumPy's and JAX's numbers and arrays as Python's."""
    return x.tolist() if hasattr(x, "tolist") else x


def _range(noun: str, low: float, high: float) -> str:
    return noun + (f" from {low:g}" if low > -math.inf else "") + (f" to {high:g}" if high < math.inf else "")


def whole(default: int | None, help: str, low: float = 1, high: float = math.inf) -> Any:
    """A whole number; None where it follows from other settings."""

    def convert(x: Any) -> Any:
        return _number(x, low, high, whole=True)

    return _option(default, help, Kind(_range("a whole number", low, high), convert, lambda text: convert(float(text))))


def number(default: float, help: str, low: float = -math.inf, high: float = math.inf) -> Any:
    """A number."""

    def convert(x: Any) -> Any:
        return _number(x, low, high, whole=False)

    return _option(default, help, Kind(_range("a number", low, high), convert, lambda text: convert(float(text))))


def sweep(default: float, help: str, low: float = -math.inf, high: float = math.inf) -> Any:
    """A number, or several: one a setting."""

    def convert(x: Any) -> Any:
        x = _plain(x)
        if not isinstance(x, list | tuple):
            return _number(x, low, high, whole=False)
        values = tuple(_number(value, low, high, whole=False) for value in x)
        if not values:
            raise ValueError
        return values if len(values) > 1 else values[0]

    return _option(default, help, Kind(_range("a number", low, high), convert, lambda text: convert(float(text))))


def widths(default: None, help: str) -> Any:
    """Whole numbers in one word, as 256,256."""

    def convert(x: Any) -> Any:
        x = x if isinstance(x, list | tuple) else [x]
        if not x:
            raise ValueError
        return tuple(_number(width, 1, math.inf, whole=True) for width in x)

    def parse(text: str) -> Any:
        return convert([float(width) for width in text.split(",")])

    return _option(default, help, Kind("whole numbers from 1, as 256,256", convert, parse))


def text(default: str | None, help: str, choices: tuple[str, ...] = ()) -> Any:
    """A word; one of `choices` where there are any."""

    def convert(x: Any) -> Any:
        if not isinstance(x, str) or (choices and x not in choices):
            raise ValueError
        return x

    return _option(
        default, help, Kind("one of " + ", ".join(choices) if choices else "text", convert, convert, choices)
    )


def words(help: str) -> Any:
    """Names in one word, as a,b; none unless given."""

    def convert(x: Any) -> Any:
        if not isinstance(x, list | tuple) or not all(isinstance(name, str) for name in x):
            raise ValueError
        return tuple(x)

    return _option((), help, Kind("names, as a,b", convert, lambda text: convert(text.split(","))))


def flag(help: str) -> Any:
    """True or false; false unless given."""

    def convert(x: Any) -> Any:
        if not isinstance(x, bool):
            raise ValueError
        return x

    def parse(text: str) -> Any:
        return convert({"true": True, "false": False}.get(text, text))

    return _option(False, help, Kind("true or false", convert, parse))


def table(help: str) -> Any:
    """Names with values: true or false, numbers or text."""

    def convert(x: Any) -> Any:
        if not isinstance(x, dict) or not all(isinstance(value, bool | int | float | str) for value in x.values()):
            raise ValueError
        return dict(x)

    def parse(text: str) -> Any:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError
        try:
            return {name: json.loads(value)}
        except ValueError:
            return {name: value}

    return _option({}, help, Kind("name=value", convert, parse))
