"""Write docs/results.md from the result files: `python benchmarks/sheet.py`."""

import json
import statistics
from pathlib import Path

import numpy as np
from records import RESULTS

from qlax.util.statistics import stratified_interval

PAGE = Path(__file__).parent.parent / "docs" / "results.md"
CLEANRL = "[CleanRL](https://docs.cleanrl.dev/rl-algorithms/pqn/), 3 seeds"
PAPER = "[paper](https://arxiv.org/abs/2407.04811), read off a figure"
MOST_LOAD = 4  # processes that want one of the two cores, more than which make seconds meaningless
DEMO = "[the authors' notebook](https://github.com/mttga/purejaxql), 3 seeds, 10 million steps"
NONE = "none found"

# heading: (file of benchmarks/results/, what is published of the same task)
SHEET = {
    "Classic control": {
        "cartpole": f"495.1 ± 6.9 ({CLEANRL})",
        "cartpole-fast": "our own settings",
        "cartpole-fast-bfloat16": "our own settings",
        "acrobot": f"-95.6 ± 5.7 ({CLEANRL})",
        "mountaincar": f"-200 ± 0 ({CLEANRL})",
        "lunarlander": "our own settings; solved at 200",
    },
    "MinAtar": {
        "breakout": NONE,
        "breakout-short": NONE,
        "asterix": f"70 to 72 ({DEMO})",
        "space-invaders": NONE,
        "freeway": NONE,
        "seaquest": NONE,
    },
    "Memory": {
        "memory-chain": "none found; 1 is the maximum",
        "memory-chain-without-memory": "chance is 0",
    },
    "Open worlds": {
        "craftax-classic": "our own settings",
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
        "connect-four": "our own settings",
        "connect-four-self": "our own settings",
        "snake": "our own settings",
        "navix-doorkey": "our own settings",
        "xminigrid-doorkey": "our own settings",
    },
}
HEADER = ["`qlax train ...`", "greedy return", "worst to best seed", "seeds", "steps", "seconds", "published"]

BEGINNING = """\
# Results

This page compares the returns of the presets, trained on two cores of a CPU, with published ones.
`python benchmarks/scores.py` trains the presets, and `python benchmarks/sheet.py` writes this page.
Each command links to its record in `benchmarks/results/`, with the versions, the date and every seed.

- **Greedy return**: the mean over seeds of the return of whole greedy episodes, 64 per seed unless otherwise recorded.
  The weights are the last ones, not the best ones.
  The 95 % interval in brackets is from a bootstrap over the seeds.
  With fewer than five seeds it says little, and is left out.
  The suite's own score follows, if there is one.
- **Steps** are those of one seed.
- **Seconds** are those of training all seeds in one program.
  They leave out compilation, which takes about ten seconds the first time.
  † Other programs used the machine, as the record says; older records do not say.
  Speeds are measured in [Performance](performance.md).
- **Published** numbers are of the same task, but not always of the same number of steps and protocol; see the source.
"""

NOTES = """\
## Notes

- Runs of a million steps on MinAtar are a tenth of the paper's.
  Asterix is learned late: after a million steps, seeds differ by a factor of two and more.
- With `--memory none` MemoryChain stays at chance, as it must.
- Overcooked pays 20 for a delivery.
- SMAX 3m is won in 92 and 95 % of 64 games.
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
    """Write the page."""
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


def _row(name: str, record: dict, published: str) -> list[str]:
    returns = [x for x in record["eval_return"]["per_run"] if x is not None]
    mean = f"**{statistics.fmean(returns):.4g}**"
    if len(returns) >= 5:
        low, high = stratified_interval(lambda samples: samples[0].mean(-1), [np.array(returns)])
        mean += f" ({low:.4g} to {high:.4g})"
    if (score := record.get("eval_score", {}).get("mean")) is not None:
        mean += f", score {score:.3g}"
    command = record["command"].removeprefix("qlax train ")
    return [
        f"[`{command}`](../benchmarks/results/{name}.json)",
        mean,
        f"{min(returns):.4g} to {max(returns):.4g}",
        str(len(record["seeds"])),
        f"{record['total_steps']:,}",
        f"{record['train_seconds']:,.0f}" + ("†" if record.get("load_average", 0) > MOST_LOAD else ""),
        published,
    ]


def _where(machines: dict[tuple[str, str], list[tuple[str, str]]]) -> str:
    lines = ["## Machines and dates", ""]
    for (machine, jax), runs in machines.items():
        days = sorted({date for _, date in runs})
        when = " to ".join(dict.fromkeys((days[0], days[-1])))
        lines.append(f"- {machine}, JAX {jax}, {when}: {', '.join(name for name, _ in runs)}.")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
