"""Human-readable text: values in messages, numbers and tables."""

from collections.abc import Iterable
from typing import Any


def shown(value: Any, longest: int = 80) -> str:
    """Format a value for an error message: on one line, and cut after `longest` characters.

    Printable text is shown as it is, any other value as its `repr`.
    """
    try:
        line = value if isinstance(value, str) and value.isprintable() else repr(value)
    except (ValueError, RecursionError):  # Python refuses `repr` of integers of thousands of digits and of deep trees
        return f"something of type {type(value).__name__}"
    line = " ".join(line.split())
    return line if len(line) <= longest else f"{line[:longest]}..."


def six_digits(x: float) -> float:
    """Round a number to six significant digits, which float32 holds reliably."""
    return float(f"{x:.6g}")


def four_digits(x: float | None) -> str:
    """Format a number with four significant digits, but up to nine digits before the point; None is "-"."""
    if x is None:
        return "-"
    return f"{x:.0f}" if 1000 <= abs(x) < 1e9 else f"{x:.4g}"


def ends_in_words(interval: tuple[Any, Any] | None) -> str:
    """Format an interval as "low to high" in four digits; None is "-"."""
    return " to ".join(map(four_digits, interval)) if interval else "-"


def repetition_in_words(distinct: Iterable[float | None], episodes: int) -> str:
    """Return a sentence if most episodes of some agent repeat others, as those of a deterministic game do; else "".

    Args:
      distinct: Number of distinct episodes of each agent; None where it is not known.
      episodes: Number of episodes of each agent.
    """
    few = [int(number) for number in distinct if number is not None and 2 * number < episodes]
    if not few:
        return ""
    numbers = f"{min(few)} to {max(few)}" if min(few) < max(few) else f"{few[0]}"
    are = "is" if numbers == "1" else "are"
    return (
        f"Only {numbers} of the {episodes:,} episodes of an agent {are} distinct, and the others repeat them, so that "
        "intervals over episodes say little. An epsilon of 0.05 varies them."
    )


def actions_in_words(num_actions: int, dimensions: int | None) -> str:
    """Return a number of actions, with the number of their dimensions if there are any."""
    if dimensions is None:
        return f"{num_actions} actions"
    return f"{num_actions} actions in {'1 dimension' if dimensions == 1 else f'each of {dimensions} dimensions'}"


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """Format a Markdown table with padded columns, the first aligned left and the others right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells):
        padded = [cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])]
        return "| " + " | ".join(padded) + " |"

    rule = "| " + " | ".join(["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]) + " |"
    return "\n".join([line(header), rule, *map(line, rows)])


def setting_in_words(value: Any) -> str:
    """Format the value of a setting: rounded numbers, "on" or "off", and "none" for None or an empty value."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, dict):
        return " ".join(f"{name}={setting_in_words(each)}" for name, each in value.items()) or "none"
    if isinstance(value, tuple | list):
        return ",".join(map(setting_in_words, value)) or "none"
    return "none" if value is None else str(value)
