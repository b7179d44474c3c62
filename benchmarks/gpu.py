"""Measure training on a GPU: `bash benchmarks/gpu.sh`.

**It has not been run on a GPU yet.** It measures presets with 1 to 1,024 agents, with options on and off, each
in a process of its own; whole runs until a score; and whether `--cuda-graph` trains the same agents. It prints tables,
keeps the record `benchmarks/results/gpu.json`, and fails if an expectation in `claims` does not hold. These are about
GPUs: elsewhere they are not checked.

The tables also show the number of operations of an update, as counted by `gpu_compile.py`, where it is known. If
training is limited by launches, the time of an update divided by this number is the cost of one launch.

`--small` reduces all sizes, to try the script out on any machine.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import speed
from records import RESULTS, circumstances

GRAPH = {"cuda_graph": True}
CASES = (  # preset, agents, settings
    *(("cartpole", agents, on) for agents in (1, 10, 128, 1024) for on in ({}, GRAPH)),
    *(("minatar/breakout", agents, on) for agents in (1, 10, 128) for on in ({}, GRAPH)),
    ("minatar/breakout", 10, {"matmul_precision": "float32"}),
    ("minatar/breakout", 10, {"compute_dtype": "bfloat16"}),
)
WHOLE = {  # command: greedy return that agents should reach
    "cartpole-fast --seeds 4 --until 475": 475,
    "cartpole --seeds 128": 475,
    "minatar/breakout --seeds 10": 10,
}


def main() -> None:
    """Measure, keep the record, print the tables and check the claims."""
    parser = argparse.ArgumentParser(description="Measure how fast qlax trains on a GPU, and check what is claimed.")
    parser.add_argument("--seconds", type=float, default=4, help="duration of each measurement (default 4)")
    parser.add_argument("--small", action="store_true", help="use tiny sizes, to try the script out")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu.json", help="record to write")
    parser.add_argument("--agreement", help=argparse.SUPPRESS)  # task of a child process
    options = parser.parse_args()
    if options.agreement:
        print(json.dumps(agreement(**json.loads(options.agreement))))
        return
    record = circumstances("python " + " ".join(sys.argv))
    agents = 8 if options.small else 1024
    record["throughput"] = [
        speed.in_a_process(options, target=preset, seeds=min(number, agents), **on) | {"settings": on}
        for preset, number, on in CASES
    ]
    sizes = speed.SMALL if options.small else {}
    tried = [sys.executable, __file__, "--agreement", json.dumps(sizes)]
    record["agreement"] = json.loads(subprocess.run(tried, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])
    record["whole_runs"] = whole_runs(options.small)
    options.out.write_text(json.dumps(record, indent=2) + "\n")
    is_full = speed.platform() == "gpu" and not options.small
    counted = json.loads((RESULTS / "gpu_compile.json").read_text())["states"]["today"] if is_full else {}
    print(throughput_table(record["throughput"], counted))
    print(whole_runs_table(record["whole_runs"]))
    if is_full:
        broken = [claim for claim, holds in claims(record).items() if not holds]
        sys.exit("\n".join(["These claims do not hold:", *broken]) if broken else 0)


def claims(record: dict) -> dict[str, bool]:
    """Return what is claimed about GPUs, and whether the record agrees."""
    rate = {(x["target"], x["runs"], *x["settings"]): x["steps_per_second"] for x in record["throughput"]}
    presets = ("cartpole", "minatar/breakout")
    return {
        "--cuda-graph trains the same agents, but for rounding": record["agreement"]["difference"] < 1e-2,
        **{
            f"--cuda-graph is not slower: {preset}, 1 agent": rate[preset, 1, "cuda_graph"] > 0.95 * rate[preset, 1]
            for preset in presets
        },
        **{
            f"an update of 10 agents takes at most twice as long as one of 1: {preset}": rate[preset, 10]
            > 5 * rate[preset, 1]
            for preset in presets
        },
        **{
            f"{run['command']} reaches {run['bound']}": run["reached"] >= 0.9 * len(run["eval_return"]["per_run"])
            for run in record["whole_runs"]
        },
    }


def agreement(**sizes) -> dict:
    """Return the largest difference that `--cuda-graph` makes to weights, relative to the largest weight of its layer.

    A graph is made when a program runs for the first times and changed in later ones, so chunks follow each other.
    """
    import jax
    import numpy as np

    from qlax.config.configure import configure
    from qlax.training.device_runs import DeviceRuns
    from qlax.training.placement import use_cores
    from qlax.training.plan import make

    use_cores()
    weights = []
    for is_on in (False, True):
        plan = make(configure("cartpole", seeds=2, deterministic=True, cuda_graph=is_on, **sizes), {})
        runs = DeviceRuns(plan, ())
        runs.compile()
        state, record = runs.begin(None, plan.new_record())
        for updates in (1, 2, 1, 2):
            state, record = runs.chunk(state, record, updates, True)
        weights.append([np.asarray(x) for x in jax.tree.leaves(state.params)])
    return {"difference": max(float(np.abs(x - y).max() / np.abs(x).max()) for x, y in zip(*weights, strict=True))}


def whole_runs(small: bool) -> list[dict]:
    """Train to the end with the compilation cache as it is; return times, and how many agents reached the bound."""
    results = []
    for arguments, bound in WHOLE.items():
        if small:
            sizes = "--num-envs 16 --num-steps 8 --num-minibatches 4 --hidden 16 --total-steps 2000"
            arguments = arguments.replace("128", "8") + f" {sizes}"
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "qlax", "train", *arguments.split(), "--out", f"{folder}/run"]
            begun = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds = time.perf_counter() - begun
            summary = json.loads(Path(folder, "run", "summary.json").read_text())
        names = ("total_steps", "compile_seconds", "train_seconds", "eval_seconds", "steps_per_second", "eval_return")
        reached = sum(value >= bound for value in summary["eval_return"]["per_run"])
        results.append({"command": f"qlax train {arguments}", "bound": bound, "reached": reached})
        results[-1] |= {"process_seconds": seconds, **{name: summary[name] for name in names}}
    return results


def throughput_table(results: list[dict], counted: dict[str, dict]) -> str:
    """Return the table of speeds as Markdown, with the counted operations of each case, of which some are known."""
    rows = [
        "| preset | agents | settings | steps/s, all agents | ms per update | operations | µs per operation |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for x in results:
        update = x["steps_per_update"] * x["runs"] / x["steps_per_second"]
        # A graph launches the same operations together; other settings change them.
        has_count = x["settings"] in ({}, GRAPH)
        operations = counted.get(f"{x['target']}:{x['runs']}", {}).get("update") if has_count else None
        cost = f"{operations:,} | {update / operations * 1e6:.1f}" if operations else "- | -"
        settings = ", ".join(f"{name}={value}" for name, value in x["settings"].items()) or "-"
        rows.append(
            f"| {x['target']} | {x['runs']} | {settings} | {x['steps_per_second']:,.0f} | {update * 1e3:.1f} | {cost} |"
        )
    return "\n".join(rows)


def whole_runs_table(results: list[dict]) -> str:
    """Return the table of whole runs as Markdown."""
    rows = [
        "| command | steps per agent | seconds of training | of the process | agents that reached the bound |",
        "| --- | --- | --- | --- | --- |",
    ]
    rows += [
        f"| `{x['command']}` | {x['total_steps']:,} | {x['train_seconds']:.1f} | {x['process_seconds']:.1f} | "
        f"{x['reached']} of {len(x['eval_return']['per_run'])} at {x['bound']} |"
        for x in results
    ]
    return "\n".join(rows)


if __name__ == "__main__":
    main()
