"""Action masks of Gymnasium's environments, wherever an environment has them; the rest of `info` is ignored."""

import os

import gymnasium
import numpy as np
import pytest
from masked import ACTIONS
from pages import TESTS
from runs import SMALL

import qlax
from qlax.errors import HostError, UserError

MASKED = "gymnasium/masked:Masked-v0"
VECTOR = {"vectorization": "vector_entry_point"}


@pytest.fixture(autouse=True)
def tests_are_importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(TESTS), prepend=os.pathsep)  # for the environments' processes


def played(count, num_envs=3, **options):
    """Return the steps of random legal actions, the first step included."""
    env, draws = qlax.make(MASKED, num_envs=num_envs, **options), np.random.default_rng(0)
    try:
        steps = [env.reset(0)]
        for _ in range(count):
            legal = np.ones((num_envs, env.num_actions), bool) if steps[-1].legal is None else steps[-1].legal
            action = np.where(legal, draws.random(legal.shape), -1).argmax(-1)
            steps.append(env.step(action.astype(np.int32)))
        return steps
    finally:
        env.close()


def check(steps, autoreset):
    """Check that `legal` is the mask in the observation, or all True where an episode ended; one has to have ended."""
    ends = 0
    for step in steps:
        assert step.legal.dtype == bool
        shown = step.obs[:, :-1] == 1
        is_end = step.terminated if autoreset == "next_step" else np.zeros(len(shown), bool)
        np.testing.assert_array_equal(step.legal, shown | is_end[:, None])
        ends += step.terminated.sum()
    assert ends > 3
    assert not all(step.legal.all() for step in steps)


@pytest.mark.parametrize("autoreset", ["next_step", "same_step"])
@pytest.mark.parametrize("form", ["info", "method", "observation"])
def test_masks_are_the_legal_actions(form, autoreset):
    steps = played(40, form=form, autoreset=autoreset)
    check(steps, autoreset)
    assert any(np.isin(step.metrics["episode_length"], 6).any() for step in steps)  # at the time limit
    assert steps[0].obs.shape == (3, ACTIONS + 1)


@pytest.mark.parametrize(("form", "autoreset"), [("method", "next_step"), ("observation", "same_step")])
def test_masks_of_processes_are_the_same(form, autoreset):
    options = {"form": form, "autoreset": autoreset, "num_envs": 2}
    for one, other in zip(played(20, **options), played(20, vectorization="async", **options), strict=True):
        np.testing.assert_array_equal(one.obs, other.obs)
        np.testing.assert_array_equal(one.legal, other.legal)


@pytest.mark.parametrize("options", [{}, {"sparse": True}, {"form": "method"}, {"form": "observation"}])
def test_vector_entry_points_have_masks_too(options):
    check(played(40, **VECTOR, **options), "next_step")


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"form": "observation"}, marks=pytest.mark.slow),
        {"form": "info", "mess": True, "vectorization": "async", "autoreset": "same_step"},
    ],
    ids=str,
)
def test_training_and_evaluation_take_legal_actions_only(options, tmp_path):
    settings = SMALL | {"num_envs": 2, "total_steps": 64, "epsilon_start": 1.0, "eval_episodes": 2}
    result = qlax.train(MASKED, out=tmp_path / "run", env_options=options, **settings)
    assert result.summary["eval_return"]["mean"] is not None


@pytest.mark.parametrize(
    ("vectorization", "autoreset"), [("sync", "next_step"), ("sync", "same_step"), ("async", "same_step")]
)
def test_nothing_else_in_info_matters(vectorization, autoreset):
    """Even a function in `info` does no harm, although it cannot be sent between processes."""
    check(played(40, mess=True, vectorization=vectorization, autoreset=autoreset), autoreset)


def test_masks_of_joint_actions_are_joint():
    check(played(40, parts=[2, 3]), "next_step")


def test_taxi_says_which_actions_change_something():
    newest = max(name for name in gymnasium.registry if name.startswith("Taxi-v"))
    env = qlax.make(f"gymnasium/{newest}", num_envs=2)
    step, taxis = env.reset(0), [each.unwrapped for each in env._env.envs]
    for _ in range(10):
        np.testing.assert_array_equal(step.legal, [taxi.action_mask(taxi.s) for taxi in taxis])
        step = env.step(step.legal.argmax(-1).astype(np.int32))
    env.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": [1, 0]}, r"has the action mask .*1, 0.*; expected 0 or 1 for each of its 3 actions of Discrete\(3\)"),
        ({"mask": [1, 0], "form": "observation"}, "expected 0 or 1 for each of its 3 actions"),
        ({"mask": "no", "form": "method"}, "has the action mask .*no"),
        ({"mask": [1, 0, 2], "form": "method"}, "expected 0 or 1"),
        ({"mask": [1] * 5, "parts": [2, 3]}, "expected 0 or 1 for each of its 6 joint actions of MultiDiscrete"),
        ({"parts": [2, 2]}, "which may be one for each joint action, or one for each choice; expected no mask"),
        ({"form": "late"}, "has an action mask after a step, but not after a reset"),
    ],
)
def test_masks_that_do_not_fit_are_refused_in_one_line(options, message, tmp_path):
    with pytest.raises(UserError, match=message) as refused:
        qlax.train(MASKED, out=tmp_path / "run", env_options=options, **SMALL)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()
    with pytest.raises(HostError, match=message):  # in training, a checkpoint would be saved first
        played(1, **options)
