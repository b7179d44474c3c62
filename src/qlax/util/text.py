"""Text that people read: values in messages, numbers and tables."""

from typing import Any


def shown(value: Any, longest: int = 80) -> str:
    """A value, or text as it is, for an error message: in one line, and of a long one the beginning."""
    try:
        line = value if isinstance(value, str) and value.isprintable() else repr(value)
    except (ValueError, RecursionError):  # Python does not write numbers of thousands of digits, nor deep trees
        return f"something of type {type(value).__name__}"
    line = " ".join(line.split())
    return line if len(line) <= longest else f"{line[:longest]}..."


def six_digits(x: float) -> float:
    """As many as are shown of a number, and no more than float32 holds."""
    return float(f"{x:.6g}")


def four_digits(x: float | None) -> str:
    """Four digits, or all before the point, unless these are more than nine."""
    if x is None:
        return "-"
    return f"{x:.0f}" if 1000 <= abs(x) < 1e9 else f"{x:.4g}"


def ends_in_words(interval: tuple[Any, Any] | None) -> str:
    """Write an interval as its ends in four digits; what is none as "-"."""
    return " to ".join(map(four_digits, interval)) if interval else "-"


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table whose columns are as wide as what they hold, the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells):
        padded = [cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])]
        return "| " + " | ".join(padded) + " |"

    rule = "| " + " | ".join(["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]) + " |"
    return "\n".join([line(header), rule, *map(line, rows)])


def setting_in_words(value: Any) -> str:
    """Write the value of a setting for people: rounded, and what is nothing as "none"."""
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
