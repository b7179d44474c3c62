"""Kill training at random moments, resume it, and compare the result with an undisturbed run.

`python tests/faults.py --runs 10 --kills 5 --in-writes 10` writes benchmarks/results/faults.json.

Every run is killed several times before it may end. Some kills are SIGTERM, after which the process has to save a
checkpoint and end with exit code 0. Others strike while a file is written: before it is synchronised, after half of it,
or after it was renamed. A last run fills its disk, a small tmpfs, which only root may mount; it is skipped for other
users.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from records import RESULTS, circumstances
from runs import without_times

# Training with several settings takes several seconds, and saves several checkpoints per second.
SETTINGS = ["cartpole-fast", "--seeds", "2", "--lam", "0.5", "0.9", "--total-steps", "250000", "--norm", "batch"]
INTERVALS = ["--log-interval", "8", "--eval-interval", "80", "--checkpoint-interval", "16", "--eval-episodes", "8"]


def main():
    if sys.argv[1] == "--child":
        return child(sys.argv[2], int(sys.argv[3]), sys.argv[4:])
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--runs", type=int, default=10, help="number of runs that are killed at random moments (default 10)"
    )
    parser.add_argument("--kills", type=int, default=5, help="number of kills per run (default 5)")
    parser.add_argument(
        "--in-writes", type=int, default=10, help="number of runs that are killed while they write a file (default 10)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments (default 0)")
    parser.add_argument("--out", type=Path, default=RESULTS / "faults.json", help="record to write")
    options = parser.parse_args()
    chance, tally = random.Random(options.seed), []
    with tempfile.TemporaryDirectory() as folder:
        reference = Path(folder) / "undisturbed"
        begun = time.monotonic()
        subprocess.run(qlax("train", *SETTINGS, *INTERVALS, "--out", str(reference)), check=True, capture_output=True)
        summary, lines = json.loads((reference / "summary.json").read_text()), len(lines_of(reference))
        seconds = max(1.0, summary["train_seconds"] + summary["eval_seconds"])
        print(f"undisturbed run: {time.monotonic() - begun:.0f} s, of which {seconds:.1f} s are training", flush=True)
        for number in range(options.runs + options.in_writes):
            run = Path(folder) / str(number)
            if number < options.runs:
                kills = [killed_at_random(run, chance, seconds) for _ in range(options.kills)]
            else:
                kills = [killed_in_a_write(run, chance)]
            result = {"kills": kills, **finished(run, reference)}
            tally.append(result)
            print(number, result, flush=True)
        disk = full_disk(Path(folder), reference)
        print("full disk", disk, flush=True)
    kinds = [kill["how"] for result in tally for kill in result["kills"]]
    record = circumstances(" ".join(["python tests/faults.py", *sys.argv[1:]])) | {
        "trained": " ".join(["qlax train", *SETTINGS, *INTERVALS]),
        "lines_of_metrics": lines,
        "runs": len(tally),
        "kills": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
        "runs_with_the_same_weights_bit_for_bit": sum(result["same_weights"] for result in tally),
        "runs_with_the_same_lines_of_metrics": sum(result["same_lines"] for result in tally),
        "full_disk": disk,
        "seconds_after_sigterm": [kill["seconds"] for result in tally for kill in result["kills"] if "seconds" in kill],
        "of_each_run": tally,
    }
    options.out.write_text(json.dumps(record, indent=2) + "\n")
    same = all(result["same_weights"] and result["same_lines"] for result in tally)
    return 0 if same and disk.get("same_lines", True) and disk.get("same_weights", True) else 1


def qlax(*words):
    return [sys.executable, "-m", "qlax", *words]


def next_words(run):
    """Return the arguments of the command that begins the run, or resumes it if it has begun."""
    begun = (run / "config.json").exists()
    return ["resume", str(run)] if begun else ["train", *SETTINGS, *INTERVALS, "--out", str(run)]


def killed_at_random(run, chance, seconds):
    """Begin or resume a run and kill it at a random moment, most often in training; describe the kill."""
    number = signal.SIGTERM if chance.random() < 0.2 else signal.SIGKILL
    process = subprocess.Popen(qlax(*next_words(run)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    before = state_of(run)
    deadline = time.monotonic() + 120
    anywhere = chance.random() < 0.15  # so that imports and compilation are interrupted as well
    while not anywhere and state_of(run) == before and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(chance.uniform(0, 8 if anywhere else seconds / 4))
    if process.poll() is not None:
        return {"how": "ended before", "code": process.returncode}
    process.send_signal(number)
    asked = time.monotonic()
    _, error = process.communicate(timeout=120)
    kill = {"how": number.name, "steps": steps_of(run)}
    if number == signal.SIGTERM:
        trained = b"go on with: qlax resume" in error
        kill |= {"code": process.returncode, "seconds": round(time.monotonic() - asked, 2), "saved": trained}
    return kill


def killed_in_a_write(run, chance):
    """Begin a run whose process kills itself while it writes a file; describe the kill."""
    how, which = (
        chance.choice(["before it is synchronised", "half written", "after it was renamed"]),
        chance.randint(2, 9),
    )
    command = [sys.executable, __file__, "--child", how, str(which), *next_words(run)]
    process = subprocess.run(command, capture_output=True)
    assert process.returncode == -signal.SIGKILL, process.stderr
    return {"how": f"in a write, {how}", "steps": steps_of(run)}


def child(how, which, words):
    """Run the command in this process, which kills itself while it writes file number `which`, counted from 1."""
    import qlax.cli.main
    from qlax.util import files

    count, sync, rename = 0, os.fsync, os.replace

    def strikes():
        nonlocal count
        count += 1
        return count == which

    def synchronised(descriptor):
        if how != "after it was renamed" and os.fstat(descriptor).st_size > 10_000 and strikes():  # a file of weights
            if how == "half written":
                os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        sync(descriptor)

    def renamed(old, new):
        rename(old, new)
        if how == "after it was renamed" and strikes():
            os.kill(os.getpid(), signal.SIGKILL)

    files.os.fsync, files.os.replace = synchronised, renamed
    sys.argv = ["qlax", *words]
    qlax.cli.main.entry()


def finished(run, reference):
    """Let a run end, and compare it with the undisturbed run."""
    end = subprocess.run(qlax(*next_words(run)), capture_output=True, text=True)
    if end.returncode and "holds a finished run" not in end.stderr:
        return {"same_weights": False, "same_lines": False, "error": end.stderr[-300:]}
    files = [
        file.relative_to(reference) for part in ("agents", "best") for file in sorted((reference / part).iterdir())
    ]
    return {
        "same_weights": all((run / file).read_bytes() == (reference / file).read_bytes() for file in files),
        "same_lines": lines_of(run) == lines_of(reference),
    }


def full_disk(folder, reference):
    """Train until the disk is full, make room, resume, and compare the run with the undisturbed run."""
    disk = folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "none", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        return {"skipped": "only root may mount a tmpfs"}
    try:
        run = disk / "run"
        failed = subprocess.run(qlax(*next_words(run)), capture_output=True, text=True)
        room = ["mount", "-o", "remount,size=64m", str(disk)]
        subprocess.run(room, check=True)
        said = failed.stderr.strip()
        return {"code": failed.returncode, "said": said.replace(str(disk), "disk"), **finished(run, reference)}
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def state_of(run):
    """Return the size of the metrics file, which changes as soon as the run trains."""
    file = run / "metrics.jsonl"
    return file.stat().st_size if file.exists() else 0


def steps_of(run):
    lines = lines_of(run)
    return lines[-1]["steps"] if lines else 0


def lines_of(run):
    """Return the lines of metrics without times; a line that was cut short is left out."""
    file = run / "metrics.jsonl"
    whole = file.read_text().split("\n")[:-1] if file.exists() else []
    return [without_times(json.loads(line)) for line in whole]


if __name__ == "__main__":
    sys.exit(main())
