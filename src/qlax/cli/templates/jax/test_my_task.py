"""Tests of MyTask: run them with pytest."""

import jax
import qlax

from my_task import MyTask


def test_the_contract_holds():
    """The environment keeps the rules of docs/own-environment.md."""
    qlax.check_env(MyTask(), num_steps=300)


def test_walking_right_is_rewarded_at_the_end():
    """The ninth step to the right pays 1 and ends the episode."""
    env, key = MyTask(), jax.random.key(0)
    state, step = env.reset(key)
    rewards = []
    while not (step.terminated or step.truncated):
        state, step = env.step(key, state, 1)
        rewards.append(float(step.reward))
    assert rewards == [0.0] * 8 + [1.0]
    assert step.terminated
