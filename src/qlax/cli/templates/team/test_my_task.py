"""Tests of MyTask: run them with pytest."""

import jax
import jax.numpy as jnp
import pytest
import qlax

from my_task import MyTask


def test_the_contract_holds():
    """The environment keeps the rules of docs/own-environment.md."""
    qlax.check_env(MyTask(), num_steps=300)


@pytest.mark.parametrize(("action", "steps"), [([1, 1], 9), ([1, 0], 100), ([0, 0], 100)])
def test_the_table_arrives_only_if_both_pull_right(action, steps):
    """Nine common steps to the right end the episode with a reward of 1; otherwise time runs out."""
    env, key = MyTask(), jax.random.key(0)
    state, step = env.reset(key)
    rewards = []
    while not (step.terminated or step.truncated):
        state, step = env.step(key, state, jnp.array(action))
        rewards.append(float(step.reward))
    assert len(rewards) == steps
    assert sum(rewards) == rewards[-1] == float(step.terminated) == (steps == 9)
