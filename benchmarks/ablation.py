"""Change one part of PQN at a time on MinAtar, and compare with plain PQN: `python benchmarks/ablation.py [arm...]`.

An arm is the preset `minatar/<game>` with other settings; "plain" has none. Every arm trains all seeds of a game in one
program. Arms take turns, game by game, so that other programs on the machine slow all of them alike. A run that has a
result is not repeated, and one that was interrupted goes on from its last checkpoint: the same command continues.
Without names, all arms are trained.

Scores are greedy returns divided by the ceilings below. An arm is accepted if a run of it outscores one of plain PQN
with a probability of at least 0.6 over all games, and if its mean is more than 5 % lower in none.

`--seed 100` confirms on other seeds what was selected on the seeds 0 to 4; it needs another `--out`, as does
`--total-steps`, which also serves to try the script out. `table` trains nothing: it prints the table of the record, and
draws the figure beside it.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from records import RESULTS, circumstances

import qlax
from qlax.util import statistics

RUNS = Path("runs/ablation")
EPSILON = 0.05  # for the episodes that are evaluated besides the greedy ones
CEILINGS = {
    "breakout": 111.6,
    "asterix": 75.0,
    "freeway": 66.0,
    "space-invaders": 166.0,
    "seaquest": 32.56,  # the best seed of plain PQN after 1,000,000 steps, in benchmarks/results/seaquest.json
}
HL_GAUSS = "--head hl_gauss --head-low -1 --head-high 100 --head-transform symlog"
LADDER = "--epsilon-end 0.02 --epsilon-spread 10"
LAMBDA = "--lam 0.95 --lam-end 0.65 --lam-fraction 0.2"
ARMS = {
    "plain": "",
    "hl_gauss": HL_GAUSS,
    "hl_gauss, linear": "--head hl_gauss --head-low -1 --head-high 40",
    "dueling": "--dueling true",
    "hl_gauss, dueling": f"{HL_GAUSS} --dueling true",
    "ensemble": "--head ensemble",
    "product": "--encoder product",
    "wide": "--hidden 256",  # the dense layer of "product" after the convolution of plain PQN
    "ladder": LADDER,
    "epsilon 0.02": "--epsilon-end 0.02",  # the mean of the ladder's logarithms, for all environments
    "lambda": LAMBDA,
    "adam": "--optimizer adam",
    "adamw": "--optimizer adamw",
    "muon": "--optimizer muon --learning-rate 2e-3",
}
PRESETS = {"plus": "minatar-plus"}  # arms that are presets of their own
MARGIN, LOSS = 0.6, 0.05  # of the rule by which an arm is accepted


def main() -> None:
    """Train what has no result yet, print the table and draw the figure."""
    known = [*ARMS, *PRESETS]
    parser = argparse.ArgumentParser(description="Compare changes of PQN on MinAtar.")
    parser.add_argument("arms", nargs="*", help=f"arms to train, from {', '.join(known)}; or table")
    parser.add_argument("--games", nargs="+", choices=[*CEILINGS], default=[*CEILINGS])
    parser.add_argument("--seed", type=int, default=0, help="first seed")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    parser.add_argument("--total-steps", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, default=RESULTS / "ablation.json", help="record")
    options = parser.parse_args()
    if unknown := [arm for arm in options.arms if arm not in (*known, "table")]:
        parser.error(f"unknown arm {unknown[0]!r}; expected one of {', '.join(known)}, or table")
    record = json.loads(options.out.read_text()) if options.out.exists() else {}
    asked = {"seed": options.seed, "seeds": options.seeds, "total_steps": options.total_steps}
    if record and asked != record["asked"]:
        parser.error(f"{options.out} is of {record['asked']}, not of {asked}: give another --out")
    if options.arms != ["table"]:
        for game in options.games:
            for arm in options.arms or ARMS:
                if arm not in record.get("arms", {}) or game not in record["arms"][arm]:
                    command = command_of(arm, game, options)
                    result = trained(command, options.out.stem)
                    # Another process may have written to the record in the meantime.
                    record = json.loads(options.out.read_text()) if options.out.exists() else {}
                    record = record or circumstances("python benchmarks/ablation.py") | {"asked": asked, "arms": {}}
                    record["arms"].setdefault(arm, {})[game] = result
                    options.out.write_text(json.dumps(record, indent=2) + "\n")
    if record:
        rows = compared(record["arms"])
        print(table(rows))
        draw(rows, options.out.with_suffix(".png"))


def command_of(arm: str, game: str, options: argparse.Namespace) -> str:
    """Return the command that trains an arm on a game."""
    preset, words = PRESETS.get(arm, "minatar"), ARMS.get(arm, "")
    sizes = f"--total-steps {options.total_steps} --seed {options.seed} --seeds {options.seeds}"
    return " ".join(f"qlax train {preset}/{game} {sizes} {words}".split())


def trained(command: str, folder: str) -> dict:
    """Train to the end, from the last checkpoint of an earlier attempt if there is one; return the result."""
    run = RUNS / folder / command.removeprefix("qlax train ").replace(" ", "_").replace("/", "-")
    words = ["resume", str(run)] if (run / "config.json").exists() else [*command.split()[1:], "--out", str(run)]
    if not (run / "summary.json").exists():
        subprocess.run([sys.executable, "-m", "qlax", *words], check=True)
    summary = json.loads((run / "summary.json").read_text())
    played = qlax.evaluate(run, episodes=summary["eval_episodes"], epsilon=EPSILON)
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    outside = [line["target_outside"] for line in lines if "target_outside" in line]
    return {
        "command": command,
        "seconds": summary["train_seconds"],
        "compile_seconds": summary["compile_seconds"],
        "load_average": os.getloadavg()[0],
        "eval_return": summary["eval_return"]["per_run"],
        "epsilon_return": [estimate.mean for estimate in played.each],
        **({"target_outside": max(max(line) for line in outside)} if outside else {}),
    }


def compared(arms: dict) -> dict[str, dict]:
    """Return what the table shows of every arm, over the games that it and plain PQN have."""
    rows = {}
    for arm, results in arms.items():
        games = [game for game in CEILINGS if game in results and game in arms.get("plain", {})]
        if not games:
            continue
        own, plain = (
            {
                key: [np.array(source[game][key]) / CEILINGS[game] for game in games]
                for key in ("eval_return", "epsilon_return")
            }
            for source in (results, arms["plain"])
        )
        better = float(statistics.probability_of_improvement(own["eval_return"], plain["eval_return"]))
        change = [
            x.mean() / max(y.mean(), 1e-9) - 1 for x, y in zip(own["eval_return"], plain["eval_return"], strict=True)
        ]
        seconds = [sum(source[game]["seconds"] for game in games) for source in (results, arms["plain"])]
        rows[arm] = {
            "games": games,
            "score": statistics.interquartile_mean(own["eval_return"]),
            "interval": statistics.stratified_interval(statistics.interquartile_mean, own["eval_return"]),
            "exploring": statistics.interquartile_mean(own["epsilon_return"]),
            "better": better,
            "better_interval": improvement_interval(own["eval_return"], plain["eval_return"]),
            "changes": dict(zip(games, change, strict=True)),
            "seconds": seconds[0],
            "slower": seconds[0] / seconds[1],
            "accepted": len(games) == len(CEILINGS) and better >= MARGIN and min(change) >= -LOSS,
        }
    return rows


def improvement_interval(own: list[np.ndarray], plain: list[np.ndarray]) -> tuple[float, float]:
    """Return the 95 % interval of the probability of improvement, with the runs of both resampled in every game."""
    random = np.random.default_rng(0)
    draws = statistics.RESAMPLES

    def resampled(scores: list[np.ndarray]) -> list[np.ndarray]:
        return [x[random.integers(len(x), size=(draws, len(x)))] for x in scores]

    low, high = np.percentile(statistics.probability_of_improvement(resampled(own), resampled(plain)), [2.5, 97.5])
    return float(low), float(high)


def table(rows: dict[str, dict]) -> str:
    """Return the comparison as a table in Markdown."""
    lines = [
        "| arm | games | score (IQM) | with epsilon 0.05 | better than plain | largest loss | seconds | accepted |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for arm, row in rows.items():
        worst = min(row["changes"], key=lambda game, row=row: row["changes"][game])
        score = f"{row['score']:.3f}" + ("" if row["interval"] is None else " ({:.3f}-{:.3f})".format(*row["interval"]))
        better = f"{row['better']:.2f} ({row['better_interval'][0]:.2f}-{row['better_interval'][1]:.2f})"
        loss = f"{100 * row['changes'][worst]:+.0f} % in {worst}"
        cost = f"{row['seconds']:.0f} (x {row['slower']:.2f})"
        verdict = "" if arm == "plain" else "yes" if row["accepted"] else "no"
        cells = (arm, len(row["games"]), score, f"{row['exploring']:.3f}", better, loss, cost, verdict)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def draw(rows: dict[str, dict], path: Path) -> None:
    """Draw the scores of all arms with their intervals, and the probability of improvement."""
    figure, axes = plt.subplots(1, 2, figsize=(7.2, 0.6 + 0.28 * len(rows)), sharey=True, layout="constrained")
    for place, row in enumerate(reversed(rows.values())):
        color = "#009E73" if row["accepted"] else "#6b7280"
        pairs = ((row["score"], row["interval"]), (row["better"], row["better_interval"]))
        for axis, (middle, ends) in zip(axes, pairs, strict=True):
            axis.plot(ends or (middle, middle), (place, place), color=color, linewidth=2)
            axis.plot(middle, place, "o", color=color, markersize=4)
    axes[0].set_yticks(range(len(rows)), [*reversed(rows)])
    axes[0].set_xlabel("interquartile mean of the score")
    axes[1].set_xlabel("probability of improvement over plain PQN")
    axes[1].axvline(MARGIN, color="#9ca3af", linewidth=1, linestyle=":")
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
