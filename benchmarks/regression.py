"""Detect changes after which qlax learns worse although no test fails.

`python benchmarks/scores.py --check` trains four presets for a few minutes, and fails if the mean greedy return of one
is lower than chance explains. `python benchmarks/regression.py [PRESET...]` makes the records it compares with, in
`results/regression.json`, and shows that the check notices faults that are planted on purpose; records of presets that
are not named are kept. Repeat the latter after a change that is meant to change returns.

A mean of n new seeds is too low if it is below the one-sided 99.5 % prediction bound from the N recorded seeds,
`mean - t(0.995, N - 1) * sd * sqrt(1 / n + 1 / N)`, for returns that are about normally distributed.

Source: Hahn and Meeker, 1991, "Statistical Intervals", section 4.8.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from records import RESULTS, circumstances
from scipy import stats

import qlax
from qlax.learning.returns import q_lambda
from qlax.util.text import markdown

FILE = RESULTS / "regression.json"
CASES: dict[str, dict[str, Any]] = {  # preset: settings that make it short
    "cartpole-fast": {},
    "mountaincar": {"total_steps": 200_000},
    "memory-chain": {"env_options": {"memory_length": 20}},
    "minatar/breakout": {"total_steps": 300_000},
}
RECORDED_SEEDS = 20  # from seed 0
FIRST_CHECKED_SEED, CHECKED_SEEDS = 100, 4  # others than the recorded ones, so that the bound holds
CONFIDENCE = 0.995


def late(
    reward: jax.Array, terminated: jax.Array, truncated: jax.Array, value: jax.Array, gamma: jax.Array, lam: jax.Array
) -> jax.Array:
    """Return the λ-returns of the next step in place of those of each step, for rollouts of several steps."""
    g = q_lambda(reward, terminated, truncated, value, gamma, lam)
    return g if len(reward) == 1 else jnp.concatenate([g[1:], g[-1:]])


FAULTS: dict[str, dict[str, Any]] = {  # arguments of `qlax.train` that plant a fault
    "λ-returns late by one step": {"returns": late},
    "no layer normalisation": {"norm": "none"},
    "a time limit counts as a terminal state": {"time_limit_is_terminal": True},
    "epsilon never falls": {"epsilon_end": 1.0},
}


def returns(preset: str, seed: int, seeds: int, **fault: Any) -> list[float]:
    """Train a preset briefly and return the greedy return of each seed, -inf for one that diverged."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {**CASES[preset], "seed": seed, "seeds": seeds, **fault}
        result = qlax.train(preset, out=Path(folder) / "run", **settings)
    return [-np.inf if x is None else x for x in result.summary["eval_return"]["per_run"]]


def bound(recorded: list[float], number: int) -> float:
    """Return the lowest mean of `number` new seeds that chance explains."""
    spread = np.std(recorded, ddof=1) * np.sqrt(1 / number + 1 / len(recorded))
    return float(np.mean(recorded) - stats.t.ppf(CONFIDENCE, len(recorded) - 1) * spread)


def check() -> int:
    """Train the presets with new seeds and compare them with the record; return the exit status."""
    record, began = json.loads(FILE.read_text()), time.monotonic()
    lines = []
    for preset in CASES:
        new, recorded = returns(preset, FIRST_CHECKED_SEED, CHECKED_SEEDS), record["returns"][preset]
        least = bound(recorded, len(new))
        verdict = "as before" if np.mean(new) >= least else "WORSE"
        lines.append([preset, f"{np.mean(recorded):.4g}", f"{least:.4g}", f"{np.mean(new):.4g}", verdict])
    print(markdown(["preset", "recorded return", "least expected", "return", "verdict"], lines))
    print(f"{time.monotonic() - began:.0f} seconds")
    return int(any(line[-1] != "as before" for line in lines))


def main(presets: list[str]) -> None:
    """Record the returns of the named presets, or of all, without and with each planted fault, and who notices it."""
    record: dict[str, Any] = json.loads(FILE.read_text()) if presets else {"returns": {}, "least": {}, "faults": {}}
    record |= circumstances("python benchmarks/regression.py") | {"settings": CASES}
    for preset in presets or CASES:
        record["returns"][preset] = returns(preset, 0, RECORDED_SEEDS)
        record["least"][preset] = bound(record["returns"][preset], CHECKED_SEEDS)
    for name, fault in {"none": {}, **FAULTS}.items():
        found = record["faults"].get(name, {"returns": {}})["returns"]
        found |= {preset: returns(preset, FIRST_CHECKED_SEED, CHECKED_SEEDS, **fault) for preset in presets or CASES}
        noticed = [preset for preset in CASES if np.mean(found[preset]) < record["least"][preset]]
        record["faults"][name] = {"returns": found, "noticed_by": noticed}
        print(f"{name}: noticed by {', '.join(noticed) or 'no preset'}", flush=True)
    FILE.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
