"""Train the presets and keep their results: `python benchmarks/scores.py [name...]`.

Without a name, all runs that have no result yet are trained, one after the other; after an interruption the same
command continues. Runs that need a GPU are trained only if they are named, as in `bash benchmarks/gpu_suites.sh`. Every
result is one file in `benchmarks/results/`, with the command that repeats it, the machine, the date and the evaluations
during training; `python benchmarks/sheet.py` makes docs/results.md from these files. Run directories stay in
`runs/scores/`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from records import RESULTS, circumstances

import qlax
from qlax.util.files import free_name

RUNS = Path("runs/scores")
EPSILON = 0.05  # for the episodes that are evaluated besides the greedy ones
AS_IN_GYMNAX = "--env-options sticky_action_prob=0 --wrappers time_limit="
COMMANDS = {
    "cartpole": "cartpole --seeds 10",
    "cartpole-fast": "cartpole-fast --seeds 10",
    "cartpole-fast-bfloat16": "cartpole-fast --seeds 10 --compute-dtype bfloat16",
    "acrobot": "acrobot --seeds 10",
    "mountaincar": "mountaincar --seeds 10",
    "mountaincar-like-cartpole": "gymnax/MountainCar-v0 --total-steps 500000 --num-envs 32 --num-steps 64 "
    "--num-minibatches 16 --num-epochs 4 --learning-rate 1e-4 --lam 0.95 --epsilon-end 0.2 --epsilon-fraction 0.2 "
    "--reward-scale 0.1 --seeds 4",
    "memory-chain": "memory-chain --seeds 4",
    "memory-chain-falling-rate": "memory-chain --seeds 4 --learning-rate-end 0",
    "memory-chain-without-memory": "memory-chain --seeds 4 --memory none",
    "breakout": "minatar/breakout --seeds 6",
    "breakout-short": "minatar/breakout --total-steps 1000000 --seeds 2",
    "asterix": "minatar/asterix --seeds 6",
    "space-invaders": "minatar/space-invaders --seeds 6",
    "freeway": "minatar/freeway --seeds 6",
    "seaquest": "minatar/seaquest --total-steps 1000000 --seeds 2",
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
ON_A_GPU = {  # about ten minutes each
    "craftax-rnn": "craftax-rnn --total-steps 30000000",
    "smax-2s3z": "smax/2s3z",
}


def main(names: list[str]) -> None:
    """Train the named runs; without a name, all that have no result and need no GPU."""
    for name in names or COMMANDS:
        command = f"qlax train {(COMMANDS | ON_A_GPU)[name]}"
        if names or _recorded(name) != command:
            train(name, command)


def train(name: str, command: str) -> None:
    """Train to the end, from the last checkpoint of an earlier attempt if there is one, and keep the result."""
    run = RUNS / command.removeprefix("qlax train ").replace(" ", "_").replace("/", "-")
    if (run / "summary.json").exists():
        run.rename(free_name(run.with_name(f"{run.name}-earlier")))  # the run is to be repeated
    words = ["resume", str(run)] if (run / "config.json").exists() else [*command.split()[1:], "--out", str(run)]
    subprocess.run([sys.executable, "-m", "qlax", *words], check=True)
    keep(name, command, run, os.getloadavg()[0])


def keep(name: str, command: str, run: Path, load_average: float) -> None:
    """Write the record of a finished run; `load_average` is that of the machine at the end."""
    summary = json.loads((run / "summary.json").read_text())
    lines = list(map(json.loads, (run / "metrics.jsonl").read_text().splitlines()))
    lines = [line for line in lines if any(x is not None for x in line["eval_return"])]
    evaluations = {key: [line[key] for line in lines] for key in ("steps", "seconds", "eval_return")}
    record = circumstances(command) | {"load_average": load_average} | summary | {"evaluations": evaluations}
    played = qlax.evaluate(run, episodes=summary["eval_episodes"], epsilon=EPSILON)
    record |= {"epsilon": EPSILON, "epsilon_return": {"per_run": [estimate.mean for estimate in played.each]}}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")


def _recorded(name: str) -> str | None:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text())["command"] if path.exists() else None


if __name__ == "__main__":
    main(sys.argv[1:])
