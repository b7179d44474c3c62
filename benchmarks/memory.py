"""Compare the memory that `qlax.training.memory` expects with the peak of the process: `python benchmarks/memory.py`.

Each configuration runs in a process of its own for three updates, one of which is computed beside a snapshot and an
evaluation. The peak is the largest resident memory after compilation, less the resident memory before. Configurations
have many environments, because the memory of the libraries would hide that of small runs. The record is
`benchmarks/results/memory.json`, on a GPU `memory-gpu.json`, where the peak is that reported by the device.
"""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
from records import RESULTS, circumstances

from qlax.config.configure import configure
from qlax.training import plan
from qlax.training.device_runs import DeviceRuns
from qlax.training.placement import device, use_cores

SAMPLE_SECONDS = 0.002
LARGE = {"num_epochs": 1, "num_minibatches": 2}  # few large minibatches: much memory and little computation
CONFIGURATIONS = {
    "cartpole, 8,192 environments": ["cartpole", LARGE | {"num_envs": 8_192}],
    "minatar/breakout, 4,096 environments": ["minatar/breakout", LARGE | {"num_envs": 4_096}],
    "minatar/breakout, 2,048 environments, 2 agents": ["minatar/breakout", LARGE | {"num_envs": 2_048, "seeds": 2}],
    "memory-chain, 1,024 environments": ["memory-chain", LARGE | {"num_envs": 1_024}],
}


def main() -> None:
    """Measure every configuration, print a table and keep the record."""
    if len(sys.argv) > 1:
        print(json.dumps(measured(*CONFIGURATIONS[sys.argv[1]])))
        return
    print("| configuration | expected, MiB | peak, MiB | ratio |\n| --- | --- | --- | --- |")
    rows, command = {}, "python benchmarks/memory.py"
    platform = ""
    for name in CONFIGURATIONS:
        done = subprocess.run([sys.executable, __file__, name], check=True, capture_output=True, text=True)
        row = rows[name] = json.loads(done.stdout.splitlines()[-1])
        platform = row.pop("platform")
        print(f"| {name} | {row['expected']} | {row['peak']} | {row['ratio']} |", flush=True)
    path = RESULTS / ("memory.json" if platform == "cpu" else f"memory-{platform}.json")
    path.write_text(json.dumps(circumstances(command) | {"mebibytes": rows}, indent=2) + "\n")


def measured(target: str, settings: dict) -> dict:
    """Return the expected memory, the peak, and their ratio; memory is in MiB."""
    use_cores()
    the_plan = plan.make(configure(target, total_steps=10**9, **settings), {})
    runs = DeviceRuns(the_plan, ())
    runs.compile()
    expected, before = runs.needs().bytes, resident()
    peak, is_done = [before], threading.Event()

    def watch() -> None:
        while not is_done.is_set():
            peak[0] = max(peak[0], resident())
            time.sleep(SAMPLE_SECONDS)

    threading.Thread(target=watch, daemon=True).start()
    state, record = runs.begin(None), runs.record(the_plan.new_record())
    for number in range(3):
        if number == 2:
            snapshot, evaluation = runs.copy(state), runs.evaluate(state)
        state, record = runs.chunk(state, record, 1, number == 0)
        jax.block_until_ready((state, record))
    evaluation.wait()
    del snapshot
    is_done.set()
    stats = device().memory_stats() or {}
    taken = stats.get("peak_bytes_in_use", peak[0] - before)
    numbers = {"expected": round(expected / 2**20, 1), "peak": round(taken / 2**20, 1)}
    return numbers | {"ratio": round(expected / taken, 3), "platform": device().platform}


def resident() -> int:
    """Return the resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
