import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counting import STOP, Counting
from probes import show

from qlax.check import check_env
from qlax.envs import wrap
from qlax.envs.vec import Vec
from qlax.envs.wrappers import Wrapper
from qlax.errors import UserError

KEY = jax.random.key(0)


class Pair(Counting):
    """A team of two that counts together."""

    num_agents = 2
    shared = jnp.float32(5)

    def reset(self, key):
        state, step = super().reset(key)
        return state, step._replace(obs=jnp.stack([step.obs, step.obs]))

    def step(self, key, state, action, bonus):
        state, step = super().step(key, state, action.sum())
        return state, step._replace(obs=jnp.stack([step.obs, step.obs]), reward=step.reward + bonus)


def test_the_last_action_is_one_hot_behind_the_observation_and_zero_after_a_reset():
    vec = Vec(wrap(Counting(random_starts=False), ["last_action"]), 1)
    state, step = vec.reset(KEY)
    shown = [step.obs[0, 0]]
    for action in (1, 0, STOP, 1):
        state, step = vec.step(KEY, state, jnp.full((1, 1), action))
        shown.append(step.obs[0, 0])
    expected = [[0, 0, 0, 0, 0], [0, 1, 0, 1, 0], [0, 2, 1, 0, 0], [0, 0, 0, 0, 0], [0, 1, 0, 1, 0]]
    np.testing.assert_array_equal(shown, expected)


def test_every_member_sees_its_own_action_and_the_reward_of_all():
    env = wrap(Pair(random_starts=False), ["last_action", "last_reward"])
    assert (env.num_agents, env.time_limit, float(env.shared)) == (2, 1000, 5)
    state, step = env.reset(KEY)
    np.testing.assert_array_equal(step.obs, np.zeros((2, 6)))
    _, step = env.step(KEY, state, jnp.array([0, 1]), env.shared)
    np.testing.assert_array_equal(step.obs, [[0, 1, 1, 0, 0, 6], [0, 1, 0, 1, 0, 6]])
    check_env(env, num_steps=5)


def test_nothing_is_there_that_the_environment_lacks():
    env = wrap(Counting(), ["last_action"])
    assert not hasattr(env, "num_agents")
    assert not hasattr(Wrapper.__new__(Wrapper), "num_actions")  # as while it is copied


class Bits:
    """Shows two planes, or one bit."""

    num_actions = 2

    def __init__(self, obs):
        self.obs = obs

    def reset(self, key):
        del key
        return jnp.int32(0), show(self.obs)

    def step(self, key, state, action):
        del key, action
        return state, show(self.obs)


@pytest.mark.parametrize(
    ("env", "wrapper", "message"),
    [
        (Counting(), "last_acton", "unknown wrapper 'last_acton'; did you mean 'last_action'"),
        (Counting(), "counting:Counted", "module 'counting' has no 'Counted'; did you mean 'Counting'"),
        (Bits(jnp.ones((3, 3, 2))), "last_action", r"a vector a member; this one is an array of shape \[3, 3, 2\]"),
        (Bits({"a": jnp.ones(3)}), "last_action", "a vector a member; this one is a tree of arrays"),
        (Bits(jnp.ones(3, bool)), "last_reward", "an observation of floats; this one is bool"),
    ],
)
def test_wrappers_that_do_not_fit(env, wrapper, message):
    with pytest.raises(UserError, match=message):
        wrap(env, [wrapper])
