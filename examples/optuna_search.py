"""Let Optuna choose settings by the results so far: `pip install qlax optuna`, then `python optuna_search.py`.

Each trial trains two seeds. Chance contributes to the result of the best trial, so train its settings with other seeds
before you trust its return.
"""

import numpy as np
import optuna

import qlax

STEPS = 20_000
TRIALS = 10


def objective(trial: optuna.Trial) -> float:
    """Train with the settings that the trial suggests; return the greedy return, the mean over the seeds."""
    settings = {
        "num_envs": trial.suggest_categorical("num_envs", [16, 32, 64]),
        "learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True),
        "lam": trial.suggest_float("lam", 0.0, 1.0),
    }

    def prune(line: dict) -> None:
        """Stop a trial whose return so far is worse than the median of earlier trials."""
        if not np.isnan(line["eval_return"]).all():
            trial.report(np.nanmean(line["eval_return"]), int(line["steps"]))
            if trial.should_prune():
                raise optuna.TrialPruned

    try:
        result = qlax.train("cartpole-fast", seeds=2, total_steps=STEPS, progress=False, callback=prune, **settings)
    except qlax.DivergedError as error:
        raise optuna.TrialPruned(str(error)) from error
    return result.summary["eval_return"]["mean"]


if __name__ == "__main__":
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
    study.optimize(objective, n_trials=TRIALS)
    print(study.best_value, study.best_params)
