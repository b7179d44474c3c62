"""Train what the README reports, and keep the summaries: `python benchmarks/scores.py [name...]`.

What needs a GPU is trained if it is named: `bash benchmarks/gpu_suites.sh`. Every result is one file in
`benchmarks/results/`, with the command that repeats it, the machine and the date.
"""

import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

PACKAGES = (
    *("qlax", "jax", "flax", "optax", "gymnax", "pgx", "jumanji", "navix", "xminigrid", "craftax", "jaxmarl"),
    *("gymnasium", "ale_py", "envpool"),
)
RESULTS = Path(__file__).parent / "results"
AS_IN_GYMNAX = "--env-options sticky_action_prob=0 --wrappers time_limit="
COMMANDS = {
    "cartpole": "cartpole --seeds 4",
    "cartpole-fast": "cartpole-fast --seeds 10",
    "cartpole-fast-bfloat16": "cartpole-fast --seeds 10 --compute-dtype bfloat16",
    "acrobot": "acrobot --seeds 4",
    "mountaincar": "mountaincar --seeds 4",
    "mountaincar-like-cartpole": "gymnax/MountainCar-v0 --total-steps 500000 --num-envs 32 --num-steps 64 "
    "--num-minibatches 16 --num-epochs 4 --learning-rate 1e-4 --lam 0.95 --epsilon-end 0.2 --epsilon-fraction 0.2 "
    "--reward-scale 0.1 --seeds 4",
    "memory-chain": "memory-chain --seeds 4",
    "memory-chain-constant-rate": "memory-chain --seeds 4 --learning-rate-end 1",
    "memory-chain-without-memory": "memory-chain --seeds 4 --memory none",
    "breakout": "minatar/breakout --total-steps 1000000 --seeds 2",
    "asterix": "minatar/asterix --total-steps 1000000 --seeds 2",
    "space-invaders": "minatar/space-invaders --total-steps 1000000 --seeds 2",
    "freeway": "minatar/freeway --total-steps 1000000 --seeds 2",
    "overcooked-cramped-room": "overcooked-fast/cramped_room --seeds 4",
    "smax-3m": "smax-fast/3m --seeds 2",
    "hanabi": "hanabi-fast --seeds 2",
    "craftax-classic": "craftax-classic --seeds 2",
    "mpe-spread": "mpe/spread --seeds 2",
    "lunarlander": "lunarlander --seeds 4",
    "connect-four": "connect-four --seeds 4",
    "connect-four-self": "connect-four-self --seeds 2",
    "snake": "snake --seeds 2",
    "navix-doorkey": "navix-doorkey --seeds 2",
    "xminigrid-doorkey": "xminigrid-doorkey --seeds 2",
    **{  # as breakout, asterix, ... above, with Gymnax's time limits and no sticky actions
        f"pgx-{game}": f"pgx/minatar-{game.replace('-', '_')} {AS_IN_GYMNAX}{limit} --total-steps 1000000 --seeds 2"
        for game, limit in {"breakout": 1000, "asterix": 1000, "space-invaders": 1000, "freeway": 2500}.items()
    },
}
ON_A_GPU = {  # some ten minutes each
    "craftax-rnn": "craftax-rnn --total-steps 30000000",
    "smax-2s3z": "smax/2s3z",
}


def processor() -> str:
    """The name of the processor, as the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    named = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor()


def circumstances(command: str) -> dict:
    """What a record says of how it came about."""
    return {
        "command": command,
        "date": datetime.date.today().isoformat(),
        "machine": f"{processor()}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}",
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES if importlib.util.find_spec(name)},
    }


def compilation_cache(folder: str) -> dict[str, str]:
    """Environment variables that keep what qlax would keep in its own cache in this folder instead."""
    return {"JAX_COMPILATION_CACHE_DIR": folder, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2"}


def main(names: list[str]) -> None:
    """Run the named commands one after the other, without a name all that do not need a GPU."""
    RESULTS.mkdir(exist_ok=True)
    for name in names or COMMANDS:
        with tempfile.TemporaryDirectory() as folder:
            command = ["qlax", "train", *(COMMANDS | ON_A_GPU)[name].split()]
            subprocess.run([sys.executable, "-m", "qlax.cli", *command[1:], "--out", f"{folder}/run"], check=True)
            summary = json.loads(Path(folder, "run", "summary.json").read_text())
        record = circumstances(" ".join(command)) | summary
        (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")
    print(table())


def table() -> str:
    """The results kept so far, as Markdown."""
    rows = [
        "| command | greedy return of each seed | while exploring | steps/s, all seeds | seconds of training |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in COMMANDS | ON_A_GPU:
        if not (path := RESULTS / f"{name}.json").exists():
            continue
        result = json.loads(path.read_text())
        greedy, exploring = (_listed(result[kind]["per_run"]) for kind in ("eval_return", "train_return"))
        speed = f"{result['steps_per_second']:,.0f} | {result['train_seconds']:.0f}"
        rows.append(f"| `{result['command']}` | {greedy} | {exploring} | {speed} |")
    return "\n".join(rows)


def _listed(values: list[float | None]) -> str:
    return ", ".join("-" if value is None else f"{value:.4g}" for value in values)


if __name__ == "__main__":
    main(sys.argv[1:])
