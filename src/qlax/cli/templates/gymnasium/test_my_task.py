"""Tests of MyTask: run them with pytest."""

import gymnasium
import qlax


def test_the_contract_holds():
    """The environment keeps the rules of docs/own-environment.md."""
    env = qlax.make("gymnasium/my_task:MyTask-v0", num_envs=8)
    qlax.check_env(env, num_steps=300)
    env.close()


def test_walking_right_is_rewarded_at_the_end():
    """The ninth step to the right pays 1 and ends the episode."""
    env = gymnasium.make("my_task:MyTask-v0")
    env.reset(seed=0)
    rewards, ended = [], False
    while not ended:
        _, reward, terminated, truncated, _ = env.step(1)
        rewards.append(reward)
        ended = terminated or truncated
    assert rewards == [0.0] * 8 + [1.0]
    assert terminated
