"""Episodes drawn on a terminal: pictures as half blocks in 24-bit colours, with the agent's Q-values beside them."""

import functools
import math
import time
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from PIL import Image
from rich.color import Color
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.segment import Segment
from rich.style import Style
from rich.table import Table
from rich.text import Text

from qlax.playing.painter import CHOSEN, LONGEST_NAME, MOST_BARS, MOST_MEMBERS, Moment
from qlax.util.text import four_digits

MOST_COLUMNS, MOST_ROWS = 80, 32  # largest picture; a larger one takes long to print and shows no more
BAR = 12  # characters of the longest bar
LAST_SECONDS = 0.7  # for which the end of an episode stays


def is_notebook() -> bool:
    """Return whether the program runs in a notebook, which shows pictures itself."""
    return Console().is_jupyter


def has_colours() -> bool:
    """Return whether standard output is a terminal that shows colours."""
    console = Console()
    return console.is_terminal and console.color_system is not None


class Screen:
    """Picture of the episode in progress at the lower end of a terminal.

    Args:
      names: Names of the actions.
      deciders: What chooses each number of an action, see `qlax.playing.moments.deciders`.
      seconds: Time of one step.
    """

    def __init__(self, names: Sequence[str], deciders: Sequence[str], seconds: float):
        self._deciders = deciders
        self._names, self._seconds = [name[:LONGEST_NAME] for name in names], seconds
        self._console = Console()
        self._low, self._high = math.inf, -math.inf  # range of the Q-values so far, so that bars have one scale

    def show(self, moments: Iterable[Moment]) -> Moment:
        """Draw the first of the episodes at its own speed, and return its last moment."""
        with Live(console=self._console, auto_refresh=False, transient=True) as live:
            due = time.monotonic()
            for moment in moments:
                live.update(self._drawn(moment), refresh=True)
                due = max(due + self._seconds, time.monotonic() - self._seconds)
                time.sleep(max(0.0, due - time.monotonic()))
            time.sleep(min(LAST_SECONDS, 20 * self._seconds))
        return moment

    def _drawn(self, moment: Moment) -> RenderableType:
        panel = Text("\n").join(self._lines(moment))
        width = max(line.cell_len for line in panel.split())
        columns = min(MOST_COLUMNS, self._console.width - width - 3)
        both = Table.grid(padding=(0, 2))
        picture = moment.pictures[0]
        if picture.size and columns > 0:
            both.add_row(Blocks(fitted(picture, columns, min(MOST_ROWS, self._console.height - 2))), panel)
        else:
            both.add_row(panel)
        return both

    def _lines(self, moment: Moment) -> Iterator[Text]:
        """Write return and length so far, and the Q-values of every member's actions, the chosen one marked."""
        yield Text(f"return {four_digits(float(moment.returns[0]))}", style="bold")
        yield Text(f"step {moment.lengths[0]:,}{'' if moment.playing[0] else ', ended'}")
        finite = moment.q[0][np.isfinite(moment.q[0])]
        self._low, self._high = min([self._low, *finite]), max([self._high, *finite])
        members = moment.q.shape[1]
        for member in range(min(members, MOST_MEMBERS)):
            yield Text(f"\nQ of {self._deciders[member]}" if members > 1 else "\nQ of each action")
            q, action = moment.q[0, member], int(moment.action[0, member])
            listed = np.arange(len(q)) if len(q) <= MOST_BARS else np.argsort(-q, kind="stable")[: MOST_BARS // 2]
            width = max(len(self._names[each]) for each in listed)
            for each in listed:
                share = (q[each] - self._low) / (self._high - self._low or 1.0) if np.isfinite(q[each]) else 0.0
                bar = "█" * round(1 + share * (BAR - 1)) if np.isfinite(q[each]) else ""
                value = f"{q[each]:.3g}" if np.isfinite(q[each]) else "-"
                line = f"{'>' if each == action else ' '} {self._names[each]:>{width}} {bar:{BAR}} {value:>8}"
                chosen = Style(color=Color.from_rgb(*CHOSEN), bold=True)
                yield Text(line, style=chosen if each == action else "")


class Blocks:
    """Picture of half blocks: every character shows two pixels, one above the other.

    Args:
      pixels: Picture, uint8 `[2 * rows, columns, 3]`.
    """

    def __init__(self, pixels: np.ndarray):
        self._pixels = pixels

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for upper, lower in zip(self._pixels[::2].tolist(), self._pixels[1::2].tolist(), strict=True):
            begun = 0
            pairs = [(*above, *below) for above, below in zip(upper, lower, strict=True)]
            for column in range(1, len(pairs) + 1):
                if column == len(pairs) or pairs[column] != pairs[begun]:
                    yield Segment("▀" * (column - begun), _style(pairs[begun]))
                    begun = column
            yield Segment.line()

    def __rich_measure__(self, console: Console, options: ConsoleOptions):
        from rich.measure import Measurement

        return Measurement(self._pixels.shape[1], self._pixels.shape[1])


@functools.lru_cache(maxsize=4096)
def _style(colors: tuple[int, ...]) -> Style:
    """Return the style of a half block, given red, green and blue of its upper half and then of its lower half."""
    return Style(color=Color.from_rgb(*colors[:3]), bgcolor=Color.from_rgb(*colors[3:]))


def fitted(picture: np.ndarray, columns: int, rows: int) -> np.ndarray:
    """Scale a picture to fit into rows and columns of characters that show two pixels each, one above the other.

    A picture that fits is enlarged by a whole factor, so that equal square cells, as of a grid world, stay equal. Any
    other picture is reduced by averaging.

    Args:
      picture: uint8 `[H, W, 3]`.
      columns: Largest number of columns.
      rows: Largest number of rows.

    Returns:
      Picture, uint8 `[h, w, 3]`, with h even, h <= 2 * rows and w <= columns.
    """
    small = _cells(picture)
    height, width = small.shape[:2]
    if width <= columns and height <= 2 * rows:
        factor = max(1, min(columns // width, 2 * rows // height))
        small = small.repeat(factor, axis=0).repeat(factor, axis=1)
    else:
        factor = min(columns / width, 2 * rows / height)
        size = max(1, int(width * factor)), max(1, int(height * factor))
        small = np.asarray(Image.fromarray(small).resize(size, Image.Resampling.BOX))
    return small if len(small) % 2 == 0 else np.concatenate([small, small[-1:]])


def _cells(picture: np.ndarray) -> np.ndarray:
    """Return a picture of square cells of one colour each with one pixel for each; any other picture unchanged."""
    height, width = picture.shape[:2]
    common = math.gcd(height, width)
    for side in (side for side in range(common, 1, -1) if common % side == 0):
        small = picture[::side, ::side]
        if np.array_equal(small.repeat(side, axis=0).repeat(side, axis=1), picture):
            return small
    return picture
