"""Train the rows of the score sheet and keep their results: `python benchmarks/scores.py [NAME...]`.

Without names, all rows of `rows.toml` that have no result yet are trained, tier 1 first, the shortest first. After an
interruption the same command continues. Rows of tier "gpu" are trained only if they are named.

Every result is one file in `benchmarks/results/`, with the command that repeats it, the machine, the date and the
evaluations during training; `python benchmarks/sheet.py` makes docs/results.md and the headers of the presets from
these files. The run directories, with the agents of all seeds, are kept in a folder of their own, named by `--state`.
It may lie outside the checkout, so that another checkout continues what this one began, and so that the agents can be
evaluated again later.
"""

import argparse
import fnmatch
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
from records import RESULTS, circumstances
from regression import check
from rows import Row, rows

import qlax
from qlax.util.files import free_name
from qlax.util.text import markdown

EPSILON = 0.05  # for the episodes that are evaluated besides the greedy ones
EVALUATED = ("steps", "seconds", "eval_return", "eval_won", "eval_score")  # kept of every evaluation in training
TIERS = (1, 2)  # trained without being named


class State:
    """What the state folder holds of one row.

    Attributes:
      run: Run directory.
      attempts: File with a line for every attempt to train: the command, the seconds, and how many cores other
        programs kept busy during it, on average.
      record: The row's record, which is copied to the results.
    """

    def __init__(self, row: Row, folder: Path) -> None:
        """Name the files of a row in the state folder."""
        self.row = row
        self.run = folder / row.name
        self.attempts = folder / f"{row.name}.attempts.jsonl"
        self.record = folder / f"{row.name}.json"

    def attempted(self) -> list[dict[str, Any]]:
        """Return the attempts to train this command."""
        lines = self.attempts.read_text().splitlines() if self.attempts.exists() else []
        return [attempt for attempt in map(json.loads, lines) if attempt["command"] == self.row.command]

    def progress(self) -> float | None:
        """Return the fraction of the steps that are trained, 1 if training is complete; None if it has not begun."""
        if not self.attempted() or not (self.run / "config.json").exists():
            return None
        if (self.run / "summary.json").exists():
            return 1.0
        lines = (self.run / "metrics.jsonl").read_text().splitlines() if (self.run / "metrics.jsonl").exists() else []
        total = json.loads((self.run / "config.json").read_text())["total_steps"]
        return json.loads(lines[-1])["steps"] / total if lines else 0.0


def main(arguments: list[str] | None = None) -> int:
    """Train rows, list them, or check that qlax still learns as it did; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="rows to train, even if they have a "
                        "result; with * for any part of a name, only those that have none")  # fmt: skip
    parser.add_argument("--state", type=Path, default=Path("runs/scores"), help="folder of the run directories")
    parser.add_argument("--jobs", type=int, default=1, help="rows that are trained at the same time (default: 1)")
    parser.add_argument("--list", action="store_true", help="print the state of every row, and train nothing")
    parser.add_argument("--check", action="store_true", help="train four presets briefly and compare their returns "
                        "with those recorded in results/regression.json")  # fmt: skip
    options = parser.parse_args(arguments)
    known = rows()
    if unknown := [name for name in options.names if not fnmatch.filter(known, name)]:
        parser.error(f"unknown rows: {', '.join(unknown)}; --list prints all")
    if options.check:
        return check()
    named = {name: pattern for pattern in options.names or "*" for name in fnmatch.filter(known, pattern)}
    states = [State(known[name], options.state) for name in named]
    if options.list:
        print(listed(states))
        return 0
    states = [state for state in states if "*" not in named[state.row.name] or state.row.record() is None]
    if not options.names:
        states = [state for state in states if state.row.tier in TIERS]
        states.sort(key=lambda state: (state.row.tier, state.row.hours))
    options.state.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(options.jobs) as pool:
        done = list(pool.map(train, states))
    return 0 if all(done) else 1


def train(state: State) -> bool:
    """Train a row from its last checkpoint, if there is one, and keep the result; return False if it failed."""
    row = state.row
    if state.run.exists() and (state.progress() is None or (state.progress() == 1.0 and state.record.exists())):
        state.run.rename(free_name(state.run.with_name(f"{row.name}-earlier")))  # of another command, or repeated
        state.attempts.unlink(missing_ok=True)
    if state.progress() != 1.0:
        is_begun = (state.run / "config.json").exists()
        words = ["resume", str(state.run)] if is_begun else [*row.command.split()[1:], "--out", str(state.run)]
        print(f"{row.name}: {row.command}", flush=True)
        if not _attempt(state, [sys.executable, "-m", "qlax", *words]):
            print(f"{row.name}: failed", flush=True)
            return False
    state.record.write_text(json.dumps(recorded(state), indent=2) + "\n")
    RESULTS.mkdir(exist_ok=True)
    shutil.copy(state.record, RESULTS)
    return True


def _attempt(state: State, command: list[str]) -> bool:
    """Run a command that trains, and write down how busy other programs kept the machine meanwhile."""
    began, busy = time.monotonic(), _busy_seconds()
    # Written before, so that the directory of a run that is killed belongs to its command.
    attempt = {"command": state.row.command, "seconds": None, "others": None}
    before = state.attempts.read_text() if state.attempts.exists() else ""
    state.attempts.write_text(before + json.dumps(attempt) + "\n")
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - began
    others = (_busy_seconds() - busy - usage.ru_utime - usage.ru_stime) / seconds
    attempt |= {"seconds": round(seconds, 1), "others": round(max(others, 0.0), 2)}
    state.attempts.write_text(before + json.dumps(attempt) + "\n")
    return status == 0


def _busy_seconds() -> float:
    """Return the processor seconds that all programs have used since the machine started."""
    times = psutil.cpu_times()
    return sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0)


def recorded(state: State) -> dict[str, Any]:
    """Return the record of a finished run, after evaluating its agents with some random actions too."""
    summary = json.loads((state.run / "summary.json").read_text())
    lines = list(map(json.loads, (state.run / "metrics.jsonl").read_text().splitlines()))
    lines = [line for line in lines if any(x is not None for x in line["eval_return"])]
    others = [attempt["others"] for attempt in state.attempted()]
    at_random = {}
    if not qlax.load(state.run).is_continuous:  # an actor takes no action at random
        played = qlax.evaluate(state.run, episodes=summary["eval_episodes"], epsilon=EPSILON)
        at_random = {"epsilon": EPSILON, "epsilon_return": {"per_run": [estimate.mean for estimate in played.each]}}
    return {
        **circumstances(state.row.command),
        "cores_used_by_others": None if None in others else max(others),
        **summary,
        "evaluations": {key: [line[key] for line in lines] for key in EVALUATED if key in lines[-1]},
        **at_random,
    }


def listed(states: list[State]) -> str:
    """Return a table of the rows: state, tier, the hours that are left on two cores, and whether agents are kept."""
    cells = []
    for state in states:
        row, progress, record = state.row, state.progress(), state.row.record()
        hours = (1 - (progress or 0.0)) * row.hours
        if record is not None:
            status, hours = f"recorded {record['date']}", 0.0
        elif progress is None:
            status = "not begun"
        else:
            status = "trained, not recorded" if progress == 1.0 else f"{progress:.0%} trained"
        kept = "kept" if progress == 1.0 else "-"
        cells.append([row.name, status, str(row.tier), f"{hours:.2f}", kept])
    return markdown(["row", "state", "tier", "hours left", "agents"], cells)


if __name__ == "__main__":
    sys.exit(main())
