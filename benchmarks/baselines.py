"""Compare PQN with DQN and PPO: `python benchmarks/baselines.py [cartpole|breakout|craftax-classic|figures]...`.

The script trains DQN with a replay buffer and PPO beside PQN on CartPole, MinAtar Breakout and Craftax-Classic, and
compares their greedy returns against steps and against seconds. `docs/baselines.md` shows the results and discusses
what is unfair. rejax trains DQN and PPO on the same JAX environments; Stable-Baselines3 trains DQN on Gymnasium's
CartPole, which is the same task. Both are installed in the virtual environments of `peers.py`.

One process trains one seed of one algorithm. Algorithms take turns, seed by seed, so that other programs on the machine
slow all of them alike. Every result is written at once, and a run that has a result is not repeated: remove a record to
measure it anew. Programs are compiled for the first seed of an algorithm and come from a cache for the others, so that
the first seed tells the compilation time. Seconds are those of training alone; processor seconds are those of the whole
process.

On a GPU, run `JAX_PLATFORMS=cuda,cpu python benchmarks/baselines.py`. `jax[cuda12]` has to be installed beside qlax
and, by `~/.cache/qlax/peers/rejax/bin/python -m pip install "jax[cuda12]==0.10.2"`, beside rejax.

`--total-steps` shortens every run, to try the script out; it needs another `--out`. `figures` only draws the figures
and writes the tables into the page, from the existing records.
"""

import argparse
import datetime
import json
import os
import re
import resource
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import platformdirs
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from peers import environment, measure, train
from records import RESULTS, circumstances

PAGE = Path(__file__).parent.parent / "docs" / "baselines.md"
FIGURES = PAGE.parent / "figures"
MOST_SEEDS = 6  # listed one by one; of more seeds, the tables show only the worst and the best


class Algorithm(NamedTuple):
    """Algorithm and its settings, which is one line of a figure."""

    label: str
    color: str
    source: str  # source of the settings, as Markdown
    settings: dict  # settings of the worker; for qlax `command` and `steps_per_update`
    peer: str | None = None  # library that trains, as in `peers.py`; None: qlax
    worker: str = "rejax_curve.py"
    seeds: int | None = None  # number of seeds; None: as many as for the task
    until: int | None = None  # step at which to stop, to save time; schedules cover the whole run


class Task(NamedTuple):
    """Task on which algorithms are compared, which is one figure."""

    title: str
    env: str  # name in rejax
    total_steps: int
    evaluations: int
    episodes: int  # number of episodes per evaluation
    max_steps: int  # number of steps after which an evaluation cuts an episode
    seeds: int
    score: float  # mean return at which times are compared
    algorithms: dict[str, Algorithm]


PQN, DQN, DQN_TOO, PPO, PQN_TOO = "#0072B2", "#D55E00", "#E69F00", "#009E73", "#56B4E9"  # colours of Okabe and Ito
REJAX = "[rejax](https://github.com/keraJLi/rejax)'s `configs/gymnax/cartpole.yaml`, for 100,000 steps"
ZOO = "[RL Baselines3 Zoo](https://github.com/DLR-RM/rl-baselines3-zoo)'s `dqn.yml`, tuned for 50,000 steps"
TASKS = {
    "cartpole": Task(
        "CartPole",
        "CartPole-v1",
        total_steps=204_800,
        evaluations=20,
        episodes=20,
        max_steps=500,
        seeds=5,
        score=475,
        algorithms={
            "pqn": Algorithm(
                "PQN (qlax)",
                PQN,
                "preset `cartpole-fast`, found by us for 200,000 steps",
                {"command": "cartpole-fast", "steps_per_update": 1024},
            ),
            "pqn-paper": Algorithm(
                "PQN (qlax, the paper's settings)",
                PQN_TOO,
                "preset `cartpole`, the paper's for 500,000 steps; schedules over the steps here",
                {"command": "cartpole", "steps_per_update": 2048},
            ),
            "dqn-sb3": Algorithm(
                "DQN (Stable-Baselines3)",
                DQN,
                ZOO,
                {},
                peer="sb3",
                worker="sb3_dqn.py",
                seeds=3,
            ),
            "dqn-rejax": Algorithm(
                "DQN (rejax)",
                DQN_TOO,
                f"{REJAX}: dueling, double; random actions fade over 50,000 steps as there",
                {
                    "kind": "dqn",
                    "network": {"kind": "dueling", "activation": "swish", "hidden": [64, 64]},
                    "settings": {
                        "num_envs": 10,
                        "buffer_size": 50_000,
                        "fill_buffer": 5_000,
                        "batch_size": 100,
                        "max_grad_norm": 10,
                        "learning_rate": 1e-3,
                        "num_epochs": 5,
                        "polyak": 0.98,
                        "eps_start": 1,
                        "eps_end": 0.05,
                        "exploration_fraction": 50_000 / 204_800,
                        "gamma": 0.99,
                        "ddqn": True,
                    },
                },
                peer="rejax",
            ),
            "ppo": Algorithm(
                "PPO (rejax)",
                PPO,
                REJAX,
                {
                    "kind": "ppo",
                    "network": {"activation": "tanh", "hidden": [64, 64]},
                    "settings": {
                        "num_envs": 5,
                        "num_steps": 100,
                        "num_epochs": 5,
                        "num_minibatches": 5,
                        "learning_rate": 7.5e-4,
                        "max_grad_norm": 0.5,
                        "gamma": 0.99,
                        "gae_lambda": 0.95,
                        "clip_eps": 0.2,
                        "ent_coef": 0.01,
                        "vf_coef": 0.5,
                    },
                },
                peer="rejax",
            ),
        },
    ),
    "breakout": Task(
        "MinAtar Breakout",
        "Breakout-MinAtar",
        total_steps=983_040,
        evaluations=20,
        episodes=64,
        max_steps=1000,
        seeds=5,
        score=10,
        algorithms={
            "pqn": Algorithm(
                "PQN (qlax)",
                PQN,
                "preset `minatar/breakout`, the paper's for 10,000,000 steps; schedules over the steps here",
                {"command": "minatar/breakout", "steps_per_update": 4096},
            ),
            "dqn-rejax": Algorithm(
                "DQN (rejax)",
                DQN,
                "[Revisiting Rainbow](https://github.com/JohanSamir/revisiting_rainbow)'s `dqn_breakout.gin`: Adam, a "
                "gradient step on 32 samples every 4 steps; the network of Young and Tian (2019): PQN's without norms",
                {
                    "kind": "dqn",
                    "network": {"kind": "cnn", "activation": "relu", "hidden": [128]},
                    "settings": {
                        "num_envs": 4,
                        "buffer_size": 100_000,
                        "fill_buffer": 1_000,
                        "batch_size": 32,
                        "learning_rate": 2.5e-4,
                        "target_update_freq": 1_000,
                        "polyak": 0,
                        "eps_start": 1,
                        "eps_end": 0.01,
                        "exploration_fraction": 250_000 / 983_040,
                        "gamma": 0.99,
                        "ddqn": False,
                    },
                },
                peer="rejax",
                seeds=3,
                until=491_520,
            ),
            "ppo": Algorithm(
                "PPO (rejax)",
                PPO,
                "[PureJaxRL](https://github.com/luchris429/purejaxrl)'s `brax_minatar.ipynb`, for 10,000,000 steps, "
                "with its dense network of 64 x 64; the learning rate falls over the steps here",
                {
                    "kind": "ppo",
                    "network": {"activation": "relu", "hidden": [64, 64]},
                    "decay": True,
                    "settings": {
                        "num_envs": 64,
                        "num_steps": 128,
                        "num_epochs": 4,
                        "num_minibatches": 8,
                        "learning_rate": 5e-3,
                        "max_grad_norm": 0.5,
                        "gamma": 0.99,
                        "gae_lambda": 0.95,
                        "clip_eps": 0.2,
                        "ent_coef": 0.01,
                        "vf_coef": 0.5,
                    },
                },
                peer="rejax",
            ),
        },
    ),
    "craftax-classic": Task(
        "Craftax-Classic",
        "Craftax-Classic-Symbolic-v1",
        total_steps=1_024_000,
        evaluations=10,
        episodes=64,
        max_steps=3000,
        seeds=2,
        score=4,
        algorithms={
            "pqn": Algorithm(
                "PQN (qlax)",
                PQN,
                "preset `craftax-classic`, found by us for 3,000,000 steps; schedules over the steps here",
                {"command": "craftax-classic", "steps_per_update": 2048},
            ),
            "dqn-rejax": Algorithm(
                "DQN (rejax)",
                DQN,
                "none is published: PQN's environments, network, norms, learning rate and exploration, and as many "
                "gradient steps on as many samples; a buffer of 100,000, double, a new target every 12,800 steps",
                {
                    "kind": "dqn",
                    "network": {"kind": "mlp", "activation": "layer norm, relu", "hidden": [256, 256]},
                    "decay": True,
                    "settings": {
                        "num_envs": 128,
                        "buffer_size": 100_000,
                        "fill_buffer": 5_000,
                        "batch_size": 256,
                        "num_epochs": 1,
                        "learning_rate": 5e-4,
                        "target_update_freq": 12_800,
                        "polyak": 0,
                        "eps_start": 1,
                        "eps_end": 0.02,
                        "exploration_fraction": 0.2,
                        "gamma": 0.99,
                        "ddqn": True,
                    },
                },
                peer="rejax",
            ),
            "ppo": Algorithm(
                "PPO (rejax)",
                PPO,
                "[Craftax Baselines](https://github.com/MichaelTMatthews/Craftax_Baselines)' `ppo.py`, with the "
                "environments and rollouts of its sweep over 1,000,000 steps (`rnd_1m.yaml`), and PQN's widths",
                {
                    "kind": "ppo",
                    "network": {"activation": "tanh", "hidden": [256, 256]},
                    "decay": True,
                    "settings": {
                        "num_envs": 256,
                        "num_steps": 16,
                        "num_epochs": 4,
                        "num_minibatches": 8,
                        "learning_rate": 2e-4,
                        "max_grad_norm": 1.0,
                        "gamma": 0.99,
                        "gae_lambda": 0.8,
                        "clip_eps": 0.2,
                        "ent_coef": 0.01,
                        "vf_coef": 0.5,
                    },
                },
                peer="rejax",
            ),
        },
    ),
}


def main() -> None:
    """Train the missing runs, keep their records, draw the figures and print the tables."""
    parser = argparse.ArgumentParser(description="Compare PQN with DQN and PPO.")
    parser.add_argument("what", nargs="*", metavar="TASK", help=f"{', '.join(TASKS)} or figures (default all)")
    parser.add_argument("--only", nargs="+", metavar="ALGORITHM", help="algorithms, such as ppo (default all)")
    parser.add_argument("--seeds", type=int, metavar="N", help="maximum number of seeds per algorithm (default all)")
    parser.add_argument(
        "--total-steps", type=int, metavar="STEPS", help="steps of every run, to try the script out (default whole)"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER", help="folder of the records")
    options = parser.parse_args()
    if unknown := set(options.what) - {*TASKS, "figures"}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; expected {', '.join(TASKS)} or figures")
    if options.total_steps and options.out == RESULTS:
        parser.error("--total-steps is for trying the script out, and needs another --out")
    options.out.mkdir(parents=True, exist_ok=True)
    names = [name for name in TASKS if name in options.what] or list(TASKS)
    if "figures" not in options.what:
        measure_all(names, options)
    # Shortened runs, which have another --out, must not change the page.
    figures = FIGURES if options.out == RESULTS else options.out
    if options.out == RESULTS:
        show("settings", sources())
    for name in names:
        path = options.out / f"baselines-{name}.json"
        if path.exists():
            record = json.loads(path.read_text())
            draw(name, record, figures / f"baselines-{name}.png")
            print(f"{table(name, record)}\n")
            if options.out == RESULTS:
                show(name, table(name, record))


def measure_all(names: Sequence[str], options: argparse.Namespace) -> None:
    """Train every missing run of these tasks, the first seed of every algorithm first."""
    for seed in range(options.seeds or max(TASKS[name].seeds for name in names)):
        for name in names:
            for key, algorithm in TASKS[name].algorithms.items():
                wanted = not options.only or key in options.only
                if wanted and seed < min(options.seeds or 99, algorithm.seeds or TASKS[name].seeds):
                    add(options.out / f"baselines-{name}.json", name, key, seed, options.total_steps)


def add(path: Path, name: str, key: str, seed: int, total_steps: int | None) -> None:
    """Train one seed of one algorithm and add the result to the record, unless the record has it."""
    task, algorithm = TASKS[name], TASKS[name].algorithms[key]
    record = json.loads(path.read_text()) if path.exists() else {"runs": []}
    before = _of(record, key)
    if any(run["seed"] == seed for run in before):
        return
    python = environment(algorithm.peer) if algorithm.peer else None
    total_steps = total_steps or task.total_steps
    cache = platformdirs.user_cache_path("qlax") / "baselines" / f"{name}-{key}-{total_steps}"
    if not before:
        shutil.rmtree(cache, ignore_errors=True)
    load, used = os.getloadavg()[0], _processor_seconds()
    run = one(task, algorithm, seed, total_steps, python, str(cache))
    run = {
        "algorithm": key,
        "seed": seed,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "load_average": [round(load, 2), round(os.getloadavg()[0], 2)],  # averages over a minute, before and after
        "compiled": "from the cache" if before else "anew",
        "processor_seconds": _processor_seconds() - used,
        **run,
    }
    # Read again, because another process may have added to the record.
    record = json.loads(path.read_text()) if path.exists() else record
    record = {
        **circumstances(f"python benchmarks/baselines.py {name}"),
        "task": {**task._asdict(), "algorithms": {k: a._asdict() for k, a in task.algorithms.items()}},
        "runs": [*record["runs"], {column: _rounded(value) for column, value in run.items()}],
    }
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(record, indent=1) + "\n")
    partial.replace(path)
    print(
        f"{name}, {algorithm.label}, seed {seed}: {run['eval_returns'][-1]:.4g} after {run['steps'][-1]:,} steps and "
        f"{run['seconds'][-1]:.0f} s, load {run['load_average']}",
        file=sys.stderr,
        flush=True,
    )


def one(task: Task, algorithm: Algorithm, seed: int, total_steps: int, python: Path | None, cache: str) -> dict:
    """Train one seed; return times, and per evaluation `steps`, `seconds` of training so far and `eval_returns`."""
    interval = total_steps // task.evaluations
    settings = algorithm.settings
    if python is None:
        per_update = settings["steps_per_update"]
        updates = max(1, round(interval / per_update))
        flags = f"--seed {seed} --log-interval {updates} --eval-interval {updates}"
        flags += f" --eval-episodes {task.episodes} --eval-max-steps {task.max_steps}"
        run, _, lines = train(f"{settings['command']} {flags}", updates * task.evaluations * per_update, cache)
        curve = {"steps": "steps", "seconds": "seconds", "eval_returns": "eval_return"}
        times = {name: run[name] for name in ("process_seconds", "compile_seconds", "train_seconds", "eval_seconds")}
        return times | {name: [np.squeeze(line[column]).item() for line in lines] for name, column in curve.items()}
    until = total_steps * (algorithm.until or task.total_steps) // task.total_steps
    if algorithm.peer == "sb3":
        never = {"solved_return": 501, "seconds": 1e9}
        run = measure(python, algorithm.worker, never | {"seed": seed, "total_steps": until, "eval_interval": interval})
        curve = {"steps": run.pop("eval_steps"), "seconds": run.pop("eval_train_seconds")}
        return run | {"compile_seconds": 0.0} | curve
    common = {"env": task.env, "episodes": task.episodes, "max_steps": task.max_steps, "seed": seed}
    steps = {"total_steps": total_steps, "eval_interval": interval, "evaluations": until // interval}
    return measure(python, algorithm.worker, settings | common | steps, cache)


def draw(name: str, record: dict, path: Path) -> None:
    """Draw the return against steps and against seconds of training: the mean and the range over seeds."""
    task = TASKS[name]
    figure, axes = plt.subplots(1, 2, figsize=(7.2, 2.9), sharey=True, layout="constrained")
    for key, algorithm in task.algorithms.items():
        runs = _of(record, key)
        if not runs:
            continue
        steps, seconds, returns = (np.array([run[x] for run in runs]) for x in ("steps", "seconds", "eval_returns"))
        ends = returns.min(axis=0), returns.max(axis=0)
        for axis, x in zip(axes, (steps[0], np.median(seconds, axis=0)), strict=True):
            axis.plot(x, returns.mean(axis=0), color=algorithm.color, label=algorithm.label, linewidth=1.6)
            axis.fill_between(x, *ends, color=algorithm.color, alpha=0.12, linewidth=0)
    axes[0].set(xlabel="steps", ylabel="greedy return", xlim=(0, None))
    axes[0].xaxis.set_major_formatter(
        FuncFormatter(lambda x, _: f"{x / 1e6:g} M" if x >= 1e6 else f"{x / 1e3:g} k" if x else "0")
    )
    axes[1].set(xlabel="seconds of training, compilation left out", xscale="log")
    low, high = axes[1].get_xlim()
    axes[1].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 50 * low else (1,)))
    axes[1].xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes[1].xaxis.set_minor_formatter(NullFormatter())
    for axis in axes:
        axis.axhline(task.score, color="0.6", linewidth=0.8, linestyle=":", zorder=0)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color="0.92", linewidth=0.6)
        axis.set_axisbelow(True)
    figure.suptitle(task.title, fontsize="medium")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    figure.savefig(path, dpi=200)
    plt.close(figure)


def table(name: str, record: dict) -> str:
    """Return the table of results as Markdown; ratios are relative to PQN."""
    task = TASKS[name]
    score = f"a mean of {task.score:g}"
    rows = [
        f"| {task.title} | seeds | steps | greedy return, and of each seed | steps/s | seconds to compile "
        f"| seconds of training until {score} | with compilation | processor seconds | load |",
        "| --- " * 10 + "|",
    ]
    of_pqn: list[float] | None = None
    for key, algorithm in task.algorithms.items():
        if not (runs := _of(record, key)):
            continue
        returns = np.array([run["eval_returns"] for run in runs])
        compiling = _median(run["compile_seconds"] for run in runs if run["compiled"] == "anew")
        reached = np.flatnonzero(returns.mean(axis=0) >= task.score)
        until = ["not reached", ""]
        if len(reached):
            training = _median(run["seconds"][reached[0]] for run in runs)
            seconds = [training, training + compiling]
            until = [f"{x:,.1f}" for x in seconds]
            if key == "pqn":
                of_pqn = seconds
            elif of_pqn:
                ratios = [x / y for x, y in zip(seconds, of_pqn, strict=True)]
                times = [f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.2g}" for ratio in ratios]
                until = [f"{x:,.1f}, {ratio} times PQN's" for x, ratio in zip(seconds, times, strict=True)]
            until[0] += f", {runs[0]['steps'][reached[0]]:,.0f} steps"
        cells = [
            algorithm.label,
            str(len(runs)),
            f"{runs[0]['steps'][-1]:,.0f}",
            written(returns[:, -1]),
            f"{_median(run['steps'][-1] / run['seconds'][-1] for run in runs):,.0f}",
            f"{compiling:.0f}",
            *until,
            f"{_median(run['processor_seconds'] for run in runs):,.0f}",
            f"{_median(sum(run['load_average']) / 2 for run in runs):.0f}",
        ]
        rows.append(f"| {' | '.join(cells)} |")
        if "sampled_returns" in runs[0]:
            sampled = written(np.array([run["sampled_returns"][-1] for run in runs]))
            rows.append(f"| the same, actions sampled | {len(runs)} | | {sampled} {'| ' * 6}|")
    return "\n".join(rows)


def written(returns: np.ndarray) -> str:
    """Return the mean over seeds, and the return of each seed or the worst and best of many, as text."""
    each = f"{returns.min():.4g} to {returns.max():.4g}"
    if len(returns) <= MOST_SEEDS:
        each = ", ".join(f"{x:.4g}" for x in returns)
    return f"{returns.mean():.4g}" + (f" ({each})" if len(returns) > 1 else "")


def sources() -> str:
    """Return the table of the sources of all settings, as Markdown."""
    rows = ["| task | algorithm | settings |", "| --- | --- | --- |"]
    rows += [f"| {task.title} | {a.label} | {a.source} |" for task in TASKS.values() for a in task.algorithms.values()]
    return "\n".join(rows)


def show(name: str, lines: str) -> None:
    """Write a table into the page, between the marks with this name."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    written = f"{begin}\n\n{lines}\n\n{end}"
    PAGE.write_text(re.sub(f"{begin}.*?{end}", lambda _: written, PAGE.read_text(), flags=re.DOTALL))


def _of(record: dict, key: str) -> list[dict]:
    return [run for run in record["runs"] if run["algorithm"] == key]


def _median(values: Any) -> float:
    return float(np.median(list(values)))


def _processor_seconds() -> float:
    """Return the processor seconds of all child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return round(value, 4) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
