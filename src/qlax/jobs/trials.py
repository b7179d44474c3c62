"""Optuna chooses which jobs of a sweep to run."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from qlax.errors import UserError
from qlax.jobs.runner import Job, Outcome, Runner, run_jobs


def new_study(seed: int) -> Any:
    """One in which nothing was tried; whatever is drawn depends on the seed.

    Raises:
      UserError: there is no Optuna.
    """
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise UserError("Optuna is not installed (no module 'optuna'): pip install 'qlax[optuna]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))


def run_trials(
    study: Any,
    jobs: Sequence[Job],
    several: Mapping[str, Sequence[Any]],
    trials: int,
    runner: Runner,
    value: Callable[[Job], float | None],
) -> tuple[list[Job], Outcome, int]:
    """Run the jobs that Optuna chooses, as many at a time as the runner does; each choice knows what the last came to.

    The same seed and values choose the same jobs, so a sweep is gone on with by choosing anew: complete ones take no
    time. What is chosen a second time is not trained again.

    Args:
      study: a new one.
      jobs: one of every combination of values, in the order of `itertools.product`.
      several: the values of every field.
      trials: choices to make.
      runner: of the jobs.
      value: what a job came to, more is better; None if it failed.

    Returns:
      The jobs chosen, how they went, and how many choices are left to make.
    """
    sizes = {name: len(values) for name, values in several.items()}
    chosen: dict[str, Job] = {}
    failed: dict[str, str] = {}
    while (left := trials - len(study.trials)) > 0:
        asked = []
        for trial in [study.ask() for _ in range(min(left, runner.at_once))]:
            places = [trial.suggest_categorical(name, range(size)) for name, size in sizes.items()]
            asked.append((trial, jobs[int(np.ravel_multi_index(places, tuple(sizes.values())))]))
        batch = {job.name: job for _, job in asked}
        chosen |= batch
        outcome = run_jobs([job for job in batch.values() if job.name not in failed], runner)
        failed |= outcome.failed
        if outcome.signal_number is not None:
            return list(chosen.values()), Outcome(failed, outcome.signal_number), trials - len(study.trials)
        for trial, job in asked:
            found = value(job)
            study.tell(trial, found)  # without a value it counts as failed
    return list(chosen.values()), Outcome(failed, None), 0
