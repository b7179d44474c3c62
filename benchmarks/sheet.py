"""Write docs/results.md, its figures, the README's table and the headers of the presets from the results:
`python benchmarks/sheet.py`.
"""

import re
import statistics
import tempfile
import textwrap
from collections.abc import Iterable
from pathlib import Path

import claims
import numpy as np
from rows import Published, Row, rows
from scipy import stats

from qlax.config import presets
from qlax.util.statistics import stratified_interval

README = Path(__file__).parent.parent / "README.md"
IN_README = (
    *("cartpole", "mountaincar", "lunarlander", "breakout", "asterix", "space-invaders", "craftax-classic"),
    *("overcooked-cramped-room", "smax-3m"),
)
PAGE = README.parent / "docs" / "results.md"
FIGURES = PAGE.parent / "figures"
MOST_OTHERS = 0.1  # cores that other programs may use without slowing a run
MOST_SEEDS = 6  # listed one by one; of more seeds, the table shows only the worst and the best
SAME_STEPS = 0.02  # relative difference up to which two numbers of steps are the same
HEADER_WIDTH = 118  # of a line in a preset's header

BEGINNING = """\
# Results

This page shows what the presets reach, trained on two cores of a CPU, beside what others have published.
`python benchmarks/scores.py` trains the rows of `benchmarks/rows.toml`.
`python benchmarks/sheet.py` writes this page and the expected scores in the headers of the presets.
Each command links to its record in `benchmarks/results/`, with the versions, the date and every seed.

## How to read it

- **Greedy return**: the mean over seeds of the return of whole greedy episodes, 64 per seed unless otherwise recorded.
  The weights are the last ones, not the best ones.
  The suite's own score follows, if there is one.
- **ε = 0.05**: the same with a random action in 5 % of the steps.
  It tells a policy that is good from one that is good only where its own actions lead.
- **Exploring**: the mean return of training episodes in the last tenth of training, with the ε of training.
- **Intervals** in brackets are percentile bootstraps over ten seeds or more, of nominally 95 %.
  With five seeds such an interval covers the true mean in about 85 % of cases only, so that up to six are listed.
- **Steps** are those of one seed.
- **Seconds** are those of training all seeds in one program, without compilation, which takes about ten seconds.
  **Steps/s** are those of all seeds together.
  † Other programs used the machine, or it is not known whether they did, so that no speed is shown.
  Speeds are measured in [Performance](performance.md).
- **Ahead** and **behind** need the same kind of return, as many steps, and nothing else that is known to differ.
  Besides, the 95 % interval of the mean of our seeds (Student's t) has to exclude the published return.
  If it includes it, the two are **equal**.
  All others are **not comparable**, and the table says why.
  The algorithm may be any.
"""

NOTES = """\
## Notes

- The best published greedy returns of MinAtar are of PQN with distributional heads.
  That they are greedy is inferred from the configuration beside the curves.
- The preset `mountaincar` has settings of our own: CleanRL's are those of CartPole, with which qlax stays at -200 too.
- Overcooked pays 20 for a delivery.
  No return of a single layout is published, so the best known one is that of the best seed of any run here.
  For counter_circuit that was one of 5,000,000 steps, with epsilon that falls over a tenth of the run.
- Nothing of Atari has been run on a GPU yet.
- Scores of sweeps, populations, devices and processes are in [Scaling](scaling.md#measured).
  Those of memories are in [Memories](memories.md).
"""

TITLES = {"greedy": "greedy", "epsilon": "ε = 0.05", "exploring": "exploring", "won": "win rate"}
KEYS = {"greedy": "eval_return", "epsilon": "epsilon_return", "exploring": "train_return", "won": "eval_won"}


def main() -> None:
    """Write the page, the README's table, the headers of the presets, and the figures."""
    sheet = rows()
    PAGE.write_text(page(sheet.values()))
    README.write_text(with_table(README.read_text(), [sheet[name] for name in IN_README]))
    for preset in presets.names():
        path = preset_file(preset)
        path.write_text(with_header(path.read_text(), header(preset, sheet.values())))
    with tempfile.TemporaryDirectory() as folder:
        for name, draw in claims.FIGURES.items():
            draw(FIGURES / f"{name}.png", Path(folder))


def page(sheet: Iterable[Row]) -> str:
    """Return the text of docs/results.md."""
    sheet, parts = list(sheet), [BEGINNING]
    machines: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for suite in dict.fromkeys(row.suite for row in sheet):
        found = [(row, record) for row in sheet if row.suite == suite and (record := row.record())]
        if not found:
            continue
        header = ["`qlax train ...`", "greedy return", "of each seed", "ε = 0.05", "exploring", "steps", "seconds"]
        parts.append(f"## {suite}\n\n" + _table([*header, "steps/s"], [_cells(*each) for each in found]))
        published = [_compared(row, record, other) for row, record in found for other in row.published]
        if published:
            header = ["row", "return", "here", "published", "steps there", "by", "verdict"]
            parts.append(_table(header, published))
        if suite in claims.SHOWN:
            parts.append(claims.SHOWN[suite])
        if notes := [f"- `{row.name}`: {row.note}" for row, _ in found if row.note]:
            parts.append("\n".join(notes) + "\n")
        for row, record in found:
            machines.setdefault((record["machine"], record["versions"]["jax"]), []).append((row.name, record["date"]))
    missing = dict.fromkeys(_pattern(row) for row in sheet if not row.record())
    if missing:
        header = ["tier", "row", "command", "hours on two cores"]
        parts.append("## Not run yet\n\n" + _table(header, [[*cells] for cells in missing]))
    parts += [NOTES, _where(machines)]
    return "\n".join(parts)


def _pattern(row: Row) -> tuple[str, ...]:
    """Return the cells of a row that has not been run, which are the same for all rows that differ by a name only."""
    cells = (str(row.tier), f"`{row.name}`", f"`{row.command}`", f"{row.hours:g}")
    return tuple(cell.replace(row.each, "<name>") for cell in cells) if row.each else cells


def with_table(text: str, sheet: Iterable[Row]) -> str:
    """Return the text of the README with the table of these rows between its two marks."""
    begin, end = "<!-- results -->\n\n", "\n<!-- end of results -->"
    lines = []
    for row in sheet:
        if record := row.record():
            found = returns(record, "greedy")
            mean = f"{statistics.fmean(found):.4g} ({min(found):.4g} to {max(found):.4g})"
            if (score := record.get("eval_score", {}).get("mean")) is not None:
                mean += f", {score:.3g} % of the maximum"
            published = [_published(record, x) for x in row.published[:1]]
            lines.append([f"`{row.command}`", f"{record['total_steps']:,}", mean, *(published or ["none found"])])
    table = _table(["command", "steps per seed", "greedy return", "published, and what differs"], lines)
    return text[: text.index(begin) + len(begin)] + table + text[text.index(end) :]


def _published(record: dict, other: Published) -> str:
    """Return a published return in words, beside ours of the same kind unless that is in the table already."""
    differs = f", {other.differs}" if other.differs else ""
    here = "" if other.kind == "greedy" else f"; {_mean(returns(record, other.kind))} {TITLES[other.kind]} here"
    return f"{_there(other)} {TITLES[other.kind]} after {other.steps:,} steps: {other.what}{differs}{here}"


def preset_file(preset: str) -> Path:
    """Return the file of a preset, or of a preset for every environment of a kind."""
    return presets.FOLDER / f"{preset.replace(presets.ANY, presets.EACH)}.toml"


def _table(header: list[str], lines: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *lines)) + "\n"


def _cells(row: Row, record: dict) -> list[str]:
    found = returns(record, "greedy")
    mean = f"**{statistics.fmean(found):.4g}**"
    if len(found) > MOST_SEEDS:
        low, high = stratified_interval(lambda samples: samples[0].mean(-1), [np.array(found)])
        mean += f" ({low:.4g} to {high:.4g})"
    if row.best is not None:
        mean += f", {100 * statistics.fmean(found) / row.best:.0f} % of the best known"
    if (score := record.get("eval_score", {}).get("mean")) is not None:
        mean += f", score {score:.3g}"
    if won := returns(record, "won"):
        mean += f", {100 * statistics.fmean(won):.1f} % won"
    mean += _repetition(record)
    seeds = ", ".join(f"{x:.4g}" for x in found)
    if len(found) > MOST_SEEDS:
        seeds = f"{len(found)} seeds, {min(found):.4g} to {max(found):.4g}"
    is_alone = alone(record)
    return [
        f"[`{row.command.removeprefix('qlax train ')}`](../benchmarks/results/{row.name}.json)",
        mean,
        seeds,
        _mean(returns(record, "epsilon")),
        _mean(returns(record, "exploring")),
        f"{record['total_steps']:,}",
        f"{record['train_seconds']:,.0f}" + ("" if is_alone else "†"),
        f"{record['steps_per_second']:,.0f}" if is_alone else "-",
    ]


def returns(record: dict, kind: str) -> list[float]:
    """Return the returns of the seeds, of one kind of `rows.toml`; none if they were not measured."""
    return [x for x in record.get(KEYS[kind], {"per_run": []})["per_run"] if x is not None]


def alone(record: dict) -> bool:
    """Return True if other programs are known to have left the machine to a run."""
    others = record.get("cores_used_by_others")  # older records do not have it
    return others is not None and others <= MOST_OTHERS


def _mean(found: list[float]) -> str:
    return f"{statistics.fmean(found):.4g}" if found else "-"


def _compared(row: Row, record: dict, other: Published) -> list[str]:
    ours = returns(record, other.kind)
    return [
        *(f"`{row.name}`", TITLES[other.kind], _mean(ours), _there(other), f"{other.steps:,}"),
        *(f"{other.what} ({other.source})", verdict(ours, record["total_steps"], other)),
    ]


def _there(other: Published) -> str:
    return f"{other.low:g}" if other.low == other.high else f"{other.low:g} to {other.high:g}"


def verdict(ours: list[float], steps: int, other: Published) -> str:
    """Compare the returns of our seeds with a published one, by the rule that the page states."""
    reasons = [other.differs] if other.differs else []
    if abs(other.steps / steps - 1) > SAME_STEPS:
        reasons.append("more steps there" if other.steps > steps else "fewer steps there")
    if len(ours) < 2:
        reasons.append("not measured here" if not ours else "a single seed here")
    if reasons:
        return f"not comparable: {', '.join(reasons)}"
    mean, error = statistics.fmean(ours), statistics.stdev(ours) / len(ours) ** 0.5
    reach = float(stats.t.ppf(0.975, len(ours) - 1)) * error
    if mean - reach > other.high:
        return "**ahead**"
    return "**behind**" if mean + reach < other.low else "equal"


def header(preset: str, sheet: Iterable[Row]) -> list[str]:
    """Return the lines of a preset's header that say what to expect and on which hardware; none without a record."""
    start, each, _ = preset.partition(presets.ANY)
    expected, seconds, hardware = [], [], []
    for row in sheet:
        target, *flags = row.command.removeprefix("qlax train ").split()
        names = {flag for flag in flags if flag.startswith("--")}
        is_of = target.startswith(start) if each else target == preset
        record = row.record()
        if not is_of or not names <= {"--seeds", "--total-steps", "--minutes"} or record is None:
            continue
        variant = f"{target.removeprefix(start)}: " if each else ""
        sentence = _expectation(record, row)
        expected.append(variant + sentence if variant or not expected else sentence[0].upper() + sentence[1:])
        seeds = len(record["seeds"])
        beside = "" if alone(record) else " while other programs may have run"
        seconds.append(f"{variant}{_duration(record['train_seconds'])} for {seeds} seed{'s' * (seeds > 1)}{beside}")
        hardware.append(record["machine"].split(",")[0])
    if not expected:
        return []
    machines = " or ".join(dict.fromkeys(hardware))
    lines = [f"Expect: {' '.join(expected)}", f"Hardware: 2 CPU cores ({machines}), {'; '.join(seconds)}."]
    return [line for each in lines for line in textwrap.wrap(each, HEADER_WIDTH, subsequent_indent="  ")]


def _expectation(record: dict, row: Row) -> str:
    found = returns(record, "greedy")
    seeds = ", ".join(f"{x:.4g}" for x in found)
    if len(found) > MOST_SEEDS:
        seeds = f"{len(found)} seeds, {min(found):.4g} to {max(found):.4g}"
    elif len(found) > 1:
        seeds = f"seeds {seeds}"
    else:
        seeds = "one seed"
    text = f"greedy return {statistics.fmean(found):.4g} ({seeds})"
    if found := returns(record, "epsilon"):
        text += f", {statistics.fmean(found):.4g} with epsilon 0.05"
    if (score := record.get("eval_score", {}).get("mean")) is not None:
        text += f", score {score:.3g} %"
    if won := returns(record, "won"):
        text += f", {100 * statistics.fmean(won):.1f} % won"
    steps = record["total_steps"]
    text += f", after {steps:,} steps"
    if flags := re.findall(r"--(?:total-steps|minutes) [0-9]+", row.command):
        text += f" ({' '.join(flags)})"
    return f"{text}{_repetition(record)}. {row.note}".strip()


def _repetition(record: dict) -> str:
    few = [int(x) for x in record.get("eval_distinct", []) if 2 * x < record["eval_episodes"]]
    if not few:
        return ""
    numbers = " to ".join(dict.fromkeys(map(str, (min(few), max(few)))))
    return f"; {numbers} of {record['eval_episodes']} episodes distinct"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 100 else f"{seconds / 60:.0f} minutes"


def with_header(text: str, lines: list[str]) -> str:
    """Return the text of a preset with these lines in place of those that say what to expect and on which hardware."""
    if not lines:
        return text
    kept, is_replaced = [], False
    for line in text.splitlines():
        if re.match(r"# (Expect|Hardware):", line):
            is_replaced = True
        elif not line.startswith("#   "):
            is_replaced = False
        if not is_replaced:
            kept.append(line)
    end = next(index for index, line in enumerate(kept) if not line.startswith("#"))
    return "\n".join([*kept[:end], *(f"# {line}" for line in lines), *kept[end:]]) + "\n"


def _where(machines: dict[tuple[str, str], list[tuple[str, str]]]) -> str:
    lines = ["## Machines and dates", ""]
    for (machine, jax), runs in machines.items():
        days = sorted({date for _, date in runs})
        when = " to ".join(dict.fromkeys((days[0], days[-1])))
        lines.append(f"- {machine}, JAX {jax}, {when}: {', '.join(name for name, _ in runs)}.")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
