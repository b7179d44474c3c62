"""Kinds of settings: the values that a setting may hold, and how a value is written on a command line."""

import dataclasses
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from qlax.config.environments import spelled
from qlax.util.text import six_digits

Sweep = float | str | tuple[float, ...]  # one value, several, or a distribution such as "uniform:0:1"
Group = Literal["environment", "run", "learning", "exploration", "actor", "network", "evaluation", "output", "machine"]
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
    """Kind of a setting: the values that it may hold, and how they are read."""

    expected: str  # for error messages
    convert: Callable[[Any], Any]  # to the type of the setting; raises ValueError for other values
    parse: Callable[[str], Any]  # from a word of the command line; raises ValueError for other words
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
    compared: bool | None = None,
    varies: bool = True,
    tracked: bool = True,
    remedy: int = 0,
    world: Literal["on the host", "in JAX"] | None = None,
) -> Any:
    """Declare a field of `Config`, with these arguments as its metadata.

    Args:
      default: Default value; None if it is derived from other settings.
      kind: Values that the setting may hold.
      group: Heading under which help and documentation show the setting.
      help: Description for users.
      flag: Whether the command line has a flag for the setting.
      origin: Whether the setting only records where the others came from.
      changeable: Whether the setting may be changed in the `config.json` of a run that was begun.
      compared: Whether figures tell runs apart by the setting; None for True, unless it is about output or the machine.
      varies: Whether the setting may differ between the jobs of a sweep.
      tracked: Whether trackers show the setting beside every agent.
      remedy: Rank among the settings to reduce when memory is short, from 1, the cheapest first; 0: not among them.
      world: Where environments have to be for the setting to apply; None: anywhere.
    """
    compared = group not in ("output", "machine") if compared is None else compared
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
    """Convert numbers and arrays of NumPy and JAX to those of Python."""
    return x.tolist() if hasattr(x, "tolist") else x


def _range(noun: str, low: float, high: float) -> str:
    least, most = (f"{x:,}" if isinstance(x, int) else f"{x:.10g}" for x in (low, high))
    return f"{noun} from {least} to {most}"


def _is_short(x: Any, longest: int = LONGEST_NAME) -> bool:
    """Return whether `x` is printable text on one line, of at most `longest` characters."""
    return isinstance(x, str) and len(x) <= longest and x.isprintable()


def whole(low: int = 1, high: int = LARGEST_COUNT) -> Kind:
    """Return the kind of whole numbers within a range."""

    def convert(x: Any) -> Any:
        return _number(x, low, high, whole=True)

    return Kind(_range("a whole number", low, high), convert, lambda text: convert(float(text)))


def number(low: float = -LARGEST_NUMBER, high: float = LARGEST_NUMBER) -> Kind:
    """Return the kind of numbers within a range."""

    def convert(x: Any) -> Any:
        return _number(x, low, high, whole=False)

    return Kind(_range("a number", low, high), convert, lambda text: convert(float(text)))


class Distribution(NamedTuple):
    """Distribution from which values are drawn."""

    is_log: bool  # whether the logarithms of values are uniform, instead of the values
    low: float
    high: float

    def at(self, share: float) -> float:
        """Return the quantile at `share`, rounded to the six digits with which values are shown."""
        if self.is_log:
            value = math.exp((1 - share) * math.log(self.low) + share * math.log(self.high))
        else:
            value = (1 - share) * self.low + share * self.high
        return min(max(six_digits(value), self.low), self.high)


def distribution(word: str) -> Distribution:
    """Read `uniform:LOW:HIGH` or `log-uniform:LOW:HIGH`.

    Raises:
      ValueError: The word has neither form.
    """
    if not _is_short(word):
        raise ValueError
    name, *numbers = word.split(":")
    low, high = map(float, numbers)
    if name not in DISTRIBUTIONS or not low < high or (name == "log-uniform" and low <= 0):
        raise ValueError
    return Distribution(name == "log-uniform", low, high)


def sweep(low: float = -LARGEST_NUMBER, high: float = LARGEST_NUMBER) -> Kind:
    """Return the kind of one number within a range, several of them, or one distribution as a word."""

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

    expected = _range("a number", low, high) + ", or uniform:LOW:HIGH or log-uniform:LOW:HIGH with two such numbers"
    expected += ", LOW < HIGH" + (", and 0 < LOW for log-uniform" if low <= 0 else "")
    return Kind(expected, convert, lambda text: convert(text if ":" in text else float(text)), low=low, high=high)


def widths() -> Kind:
    """Return the `Kind` of settings that hold the widths of dense layers, as in 256,256."""

    def convert(x: Any) -> Any:
        x = x if isinstance(x, list | tuple) else [x]
        if not 1 <= len(x) <= DEEPEST:
            raise ValueError
        return tuple(_number(width, 1, WIDEST, whole=True) for width in x)

    expected = f"whole numbers from 1 to {WIDEST:,}, as 256,256, at most {DEEPEST} of them"
    return Kind(expected, convert, lambda text: convert([float(width) for width in text.split(",")]))


def text(choices: tuple[str, ...] = (), longest: int = LONGEST_NAME) -> Kind:
    """Return the kind of text, which is one of `choices` if there are any."""

    def convert(x: Any) -> Any:
        if not _is_short(x, longest) or (choices and x not in choices):
            raise ValueError
        return x

    expected = "one of " + ", ".join(choices) if choices else f"at most {longest:,} printable characters"
    return Kind(expected, convert, convert, choices)


def env_name() -> Kind:
    """Return the kind of names of environments, whose case does not matter."""
    name = text()
    return dataclasses.replace(name, convert=lambda x: spelled(name.convert(x)), parse=lambda x: spelled(name.parse(x)))


def words() -> Kind:
    """Return the kind of lists of names, written as in a,b; commas within brackets or quotes belong to a name."""

    def convert(x: Any) -> Any:
        if not isinstance(x, list | tuple) or len(x) > MOST_NAMES or not all(map(_is_short, x)):
            raise ValueError
        if split(",".join(x)) != [*x]:  # a command line could not say these names
            raise ValueError
        return tuple(x)

    def split(text: str) -> list[str]:
        names: list[str] = []
        for piece in text.split(",") if text else []:
            names = [*names[:-1], f"{names[-1]},{piece}"] if names and is_open(names[-1]) else [*names, piece]
        return names

    def is_open(name: str) -> bool:
        bare = re.sub(r'"(\\.|[^"\\])*"', "", name)
        return '"' in bare or sum(map(bare.count, "[{")) > sum(map(bare.count, "]}"))

    expected = f"names, as a,b: at most {MOST_NAMES} of at most {LONGEST_NAME} printable characters"
    return Kind(expected, convert, lambda text: convert(split(text)))


def truth() -> Kind:
    """Return the kind of settings that are true or false."""

    def convert(x: Any) -> Any:
        if not isinstance(x, bool):
            raise ValueError
        return x

    return Kind("true or false", convert, lambda text: convert({"true": True, "false": False}.get(text, text)))


def json_or_text(text: str) -> Any:
    """Read the value of an option from text: JSON, or else the text itself."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def table() -> Kind:
    """Return the kind of settings that map names to JSON values."""

    def convert(x: Any) -> Any:
        if not isinstance(x, dict) or len(x) > MOST_NAMES or not all(map(_is_short, x)):
            raise ValueError
        try:
            x = as_from_json(x)
            written = [value if isinstance(value, str) else json.dumps(value) for value in x.values()]
        except RecursionError:
            raise ValueError from None
        if any(len(value) > LONGEST_VALUE for value in written):
            raise ValueError
        return x

    def as_from_json(value: Any) -> Any:
        """Return a value as `config.json` gives it back, so that a resumed run gets the same as a new one."""
        value = _plain(value)
        if isinstance(value, dict) and all(isinstance(name, str) for name in value):
            return {name: as_from_json(each) for name, each in value.items()}
        if isinstance(value, list | tuple):
            return [as_from_json(each) for each in value]
        if isinstance(value, int) and not -LARGEST_WHOLE <= value <= LARGEST_WHOLE:
            raise ValueError
        if value is not None and not isinstance(value, int | float | str):
            raise ValueError
        return value

    def parse(text: str) -> Any:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError
        return {name: json_or_text(value)}

    expected = f"name=value, the value as JSON of at most {LONGEST_VALUE:,} characters, or text"
    return Kind(expected, convert, parse)


def nearest_divisors(number: int, wanted: int) -> str:
    """Return the divisors of a number that are nearest to the wanted one, for an error message."""
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    divisors = sorted({*small, *(number // d for d in small)})
    below = max(d for d in divisors if d <= wanted)
    above = [d for d in divisors if d > wanted][:1]
    return " or ".join(str(d) for d in [below, *above])
