"""Measure how fast qlax trains, and how close that is to the limits of the device: `python benchmarks/speed.py`.

**Throughput**: environment steps per second of training alone, of one agent and of several, with the settings of a
preset. Every number comes from a process of its own, which measures its ceiling at its beginning and at its end: a
float32 product of two 2048 x 2048 matrices, the best of 8, where a multiplication and an addition count as 2. `share`
is the arithmetic of the network (one forward pass for acting, three for every epoch) as a fraction of that ceiling.
Chunks are timed one by one; the median counts, and the record has the spread.

**Time to score**: seconds from the start of a `qlax train` process, compilation included, until the greedy return of
every seed reaches a bound, without a compilation cache and with one.

**Growth** (`--growth`): cost of CartPole with more environments, longer rollouts, wider networks or more agents.

`--small` reduces all sizes, to try the script out. For a GPU there is `gpu.py`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from records import RESULTS, circumstances, compilation_cache

TARGETS = {  # preset: megaflops per step with its settings
    "cartpole": 1.76,
    "minatar/breakout": 2.4,
    "minatar/asterix": 2.4,
}
TIME_TO_SCORE = {  # command: greedy return that every seed has to reach
    "cartpole-fast --seeds 4": 475,
    "minatar/breakout --seeds 1 --total-steps 500000 --log-interval 5 --eval-interval 10": 10,
}
SMALL = {"num_envs": 16, "num_steps": 8, "num_minibatches": 4, "hidden": [16]}
GROWTH = {  # setting of CartPole's preset: its values
    "num_envs": [8, 32, 128, 512],
    "num_steps": [16, 64, 256],
    "hidden": [[64, 64], [256, 256], [512, 512]],
    "seeds": [1, 4, 16],
}


def main() -> None:
    """Measure the speed, keep the record and print the tables."""
    parser = argparse.ArgumentParser(description="Measure how fast qlax trains.")
    parser.add_argument("--runs", type=int, nargs="+", default=[1, 10], help="agents side by side (default 1 10)")
    parser.add_argument("--seconds", type=float, default=15, help="duration of each measurement (default 15)")
    parser.add_argument("--growth", action="store_true", help="measure only how cost grows with sizes")
    parser.add_argument("--small", action="store_true", help="use tiny sizes, to try the script out")
    parser.add_argument("--out", type=Path, help="record to write (default benchmarks/results/speed.json)")
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # task of a child process
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(**json.loads(options.measure))))
        return
    record = circumstances("python " + " ".join(sys.argv))
    if options.growth:
        record["growth"] = growth(options)
        print(growth_table(record["growth"]))
        growth_plot(
            record["growth"], RESULTS / "growth.png" if options.out is None else options.out.with_suffix(".png")
        )
    else:
        record["throughput"] = throughput(options)
        record["time_to_score"] = [] if options.small else time_to_score()
        print(throughput_table(record["throughput"]))
        print(time_to_score_table(record["time_to_score"]))
    out = options.out or RESULTS / ("growth.json" if options.growth else "speed.json")
    out.write_text(json.dumps(record, indent=2) + "\n")


def throughput(options: argparse.Namespace) -> list[dict]:
    """Measure every target with every number of agents."""
    cases = [(target, number) for target in TARGETS for number in options.runs]
    return [in_a_process(options, target=target, seeds=number) for target, number in cases]


def growth(options: argparse.Namespace) -> list[dict]:
    """Measure CartPole with each value of each setting, one setting at a time."""
    return [
        {"setting": name, "value": value, **in_a_process(options, target="cartpole", **{name: value})}
        for name, values in GROWTH.items()
        for value in values
    ]


def in_a_process(options: argparse.Namespace, **what) -> dict:
    """Return the result of `measure`, called in a process of its own."""
    if options.small:
        what |= SMALL
    what |= {"seconds": 0.5 if options.small else options.seconds}
    command = [sys.executable, __file__, "--measure", json.dumps(what)]
    result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
    print(what, f"{result['steps_per_second']:,.0f} steps/s", file=sys.stderr)
    return result


def measure(target: str, seconds: float, seeds: int = 1, **overrides) -> dict:
    """Measure the speed, the compilation, the memory and the ceiling of training with a preset."""
    import resource

    import jax

    from qlax.config.configure import configure
    from qlax.training.device_runs import DeviceRuns
    from qlax.training.placement import use_cores
    from qlax.training.plan import make

    use_cores()
    ceilings = [ceiling()]
    begun = time.perf_counter()
    plan = make(configure(target, seeds=seeds, **overrides), {})
    placement, runs = plan.placement, DeviceRuns(plan, ())
    with plan.precision():
        chunk = placement.compile(runs.lowered_chunk())
        compile_seconds = time.perf_counter() - begun
        runs.compile()
    state, record = runs.begin(None, plan.new_record())
    state, _ = jax.block_until_ready(chunk(state, record, 1, True))
    begun = time.perf_counter()
    state, _ = jax.block_until_ready(chunk(state, record, 1, True))
    updates = max(1, int(1 / (time.perf_counter() - begun)))  # chunks of about a second
    speeds = []
    while len(speeds) < 3 or sum(updates * plan.config.steps_per_update * seeds / x for x in speeds) < seconds:
        begun = time.perf_counter()
        state, _ = jax.block_until_ready(chunk(state, record, updates, True))
        elapsed = time.perf_counter() - begun
        speeds.append(updates * plan.config.steps_per_update * seeds / elapsed)
    ceilings.append(ceiling())
    speed = statistics.median(speeds)
    devices = 1 if jax.default_backend() == "cpu" else placement.num_devices  # on a CPU a product uses all cores
    memory = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return {
        "target": target,
        "runs": seeds,
        **overrides,
        "device": jax.local_devices()[0].device_kind,
        "placement": str(placement),
        "steps_per_update": plan.config.steps_per_update,
        "steps_per_second": speed,
        "slowest": min(speeds),
        "fastest": max(speeds),
        "compile_seconds": compile_seconds,
        "peak_bytes": memory or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "ceiling_gigaflops": [flops / 1e9 for flops in ceilings],
        "share": None if overrides else speed * TARGETS[target] * 1e6 / statistics.mean(ceilings) / devices,
    }


def ceiling() -> float:
    """Return the floating-point operations per second of a float32 matrix product, the best of 8."""
    import jax

    size = 2048
    matrix = jax.random.normal(jax.random.key(0), (size, size))
    product = jax.jit(lambda matrix: matrix @ matrix)
    jax.block_until_ready(product(matrix))
    seconds = []
    for _ in range(8):
        begun = time.perf_counter()
        jax.block_until_ready(product(matrix))
        seconds.append(time.perf_counter() - begun)
    return 2 * size**3 / min(seconds)


def time_to_score() -> list[dict]:
    """Measure the seconds until every seed reaches the bound, without a compilation cache and then with one."""
    results = []
    for arguments, bound in TIME_TO_SCORE.items():
        with tempfile.TemporaryDirectory() as folder:
            for cache in ("empty", "filled"):
                out = Path(folder, cache)
                command = [sys.executable, "-m", "qlax", "train", *arguments.split(), "--out", str(out)]
                environment = os.environ | compilation_cache(f"{folder}/jax")
                begun = time.perf_counter()
                with subprocess.Popen(
                    command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
                ) as run:
                    reached = None
                    while run.poll() is None and reached is None:
                        time.sleep(0.05)
                        reached = _reached(out / "metrics.jsonl", bound)
                    seconds = time.perf_counter() - begun
                    run.wait()
                process_seconds = time.perf_counter() - begun
                reached = reached or _reached(out / "metrics.jsonl", bound)
                summary = json.loads((out / "summary.json").read_text())
                results.append(
                    {
                        "command": f"qlax train {arguments}",
                        "cache": cache,
                        "bound": bound,
                        "seconds": seconds if reached else None,
                        "steps": reached,
                        "process_seconds": process_seconds,
                        **{name: summary[name] for name in ("compile_seconds", "train_seconds", "eval_return")},
                    }
                )
                print(results[-1], file=sys.stderr)
    return results


def _reached(metrics: Path, bound: float) -> int | None:
    """Return the steps after which the greedy returns of all agents first reached the bound; None if they never did."""
    lines = metrics.read_text().splitlines(keepends=True) if metrics.exists() else []
    for line in (json.loads(line) for line in lines if line.endswith("\n")):
        if all(value is not None and value >= bound for value in line["eval_return"]):
            return line["steps"]
    return None


def throughput_table(results: list[dict]) -> str:
    """Return the table of throughput as Markdown."""
    rows = [
        "| preset | agents | steps/s, all agents | slowest to fastest | share of ceiling | compilation | peak memory |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    rows += [
        f"| {x['target']} | {x['runs']} | {x['steps_per_second']:,.0f} | {x['slowest']:,.0f} to {x['fastest']:,.0f} | "
        f"{x['share'] or float('nan'):.0%} | {x['compile_seconds']:.1f} s | {x['peak_bytes'] / 2**20:,.0f} MiB |"
        for x in results
    ]
    return "\n".join(rows)


def time_to_score_table(results: list[dict]) -> str:
    """Return the table of times to score as Markdown."""
    rows = ["| command | cache | until | seconds | steps per agent |", "| --- | --- | --- | --- | --- |"]
    rows += [
        f"| `{x['command']}` | {x['cache']} | {x['bound']} | "
        + (f"{x['seconds']:.1f} | {x['steps']:,} |" if x["steps"] else "not reached | - |")
        for x in results
    ]
    return "\n".join(rows)


def growth_table(results: list[dict]) -> str:
    """Return the table of growth as Markdown."""
    rows = ["| setting | value | steps/s, all runs | peak memory |", "| --- | --- | --- | --- |"]
    rows += [
        f"| {x['setting']} | {x['value']} | {x['steps_per_second']:,.0f} | {x['peak_bytes'] / 2**20:,.0f} MiB |"
        for x in results
    ]
    return "\n".join(rows)


def growth_plot(results: list[dict], path: Path) -> None:
    """Draw the seconds per million steps against every setting; a horizontal line is a constant cost per step."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.6), layout="constrained")
    labels = {"num_envs": "environments", "num_steps": "rollout length", "hidden": "network width", "seeds": "runs"}
    for axes, name in zip(figure.subplots(1, len(GROWTH), sharey=True), GROWTH, strict=True):
        chosen = [x for x in results if x["setting"] == name]
        values = [x["value"][0] if name == "hidden" else x["value"] for x in chosen]
        axes.loglog(values, [1e6 / x["steps_per_second"] for x in chosen], "o-", base=2)
        axes.set_yscale("log", base=10)
        axes.set_xticks(values, [str(value) for value in values])
        axes.set_xlabel(labels[name])
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("seconds per million steps")
    figure.savefig(path, dpi=150)


def platform() -> str:
    """Return the platform of JAX, found in a process of its own, as JAX takes hold of a GPU's memory."""
    command = [sys.executable, "-c", "import jax; print(jax.default_backend())"]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1]


if __name__ == "__main__":
    main()
