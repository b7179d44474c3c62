"""Games of OctaX: they keep the contract, and observations and rewards equal those of the suite's own step."""

import jax
import numpy as np
import pytest

import qlax
from qlax.envs.check.env import check_env
from qlax.envs.vec import Vec
from qlax.errors import UserError

pytest.importorskip("octax", reason="OctaX is an extra")
pytestmark = pytest.mark.slow  # an emulator takes seconds to compile
KEY = jax.random.key(0)


def test_steps_are_those_of_the_game():
    from octax.environments import create_environment

    env, (game, _) = qlax.make("octax/brix"), create_environment("brix")
    state, step = jax.jit(env.reset)(KEY)
    theirs, obs, _ = game.reset(jax.random.key_data(KEY))
    ours, by_hand = jax.jit(env.step), jax.jit(game.step)
    for action in np.random.default_rng(0).integers(0, 3, 80):
        assert step.obs.shape == (64, 32, 4)
        assert step.obs.dtype == bool
        np.testing.assert_array_equal(step.obs, np.moveaxis(obs, 0, -1))
        state, step = ours(KEY, state, action)
        theirs, obs, reward, terminated, _, _ = by_hand(theirs, action)
        assert (step.reward, step.terminated) == (reward, terminated)
        if terminated:
            break
    assert step.obs.any()
    assert terminated  # the paddle missed


def test_a_time_limit_cuts_the_episode():
    env = qlax.make("octax/brix", max_num_steps_per_episodes=3)
    vec = Vec(env, 2)
    state, _ = vec.reset(KEY)
    step = jax.jit(vec.step)
    ends = []
    for _ in range(4):
        state, after = step(KEY, state, np.full((2, 1), 2))
        ends.append((bool(after.terminated[0]), bool(after.truncated[0])))
    assert ends == [(False, False), (False, False), (False, False), (False, True)]


@pytest.mark.parametrize("name", ["pong", "cavern2", "target_shooter1"])
def test_games_keep_the_contract(name):
    env = qlax.make(f"octax/{name}")
    check_env(env, 40)
    state, _ = env.reset(KEY)
    assert env.render(state).shape == (256, 512, 3)
    assert len(env.action_names) == env.num_actions


def test_mistakes_name_what_exists():
    with pytest.raises(UserError, match="octax has no environment 'brick'; did you mean 'brix'"):
        qlax.make("octax/brick")
    with pytest.raises(UserError, match="options: frame_skip, max_num_steps_per_episodes"):
        qlax.make("octax/brix", lives=3)
