"""What every run came to, which setting was best, and what trains it again."""

import csv
import dataclasses
import io
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from qlax.config.command_line import as_words, written
from qlax.config.kinds import distribution
from qlax.config.settings import SWEEPABLE, Config
from qlax.storage.measurements import MEASUREMENTS
from qlax.util.files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BEST = 5  # settings that are printed
Row = dict[str, Any]


class Ranked(NamedTuple):
    """A setting and what it came to."""

    row: Row  # of its first run
    mean: float | None  # greedy return over its seeds; None where one diverged
    seeds: int

    def shown(self, fields: Sequence[str]) -> str:
        """In a line."""
        result = "diverged" if self.mean is None else f"{self.mean:.2f}"
        setting = described({name: self.row[name] for name in fields})
        return f"{setting}: {result}{f', mean of {self.seeds} seeds' if self.seeds > 1 else ''}"


def described(setting: Mapping[str, Any]) -> str:
    """Return a setting in a line."""
    values = {name: f"{x:g}" if isinstance(x, float) else written(x) for name, x in setting.items()}
    return ", ".join(f"{name} {value}" for name, value in values.items())


def rows(config: Config, summary: Mapping[str, Any]) -> list[Row]:
    """A row a run: its index and seed, what it was trained with, what it came to, and when it diverged."""
    results = [key for key, measurement in MEASUREMENTS.items() if measurement.is_result]  # the score not everywhere
    return [
        {
            "run": index,
            "seed": run["seed"],
            **{name: run[name] for name in config.compared},
            **{name: summary[name]["per_run"][index] for name in results if name in summary},
            "diverged": diverged["steps"] if diverged else None,
        }
        for index, (run, diverged) in enumerate(zip(config.members, summary["diverged"], strict=True))
    ]


def ranking(of: Sequence[Row], fields: Sequence[str]) -> list[Ranked]:
    """The settings, the best one first: by the mean greedy return over their seeds, those that diverged last.

    Of equals the first is the one that returned more while exploring at the end.
    """
    settings: dict[tuple, list[Row]] = {}
    for row in of:
        settings.setdefault(tuple(row[name] for name in fields), []).append(row)

    def mean(same: list[Row], name: str) -> float | None:
        values = [row[name] for row in same]
        return None if None in values else sum(values) / len(values)

    def rank(same: list[Row]) -> list[float]:
        means = (mean(same, name) for name in ("eval_return", "train_return"))
        return [-math.inf if found is None else found for found in means]

    ranked = sorted(settings.values(), key=rank, reverse=True)
    return [Ranked(same[0], mean(same, "eval_return"), len(same)) for same in ranked]


def again(config: Config, row: Row, fields: Sequence[str]) -> str:
    """The command that trains the setting of a row, with the same seeds; it says what the fields compared were."""
    setting: dict[str, Any] = {name: row[name] for name in config.compared}
    if setting:
        setting["draws"] = None
    return shlex.join(["qlax", "train", *as_words(dataclasses.replace(config, **setting), fields)])


def write(path: Path, of: Sequence[Row]) -> None:
    """Write `sweep.csv`, a row a run, to a directory."""
    text = io.StringIO()
    writer = csv.DictWriter(text, of[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: "" if value is None else written(value) for name, value in row.items()} for row in of)
    write_whole(path / "sweep.csv", text.getvalue().encode())


def draw(path: Path, config: Config, of: Sequence[Row], fields: Sequence[str], title: str) -> None:
    """Write the picture of `compared` to a file."""
    from qlax.reports.style import save  # matplotlib takes its time to import

    save(compared(config, of, fields, title), path)


def compared(config: Config, of: Sequence[Row], fields: Sequence[str], title: str) -> "Figure":
    """Draw what every run came to, a panel a field.

    Args:
      config: settings of one of the runs.
      of: the rows.
      fields: that are compared.
      title: of the picture.
    """
    from qlax.reports.pictures import comparison

    columns = {name: _numbers([row[name] for row in of]) for name in fields}
    asked = {name: getattr(config, name) for name in fields}
    drawn = [name for name in fields if name in SWEEPABLE and isinstance(asked[name], str)]
    logarithmic = [name for name in fields if _is_log(asked[name] if name in drawn else columns[name])]
    returns = [math.nan if row["eval_return"] is None else row["eval_return"] for row in of]
    best = ranking(of, fields)[0].row
    is_best = [all(row[name] == best[name] for name in fields) for row in of]
    return comparison(columns, returns, is_best, title, drawn=drawn, logarithmic=logarithmic)


def report(config: Config, ranked: Sequence[Ranked], fields: Sequence[str]) -> str:
    """Return what the command says of settings: which is best, and what trains it again."""
    best = f"best of {len(ranked)} settings: {ranked[0].shown(fields)}"
    return f"{best}\ntrain it again: {again(config, ranked[0].row, fields)}"


def _numbers(values: list[Any]) -> list[Any]:
    """Values as numbers where all are, or else in words."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return values
    return [written(value) for value in values]


def _is_log(values: Any) -> bool:
    """Whether a distribution, or a list, is spread logarithmically."""
    if isinstance(values, str):
        return distribution(values).is_log
    return not isinstance(values[0], str) and min(values) > 0 and max(values) >= 10 * min(values)
