"""Style of all figures: palette, fonts, axes of environment steps, legends, and names without math mode."""

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

# Distinguishable for colour-blind readers.
PALETTE = (
    *("#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc"),
    *("#56b4e9", "#ca9161", "#000000", "#f4a3d7", "#8c8c00"),
)
STYLE: dict[Any, Any] = {  # sized for the page of a paper; text stays text in SVG and PDF
    "font.size": 8,
    **dict.fromkeys(("axes.titlesize", "axes.labelsize", "figure.titlesize", "figure.labelsize"), 8),
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), 7),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    **dict.fromkeys(("axes.linewidth", "xtick.major.width", "ytick.major.width"), 0.6),
    **dict.fromkeys(("xtick.major.size", "ytick.major.size"), 2.5),
    "axes.formatter.limits": (-4, 5),  # exponents outside use scientific notation, because longer numbers overlap
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
MOST_LABELS = len(PALETTE)  # groups with a colour and a legend entry, or values with their own tick on an axis


def as_file(figure: Figure, suffix: str) -> bytes:
    """Return the bytes of a figure's file; equal figures give equal bytes.

    Args:
      figure: Figure to save.
      suffix: File name extension: ".png", ".svg" or ".pdf".
    """
    dates = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    content = io.BytesIO()
    with rc_context(STYLE):
        plain(figure).savefig(content, format=suffix[1:], metadata=dates[suffix])
    return content.getvalue()


def save(figure: Figure, path: Path) -> None:
    """Write the figure to a file, and replace an existing one."""
    write_whole(path, as_file(figure, path.suffix))


def in_steps(axes: Axes) -> None:
    """Label the horizontal axis with environment steps in the form 500k or 2.5M."""
    few_ticks(axes.xaxis)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def few_ticks(axis: Axis) -> None:
    """Put at most five ticks at round numbers on the axis of a small panel."""
    axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))


def ncols(labels: Sequence[str], width: float) -> int:
    """Return the number of legend columns that fit into a width in inches."""
    longest = max(map(len, labels), default=0)
    return max(1, min(len(labels), int(width / (0.5 + 0.055 * longest))))


def legend_below(figure: Figure, handles: Sequence[Artist]) -> None:
    """Put a legend below the figure, where it hides no curve."""
    columns = ncols([str(handle.get_label()) for handle in handles], figure.get_figwidth())
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, borderaxespad=0.2)


def plain(figure: Figure) -> Figure:
    """Shorten or wrap names to fit the figure, and turn math mode off for them; return the figure.

    Tick labels keep math mode, which logarithmic axes need.
    """
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
    """Shorten a name to a width in inches; keep the end, in which modules and directories differ."""
    most = int(width / 0.06)
    return name if len(name) <= most else f"…{name[1 - most :]}"
