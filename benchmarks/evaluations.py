"""Measure how many evaluations runs play by default, and how much time they take: `python benchmarks/evaluations.py`.

For every run, `share` is the time of its evaluations divided by that of training, and `share_of_20` is the same for
twenty of them: if it is below 0.1, the run should have at least twenty. `in_steps` is the share that
`qlax.training.budget` estimates from steps alone.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
from records import RESULTS, circumstances

import qlax
from qlax.config.intervals import evaluation_steps
from qlax.storage import checkpoint

COMMAND = "python benchmarks/evaluations.py"
RUNS = {
    "qlax train minatar/breakout --total-steps 500000 --seeds 2": ("minatar/breakout", 500_000, 2),
    "qlax train mountaincar --total-steps 1000000": ("mountaincar", 1_000_000, 1),
    "qlax train cartpole": ("cartpole", 500_000, 1),
    "qlax train cartpole-fast": ("cartpole-fast", 200_000, 1),
    "qlax train acrobot": ("acrobot", 500_000, 1),
}


def measured(preset: str, total_steps: int, seeds: int) -> dict:
    """Train a preset, and return what its evaluations took."""
    with tempfile.TemporaryDirectory() as folder:
        result = qlax.train(preset, total_steps=total_steps, seeds=seeds, out=Path(folder) / "run")
        newest = max((result.directory / "checkpoints").glob("*.safetensors"))
        steps = checkpoint.about(newest)["evaluations"]
    config, summary = result.config, result.summary
    count = int(np.isfinite(result.curves["eval_return"]).any(axis=1).sum())
    share = summary["eval_seconds"] / summary["train_seconds"]
    return {
        "evaluations": count,
        "planned": -(-config.num_updates // (config.eval_interval or 1)),
        "train_seconds": summary["train_seconds"],
        "eval_seconds": summary["eval_seconds"],
        "share": round(share, 4),
        "share_of_20": round(20 * share / count, 4),
        "in_steps": round(sum(steps.values()) / evaluation_steps(config, on_host=False) / config.num_updates, 4),
        "longest_episodes": list(steps.values()),
    }


if __name__ == "__main__":
    found = {command: measured(*run) for command, run in RUNS.items()}
    record = circumstances(COMMAND) | {"runs": found}
    (RESULTS / "evaluations.json").write_text(json.dumps(record, indent=2) + "\n")
