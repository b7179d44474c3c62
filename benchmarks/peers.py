"""Compare qlax with libraries that install from PyPI: `python benchmarks/peers.py [--only rejax|sb3]`.

Every peer has a virtual environment of its own, in qlax's cache directory. Runs alternate, first qlax and then the
peer, so that other programs on the machine slow both alike. A ratio compares two neighbouring runs, and the table gives
the median, the lowest and the highest ratio. Everything is measured on the CPU, unless `JAX_PLATFORMS` says otherwise.

**rejax's PQN**: steps per second of training alone, without compilation and evaluation, with the settings and the
network of our run. One seed is trained, then four: rejax uses `jax.vmap`, as its README says, and qlax spreads the
seeds over the cores. The work is nearly the same. rejax computes the Q-values of every next observation once more, uses
Adam with a constant learning rate where we use RAdam with a falling one, clips gradients elementwise, does not scale
rewards, and bootstraps one step late. Its evaluation is switched off, and the time of ours is not counted. No compiled
program comes from a cache. The compilation time of qlax includes that of its evaluation. The record also keeps greedy
returns; rejax's own evaluation measures them at the end, with 0.5 % random actions.

**Stable-Baselines3's DQN** trains on CartPole until 20 greedy episodes return 475 on average. It is evaluated every
2,500 steps, and gives up after 200,000 steps or 300 seconds of training. `qlax train cartpole-fast --seeds 4` trains to
its last step, at its first start and at the next one, which finds its compiled programs in a cache. Times are
wall-clock times of the whole process, imports included, but without the evaluations of DQN. A process of DQN trains one
agent, and a process of qlax trains four. So there is one ratio of whole processes, and one of seconds per solved agent,
for which the time of qlax is divided by the number of its agents that reach 475. Where DQN gives up, the ratios are
lower bounds.

`--total-steps` shortens every run, to try the script out.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import platformdirs
from records import RESULTS, circumstances, compilation_cache

REQUIREMENTS = {
    # rejax expects five values from a step, but gymnax 1.0 returns six. The other versions are those of our own
    # measurements, so that both sides have the same compiler; Craftax is for `baselines.py`.
    "rejax": ["rejax==0.1.3", "gymnax==0.0.9", "jax==0.10.2", "flax==0.12.8", "optax==0.2.8", "craftax==1.6.1"],
    # pip prefers the build for the CPU, 2.13.0+cpu, if it is given an index that has one; the other build brings some
    # gigabytes of CUDA, which are not used here.
    "sb3": ["stable-baselines3==2.9.2", "torch==2.13.0"],
}
SPEED_COMMANDS = [
    "cartpole --seeds 1",
    "cartpole --seeds 4",
    "minatar/breakout --total-steps 200000 --seeds 1",
]
SOLVED_COMMAND = "cartpole-fast --seeds 4"
SOLVED_RETURN = 475
DQN = {"total_steps": 200_000, "seconds": 300, "solved_return": SOLVED_RETURN, "eval_interval": 2500}


def main() -> None:
    """Measure the peers, keep the record and print the tables."""
    parser = argparse.ArgumentParser(description="Compare qlax with rejax and Stable-Baselines3.")
    parser.add_argument(
        "--repeats", type=int, default=3, metavar="N", help="repetitions of every pair of runs (default 3)"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "peers.json", metavar="FILE", help="record to write")
    parser.add_argument("--only", choices=REQUIREMENTS, help="peer to measure; others are kept (default all)")
    parser.add_argument(
        "--total-steps", type=int, metavar="STEPS", help="steps of every run, to try the script out (default whole)"
    )
    options = parser.parse_args()
    parts = {"rejax": compare_speed, "sb3": compare_time_to_solve}
    record = json.loads(options.out.read_text()) if options.out.exists() else {}
    for peer, compare in parts.items():
        if options.only in (None, peer):
            python = environment(peer)
            record[peer] = {
                **circumstances(
                    f"python benchmarks/peers.py --only {peer} --repeats {options.repeats}"
                    + (f" --total-steps {options.total_steps}" if options.total_steps else "")
                ),
                "requirements": REQUIREMENTS[peer],
                **compare(python, options.repeats, options.total_steps),
            }
            options.out.write_text(json.dumps(record, indent=2) + "\n")
    tables = {"rejax": speed_table, "sb3": time_to_solve_table}
    print("\n\n".join(tables[peer](record[peer]) for peer in tables if peer in record))


def environment(peer: str) -> Path:
    """Return the Python of the peer's virtual environment, which is made anew unless it has these requirements."""
    folder = platformdirs.user_cache_path("qlax") / "peers" / peer
    python, installed = folder / "bin" / "python", folder / "requirements.txt"
    requirements = "\n".join(REQUIREMENTS[peer]) + "\n"
    if not installed.exists() or installed.read_text() != requirements:
        _say(f"installing {', '.join(REQUIREMENTS[peer])}")
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *REQUIREMENTS[peer]], check=True)
        installed.write_text(requirements)  # last, so that an interrupted installation does not count
    return python


def compare_speed(python: Path, repeats: int, total_steps: int | None) -> dict:
    """Train with qlax and with rejax in turns, for every command; return the speeds and their ratios."""
    work = {f"qlax train {arguments}": [] for arguments in SPEED_COMMANDS}
    for _ in range(repeats):
        for arguments, pairs in zip(SPEED_COMMANDS, work.values(), strict=True):
            qlax, config, _ = train(arguments, total_steps)
            rejax = measure(python, "rejax_pqn.py", rejax_settings(config))
            pairs.append({"qlax": qlax, "rejax": rejax, "ratio": qlax["steps_per_second"] / rejax["steps_per_second"]})
            _say(f"qlax train {arguments}: {pairs[-1]['ratio']:.2f} times the steps per second of rejax")
    return {"repeats": work, "ratios": {name: spread(pair["ratio"] for pair in pairs) for name, pairs in work.items()}}


def rejax_settings(config: dict) -> dict:
    """Return the settings of a run under the names that rejax uses."""
    same = ("num_envs", "num_steps", "num_minibatches", "num_epochs", "learning_rate", "gamma", "max_grad_norm")
    return {
        "env": config["env"].removeprefix("gymnax/"),
        "encoder": config["encoder"],
        "hidden": config["hidden"],
        "seeds": config["seeds"],
        "settings": {name: config[name] for name in same}
        | {
            "total_timesteps": config["total_steps"],
            "td_lambda": config["lam"],
            "eps_start": config["epsilon_start"],
            "eps_end": config["epsilon_end"],
            "exploration_fraction": config["epsilon_fraction"],
        },
    }


def compare_time_to_solve(python: Path, repeats: int, total_steps: int | None) -> dict:
    """Train with qlax twice, the second time with a cache, then with DQN; repetitions have different seeds."""
    runs = []
    for repeat in range(repeats):
        with tempfile.TemporaryDirectory() as cache:
            arguments = f"{SOLVED_COMMAND} --seed {4 * repeat}"
            qlax = {start: train(arguments, total_steps, cache)[0] for start in ("first start", "cached start")}
        settings = DQN | {"seed": repeat} | ({"total_steps": total_steps} if total_steps else {})
        dqn = measure(python, "sb3_dqn.py", settings)
        seconds = dqn["process_seconds"] - dqn["eval_seconds"]
        ratios = {}
        for start, run in qlax.items():
            run["solved"] = sum(score >= SOLVED_RETURN for score in run["eval_return"])
            ratios[start] = {
                "process": seconds / run["process_seconds"],
                "solved agent": seconds / run["process_seconds"] * run["solved"],
            }
            _say(f"seed {repeat}, {start}: {ratios[start]['solved agent']:.2f} agents solved in the time of one by DQN")
        runs.append({"qlax": qlax, "dqn": {"seed": repeat, **dqn}, "ratio": ratios})
    ratios = {
        start: {of: spread(run["ratio"][start][of] for run in runs) for of in of_what}
        for start, of_what in runs[0]["ratio"].items()
    }
    return {"qlax": f"qlax train {SOLVED_COMMAND}", "dqn": DQN, "repeats": runs, "ratios": ratios}


def train(arguments: str, total_steps: int | None, cache: str | None = None) -> tuple[dict, dict, list[dict]]:
    """Run `qlax train`; return its times and returns, its config and its metrics.

    Compiled programs are kept in `cache`; without it, none are kept.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "qlax", "train", *arguments.split(), "--out", f"{folder}/run"]
        command += ["--total-steps", str(total_steps)] if total_steps else []
        command += [] if cache else ["--no-compilation-cache"]
        kept = compilation_cache(cache) if cache else {}
        process_seconds, _ = timed(command, kept)
        summary, config = (json.loads(Path(folder, "run", f"{x}.json").read_text()) for x in ("summary", "config"))
        lines = [json.loads(line) for line in Path(folder, "run", "metrics.jsonl").read_text().splitlines()]
    names = ("seeds", "total_steps", "compile_seconds", "train_seconds", "eval_seconds", "steps_per_second")
    result = {"process_seconds": process_seconds} | {name: summary[name] for name in names}
    return result | {"eval_return": summary["eval_return"]["per_run"]}, config, lines


def measure(python: Path, worker: str, settings: dict, cache: str | None = None) -> dict:
    """Run a worker of the folder peers; return the seconds of its process and the numbers that it prints.

    Compiled programs are kept in `cache`, if it is given.
    """
    kept = compilation_cache(cache) if cache else {}
    process_seconds, printed = timed([python, Path(__file__).parent / "peers" / worker, json.dumps(settings)], kept)
    return {"process_seconds": process_seconds, **json.loads(printed)}


def timed(command: list, variables: dict[str, str]) -> tuple[float, str]:
    """Run a process; return its wall-clock seconds, from before its start to its end, and its standard output."""
    start = time.perf_counter()
    process_environment = {"JAX_PLATFORMS": "cpu"} | os.environ | variables
    done = subprocess.run(command, env=process_environment, check=True, stdout=subprocess.PIPE, text=True)
    return time.perf_counter() - start, done.stdout


def spread(values: Iterable[float]) -> dict[str, float]:
    """Return the median, the lowest and the highest value."""
    values = list(values)
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def speed_table(record: dict) -> str:
    """Return the table of steps per second as Markdown."""
    rows = [
        "| command | qlax, steps/s | rejax, steps/s | qlax / rejax | qlax, s to compile | rejax, s to compile |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, pairs in record["repeats"].items():
        speeds = [_median(pairs, side, "steps_per_second") for side in ("qlax", "rejax")]
        compiling = [_median(pairs, side, "compile_seconds") for side in ("qlax", "rejax")]
        cells = [f"`{name}`", *(f"{x:,.0f}" for x in speeds), _written(record["ratios"][name])]
        rows.append(f"| {' | '.join([*cells, *(f'{x:.1f}' for x in compiling)])} |")
    return "\n".join(rows)


def time_to_solve_table(record: dict) -> str:
    """Return the table of seconds per process and per solved agent as Markdown."""
    runs = record["repeats"]
    dqn = statistics.median(run["dqn"]["process_seconds"] - run["dqn"]["eval_seconds"] for run in runs)
    dqn_cell = f"{dqn:.1f} ({sum(run['dqn']['solved'] for run in runs)} of {len(runs)} solved)"
    rows = [
        f"| `{record['qlax']}` | its process, s | agents solved | lowest greedy return "
        "| DQN, s an agent | DQN / qlax, processes | DQN / qlax, per solved agent |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for start, ratios in record["ratios"].items():
        ours = [run["qlax"][start] for run in runs]
        returns = [score for run in ours for score in run["eval_return"]]
        solved = f"{sum(run['solved'] for run in ours)} of {len(returns)}"
        seconds = f"{statistics.median(run['process_seconds'] for run in ours):.1f}"
        cells = [start, seconds, solved, f"{min(returns):.4g}", dqn_cell, *map(_written, ratios.values())]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _median(pairs: list[dict], side: str, name: str) -> float:
    return statistics.median(pair[side][name] for pair in pairs)


def _written(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.2f} ({ratio['lowest']:.2f} to {ratio['highest']:.2f})"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
