"""What a training leaves behind: weights, pictures and, last of all, the summary."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qlax.agents.agent import Agent
from qlax.config.settings import Config
from qlax.errors import DivergedError
from qlax.play import film
from qlax.reports import results
from qlax.storage.history import History
from qlax.storage.metrics import curves
from qlax.training import best, population, processes, summary
from qlax.training.loop import Loop
from qlax.types import PyTree
from qlax.util.text import six_digits


@dataclass(frozen=True)
class Result:
    """What a training run leaves behind.

    Attributes:
      directory: of the run.
      config: every choice made.
      summary: what `summary.json` holds.
      curves: the lines of `metrics.jsonl` as arrays: `steps [lines]`, `eval_return [lines, R]`, nan without a value.
      agents: one a seed and setting, in the order of `config.members`.
    """

    directory: Path
    config: Config
    summary: dict[str, Any]
    curves: dict[str, np.ndarray]
    agents: list[Agent]


def finish(loop: Loop, variables: PyTree) -> Result:
    """Write what a training leaves behind.

    Args:
      loop: that came to its end.
      variables: of the network, `[R, ...]`.

    Raises:
      DivergedError: every agent diverged.
    """
    plan, run, divergence = loop.plan, loop.directory, loop.divergence
    config = plan.config
    arrays = curves(run.metrics.read(config.num_members))
    final = [name for name in config.swept if name in arrays]  # those that changed in training
    more = {index: {name: six_digits(arrays[name][-1, index]) for name in final} for index in range(config.num_members)}
    agents = best.save(plan, run, "agents", variables, more)
    run.wait()
    found = summary.summarise(plan, arrays, loop.clock.seconds(), divergence.found, loop.about["inexact"], loop.done)
    if divergence.of_all:
        run.write("summary.json", found)
        again = f"begin from them, with other settings: qlax train ... --init {run.path}"
        raise DivergedError(f"{divergence.why}; its last good weights are in {run.path / 'agents'}; {again}")
    if processes.is_first():
        with run.writing():
            _draw(run.path, config, arrays, found)
    run.write("summary.json", found)
    if loop.tracking:
        loop.tracking.finish(found, film.best_run_as_gif(run.path, found, loop.display.say))
    return Result(run.path, config, found, arrays, agents)


def _draw(path: Path, config: Config, arrays: dict[str, np.ndarray], found: dict[str, Any]) -> None:
    """Draw the learning curve, and what compares settings."""
    from qlax.reports import pictures, plot, style  # matplotlib takes its time to import

    history = History(path, config, arrays, found)
    curve = plot.curve_figure([history], y=("eval_return", "episode_return"), title=config.preset or config.env)
    style.save(curve, path / "curve.png")
    if fields := config.compared:
        rows = results.rows(config, found)
        results.write(path, rows)
        style.save(pictures.comparison(config, rows, fields, config.preset or config.env), path / "sweep.png")
    population.draw(path, config, arrays)
