"""Results of one setting on several targets (presets or environments), their statistics, and a table."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from qlax.util.statistics import interquartile_mean, stratified_interval
from qlax.util.text import ends_in_words, four_digits, markdown, repetition_in_words

RESAMPLES = 10_000
UNITS = {"ale": "% of human", "envpool": "% of human", "craftax": "% of maximum"}  # unit of `eval_score`, by suite


def result(summary: dict[str, Any], agents: Iterable[int]) -> dict[str, Any]:
    """Return the results of some agents of a run, as a row of the table needs them.

    Args:
      summary: Summary of the run.
      agents: Indices of the agents.
    """
    agents = list(agents)
    same = ("preset", "env", "total_steps", "steps_per_second", "device", "eval_episodes")
    found = {name: summary[name] for name in same}
    each = [name for name in ("seeds", "eval_cut", "eval_distinct") if name in summary]  # older runs lack the last
    found |= {name: [summary[name][agent] for agent in agents] for name in each}
    for name in ("eval_return", "eval_score"):
        if name in summary:  # only some environments have a score
            per_run = [summary[name]["per_run"][agent] for agent in agents]
            known = [x for x in per_run if x is not None]
            found[name] = {"mean": sum(known) / len(known) if known else None, "per_run": per_run}
    return found


def collect(
    title: str, targets: dict[str, dict[str, Any]], failed: dict[str, str], incomplete: Sequence[str]
) -> dict[str, Any]:
    """Return one setting's results on several targets, as `results.json` holds them.

    Args:
      title: Title of the table.
      targets: Return value of `result` for every target whose job is complete.
      failed: Reason of failure for every target whose job failed.
      incomplete: Targets whose jobs were interrupted or did not begin.
    """
    scores = {target: row["eval_score"]["per_run"] for target, row in targets.items() if "eval_score" in row}
    scores = {target: values for target, values in scores.items() if None not in values}
    units = sorted({UNITS.get(targets[target]["env"].partition("/")[0], "score") for target in scores})
    return {
        "title": title,
        "targets": targets,
        "failed": failed,
        "incomplete": list(incomplete),
        "unit": " or ".join(units) or "score",
        "aggregates": {"targets": list(scores), **aggregates(list(scores.values()))} if len(units) == 1 else None,
    }


def aggregates(scores: Sequence[Sequence[float]]) -> dict[str, dict[str, Any]]:
    """Return the median, mean and interquartile mean of scores over targets, with 95 % intervals.

    Median and mean are taken over targets, of each target's mean over seeds, as in the literature. The interquartile
    mean (IQM) is over all seeds of all targets, without the lowest and the highest quarter. Intervals are percentile
    intervals of a stratified bootstrap, which resamples the seeds of each target and keeps all targets.

    Args:
      scores: For every target, the scores of its seeds.

    Returns:
      `value` and `interval` of "median", "mean" and "iqm"; the interval is None if every target has only one seed.

    Source: Agarwal et al., 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice", sections 4.1
    and 4.3, https://arxiv.org/abs/2108.13264
    """

    def all_of(targets: Sequence[np.ndarray]) -> np.ndarray:
        means = np.stack([seeds.mean(axis=-1) for seeds in targets])
        return np.stack([np.median(means, axis=0), means.mean(axis=0), interquartile_mean(targets)])

    measured = [np.array(seeds, np.float64) for seeds in scores]
    values, intervals = all_of(measured), stratified_interval(all_of, measured, RESAMPLES)
    ends: list[Any] = np.stack(intervals, axis=-1).tolist() if intervals else [None] * len(values)
    names = ("median", "mean", "iqm")
    return {name: {"value": float(x), "interval": end} for name, x, end in zip(names, values, ends, strict=True)}


def table(results: dict[str, Any]) -> str:
    """Format the results of `collect` as Markdown, which is also readable as plain text."""
    targets, failed, incomplete = results["targets"], results["failed"], results["incomplete"]
    found, unit = results["aggregates"], results["unit"]
    has_scores = any("eval_score" in measured for measured in targets.values())
    header = ["target", "return", "of each seed", *[unit] * has_scores, "steps per seed", "steps/s of the job"]
    rows = []
    for target, measured in targets.items():
        returns, score = measured["eval_return"], measured.get("eval_score", {"mean": None})
        row = [target, four_digits(returns["mean"]), ", ".join(map(four_digits, returns["per_run"]))]
        row += [four_digits(score["mean"])] * has_scores
        rows.append([*row, f"{measured['total_steps']:,}", f"{measured['steps_per_second']:,.0f}"])
    wanted = len(targets) + len(failed) + len(incomplete)
    parts = [f"{results['title']}: {len(targets)} of {wanted} targets, greedy returns", markdown(header, rows)]
    notes = []
    if found:
        named = (("median", found["median"]), ("mean", found["mean"]), ("IQM", found["iqm"]))
        rows = [[name, four_digits(x["value"]), ends_in_words(x["interval"])] for name, x in named]
        over = len(found["targets"])
        parts.append(markdown([f"over {over} target{'' if over == 1 else 's'}", unit, "95 % interval"], rows))
        notes.append(
            "Median and mean: over targets, of each target's mean over seeds. IQM: middle half of all targets' seeds."
        )
        if found["iqm"]["interval"]:
            notes.append("Intervals: stratified bootstrap over the seeds of each target.")
        else:
            notes.append("Intervals: none, because every target has only one seed.")
        if unscored := [target for target in targets if target not in found["targets"]]:
            notes.append(f"Not in the statistics, because they have no score: {', '.join(unscored)}.")
    if cut := [target for target, measured in targets.items() if any(measured["eval_cut"])]:
        notes.append(f"Some evaluation episodes were cut off at the step limit: {', '.join(cut)}.")
    for target, measured in targets.items():
        if repetition := repetition_in_words(measured.get("eval_distinct", []), measured["eval_episodes"]):
            notes.append(f"{target}: {repetition}")
    notes += [f"Left out because it failed: {target} ({reason})." for target, reason in failed.items()]
    if incomplete:
        notes.append(f"Left out because they are not complete yet: {', '.join(incomplete)}.")
    if notes:
        parts.append("\n".join(f"- {note}" for note in notes))
    return "\n\n".join(parts) + "\n"
