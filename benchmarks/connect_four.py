"""Does playing against itself get better? `python benchmarks/connect_four.py`.

Trains the preset connect-four-self to several lengths, and connect-four, which plays against random moves. Then every
agent plays 1,000 games against the one with the shortest training by itself, and 1,000 against the one trained on
random moves. Agents are greedy, their opponents but for one move in twenty, so that games differ. Who begins is drawn.

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
MOST_MOVES = 22  # of one player: the board has 42 places, and the opponent's answer is part of a step


def main() -> None:
    """Train, play, keep the record and print it as a table."""
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
    print(f"| trained against | against random moves | itself after {LENGTHS[0]:,} steps | the first of this table |")
    print("| --- | --- | --- | --- |")
    for name, row in table.items():
        shares = [f"{100 * against['won']:.1f} %" for against in row.values()]
        print(f"| {name} | {' | '.join(shares)} |")


def train(folder: str, name: str, *arguments: str) -> Path:
    """The run directory of one command."""
    out = Path(folder, name)
    subprocess.run([sys.executable, "-m", "qlax", "train", *arguments, "--out", str(out)], check=True)
    return out


def match(agent: qlax.Agent, opponent: str) -> dict[str, float]:
    """Shares of games that the agent won, drew and lost."""
    env = qlax.Vec(qlax.make("pgx/connect_four", opponent=opponent, opponent_epsilon=EPSILON), GAMES)
    advance = jax.jit(env.step)
    state, step = jax.jit(env.reset)(jax.random.key(0))
    returns = np.full(GAMES, np.nan)  # of every board's first game
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
