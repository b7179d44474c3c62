"""Kinds of settings: the values that a setting may hold, and how a value is written on a command line."""

import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from qlax.util.text import six_digits

Sweep = float | str | tuple[float, ...]  # one value, or one a setting, or the distribution they are drawn from
Group = Literal["environment", "run", "learning", "exploration", "network", "evaluation", "output", "machine"]
GROUPS: tuple[Group, ...] = get_args(Group)
LARGEST_COUNT = 2**31 - 1  # the device counts in int32
LARGEST_WHOLE = 2**53  # up to here a float is exact, as is what JSON and the command line hold
LARGEST_NUMBER = 3.4028234663852886e38  # of float32, which the device computes in
WIDEST, DEEPEST = 2**20, 64  # of the dense layers
LONGEST_NAME, LONGEST_PATH, LONGEST_VALUE = 200, 4096, 10_000  # characters; the last of an environment's option
MOST_NAMES = 64
DISTRIBUTIONS = ("uniform", "log-uniform")


@dataclass(frozen=True)
class Kind:
    """The values that a setting may hold."""

    expected: str  # for error messages
    convert: Callable[[Any], Any]  # to the setting's own type; ValueError where it does not fit
    parse: Callable[[str], Any]  # the same for a word of the command line
    choices: tuple[str, ...] = ()
    low: float = -LARGEST_NUMBER
    high: float = LARGEST_NUMBER


def setting(
    default: Any,
    kind: Kind,
    group: Group,
    help: str,
    *,
    flag: bool = True,
    origin: bool = False,
    changeable: bool = False,
    compared: bool = True,
    varies: bool = True,
    tracked: bool = True,
    remedy: int = 0,
    world: Literal["on the host", "in JAX"] | None = None,
) -> Any:
    """Declare a field of `Config`; its metadata are these arguments by their names.

    Args:
      default: value unless another is asked for; None where it follows from other settings.
      kind: values it may hold.
      group: heading under which help and documentation show the setting.
      help: what the setting is, for people.
      flag: whether the command line has a flag for it.
      origin: whether it says where the settings came from, and changes nothing.
      changeable: whether it may be changed in the `config.json` of a run that was begun.
      compared: whether runs that differ in it are runs of different settings.
      varies: whether it may differ between the jobs of a sweep.
      tracked: whether trackers show it beside a single agent.
      remedy: place among the settings to reduce if memory is short, from 1, the cheapest first; 0: none of them.
      world: where the environments are that it is for; None: anywhere.
    """
    metadata = dict(locals())
    return dataclasses.field(
        metadata=metadata, **({"default_factory": dict} if default == {} else {"default": default})
    )


def _number(x: Any, low: float, high: float, whole: bool) -> float:
    x = _plain(x)
    if isinstance(x, bool) or not isinstance(x, int | float) or not low <= x <= high or (whole and x != int(x)):
        raise ValueError
    return int(x) if whole else float(x)


def _plain(x: Any) -> Any:
    """NumPy's and JAX's numbers and arrays as Python's."""
    return x.tolist() if hasattr(x, "tolist") else x


def _range(noun: str, low: float, high: float) -> str:
    least, most = (f"{x:,}" if isinstance(x, int) else f"{x:.10g}" for x in (low, high))
    return f"{noun} from {least} to {most}"


def _is_short(x: Any, longest: int = LONGEST_NAME) -> bool:
    """Whether it is text of one line, and not a file's worth of it."""
    return isinstance(x, str) and len(x) <= longest and x.isprintable()


def whole(low: int = 1, high: int = LARGEST_COUNT) -> Kind:
    """A whole number."""

    def convert(x: Any) -> Any:
        return _number(x, low, high, whole=True)

    return Kind(_range("a whole number", low, high), convert, lambda text: convert(float(text)))


def number(low: float = -LARGEST_NUMBER, high: float = LARGEST_NUMBER) -> Kind:
    """A number."""

    def convert(x: Any) -> Any:
        return _number(x, low, high, whole=False)

    return Kind(_range("a number", low, high), convert, lambda text: convert(float(text)))


class Distribution(NamedTuple):
    """Distribution that values are drawn from."""

    is_log: bool  # whether their logarithms are spread evenly, and not they themselves
    low: float
    high: float

    def at(self, share: float) -> float:
        """The value that this share of all draws lies below, in six digits: what is shown of it is all of it."""
        if self.is_log:
            value = math.exp((1 - share) * math.log(self.low) + share * math.log(self.high))
        else:
            value = (1 - share) * self.low + share * self.high
        return min(max(six_digits(value), self.low), self.high)


def distribution(word: str) -> Distribution:
    """Read `uniform:LOW:HIGH` or `log-uniform:LOW:HIGH`.

    Raises:
      ValueError: it is neither of them.
    """
    if not _is_short(word):
        raise ValueError
    name, *numbers = word.split(":")
    low, high = map(float, numbers)
    if name not in DISTRIBUTIONS or not low < high or (name == "log-uniform" and low <= 0):
        raise ValueError
    return Distribution(name == "log-uniform", low, high)


def sweep(low: float = -LARGEST_NUMBER, high: float = LARGEST_NUMBER) -> Kind:
    """A number, or several: one a setting; or one distribution, as a word."""

    def convert(x: Any) -> Any:
        x = _plain(x)
        values = tuple(x) if isinstance(x, list | tuple) else (x,)
        if len(values) == 1 and isinstance(values[0], str):
            _, *ends = distribution(values[0])
            values = (values[0],) if low <= min(ends) and max(ends) <= high else ()
        else:
            values = tuple(_number(value, low, high, whole=False) for value in values)
        if not values:
            raise ValueError
        return values if len(values) > 1 else values[0]

    expected = _range("a number", low, high) + ", or uniform:LOW:HIGH or log-uniform:LOW:HIGH of two such, LOW < HIGH"
    expected += ", 0 < LOW if log" if low <= 0 else ""
    return Kind(expected, convert, lambda text: convert(text if ":" in text else float(text)), low=low, high=high)


def widths() -> Kind:
    """Whole numbers in one word, as 256,256."""

    def convert(x: Any) -> Any:
        x = x if isinstance(x, list | tuple) else [x]
        if not 1 <= len(x) <= DEEPEST:
            raise ValueError
        return tuple(_number(width, 1, WIDEST, whole=True) for width in x)

    expected = f"whole numbers from 1 to {WIDEST:,}, as 256,256, at most {DEEPEST} of them"
    return Kind(expected, convert, lambda text: convert([float(width) for width in text.split(",")]))


def text(choices: tuple[str, ...] = (), longest: int = LONGEST_NAME) -> Kind:
    """A word; one of `choices` where there are any."""

    def convert(x: Any) -> Any:
        if not _is_short(x, longest) or (choices and x not in choices):
            raise ValueError
        return x

    expected = "one of " + ", ".join(choices) if choices else f"at most {longest:,} printable characters"
    return Kind(expected, convert, convert, choices)


def words() -> Kind:
    """Names in one word, as a,b."""

    def convert(x: Any) -> Any:
        if not isinstance(x, list | tuple) or len(x) > MOST_NAMES or not all(map(_is_short, x)):
            raise ValueError
        return tuple(x)

    expected = f"names, as a,b: at most {MOST_NAMES} of at most {LONGEST_NAME} printable characters"
    return Kind(expected, convert, lambda text: convert(text.split(",") if text else []))


def truth() -> Kind:
    """True or false."""

    def convert(x: Any) -> Any:
        if not isinstance(x, bool):
            raise ValueError
        return x

    return Kind("true or false", convert, lambda text: convert({"true": True, "false": False}.get(text, text)))


def table() -> Kind:
    """Names with values: true or false, numbers or text."""

    def convert(x: Any) -> Any:
        x = {name: _plain(value) for name, value in x.items()} if isinstance(x, dict) else None
        if x is None or len(x) > MOST_NAMES or not all(map(_is_short, x)) or not all(map(fits, x.values())):
            raise ValueError
        return x

    def fits(value: Any) -> bool:
        if isinstance(value, int):
            return -LARGEST_WHOLE <= value <= LARGEST_WHOLE
        return isinstance(value, float) or (isinstance(value, str) and len(value) <= LONGEST_VALUE)

    def parse(text: str) -> Any:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError
        try:
            return {name: json.loads(value)}
        except (ValueError, RecursionError):
            return {name: value}

    return Kind("name=value, the value true, false, a number or text", convert, parse)
