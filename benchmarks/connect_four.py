"""Measure whether an agent that plays against itself gets better: `python benchmarks/connect_four.py`.

The script trains with the preset connect-four-self for several numbers of steps, and with connect-four, whose opponent
moves at random. Then every agent plays 1,000 games against random moves, 1,000 games against the agent with the
shortest training against itself, and 1,000 games against the agent trained on random moves. Agents act greedily. An
opponent that is an agent moves at random in one of twenty cases, so that games differ. The first player is drawn at
random.

The record is `benchmarks/results/connect-four-self-play.json`; the agents are not kept.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
from records import RESULTS, circumstances

import qlax

LENGTHS = (125_000, 250_000, 500_000, 1_000_000, 2_000_000)
GAMES, EPSILON = 1_000, 0.05
MOST_MOVES = 22  # moves of one player: the board has 42 places, and a step includes the opponent's answer


def main() -> None:
    """Train all agents, let them play, keep the record and print it as a table."""
    with tempfile.TemporaryDirectory() as folder:
        runs = {"random moves": train(folder, "random", "connect-four")}
        for steps in LENGTHS:
            runs[f"itself, {steps:,} steps"] = train(
                folder, str(steps), "connect-four-self", "--total-steps", str(steps)
            )
        names = list(runs)
        earlier, of_random = names[1], names[0]
        table = {}
        for name in names:
            agent = qlax.load(runs[name])
            table[name] = {
                "random": match(agent, "random"),
                "earlier": match(agent, str(runs[earlier])),
                "trained on random moves": match(agent, str(runs[of_random])),
            }
            print(name, table[name], file=sys.stderr)
    record = circumstances("python benchmarks/connect_four.py")
    record |= {"games": GAMES, "opponent_epsilon": EPSILON, "earlier": earlier, "agents": table}
    (RESULTS / "connect-four-self-play.json").write_text(json.dumps(record, indent=2) + "\n")
    print(f"| trained against | won against random moves | itself after {LENGTHS[0]:,} steps | the agent of row 1 |")
    print("| --- | --- | --- | --- |")
    for name, row in table.items():
        shares = [f"{100 * against['won']:.1f} %" for against in row.values()]
        print(f"| {name} | {' | '.join(shares)} |")


def train(folder: str, name: str, *arguments: str) -> Path:
    """Train with one command; return the run directory."""
    out = Path(folder, name)
    subprocess.run([sys.executable, "-m", "qlax", "train", *arguments, "--out", str(out)], check=True)
    return out


def match(agent: qlax.Agent, opponent: str) -> dict[str, float]:
    """Return the shares of games that the agent won, drew and lost."""
    env = qlax.Vec(qlax.make("pgx/connect_four", opponent=opponent, opponent_epsilon=EPSILON), GAMES)
    advance = jax.jit(env.step)
    state, step = jax.jit(env.reset)(jax.random.key(0))
    returns = np.full(GAMES, np.nan)  # return of the first game on every board
    for key in jax.random.split(jax.random.key(1), MOST_MOVES):
        state, step = advance(key, state, agent.act(step.obs, step.legal))
        returns = np.where(np.isnan(returns), step.metrics["episode_return"], returns)
    return {
        "won": float(np.mean(returns > 0)),
        "drawn": float(np.mean(returns == 0)),
        "lost": float(np.mean(returns < 0)),
    }


if __name__ == "__main__":
    main()
