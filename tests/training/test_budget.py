"""Which evaluations a run plays by default: at least twenty if they are cheap, and fewer if they are expensive."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from probes import show
from runs import SMALL, interrupt_at, lines_of, same_weights

import qlax
from qlax.config.configure import configure
from qlax.config.intervals import evaluation_steps, with_intervals
from qlax.training import loop
from qlax.training.budget import Budget

# 60 updates of 4 x 8 steps and 2 gradient steps: 8 + 3 x 2 = 14 sequential operations per update.
DEFAULT = {name: value for name, value in SMALL.items() if not name.endswith(("_interval", "_max_steps"))}
DEFAULT |= {"total_steps": 60 * 32, "checkpoint_interval": 5}
PER_UPDATE = 14


class Endless:
    """Environment whose episodes always last `length` steps."""

    num_actions = 2

    def __init__(self, length=1000):
        self.length = self.time_limit = length

    def reset(self, key):
        del key
        return jnp.int32(0), show(jnp.zeros(2))

    def step(self, key, state, action):
        del key
        return state + 1, show(jnp.zeros(2), 1.0 * action, False, state + 1 >= self.length)


def evaluated(result):
    """Return the updates after which a run was evaluated."""
    return result.curves["updates"][np.isfinite(result.curves["eval_return"]).all(axis=1)].tolist()


def train(length, out, **settings):
    options = {"env_options": {"length": length}, "epsilon_start": 1.0, "epsilon_end": 1.0, "learning_rate": 1e-9}
    return qlax.train("test_budget:Endless", out=out, **DEFAULT | options | settings)


def test_cheap_evaluations_are_at_least_twenty(tmp_path):
    assert len(evaluated(train(1, tmp_path / "run"))) >= 20


@pytest.mark.parametrize("length", [3, 40, 1000])
def test_the_evaluations_before_the_last_take_a_tenth_of_the_work_and_no_more_than_one_in_excess(length, tmp_path):
    result = train(length, tmp_path / "run")
    steps = [int(x) for x in np.nan_to_num(result.curves["eval_length"].max(axis=1)) if x]
    *before, last = evaluated(result)
    assert last == 60
    assert sum(steps[:-1]) <= 0.1 * PER_UPDATE * 60 + max(steps)
    assert len(before) >= min(19, 0.1 * PER_UPDATE * 60 // max(steps) - 1)  # none is left out needlessly


def test_an_interval_that_is_asked_for_is_kept(tmp_path):
    assert evaluated(train(1000, tmp_path / "run", eval_interval=6)) == list(range(6, 61, 6))


def test_training_is_the_same_whatever_is_evaluated(tmp_path):
    few, many = train(20, tmp_path / "few"), train(20, tmp_path / "many", eval_interval=3)
    assert evaluated(few) != evaluated(many)
    assert same_weights(few, many)


def test_a_resumed_run_decides_alike(tmp_path, monkeypatch):
    whole = train(12, tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt_at(patch, 20, 15)
        with pytest.raises(qlax.Stopped):
            train(12, tmp_path / "run")
    resumed = qlax.resume(tmp_path / "run")
    assert lines_of(resumed.directory) == lines_of(whole.directory)
    assert 2 < len(evaluated(whole)) < 20  # some evaluations are left out, but not all


def test_the_length_of_chunks_decides_nothing(tmp_path, monkeypatch):
    whole = train(12, tmp_path / "whole")
    monkeypatch.setattr(loop, "CHUNK_SECONDS", 0.0)
    assert lines_of(train(12, tmp_path / "run").directory) == lines_of(whole.directory)


def budget(config, info=None, lines=()):
    return Budget(config, False, info or {}, list(lines))


def test_decisions_follow_from_steps_alone_and_are_repeated_alike():
    config = with_intervals(configure("cartpole"), 500)
    per_update = 0.1 * evaluation_steps(config, False)
    one = budget(config)
    one.see(np.array([20.0]))
    decided = {}
    for updates, length in zip(range(10, 245, 10), itertools.cycle([100, 300, 500]), strict=False):
        decided[updates] = one.allows(updates)
        if decided[updates]:
            one.add(updates, np.full((1, 64), length))
    assert set(decided.values()) == {True, False}
    assert sum(one.steps.values()) <= per_update * 245 + 500
    again = budget(config, {"evaluations": {str(at): steps for at, steps in one.steps.items()}})
    again.see(np.array([20.0]))
    assert {updates: again.allows(updates) for updates in decided} == decided


def test_the_first_evaluation_is_expected_to_be_as_long_as_training_suggests():
    config = with_intervals(configure("minatar/breakout", total_steps=500_000), 1000)
    early = config.num_updates // 10
    unknown, short, long = budget(config), budget(config, lines=[{"episode_length": [None, 9.0]}]), budget(config)
    long.see(np.array([np.nan, 300.0]))
    assert [each.allows(early) for each in (unknown, short, long)] == [False, True, False]


def test_populations_have_the_evaluations_that_the_longest_episodes_allow():
    settings = {"learning_rate": "log-uniform:1e-5:1e-2", "draws": 4}
    config = configure("cartpole", population="pbt", **settings)
    derived = with_intervals(config, 500)
    assert (derived.log_interval, derived.eval_interval) == (2, 22)
    assert all(budget(derived).allows(updates) for updates in range(1, 245))


def test_on_the_host_the_budget_holds_too(tmp_path):
    result = qlax.train("hosts:HostWalk", out=tmp_path / "run", **DEFAULT)
    assert evaluated(result)[-1] == 60
    assert len(evaluated(result)) > 1
