"""Learning curves while a run trains: drawn on a terminal in dots of Braille, or in a notebook as SVG."""

import math
from collections.abc import Iterator

from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.style import Style

from qlax.util.text import four_digits

ROWS = 10  # of a curve on a terminal
WIDTH, HEIGHT = 640, 180  # pixels of a curve in a notebook
COLORS = {"return": "#a5a5a5", "greedy": "#0072b2"}  # exploring below, greedy on top
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # bits of the 4 x 2 dots of a character (Unicode 2800)

Point = tuple[float, float]


class Curves:
    """Mean returns against environment steps, of exploring and of greedy episodes.

    Args:
      total: Number of steps at the right end.

    Attributes:
      points: Points of each curve, by its name in `COLORS`.
    """

    def __init__(self, total: float):
        self._total = max(total, 1.0)
        self.points: dict[str, list[Point]] = {name: [] for name in COLORS}

    def add(self, steps: float, training: float, greedy: float) -> None:
        """Add a line of metrics; a return that is nan adds no point."""
        for name, value in zip(COLORS, (training, greedy), strict=True):
            if math.isfinite(value):
                self.points[name].append((steps, value))

    def _bounds(self) -> tuple[float, float]:
        """Return the range of the returns."""
        values = [y for points in self.points.values() for _, y in points]
        low, high = min(values), max(values)
        return low, high if high > low else low + 1

    def _scaled(self, width: float, height: float) -> dict[str, list[Point]]:
        """Return the points in a picture of this size, with y downwards."""
        low, high = self._bounds()
        return {
            name: [(width * x / self._total, height * (high - y) / (high - low)) for x, y in points]
            for name, points in self.points.items()
        }

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if not any(self.points.values()):
            return
        low, high = self._bounds()
        labels = [four_digits(high), four_digits(low)]
        margin = max(map(len, labels)) + 1
        columns = max(1, options.max_width - margin - 1)
        dots: dict[tuple[int, int], int] = {}
        color_of: dict[tuple[int, int], str] = {}
        for name, points in self._scaled(2 * columns - 1, 4 * ROWS - 1).items():
            for x, y in _between(points):
                cell = (y // 4, x // 2)
                # A character has one colour, so the dots of the curve below give way.
                dots[cell] = DOTS[y % 4][x % 2] | (dots.get(cell, 0) if color_of.get(cell) == COLORS[name] else 0)
                color_of[cell] = COLORS[name]
        for row in range(ROWS):
            label = labels[0] if row == 0 else labels[1] if row == ROWS - 1 else ""
            yield Segment(f"{label:>{margin - 1}} │")
            for column in range(columns):
                cell = (row, column)
                color = color_of.get(cell)
                yield Segment(chr(0x2800 + dots.get(cell, 0)), None if color is None else Style(color=color))
            yield Segment.line()
        yield Segment(f"{'':>{margin}}└")
        yield Segment(f"{f' {self._total:,.0f} steps':─>{columns}}"[:columns])
        yield Segment.line()

    def svg(self) -> str:
        """Return the curves as SVG; empty before the first point."""
        if not any(self.points.values()):
            return ""
        low, high = self._bounds()
        lines = "".join(
            f'<polyline fill="none" stroke="{COLORS[name]}" stroke-width="2" points="'
            + " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            + '"/>'
            for name, points in self._scaled(WIDTH, HEIGHT).items()
        )
        texts = ((4, 14, four_digits(high)), (4, HEIGHT - 4, four_digits(low)))
        words = "".join(f'<text x="{x}" y="{y}" font-size="12" fill="#666">{text}</text>' for x, y, text in texts)
        words += f'<text x="{WIDTH}" y="{HEIGHT + 16}" font-size="12" fill="#666" text-anchor="end">'
        words += f"{self._total:,.0f} steps; greedy blue, exploring grey</text>"
        size = f'width="{WIDTH}" height="{HEIGHT + 20}" viewBox="-2 -2 {WIDTH + 4} {HEIGHT + 22}"'
        return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{lines}{words}</svg>'


def _between(points: list[Point]) -> Iterator[tuple[int, int]]:
    """Yield the dots of the lines between points."""
    for (x0, y0), (x1, y1) in zip(points, points[1:] or points, strict=False):
        number = max(1, math.ceil(max(abs(x1 - x0), abs(y1 - y0))))
        for step in range(number + 1):
            share = step / number
            yield round(x0 + share * (x1 - x0)), round(y0 + share * (y1 - y0))
