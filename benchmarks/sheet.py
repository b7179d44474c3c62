"""Write docs/results.md and the README's figure from the result files: `python benchmarks/sheet.py`."""

import dataclasses
import json
import statistics
import tempfile
from pathlib import Path

import numpy as np
from records import RESULTS

import qlax
from qlax.config.configure import configure
from qlax.util.statistics import stratified_interval

PAGE = Path(__file__).parent.parent / "docs" / "results.md"
FIGURE = PAGE.parent / "figures" / "minatar.png"
DRAWN = ("breakout", "asterix", "space-invaders")  # records in the figure
CLEANRL = "exploring, 10 million steps, 3 seeds ([CleanRL](https://docs.cleanrl.dev/rl-algorithms/pqn/))"
OURS = "our own settings"
FORK = (
    "[curves](https://github.com/ThomasMousseau/purejaxql) of Phi-TD, 5 seeds, 10 million steps, a distributional head"
)
PAPER = "[paper](https://arxiv.org/abs/2407.04811), read off a figure"
MOST_LOAD = 4  # load average, on two cores, above which seconds mean little
DEMO = "[the authors' notebook](https://github.com/mttga/purejaxql), 3 seeds, 10 million steps"
NONE = "none found"

# Heading: {file of benchmarks/results/: published return of the same task}.
SHEET = {
    "Classic control": {
        "cartpole": f"495.1 ± 6.9, {CLEANRL}",
        "cartpole-fast": OURS,
        "cartpole-fast-bfloat16": OURS,
        "acrobot": f"-95.6 ± 5.7, {CLEANRL}",
        "mountaincar": f"{OURS}; -200 ± 0, {CLEANRL}",
        "lunarlander": f"{OURS}; solved at 200",
    },
    "MinAtar": {
        "breakout": f"111.5, greedy ({FORK})",
        "breakout-short": f"the same after 10 million steps: 111.5, greedy ({FORK})",
        "asterix": f"72 to 75, greedy ({FORK}); 70 to 72 ({DEMO})",
        "space-invaders": f"156, greedy ({FORK})",
        "freeway": f"64.7, greedy ({FORK})",
        "seaquest": NONE,
    },
    "Memory": {
        "memory-chain": "none found; 1 is the maximum",
        "memory-chain-falling-rate": OURS,
        "memory-chain-without-memory": "chance is 0",
    },
    "Open worlds": {
        "craftax-classic": OURS,
        "craftax-rnn": f"16.0 % of the maximum after 1,000 million steps ({PAPER.split(',')[0]})",
    },
    "Teams": {
        "overcooked-cramped-room": f"0.96 of the maximum, all layouts, 5 million steps ({PAPER})",
        "smax-3m": f"win rate 0.95, all maps, 10 million steps ({PAPER})",
        "smax-2s3z": f"win rate 0.95, all maps, 10 million steps ({PAPER})",
        "hanabi": NONE,
        "mpe-spread": NONE,
    },
    "Boards, puzzles and grids": {
        "connect-four": OURS,
        "connect-four-self": OURS,
        "snake": OURS,
        "navix-doorkey": OURS,
        "xminigrid-doorkey": OURS,
    },
}
HEADER = ["`qlax train ...`", "greedy return", "of each seed", "ε = 0.05", "exploring", "steps", "seconds", "published"]
MOST_SEEDS = 6  # listed one by one; of more seeds, the table shows only the worst and the best

BEGINNING = """\
# Results

This page compares the returns of the presets, trained on two cores of a CPU, with published ones.
`python benchmarks/scores.py` trains the presets, and `python benchmarks/sheet.py` writes this page.
Each command links to its record in `benchmarks/results/`, with the versions, the date and every seed.

- **Greedy return**: the mean over seeds of the return of whole greedy episodes, 64 per seed unless otherwise recorded.
  The weights are the last ones, not the best ones.
  The interval in brackets is a percentile bootstrap over ten seeds or more, of nominally 95 %.
  With five seeds such an interval covers the true mean in about 85 % of cases only, so that up to six are listed.
  The suite's own score follows, if there is one.
- **ε = 0.05**: the same with a random action in 5 % of the steps, where it was measured.
  It tells a policy that is good from one that is good only where its own actions lead.
- **Exploring**: the mean return of training episodes in the last tenth of training, with the ε of training.
- **Distinct**: if most greedy episodes of a seed repeat others, as in games without chance, the row says how many
  differ.
- **Steps** are those of one seed.
- **Seconds** are those of training all seeds in one program.
  They leave out compilation, which takes about ten seconds the first time.
  † Other programs used the machine, as the record says; older records do not say.
  Speeds are measured in [Performance](performance.md).
- **Published** numbers are of the same task, but not always of the same number of steps and protocol; see the source.
"""

NOTES = """\
## Notes

- CleanRL's numbers are returns of exploring episodes after 10 million steps.
  Compare them with "exploring", not with "greedy".
- The settings of MountainCar are our own; CleanRL's are those of CartPole, with which qlax stays at -200 too
  ([`mountaincar-like-cartpole.json`](../benchmarks/results/mountaincar-like-cartpole.json)).
- The seconds of Asterix and Breakout were taken while other programs ran, those of Breakout with a pause.
- One of the six seeds of Breakout stays far below the others, as one of five did before.
- The best published greedy returns of MinAtar are of PQN with distributional heads.
  That they are greedy is inferred from the configuration beside the curves.
- The chain of `memory-chain` has 100 steps; with `--memory none` it stays at chance, as it must.
  The seconds of `memory-chain` were taken while many other programs ran.
- Overcooked pays 20 for a delivery.
- SMAX 3m is won in 92 and 95 % of 64 games.
  It is the easiest map; the published figure is over all maps, so that the two cannot be compared.
- Hanabi's maximum is 25, and its returns are over 1,000 games.
- The score of Craftax-Classic is in percent of its maximum.
- LunarLander's evaluations have 16 episodes.
- Atari takes long on the same two cores: `qlax train atari-fast/Pong` takes 37 minutes for a million steps.
  That is 456 steps per second beside other programs.
  The only seed rose above -21 after about 600,000 steps.
  Games that ended in the last 50,000 steps return 3.4 on average while exploring.
  Greedy games, some of them cut at 5,000 steps, return -13 ([`pong.json`](../benchmarks/results/pong.json)).
- Nothing of Atari has been run on a GPU yet.
- Scores of sweeps, populations, devices and processes are in [Scaling](scaling.md#measured).
  Those of memories are in [Memories](memories.md).
"""


def main() -> None:
    """Write the page and the figure from the result files."""
    parts, machines = [BEGINNING], {}
    for heading, rows in SHEET.items():
        found = {name: json.loads(path.read_text()) for name in rows if (path := RESULTS / f"{name}.json").exists()}
        lines = [_row(name, record, rows[name]) for name, record in found.items()]
        table = ["| " + " | ".join(cells) + " |" for cells in (HEADER, ["---"] * len(HEADER), *lines)]
        parts.append("\n".join([f"## {heading}", "", *table]) + "\n")
        for name, record in found.items():
            machines.setdefault((record["machine"], record["versions"]["jax"]), []).append((name, record["date"]))
    parts += [NOTES, _where(machines)]
    PAGE.write_text("\n".join(parts))
    FIGURE.unlink(missing_ok=True)  # no command overwrites a file
    with tempfile.TemporaryDirectory() as folder:
        qlax.plot([_as_run(name, Path(folder)) for name in DRAWN], FIGURE)


def _as_run(name: str, folder: Path) -> Path:
    """Write the evaluations of a record as a run directory, which `qlax.plot` draws."""
    record, run = json.loads((RESULTS / f"{name}.json").read_text()), folder / name
    run.mkdir()
    config = configure(record["preset"], seeds=len(record["seeds"]))
    (run / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    lines = [
        {"updates": steps // config.steps_per_update, "steps": steps, "seconds": seconds, "eval_return": returns}
        for steps, seconds, returns in zip(*record["evaluations"].values(), strict=True)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def _row(name: str, record: dict, published: str) -> list[str]:
    returns = [x for x in record["eval_return"]["per_run"] if x is not None]
    mean = f"**{statistics.fmean(returns):.4g}**"
    if len(returns) > MOST_SEEDS:
        low, high = stratified_interval(lambda samples: samples[0].mean(-1), [np.array(returns)])
        mean += f" ({low:.4g} to {high:.4g})"
    if (score := record.get("eval_score", {}).get("mean")) is not None:
        mean += f", score {score:.3g}"
    if few := [int(x) for x in record.get("eval_distinct", []) if 2 * x < record["eval_episodes"]]:
        numbers = " to ".join(dict.fromkeys(map(str, (min(few), max(few)))))
        mean += f"; {numbers} of {record['eval_episodes']} episodes distinct"
    seeds = ", ".join(f"{x:.4g}" for x in returns)
    if len(returns) > MOST_SEEDS:
        seeds = f"{len(returns)} seeds, {min(returns):.4g} to {max(returns):.4g}"
    command = record["command"].removeprefix("qlax train ")
    return [
        f"[`{command}`](../benchmarks/results/{name}.json)",
        mean,
        seeds,
        _mean(record.get("epsilon_return")),
        _mean(record.get("train_return")),
        f"{record['total_steps']:,}",
        f"{record['train_seconds']:,.0f}" + ("†" if record.get("load_average", 0) > MOST_LOAD else ""),
        published,
    ]


def _mean(found: dict | None) -> str:
    known = [x for x in (found or {"per_run": []})["per_run"] if x is not None]
    return f"{statistics.fmean(known):.4g}" if known else "-"


def _where(machines: dict[tuple[str, str], list[tuple[str, str]]]) -> str:
    lines = ["## Machines and dates", ""]
    for (machine, jax), runs in machines.items():
        days = sorted({date for _, date in runs})
        when = " to ".join(dict.fromkeys((days[0], days[-1])))
        lines.append(f"- {machine}, JAX {jax}, {when}: {', '.join(name for name, _ in runs)}.")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
