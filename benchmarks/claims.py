"""Figures of the score sheet: the paper's claims, drawn from the records of this repository.

Source: Gallici et al., "Simplifying deep temporal difference learning", 2024, arXiv:2407.04811, section 5.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import rc_context
from records import RESULTS
from rows import Row, rows

import qlax
from qlax.config.configure import configure
from qlax.reports.style import STYLE, few_ticks, in_steps, legend_below, save
from qlax.util.statistics import interquartile_mean, stratified_interval

CEILINGS = {"breakout": 111.6, "asterix": 75.0, "space-invaders": 166.0, "freeway": 66.0}  # highest known returns
LAYOUTS = ("cramped-room", "asymm-advantages", "coord-ring", "forced-coord", "counter-circuit")
MAPS = ("3m", "2s3z")
ROUTES = {  # task of continuous actions: its rows with bins and with an actor
    "Pendulum": ("pendulum", "pendulum-actor"),
    "MountainCarContinuous": ("mountaincar-continuous", "mountaincar-continuous-actor"),
    "LunarLanderContinuous": ("lunarlander-continuous", "lunarlander-continuous-actor"),
}
SHOWN = {  # heading of the page: figures and their captions
    "Continuous control": """\
![Greedy return with bins and with an actor, against steps and against seconds of training](figures/claims-routes.png)

The two ways to learn [continuous actions](continuous-actions.md), against steps and against seconds of training all
seeds beside other programs.
Lines are means over seeds, bands 95 % bootstrap intervals.
""",
    "MinAtar": """\
![Interquartile mean of normalised greedy returns over games, against steps and minutes](figures/claims-minatar.png)

The interquartile mean over games and seeds of greedy returns as shares of the highest known ones.
These are 111.6 for Breakout, 75 for Asterix, 66 for Freeway, 166 for Space Invaders, and that of the best seed here
for Seaquest.
Bands are 95 % intervals of a stratified bootstrap over seeds.
Minutes are those of training six seeds of one game, the mean over games.

![Greedy return of Asterix and Breakout with λ = 0 and λ = 0.65, against steps](figures/claims-lambda.png)

Targets of λ = 0.65 against targets of one step; lines are means over six seeds, bands 95 % bootstrap intervals.
[Against DQN and PPO](baselines.md) compares the seconds with those of DQN with replay.
""",
    "Teams": """\
![Results of teams against steps](figures/claims-teams.png)

Means over the seeds, which are the thin lines.
""",
}


class Curve(NamedTuple):
    """Evaluations during training, `P` of them.

    Attributes:
      steps: Environment steps of one seed, `[P]`.
      seconds: Seconds of training all seeds, `[P]`.
      values: Greedy returns, or shares of games won, `[P, seeds]`.
    """

    steps: np.ndarray
    seconds: np.ndarray
    values: np.ndarray

    def at(self, steps: np.ndarray) -> "Curve":
        """Interpolate linearly between evaluations."""
        values = [np.interp(steps, self.steps, each) for each in self.values.T]
        return Curve(steps, np.interp(steps, self.steps, self.seconds), np.stack(values, axis=-1))


def curve(row: Row, value: str = "eval_return") -> Curve | None:
    """Return the evaluations of a row; None if it has no record."""
    found = (row.record() or {}).get("evaluations")
    if found is None:
        return None
    return Curve(*(np.array(found[name], np.float64) for name in ("steps", "seconds", value)))


def draw_readme(path: Path, folder: Path) -> None:
    """Draw three games of MinAtar with `qlax plot`'s own figure, for the README."""
    path.unlink(missing_ok=True)  # no command overwrites a file
    qlax.plot([_as_run(rows()[name], folder) for name in ("breakout", "asterix", "space-invaders")], path)


def draw_speed(path: Path, _: Path) -> None:
    """Draw the steps per second of qlax and of rejax's PQN, from the record of peers.py."""
    repeats = json.loads((RESULTS / "peers.json").read_text())["rejax"]["repeats"]
    names = {"cartpole --seeds 1": "CartPole", "cartpole --seeds 4": "CartPole,\n4 seeds"}
    names["minatar/breakout --total-steps 200000 --seeds 1"] = "MinAtar\nBreakout"
    with rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(2.8, 2), layout="constrained")
        for offset, library in ((-0.2, "qlax"), (0.2, "rejax")):
            speeds = [
                np.mean([each[library]["steps_per_second"] for each in repeats[f"qlax train {command}"]])
                for command in names
            ]
            bars = axes.bar(np.arange(len(names)) + offset, speeds, 0.38, label=library)
            axes.bar_label(bars, [f"{speed / 1000:.0f}k" for speed in speeds], fontsize=6)
        axes.set_xticks(np.arange(len(names)), [*names.values()])
        axes.set_ylabel("steps/s, two CPU cores")
        axes.legend()
        save(figure, path)
        plt.close(figure)


def draw_minatar(path: Path, _: Path) -> None:
    """Draw the interquartile mean over games against steps and against minutes."""
    found = {name: curve(rows()[name]) for name in (*CEILINGS, "seaquest")}
    known = {name: each for name, each in found.items() if each is not None}
    steps = min((each.steps for each in known.values()), key=len)  # older records have fewer evaluations
    curves = {name: each.at(steps) for name, each in known.items()}
    samples = [each.values / CEILINGS.get(name, each.values[-1].max()) for name, each in curves.items()]
    mean, ends = interquartile_mean(samples), stratified_interval(interquartile_mean, samples, 2000)
    minutes = np.mean([each.seconds for each in curves.values()], axis=0) / 60
    with rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(5.5, 2.2), sharey=True, layout="constrained")
        for axes, x in ((left, steps), (right, minutes)):
            axes.plot(x, mean)
            axes.fill_between(x, *ends, alpha=0.2, linewidth=0)
            axes.set_ylim(0, 1)
        in_steps(left)
        few_ticks(right.xaxis)
        left.set(xlabel="environment steps", ylabel=f"normalised return, {len(samples)} games")
        right.set(xlabel="minutes of training, six seeds")
        save(figure, path)
        plt.close(figure)


def draw_lambda(path: Path, _: Path) -> None:
    """Draw Asterix and Breakout with λ = 0 and with λ = 0.65 against steps."""
    with rc_context(STYLE):
        figure, panels = plt.subplots(1, 2, figsize=(5.5, 2.3), layout="constrained")
        for axes, game in zip(panels, ("asterix", "breakout"), strict=True):
            for name, label in ((game, "λ = 0.65"), (f"{game}-lambda-0", "λ = 0")):
                if found := curve(rows()[name]):
                    (line,) = axes.plot(found.steps, found.values.mean(-1), label=label)
                    ends = stratified_interval(lambda samples: samples[0].mean(-1), [found.values], 2000)
                    axes.fill_between(found.steps, *ends, color=line.get_color(), alpha=0.2, linewidth=0)
            in_steps(axes)
            axes.set(title=game.capitalize(), xlabel="environment steps", ylabel="greedy return")
        legend_below(figure, panels[0].get_lines())
        save(figure, path)
        plt.close(figure)


def draw_routes(path: Path, _: Path) -> None:
    """Draw continuous tasks, learned with bins and with an actor, against steps and against seconds."""
    every = {task: [curve(rows()[name]) for name in names] for task, names in ROUTES.items()}
    tasks = {task: [each for each in found if each] for task, found in every.items() if all(found)}
    with rc_context(STYLE):
        figure, panels = plt.subplots(
            2, len(tasks), figsize=(2.8 * len(tasks), 3.9), layout="constrained", sharey="col", squeeze=False
        )
        for column, (task, curves) in zip(panels.T, tasks.items(), strict=True):
            for found, label in zip(curves, ("bins", "actor"), strict=True):
                ends = stratified_interval(lambda samples: samples[0].mean(-1), [found.values], 2000)
                for axes, x in zip(column, (found.steps, found.seconds), strict=True):
                    (line,) = axes.plot(x, found.values.mean(-1), label=label)
                    axes.fill_between(x, *ends, color=line.get_color(), alpha=0.2, linewidth=0)
            in_steps(column[0])
            few_ticks(column[1].xaxis)
            column[0].set(title=task, xlabel="environment steps")
            column[1].set(xlabel="seconds of training")
        figure.supylabel("greedy return", fontsize="medium")
        legend_below(figure, panels[0, 0].get_lines())
        save(figure, path)
        plt.close(figure)


def draw_teams(path: Path, _: Path) -> None:
    """Draw every measured layout of Overcooked and map of SMAX against steps."""
    panels = {
        "Overcooked": ("greedy return", {name: curve(rows()[f"overcooked-{name}"]) for name in LAYOUTS}),
        "SMAX": ("share of battles won", {name: curve(rows()[f"smax-{name}"], "eval_won") for name in MAPS}),
    }
    panels = {title: (label, curves) for title, (label, curves) in panels.items() if any(curves.values())}
    with rc_context(STYLE):
        figure, every = plt.subplots(
            1, len(panels), figsize=(2.8 * len(panels), 2.9), layout="constrained", squeeze=False
        )
        for axes, (title, (label, curves)) in zip(every[0], panels.items(), strict=True):
            for name, found in curves.items():
                if found is not None:
                    (line,) = axes.plot(found.steps, found.values.mean(-1), label=name.replace("-", " "))
                    axes.plot(found.steps, found.values, color=line.get_color(), alpha=0.4, linewidth=0.6)
            in_steps(axes)
            axes.set(title=title, xlabel="environment steps", ylabel=label, ylim=(0, None))
        named = (line for axes in every[0] for line in axes.get_lines())
        legend_below(figure, [line for line in named if not str(line.get_label()).startswith("_")])
        save(figure, path)
        plt.close(figure)


def _as_run(row: Row, folder: Path) -> Path:
    """Write the evaluations of a record as a run directory, which `qlax.plot` draws."""
    record, run = row.record() or {}, folder / row.name
    run.mkdir()
    config = configure(record["preset"], seeds=len(record["seeds"]))
    (run / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    found = record["evaluations"]
    lines = [
        {"updates": steps // config.steps_per_update, "steps": steps, "seconds": seconds, "eval_return": returns}
        for steps, seconds, returns in zip(found["steps"], found["seconds"], found["eval_return"], strict=True)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


FIGURES: dict[str, Callable[[Path, Path], None]] = {  # name of the file: function of the path and an empty folder
    "minatar": draw_readme,
    "speed": draw_speed,
    "claims-minatar": draw_minatar,
    "claims-lambda": draw_lambda,
    "claims-routes": draw_routes,
    "claims-teams": draw_teams,
}
