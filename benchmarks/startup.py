"""Measure how long each part of a short training takes: `python benchmarks/startup.py`.

The command `qlax train cartpole-fast --seeds 4` runs in processes of its own, first with an empty compilation cache and
then with the filled one, some times each. The record holds the seconds of every part, as medians over the repetitions.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from records import RESULTS, circumstances

PARTS = (  # in the order of a run
    "start of Python and imports",
    "plan",
    "tracing and lowering",
    "compiling or loading, beyond tracing",
    "memory check and directory",
    "initial state",
    "training",
    "evaluation",
    "weights and summary",
    "learning curve",
    "report",
    "exit",
)


def main() -> None:
    """Measure cold and cached starts, print the table and write the record."""
    if sys.argv[1:2] == ["--child"]:
        return child(sys.argv[2:])
    parser = argparse.ArgumentParser(description="Account for every second of a short training.")
    parser.add_argument("command", nargs="*", default=["cartpole-fast", "--seeds", "4"], help="what to train")
    parser.add_argument("--repeats", type=int, default=3, help="number of cold and of cached runs (default 3)")
    parser.add_argument("--out", type=Path, default=RESULTS / "startup.json", help="record to write")
    options, more = parser.parse_known_args()
    words = [*options.command, *more]
    found: dict[str, list[dict[str, float]]] = {"cold": [], "cached": []}
    with tempfile.TemporaryDirectory() as folder:
        measured(words, Path(folder), "cold")  # Python's bytecode is kept, and files are in the cache
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory() as folder:
            for kind in found:
                found[kind].append(measured(words, Path(folder), kind))
                print(kind, f"{sum(found[kind][-1].values()):.1f} s", flush=True)
    seconds = {
        kind: {part: statistics.median(run[part] for run in runs) for part in PARTS} for kind, runs in found.items()
    }
    totals = {kind: statistics.median(sum(run.values()) for run in runs) for kind, runs in found.items()}
    command = f"python benchmarks/startup.py {' '.join(sys.argv[1:])}".strip()
    record = circumstances(command) | {"trained": f"qlax train {' '.join(words)}", "load_average": os.getloadavg()[0]}
    options.out.write_text(json.dumps(record | {"seconds": seconds, "totals": totals}, indent=2) + "\n")
    print("| part | cold | cached |\n| --- | --- | --- |")
    for part in PARTS:
        print(f"| {part} | {seconds['cold'][part]:.1f} | {seconds['cached'][part]:.1f} |")
    print(f"| all | {totals['cold']:.1f} | {totals['cached']:.1f} |")


def measured(words: list[str], folder: Path, kind: str) -> dict[str, float]:
    """Run the command in a process of its own, and return the seconds of its parts."""
    times, begun = folder / f"{kind}.json", time.monotonic()
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(folder / "cache"), "STARTUP_BEGUN": str(begun)}
    environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2", "PYTHONDONTWRITEBYTECODE": ""}
    child_words = [sys.executable, __file__, "--child", str(times), "train", *words, "--out", str(folder / kind)]
    subprocess.run(child_words, check=True, env=environment, stdout=subprocess.DEVNULL)
    ended = time.monotonic()
    found = json.loads(times.read_text())
    return found["seconds"] | {"exit": ended - found["ended"]}


def child(words: list[str]) -> None:
    """Run the command with timers around its parts, and write the seconds to the first word."""
    begun = float(os.environ["STARTUP_BEGUN"])
    spent = dict.fromkeys(PARTS, 0.0)

    from qlax import training
    from qlax.cli import main as cli
    from qlax.cli import train as command
    from qlax.training import device_runs, loop, memory, result

    spent["start of Python and imports"] = time.monotonic() - begun

    def timed(owner: object, name: str, part: str, without: tuple[str, ...] = ()) -> None:
        function = getattr(owner, name)

        def wrapper(*arguments: object, **options: object) -> object:
            before, inside = time.monotonic(), sum(spent[other] for other in without)
            try:
                return function(*arguments, **options)
            finally:
                spent[part] += time.monotonic() - before - (sum(spent[other] for other in without) - inside)

        setattr(owner, name, wrapper)

    lowered = device_runs.DeviceRuns._lowered

    def timed_lowering(self: device_runs.DeviceRuns) -> object:
        programs = lowered(self)
        while True:
            before = time.monotonic()
            try:
                program = next(programs)
            except StopIteration:
                return
            finally:
                spent["tracing and lowering"] += time.monotonic() - before
            yield program

    device_runs.DeviceRuns._lowered = timed_lowering  # type: ignore[method-assign]
    timed(training, "_plan", "plan")
    timed(device_runs.DeviceRuns, "compile", "compiling or loading, beyond tracing", ("tracing and lowering",))
    timed(memory, "fit", "memory check and directory")
    timed(device_runs.DeviceRuns, "begin", "initial state")
    timed(result, "_draw", "learning curve")
    timed(training, "finish", "weights and summary", ("learning curve",))
    timed(command, "report", "report", (*PARTS[1:-2],))
    train = loop.Loop.train

    def timed_training(self: loop.Loop, *arguments: object) -> object:
        before = time.monotonic()
        try:
            return train(self, *arguments)  # type: ignore[arg-type]
        finally:
            whole = time.monotonic() - before
            spent["evaluation"] += self.clock.spent["eval_seconds"]
            spent["training"] += whole - self.clock.spent["eval_seconds"]

    loop.Loop.train = timed_training  # type: ignore[method-assign]
    main = cli.main

    def timed_main() -> int:
        try:
            return main(words[1:])
        finally:
            ended = time.monotonic()
            spent["report"] = 0.0
            rest = ended - begun - sum(spent.values())
            spent["report"] = rest  # the time that belongs to no other part
            Path(words[0]).write_text(json.dumps({"seconds": spent, "ended": ended}))

    cli.main = timed_main  # type: ignore[assignment]
    cli.entry()


if __name__ == "__main__":
    main()
