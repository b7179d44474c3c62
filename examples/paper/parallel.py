"""Compare many parallel environments with one, for the same number of steps, against steps and against seconds.

The paper claims that parallel environments, in which the newest policy acts, replace the replay buffer. The data of an
update come from many independent episodes, so they are less correlated, and training is fast, because a device steps
all environments together.

Every update here has N x T = 1,024 steps and the same number of gradient steps on batches of the same size. Only the
number of environments N changes, and with it the length T of a rollout. The environment is CartPole with eight seeds,
of which a CPU trains one per core. docs/ideas.md shows the numbers. The script takes three minutes on two cores.
"""

import argparse
from pathlib import Path

import qlax

STEPS_AN_UPDATE = 1024


def main(words=None):
    """Train, draw the figures and print the results; return the measurements."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=Path("parallel.png"), help="figures to write, with -steps and -seconds added"
    )
    parser.add_argument(
        "--num-envs", type=int, nargs="+", default=[1, 8, 32, 128], help="numbers of environments (default 1 8 32 128)"
    )
    parser.add_argument("--total-steps", type=int, default=200_000, help="steps per seed (default 200000)")
    parser.add_argument("--seeds", type=int, default=8, help="number of seeds (default 8)")
    options = parser.parse_args(words)
    paths = {x: options.out.with_stem(f"{options.out.stem}-{x}") for x in ("steps", "seconds")}
    for path in paths.values():
        if path.exists():
            parser.error(f"{path} exists already; name new files with --out")
    measured, directories = [], []
    for num_envs in options.num_envs:
        result = qlax.train(
            "cartpole-fast",
            num_envs=num_envs,
            num_steps=STEPS_AN_UPDATE // num_envs,
            seeds=options.seeds,
            total_steps=options.total_steps,
            log_interval=7,
            eval_interval=14,
            eval_episodes=16,
        )
        directories.append(result.directory)
        summary = result.summary
        kept = {name: summary[name] for name in ("steps_per_second", "train_seconds", "eval_seconds")}
        measured.append({"num_envs": num_envs, "eval_return": summary["eval_return"]["per_run"], **kept})
        mean, speed = summary["eval_return"]["mean"], summary["steps_per_second"]
        print(f"{num_envs} environments: final greedy return {mean:.4g}, {speed:,.0f} steps/s", flush=True)
    for x, path in paths.items():
        print(f"figure: {qlax.plot(directories, path, x=x, by='num_envs').path}")
    return {"total_steps": options.total_steps, "results": measured}


if __name__ == "__main__":
    main()
