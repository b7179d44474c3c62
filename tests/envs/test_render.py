"""Pictures of environments: one environment of each suite, and wrappers around one."""

import jax
import numpy as np
import pytest

import qlax
from qlax import envs

IN_JAX = [
    *("gymnax/CartPole-v1", "gymnax/Breakout-MinAtar", "pgx/minatar-breakout", "pgx/tic_tac_toe", "jumanji/Maze-v0"),
    *("navix/Navix-Empty-5x5-v0", "xminigrid/MiniGrid-Empty-5x5"),
    *(
        pytest.param(name, marks=pytest.mark.slow)  # these take long to import or to compile
        for name in (
            *("jaxmarl/overcooked/cramped_room", "jaxmarl/mpe/simple_spread", "jaxmarl/hanabi", "jaxmarl/smax/3m"),
            *("craftax/Craftax-Classic-Symbolic-v1", "craftax/Craftax-Symbolic-v1"),
        )
    ),
]
ON_HOST = ("ale/Breakout", "gymnasium/CartPole-v1")


def is_picture(picture, *axes):
    assert picture.dtype == np.uint8
    assert picture.shape[-1] == 3
    assert picture.ndim == 3 + len(axes)
    assert min(picture.shape[len(axes) : -1]) >= 30
    return True


def played(env, steps):
    """Play random legal actions, and return the states as NumPy arrays."""
    shared = (env.shared,) if hasattr(env, "shared") else ()
    reset, advance = jax.jit(env.reset), jax.jit(env.step)
    state, step = reset(jax.random.key(0))
    states, random = [jax.device_get(state)], np.random.default_rng(0)
    for t in range(steps):
        preference = random.random((*([env.num_agents] if hasattr(env, "num_agents") else []), env.num_actions))
        legal = True if step.legal is None else np.asarray(step.legal)
        action = np.where(legal, preference, -1).argmax(-1).astype(np.int32)
        state, step = advance(jax.random.key(t), state, action, *shared)
        states.append(jax.device_get(state))
    return states


@pytest.mark.parametrize("env_id", IN_JAX)
def test_an_environment_in_jax_draws_its_state(env_id):
    pytest.importorskip("resvg_py" if env_id == "pgx/tic_tac_toe" else "numpy")
    env = envs.wrap(qlax.make(env_id), ["time_limit=100"])
    first, *others = played(env, 8)
    picture = env.render(first)
    assert is_picture(picture)
    assert (env.render(first) == picture).all()
    assert any((env.render(other) != picture).any() for other in others)
    assert 1 <= env.fps <= 60
    assert len(getattr(env, "action_names", range(env.num_actions))) == env.num_actions


@pytest.mark.parametrize("env_id", ON_HOST)
def test_environments_on_the_host_draw_themselves(env_id):
    env = qlax.make(env_id, num_envs=2, **envs.options_to_draw(env_id))
    env.reset(0)
    before = env.render()
    assert is_picture(before, "N")
    for _ in range(10):
        env.step(np.array([0, 1], np.int32))
    after = env.render()
    assert (after != before).any()
    assert (after[0] != after[1]).any()
    assert env.fps >= 15
    env.close()


def test_screens_in_colour_are_of_the_game_that_is_played():
    env = qlax.make("ale/Breakout", num_envs=1, render_mode="rgb_array", repeat_action_probability=0.25)
    env.reset(3)
    for t in range(60):
        step = env.step(np.array([t % env.num_actions], np.int32))
    grey, color = step.obs[0, ..., -1].astype(float), env.render()[0].astype(float)
    luma = color @ [0.299, 0.587, 0.114]
    rows, columns = np.arange(84) * 210 // 84, np.arange(84) * 160 // 84
    assert np.corrcoef(grey.ravel(), luma[rows][:, columns].ravel())[0, 1] > 0.8
    env.close()


def test_what_nobody_wants_to_see_is_not_drawn():
    assert not hasattr(qlax.make("gymnax/SimpleBandit-bsuite"), "render")
    env = qlax.make("gymnasium/CartPole-v1", num_envs=1)
    assert not hasattr(env, "render")
    env.close()


def test_states_of_wrappers_are_looked_into():
    env = qlax.make("gymnax/CartPole-v1")
    state, _ = env.reset(jax.random.key(0))
    wrapped = envs.wrap(env, ["frame_stack=2", "last_action", "time_limit=9"])
    assert (wrapped.render(wrapped.reset(jax.random.key(0))[0]) == env.render(state)).all()
    assert not hasattr(envs.wrap(qlax.make("gymnax/SimpleBandit-bsuite"), ["time_limit=9"]), "render")


def test_minatar_shows_what_moves_before_its_trail():
    from qlax.envs.suites import drawing

    obs = np.zeros((10, 10, 4), bool)
    obs[4, 5, [1, 2]] = True  # the ball's last position
    obs[2, 2, 2] = True
    picture = drawing.minatar("breakout", obs)
    middle = drawing.CELL // 2
    assert tuple(picture[4 * drawing.CELL + middle, 5 * drawing.CELL + middle]) == drawing.WHITE
    assert tuple(picture[2 * drawing.CELL + middle, 2 * drawing.CELL + middle]) == drawing.DIM
    assert tuple(picture[middle, middle]) == drawing.NIGHT
