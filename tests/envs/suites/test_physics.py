"""What Brax and MuJoCo Playground have in common, with a robot of few numbers whose physics can be made to fail."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qlax.envs.check.env import check_env
from qlax.envs.suites.physics import Robot
from qlax.envs.vec import Vec
from qlax.errors import UserError

KEY = jax.random.key(0)


class Suite(NamedTuple):
    obs: Any
    reward: Any
    done: Any
    metrics: dict
    info: dict

    def replace(self, **changed):
        return self._replace(**changed)


class Cart:
    """A cart at `obs["state"][0]`, which an action moves; it falls off at 3, and from -3 on its place is not a number.

    As in the suites, `step` writes into the dicts of the state it is given, and the reward is Python's at first.
    """

    action_size, dt = 2, 0.05

    def __init__(self, has_clock=False, shows="state"):
        self._has_clock, self._shows = has_clock, shows

    def reset(self, key):
        info = {"rng": key, **({"_steps": jnp.int32(0)} if self._has_clock else {})}
        return Suite(self._observed(jnp.float32(0)), 0.0, jnp.float32(0), {"distance": jnp.zeros(())}, info)

    def step(self, state, action):
        place = state.obs[self._shows][0] + action[0]
        state.metrics["distance"] = jnp.abs(place)
        done = place >= 3
        if self._has_clock:
            state.info["_steps"] += 1
            done |= state.info["_steps"] >= 5
        place = jnp.where(place <= -3, jnp.nan, place)
        return state.replace(obs=self._observed(place), reward=place * 10, done=done.astype(float))

    def _observed(self, place):
        return {self._shows: jnp.stack([place, jnp.float32(1)]), "privileged_state": jnp.stack([place, place, place])}


def played(env, moves):
    """The steps after a reset, taken on past the end of the episode."""
    step = jax.jit(env.step)
    state, first = jax.jit(env.reset)(KEY)
    steps = [first]
    for move in moves:
        state, shown = step(KEY, state, jnp.array([move, 0.0]))
        steps.append(shown)
    return steps


def ends(steps):
    return [(bool(step.terminated), bool(step.truncated)) for step in steps]


def test_a_policy_sees_the_state_and_not_what_is_privileged():
    steps = played(Robot(Cart(), 5, 1), [0.5])
    np.testing.assert_array_equal([step.obs for step in steps], [[0, 1], [0.5, 1]])


def test_an_observation_without_a_state_is_refused():
    with pytest.raises(UserError, match=r"has pixels/view_0, privileged_state and no 'state'"):
        Robot(Cart(shows="pixels/view_0"), 5, 1).reset(KEY)


def test_the_time_limit_truncates_and_a_fall_terminates():
    env = Robot(Cart(), 5, 1)
    assert (env.time_limit, env.fps) == (5, 20)
    steps = played(env, [0.5] * 5)
    assert ends(steps) == [(False, False)] * 5 + [(False, True)]
    np.testing.assert_array_equal(steps[-1].obs, [2.5, 1])
    steps = played(env, [1] * 3)
    assert ends(steps) == [(False, False)] * 3 + [(True, False)]
    assert steps[-1].reward == 30
    assert ends(played(env, [0, 0, 1, 1, 1]))[-1] == (True, False)  # at the time limit


def test_a_limit_that_the_task_counts_itself_is_no_termination():
    assert ends(played(Robot(Cart(has_clock=True), 5, 1), [0.1] * 5))[-2:] == [(False, False), (False, True)]
    assert ends(played(Robot(Cart(has_clock=True), 5, 1), [1] * 3))[-1] == (True, False)


def test_broken_physics_terminate_with_a_metric_and_the_last_finite_observation():
    env = Robot(Cart(), 5, 1)
    steps = played(env, [-1, -1, -1])
    assert ends(steps) == [(False, False)] * 3 + [(True, False)]
    np.testing.assert_array_equal(steps[-1].obs, [-2, 1])
    assert [float(step.reward) for step in steps] == [0, -10, -20, 0]
    assert np.isnan([step.metrics["physics_failed"] for step in steps[:-1]]).all()
    assert steps[-1].metrics["physics_failed"] == 1
    assert ends(played(env, [0, 0, -1, -1, -1]))[-1] == (True, False)  # at the time limit
    for moves in ([1] * 3, [0] * 5):
        assert played(env, moves)[-1].metrics["physics_failed"] == 0


def test_repeated_actions_add_their_rewards_until_the_episode_ends():
    env = Robot(Cart(), 5, 2)
    assert (env.time_limit, env.fps) == (3, 10)
    steps = played(env, [0.5, 0.25, 0])
    np.testing.assert_array_equal([step.reward for step in steps], [0, 15, 27.5, 30])
    assert ends(steps) == [(False, False)] * 3 + [(False, True)]
    steps = played(Robot(Cart(), 5, 4), [1])
    assert (steps[-1].reward, *ends(steps)[-1]) == (60, True, False)
    np.testing.assert_array_equal(steps[-1].obs, [3, 1])
    steps = played(Robot(Cart(), 5, 4), [-1])
    assert (steps[-1].reward, *ends(steps)[-1]) == (-30, True, False)
    assert steps[-1].metrics["physics_failed"] == 1


def test_a_step_leaves_the_state_it_is_given_unchanged():
    env = Robot(Cart(), 5, 1)
    state, _ = env.reset(KEY)
    env.step(KEY, state, jnp.ones(2))
    assert state.suite.metrics["distance"] == 0


@pytest.mark.parametrize("repeat", [1, 3])
def test_robots_keep_the_contract(repeat):
    env = Robot(Cart(), 12, repeat)
    check_env(env, num_steps=60)
    vec = Vec(env, 4)
    assert vec.reset_ratio == 2
    state, step = jax.jit(vec.reset)(KEY)
    advance = jax.jit(vec.step)
    failed = 0.0
    for key in jax.random.split(KEY, 20):
        state, step = advance(key, state, -jnp.ones((4, 1, 2)))
        assert np.isfinite(step.obs).all()
        failed += np.nansum(step.metrics["physics_failed"])
    assert failed >= 8
    assert advance._cache_size() == 1
