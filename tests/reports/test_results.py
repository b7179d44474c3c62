"""Comparison of settings: the best one, the table of all, and its figure."""

import warnings

import numpy as np
import pytest

from qlax.config.configure import configure
from qlax.reports import pictures, results, style


def test_the_best_setting_is_best_over_its_seeds_and_did_not_diverge():
    config = configure("cartpole", lam=(0, 0.5, 0.9), seeds=2)
    returns = [5.0, 6.0, 9.0, None, 1.0, 9.5]
    diverged = [None, None, None, {"steps": 640, "what": "loss"}, None, None]
    summary = {"train_return": {"per_run": [1.0] * 6}, "eval_return": {"per_run": returns}, "diverged": diverged}
    rows = results.rows(config, summary)
    assert rows[3] == {"agent": 3, "seed": 1, "lam": 0.5, "train_return": 1.0, "eval_return": None, "diverged": 640}
    ranked = results.ranking(rows, ["lam"])
    assert [each.shown(["lam"]) for each in ranked] == [
        "lam 0: 5.50, mean of 2 seeds",
        "lam 0.9: 5.25, mean of 2 seeds",
        "lam 0.5: diverged, mean of 2 seeds",
    ]
    assert results.again(config, ranked[0].row, ["lam"]) == "qlax train cartpole --seeds 2 --lam 0.0"


def test_of_settings_that_are_equally_good_in_the_end_the_one_that_was_so_before_is_best():
    config = configure("cartpole", lam=(0, 0.5, 0.9))
    summary = {"train_return": {"per_run": [400.0, 450.0, 480.0]}, "eval_return": {"per_run": [500.0, 500.0, 499.0]}}
    ranked = results.ranking(results.rows(config, summary | {"diverged": [None] * 3}), ["lam"])
    assert [each.row["lam"] for each in ranked] == [0.5, 0, 0.9]
    assert results.again(config, ranked[0].row, ["lam", "num_envs"]) == "qlax train cartpole --num-envs 32 --lam 0.5"


@pytest.mark.parametrize(
    ("fields", "rows"),
    [
        (["learning_rate"], 1),
        (["learning_rate", "gamma", "lam"], 60),
        (["num_envs", "hidden", "norm", "dueling", "total_steps"], 60),
    ],
)
def test_every_sweep_can_be_drawn(fields, rows, tmp_path):
    random = np.random.default_rng(0)
    values = {
        "learning_rate": random.uniform(1e-5, 1e-2, 60).tolist(),
        "gamma": random.uniform(0.9, 1, 60).tolist(),
        "lam": [0.0, 0.5] * 30,
        "num_envs": [8, 16, 128] * 20,
        "hidden": [(8,), (64, 64), (8,)] * 20,
        "norm": ["layer", "none"] * 30,
        "dueling": [True, False] * 30,
        "total_steps": [100, 1_000_000] * 30,
        "train_return": [0.0] * 60,
        "eval_return": [None, *random.normal(size=59).tolist()],
    }
    config = configure("cartpole", learning_rate="log-uniform:1e-5:1e-2", gamma="uniform:0.9:1", lam=(0, 0.5), draws=30)
    of = [{name: column[index] for name, column in values.items()} for index in range(rows)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results.write(tmp_path, of)
        style.save(pictures.comparison(config, of, fields, "all"), tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").exists()
    assert len((tmp_path / "sweep.csv").read_text().splitlines()) == 1 + rows
