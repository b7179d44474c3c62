"""Show the effect of lambda and of the norm: change each alone, and train with several seeds.

The paper claims that a lambda between 0 and 1 is best (0.65 on Atari), that LayerNorm stabilises Q-learning without a
target network, and that BatchNorm can hurt. Its ablations are on ten Atari games and on Craftax.

    G_t = r_t + gamma [(1 - lambda) max_a Q(s_t+1, a) + lambda G_t+1]

Lambda can change without compiling anew, so one program trains all its values and seeds, while each norm needs a
program of its own. The environment is CartPole, or any other environment or preset named with --env. The comparison of
norms uses the lambda of that preset. docs/ideas.md shows the numbers. The script takes two minutes on two cores, and
five with --env minatar/breakout --seeds 2 --eval-interval 7.
"""

import argparse
from pathlib import Path

import numpy as np

import qlax

LAMBDAS = (0.0, 0.35, 0.65, 0.95)
NORMS = ("layer", "batch", "none")


def main(words=None):
    """Train, draw the figures and print the results; return the measurements."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=Path("ablation.png"), help="figures to write, with -lam and -norm added"
    )
    parser.add_argument("--env", default="cartpole-fast", help="environment or preset (default cartpole-fast)")
    parser.add_argument("--total-steps", type=int, default=200_000, help="steps per seed (default 200000)")
    parser.add_argument("--seeds", type=int, default=8, help="number of seeds (default 8)")
    parser.add_argument(
        "--eval-interval", type=int, help="updates between points of a curve (default: as in the preset)"
    )
    options = parser.parse_args(words)
    paths = {field: options.out.with_stem(f"{options.out.stem}-{field}") for field in ("lam", "norm")}
    for path in paths.values():
        if path.exists():
            parser.error(f"{path} exists already; name new files with --out")
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
