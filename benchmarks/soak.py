"""Measure whether memory and speed stay constant for an hour of many lines, evaluations and checkpoints.

`python benchmarks/soak.py [--minutes 62]` writes benchmarks/results/soak.json and soak.png.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

RESULTS = Path(__file__).parent / "results"
SAMPLE_SECONDS = 15
SETTINGS = ["--total-steps", "5e10", "--seeds", "2", "--log-interval", "64", "--eval-interval", "1280"]
COMMAND = ["train", "cartpole-fast", *SETTINGS, "--checkpoint-interval", "640", "--learning-rate-end", "1"]


def main() -> None:
    """Train and take samples, stop the training by SIGTERM, as a preempted machine would, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=62, help="duration of training (default 62)")
    minutes = parser.parse_args().minutes
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        process = subprocess.Popen([sys.executable, "-m", "qlax", *COMMAND, "--out", str(run)])
        begun, samples = time.monotonic(), []
        while time.monotonic() - begun < 60 * minutes and process.poll() is None:
            time.sleep(SAMPLE_SECONDS)
            if (run / "metrics.jsonl").exists() and (line := last_line(run / "metrics.jsonl")):
                seconds, memory = used(process.pid)
                samples.append([round(time.monotonic() - begun, 1), line["steps"], round(seconds, 2), memory])
        process.send_signal(signal.SIGTERM)
        asked = time.monotonic()
        code = process.wait()
        write(samples, {"exit_code": code, "seconds_until_stopped": round(time.monotonic() - asked, 2), **counted(run)})


def last_line(path: Path) -> dict | None:
    """Return the newest complete line of metrics."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        lines = [line for line in file.read().split(b"\n")[:-1] if line.startswith(b"{")]
    return json.loads(lines[-1]) if lines else None


def used(pid: int) -> tuple[float, float]:
    """Return the processor seconds of a process so far, and its resident memory in MiB."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    seconds = sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")
    return seconds, round(int(fields[21]) * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


def counted(run: Path) -> dict:
    """Return the numbers of lines, evaluations, checkpoints and steps that a run has written."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        "lines": len(lines),
        "evaluations": sum(line["eval_return"][0] is not None for line in lines),
        "checkpoints": lines[-1]["updates"] // 640,
        "steps_a_seed": lines[-1]["steps"],
    }


def write(samples: list, counts: dict) -> None:
    """Write the record and its figure."""
    time_, steps, seconds, memory = np.array(samples).T
    third, minutes = len(time_) // 3, 4  # speed over 4 minutes, as no line may be written between two samples
    apart = 60 * minutes // SAMPLE_SECONDS
    # Processor seconds, because other programs affect them less than wall-clock time.
    cost = (seconds[apart:] - seconds[:-apart]) / (steps[apart:] - steps[:-apart]) * 1e6
    result = {
        "command": "python benchmarks/soak.py",
        "date": datetime.now(UTC).date().isoformat(),
        "trained": "qlax " + " ".join(COMMAND),
        "versions": {name: metadata.version(name) for name in ("qlax", "jax", "jaxlib")},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "minutes": round((time_[-1] - time_[0]) / 60, 1),
        **counts,
        "memory_mib": {"first_third": round(memory[:third].mean(), 1), "last_third": round(memory[-third:].mean(), 1)},
        "processor_seconds_per_million_steps": {
            "first_third": round(cost[:third].mean(), 3),
            "last_third": round(cost[-third:].mean(), 3),
        },
        "columns": ["seconds", "steps_a_seed", "processor_seconds", "memory_mib"],
        "samples": samples,
    }
    (RESULTS / "soak.json").write_text(json.dumps(result) + "\n")
    figure = Figure(figsize=(7, 4), layout="constrained")
    above, below = figure.subplots(2, sharex=True)
    above.plot(time_ / 60, memory)
    above.set(ylabel="memory, MiB", ylim=(0, 1.2 * memory.max()))
    below.plot(time_[apart:] / 60, cost)
    below.set(ylabel="processor seconds\nper million steps", xlabel="minutes", ylim=(0, None))
    figure.savefig(RESULTS / "soak.png", dpi=120)


if __name__ == "__main__":
    main()
