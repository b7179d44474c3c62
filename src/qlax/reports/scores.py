"""Scores of a suite: their statistics over games and seeds, and the table of them all."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from qlax.util.statistics import interquartile_mean, stratified_interval
from qlax.util.text import four_digits, markdown

RESAMPLES = 10_000


def aggregates(scores: Sequence[Sequence[float]]) -> dict[str, dict[str, Any]]:
    """Median, mean and interquartile mean of a suite's scores, with 95 % intervals.

    Median and mean are over games, of the means over runs, as the literature has them; the interquartile mean
    (IQM) is over all runs of all games, without the lowest and the highest quarter. The intervals are between the
    percentiles of a stratified bootstrap: the runs of each game are drawn anew with replacement, the games stay.

    Args:
      scores: of every game, those of its runs.

    Returns:
      `value` and `interval` of "median", "mean" and "iqm"; no interval (None) where no game has a second run.

    Source: Agarwal et al., 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice", sections 4.1
    and 4.3, https://arxiv.org/abs/2108.13264
    """

    def all_of(games: Sequence[np.ndarray]) -> np.ndarray:
        means = np.stack([runs.mean(axis=-1) for runs in games])
        return np.stack([np.median(means, axis=0), means.mean(axis=0), interquartile_mean(games)])

    measured = [np.array(runs, np.float64) for runs in scores]
    values, intervals = all_of(measured), stratified_interval(all_of, measured, RESAMPLES)
    ends: list[Any] = np.stack(intervals, axis=-1).tolist() if intervals else [None] * len(values)
    names = ("median", "mean", "iqm")
    return {name: {"value": float(x), "interval": end} for name, x, end in zip(names, values, ends, strict=True)}


def table(results: dict[str, Any], unit: str) -> str:
    """The results in Markdown that reads well as it stands.

    Args:
      results: what `qlax.jobs.suite.collect` gives.
      unit: of the scores.
    """
    games, failed, incomplete = results["games"], results["failed"], results["incomplete"]
    found = results["aggregates"]
    header = ["game", "return", "of each seed", *([unit] if found else []), "steps a seed", "steps/s, all seeds"]
    rows = []
    for game, measured in games.items():
        returns, score = measured["eval_return"], measured.get("eval_score", {"mean": None})
        row = [game, four_digits(returns["mean"]), ", ".join(map(four_digits, returns["per_run"]))]
        row += [four_digits(score["mean"])] if found else []
        rows.append([*row, f"{measured['total_steps']:,}", f"{measured['steps_per_second']:,.0f}"])
    parts = [
        f"{results['suite']}: {len(games)} of {len(games) + len(failed) + len(incomplete)} games, greedy returns",
        markdown(header, rows),
    ]
    notes = []
    if found:
        statistics = {name: found[name] for name in ("median", "mean", "iqm")}
        rows = [[name.replace("iqm", "IQM"), four_digits(x["value"]), _interval(x)] for name, x in statistics.items()]
        over = len(found["games"])
        parts.append(markdown([f"over {over} game{'' if over == 1 else 's'}", unit, "95 % interval"], rows))
        notes.append("Median and mean: of the games' means over seeds. IQM: of the middle half of all games' seeds.")
        if found["iqm"]["interval"]:
            notes.append("Intervals: stratified bootstrap over the seeds of each game.")
        else:
            notes.append("Intervals: none, as one seed a game does not tell.")
        if unscored := [game for game in games if game not in found["games"]]:
            notes.append(f"Without a score, hence not in the aggregates: {', '.join(unscored)}.")
    if cut := [game for game, measured in games.items() if any(measured["eval_cut"])]:
        notes.append(f"Some episodes were cut: {', '.join(cut)}.")
    notes += [f"Failed, hence left out: {game} ({reason})." for game, reason in failed.items()]
    if incomplete:
        notes.append(f"Not complete yet, hence left out: {', '.join(incomplete)}.")
    if notes:
        parts.append("\n".join(f"- {note}" for note in notes))
    return "\n\n".join(parts) + "\n"


def _interval(statistic: dict[str, Any]) -> str:
    return " to ".join(map(four_digits, statistic["interval"])) if statistic["interval"] else "-"
