"""What lambda and what the norm do: each changed alone, several seeds.

The paper's claims: lambda between 0 and 1 is best (0.65 on Atari); LayerNorm stabilises Q-learning without a target
network, and BatchNorm can hurt (its ablations are on ten Atari games and on Craftax).

    G_t = r_t + gamma [(1 - lambda) max_a Q(s_t+1, a) + lambda G_t+1]

Lambda can be changed while a program runs, so all its values and seeds are one program; every norm is a program of its
own. On CartPole, and on any other environment or preset that is named with --env: its own lambda is kept for the norms.
The numbers are on docs/ideas.md. Two minutes on two cores; five with
--env minatar/breakout --seeds 2 --eval-interval 7.
"""

import argparse
from pathlib import Path

import numpy as np

import qlax
from qlax.util.files import check_is_new

LAMBDAS = (0.0, 0.35, 0.65, 0.95)
NORMS = ("layer", "batch", "none")


def main(words=None):
    """Train, draw and print; gives what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("ablation.png"), help="two figures: -lam, -norm")
    parser.add_argument("--env", default="cartpole-fast")
    parser.add_argument("--total-steps", type=int, default=200_000)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--eval-interval", type=int, help="updates between points of a curve; else the preset's")
    options = parser.parse_args(words)
    paths = {field: check_is_new(options.out.with_stem(f"{options.out.stem}-{field}")) for field in ("lam", "norm")}
    asked = {name: getattr(options, name) for name in ("seeds", "total_steps", "eval_interval")}
    sizes = {name: value for name, value in asked.items() if value is not None}
    measured = {}
    for field, programs in {"lam": [LAMBDAS], "norm": NORMS}.items():
        measured[field], directories = {}, []
        for values in programs:
            result = qlax.train(options.env, **sizes, **{field: values})
            directories.append(result.directory)
            settings = values if isinstance(values, tuple) else [values]
            rows = np.array(result.summary["eval_return"]["per_run"], float).reshape(len(settings), options.seeds)
            for value, returns in zip(settings, rows, strict=True):  # runs are ordered by setting, then seed
                measured[field][str(value)] = returns.tolist()
                print(f"{field} {value}: greedy return {returns.mean():.4g}, mean of {options.seeds} seeds", flush=True)
        print(f"figure: {qlax.plot(directories, paths[field], by=field).path}")
    return {"env": options.env, "total_steps": options.total_steps, "eval_return": measured}


if __name__ == "__main__":
    main()
