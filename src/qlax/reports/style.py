"""Style of all figures: palette, type, axes that count steps, legends below, and names as plain text."""

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cycler import cycler
from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from qlax.util.files import write_whole

# Told apart by those who are colour-blind, too.
PALETTE = (
    *("#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc"),
    *("#56b4e9", "#ca9161", "#000000", "#f4a3d7", "#8c8c00"),
)
STYLE: dict[Any, Any] = {  # of a page of a paper; text stays text in SVG and PDF
    "font.size": 8,
    **dict.fromkeys(("axes.titlesize", "axes.labelsize", "figure.titlesize", "figure.labelsize"), 8),
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), 7),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    **dict.fromkeys(("axes.linewidth", "xtick.major.width", "ytick.major.width"), 0.6),
    **dict.fromkeys(("xtick.major.size", "ytick.major.size"), 2.5),
    "axes.formatter.limits": (-4, 5),  # of powers of ten that are written out: longer numbers overlap
    "axes.prop_cycle": cycler(color=PALETTE),
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.92",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.2,
    "savefig.dpi": 200,
    "svg.fonttype": "none",
    "svg.hashsalt": "qlax",
    "pdf.fonttype": 42,
}
MOST_LABELS = len(PALETTE)  # settings with a colour and a place in the legend, or values with a place on an axis


def as_file(figure: Figure, suffix: str) -> bytes:
    """Return the content of a file of this kind (".png", ".svg" or ".pdf"): of the same figure the same bytes."""
    dates = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    content = io.BytesIO()
    with rc_context(STYLE):
        plain(figure).savefig(content, format=suffix[1:], metadata=dates[suffix])
    return content.getvalue()


def save(figure: Figure, path: Path) -> None:
    """Write the figure to a file, in place of one that is there."""
    write_whole(path, as_file(figure, path.suffix))


def in_steps(axes: Axes) -> None:
    """Have the horizontal axis count environment steps, as 500k or 2.5M."""
    few_ticks(axes.xaxis)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def few_ticks(axis: Axis) -> None:
    """Have an axis of a small panel bear round numbers that fit."""
    axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))


def ncols(labels: Sequence[str], width: float) -> int:
    """Columns of a legend that fit in so many inches."""
    longest = max(map(len, labels), default=0)
    return max(1, min(len(labels), int(width / (0.5 + 0.055 * longest))))


def legend_below(figure: Figure, handles: Sequence[Artist]) -> None:
    """Say what lines are, never over the curves."""
    columns = ncols([str(handle.get_label()) for handle in handles], figure.get_figwidth())
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, borderaxespad=0.2)


def plain(figure: Figure) -> Figure:
    """The figure, in which names fit and their dollars begin no formula, as numbers on logarithmic axes do."""
    width = figure.get_figwidth()
    titles = [(text, width) for text in figure.texts]
    for axes in figure.axes:
        place = axes.get_subplotspec()
        titles.append((axes.title, width / (place.get_gridspec().ncols if place else 1)))
    for title, inches in titles:
        lines = title.get_text().splitlines()
        title.set_text("\n".join(textwrap.fill(line, int(inches / 0.07)) for line in lines))
    labels = [text for legend in figure.legends for text in legend.get_texts()]
    for label in labels:
        label.set_text(short(label.get_text(), width - 0.5))
    names = [text for axes in figure.axes for text in (axes.xaxis.label, axes.yaxis.label)]
    for text in (*(title for title, _ in titles), *labels, *names):
        text.set_parse_math(False)
    return figure


def short(name: str, width: float) -> str:
    """A name in so many inches: of a long one the end, in which modules and directories differ."""
    most = int(width / 0.06)
    return name if len(name) <= most else f"…{name[1 - most :]}"
