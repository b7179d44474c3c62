"""Measure many runs, devices and processes on one machine: `python benchmarks/scaling.py [part...]`.

sweep       64 settings of learning rate and lambda on CartPole, in one program, and in one process per setting, one at
            a time; both are timed from the start of a process to its end, and begin with an empty compilation cache
devices     many runs dealt to devices, and one run whose environments are split among them: speed and scores
processes   CartPole in one, two and four processes that split its environments; then one of two processes is killed,
            and a single process resumes the run
population  population-based training from bad learning rates, the same rates without it, and the rate of the preset

Each part has a record of its own, `benchmarks/results/scaling-<part>.json`, on a GPU `scaling-<part>-gpu.json`.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from records import RESULTS, circumstances, compilation_cache

QLAX = [sys.executable, "-m", "qlax"]
LEARNING_RATES = ("3e-5", "6e-5", "1e-4", "2e-4", "4e-4", "8e-4", "1.6e-3", "3.2e-3")
LAMBDAS = ("0", "0.3", "0.5", "0.65", "0.8", "0.9", "0.95", "1")
SWEEP_STEPS = "100_000"
BAD_RATES = ["--learning-rate", "log-uniform:1e-6:3e-5", "--draws", "16"]
OFTEN = ["--log-interval", "4", "--eval-interval", "4", "--eval-episodes", "16"]


def trained(words: list[str], run: Path, cache: Path, cores: int | None = None) -> dict:
    """Train; return the wall-clock seconds of the process, and entries of the summary."""
    environment = os.environ | compilation_cache(str(cache))
    if cores is not None:
        environment["JAX_NUM_CPU_DEVICES"] = str(cores)
    begun = time.perf_counter()
    subprocess.run([*QLAX, "train", *words, "--out", str(run)], env=environment, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - begun
    return {"command": " ".join(["qlax", "train", *words]), "seconds": round(seconds, 1), **summary(run)}


def summary(run: Path) -> dict:
    """Return the entries of a run's summary that records keep."""
    found = json.loads((run / "summary.json").read_text())
    return {
        name: found[name] for name in ("eval_return", "steps_per_second", "compile_seconds", "device", "num_devices")
    }


def sweep(folder: Path) -> dict:
    """Compare one program for all settings with one process per setting."""
    common = ["cartpole", "--total-steps", SWEEP_STEPS]
    words = [*common, "--learning-rate", *LEARNING_RATES, "--lam", *LAMBDAS]
    together = trained(words, folder / "together", folder / "cache-together")
    settings = [(rate, lam) for rate in LEARNING_RATES for lam in LAMBDAS]
    seconds, returns = 0.0, []
    for index, (rate, lam) in enumerate(settings):
        one = trained(
            [*common, "--learning-rate", rate, "--lam", lam], folder / f"apart-{index}", folder / "cache-apart"
        )
        seconds += one["seconds"]
        returns += one["eval_return"]["per_run"]
        print(f"{index + 1} of {len(settings)}: {one['seconds']} s", file=sys.stderr)
    apart = {"seconds": round(seconds, 1), "eval_return": {"per_run": returns}}
    return {"together": together, "apart": apart, "ratio": round(seconds / together["seconds"], 2)}


def devices(folder: Path) -> dict:
    """Train the same runs on one device and on all, then with several devices per run."""
    there = device_count()
    found = {}
    for target in ("cartpole", "minatar/breakout"):
        for number in sorted({1, there}):
            words = [target, "--seeds", "8", "--total-steps", "300_000", "--devices", str(number)]
            found[f"{target}, 8 runs, devices {number}"] = trained(words, folder / f"{len(found)}", folder / "cache")
            words = [target, "--total-steps", "300_000", "--devices", str(number)]
            name = f"{target}, 1 run split into {number}"
            found[name] = trained(words, folder / f"{len(found)}", folder / "cache")
    if all(measured["device"].startswith("cpu") for measured in found.values()):
        # For scores only: a CPU can act as more devices than it has cores, but is not faster for it.
        for parts in (1, 2, 4):
            words = ["cartpole", "--seeds", "4", "--devices", str(4 * parts)]
            name = f"cartpole, 4 seeds, {parts} devices a run"
            found[name] = trained(words, folder / f"{len(found)}", folder / "cache", cores=4 * parts)
    return found


def device_count() -> int:
    """Return the number of devices of this machine, as JAX counts them; those of a CPU are its cores."""
    code = "import jax; from qlax.training.placement import use_cores; use_cores(); print(len(jax.devices()))"
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def started(number: int, words: list[str], cache: Path) -> list[subprocess.Popen]:
    """Start the command in several processes, each with one device if on a CPU."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    several = ["--coordinator", f"127.0.0.1:{port}", "--num-processes", str(number), "--process-id"]
    environment = os.environ | compilation_cache(str(cache)) | {"JAX_NUM_CPU_DEVICES": "1"}
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return [
        subprocess.Popen([*QLAX, *words, *several, str(index)], env=environment, **pipes) for index in range(number)
    ]


def processes(folder: Path) -> dict:
    """Measure training in several processes, and how a process ends when another one is killed."""
    found = {}
    for number in (1, 2, 4):
        run = folder / str(number)
        begun = time.perf_counter()
        each = started(number, ["train", "cartpole-fast", "--out", str(run)], folder / "cache")
        assert [process.wait() for process in each] == [0] * number
        found[f"{number} processes"] = {"seconds": round(time.perf_counter() - begun, 1), **summary(run)}
    for lost in (0, 1):
        run = folder / f"lost-{lost}"
        words = ["train", "cartpole-fast", "--log-interval", "4", "--checkpoint-interval", "8", "--eval-interval", "28"]
        each = started(2, [*words, "--out", str(run)], folder / "cache")
        while len(list(run.glob("checkpoints/*.safetensors"))) < 2:
            time.sleep(0.1)
        each[lost].kill()
        begun = time.perf_counter()
        _, said = each[1 - lost].communicate()
        seconds = time.perf_counter() - begun
        newest = int(max(run.glob("checkpoints/*.safetensors")).stem)
        subprocess.run([*QLAX, "resume", str(run)], check=True, stdout=subprocess.DEVNULL)
        found[f"process {lost} of 2 killed, resumed by 1"] = {
            "the other ended after seconds": round(seconds, 1),
            "its last line": said.strip().splitlines()[-1].replace(str(folder), "runs"),
            "resumed from update": newest,
            **summary(run),
        }
    return found


def population(folder: Path) -> dict:
    """Train from bad learning rates with and without a population, and with the rate of the preset."""
    settings = {
        "population": [*BAD_RATES, "--population", "pbt"],
        "the same rates, fixed": BAD_RATES,
        "the preset's rate": ["--seeds", "16"],
    }
    return {
        name: trained(["cartpole-fast", *words, *OFTEN], folder / str(index), folder / "cache")
        for index, (name, words) in enumerate(settings.items())
    }


PARTS = {part.__name__: part for part in (sweep, devices, processes, population)}


def main(names: list[str]) -> None:
    """Measure the named parts, or all of them."""
    for name in names or PARTS:
        with tempfile.TemporaryDirectory() as folder:
            found = PARTS[name](Path(folder))
        on_gpu = "gpu" in json.dumps(found).lower()
        record = circumstances(f"python benchmarks/scaling.py {name}") | found
        path = RESULTS / f"scaling-{name}{'-gpu' if on_gpu else ''}.json"
        path.write_text(json.dumps(record, indent=2) + "\n")
        print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main(sys.argv[1:])
