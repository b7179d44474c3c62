"""Many environments at once against one: the same number of environment steps, against steps and against seconds.

The paper's claim: environments in parallel, acted in with the newest policy, take the place of the replay buffer. What
one update sees comes from many independent episodes, hence is less correlated, and it is fast, as the device does many
things at once.

All updates here see N x T = 1,024 steps and take the same number of gradient steps on batches of the same size; only
from how many environments N they come differs, and so how long a stretch T of each is. CartPole, eight seeds, of which
a CPU trains one a core. The numbers are on docs/ideas.md. Three minutes on two cores.
"""

import argparse
from pathlib import Path

import qlax
from qlax.util.files import check_is_new

STEPS_AN_UPDATE = 1024


def main(words=None):
    """Train, draw and print; gives what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("parallel.png"), help="two figures: -steps, -seconds")
    parser.add_argument("--num-envs", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--total-steps", type=int, default=200_000)
    parser.add_argument("--seeds", type=int, default=8)
    options = parser.parse_args(words)
    paths = {x: check_is_new(options.out.with_stem(f"{options.out.stem}-{x}")) for x in ("steps", "seconds")}
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
        print(f"{num_envs} environments: greedy return {mean:.4g} in the end, {speed:,.0f} steps/s", flush=True)
    for x, path in paths.items():
        print(f"figure: {qlax.plot(directories, path, x=x, by='num_envs').path}")
    return {"total_steps": options.total_steps, "results": measured}


if __name__ == "__main__":
    main()
