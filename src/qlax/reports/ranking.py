"""What every agent came to, which setting was best, and what trains it again."""

import csv
import dataclasses
import io
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from qlax.config.command_line import as_words, written
from qlax.config.settings import Config
from qlax.storage.measurements import MEASUREMENTS
from qlax.util.files import write_whole

BEST = 5  # settings that are printed
Row = dict[str, Any]


class Ranked(NamedTuple):
    """A setting and what it came to."""

    row: Row  # of its first agent
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
    """Return a row an agent: its index and seed, what it was trained with, what it came to, and when it diverged."""
    results = [key for key, measurement in MEASUREMENTS.items() if measurement.is_result]  # the score not everywhere
    return [
        {
            "agent": index,
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
    """Write `sweep.csv`, a row an agent, to a directory."""
    text = io.StringIO()
    writer = csv.DictWriter(text, of[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: "" if value is None else written(value) for name, value in row.items()} for row in of)
    write_whole(path / "sweep.csv", text.getvalue().encode())


def best_setting_in_words(config: Config, ranked: Sequence[Ranked], fields: Sequence[str]) -> str:
    """Return what the command says of settings: which is best, and what trains it again."""
    best = f"best of {len(ranked)} settings: {ranked[0].shown(fields)}"
    return f"{best}\ntrain it again: {again(config, ranked[0].row, fields)}"
