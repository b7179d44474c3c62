"""Measure the score and the cost of every memory on the preset memory-chain: `python benchmarks/memories.py`.

The record holds one result per memory, with the command that repeats it, the machine and the date. Results that are not
measured anew are kept.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from records import RESULTS, circumstances

MEMORIES = ("lstm", "gru", "mingru", "lru", "none")


def main() -> None:
    """Train with each memory, keep the record after each, and print the table."""
    parser = argparse.ArgumentParser(description="Measure the score and the cost of every memory.")
    parser.add_argument(
        "--memory", nargs="+", choices=MEMORIES, default=MEMORIES, help="memories to measure (default all)"
    )
    parser.add_argument("--seeds", type=int, default=4, help="number of seeds per memory (default 4)")
    parser.add_argument("--total-steps", type=int, help="steps of each run (default: as in the preset)")
    parser.add_argument("--out", type=Path, default=RESULTS / "memories.json", help="record to write")
    options = parser.parse_args()
    record = json.loads(options.out.read_text()) if options.out.exists() else {}
    for memory in options.memory:
        arguments = ["memory-chain", "--memory", memory]
        arguments += ["--seeds", str(options.seeds)]
        if options.total_steps:
            arguments += ["--total-steps", str(options.total_steps)]
        record[memory] = measure(arguments)
        options.out.write_text(json.dumps(record, indent=2) + "\n")
    print(table(record))


def measure(arguments: list[str]) -> dict:
    """Run one command; return its summary and the number of parameters of its network."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "run")
        subprocess.run([sys.executable, "-m", "qlax", "train", *arguments, "--out", str(out)], check=True)
        summary = json.loads((out / "summary.json").read_text())
        parameters = count_parameters(out)
    return circumstances(" ".join(["qlax", "train", *arguments])) | {"parameters": parameters} | summary


def count_parameters(run: Path) -> int:
    """Return the number of learned parameters of the first agent of a run."""
    import jax

    import qlax

    return sum(leaf.size for leaf in jax.tree.leaves(qlax.load(run).variables["params"]))


def table(record: dict[str, dict]) -> str:
    """Return the table of results as Markdown."""
    rows = [
        "| memory | greedy return of each seed | steps/s, all seeds | seconds of training | compilation | parameters |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for memory, result in record.items():
        returns = ", ".join(f"{value:.3g}" for value in result["eval_return"]["per_run"])
        rows.append(
            f"| {memory} | {returns} | {result['steps_per_second']:,.0f} | {result['train_seconds']:.1f} | "
            f"{result['compile_seconds']:.1f} s | {result['parameters']:,} |"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    main()
