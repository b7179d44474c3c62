"""Navix and XLand-MiniGrid: their own transitions, decoded, and which of the two ends an end is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xminigrid

from qlax.envs import make
from qlax.envs import navix as navix_suite
from qlax.envs import xminigrid as xminigrid_suite
from qlax.errors import UserError

KEYS = jax.random.split(jax.random.key(0), 24)
FORWARD, RIGHT = {"navix": 2, "xminigrid": 0}, {"navix": 1, "xminigrid": 1}
EMPTY = {"navix": "navix/Navix-Empty-5x5-v0", "xminigrid": "xminigrid/MiniGrid-Empty-5x5"}
TO_THE_GOAL = ("forward", "forward", "right", "forward", "forward")  # from one corner to the other


def decoded(obs, categories):
    """Categories `[..., len(categories)]` of a one-hot grid, each of which has to have exactly one."""
    parts = np.split(np.asarray(obs), np.cumsum(categories)[:-1], axis=-1)
    assert all((part.sum(-1) == 1).all() for part in parts)
    return np.stack([part.argmax(-1) for part in parts], axis=-1)


@pytest.mark.parametrize("suite", EMPTY)
@pytest.mark.parametrize("max_steps", [4, 5, 9])
def test_the_goal_terminates_also_on_the_last_step_and_time_alone_truncates(suite, max_steps):
    env = make(EMPTY[suite], max_steps=max_steps)
    assert env.time_limit == max_steps
    state, _ = env.reset(KEYS[0])
    advance, shown = jax.jit(env.step), []
    for word in TO_THE_GOAL[:max_steps]:
        action = jnp.int32((FORWARD if word == "forward" else RIGHT)[suite])
        state, step = advance(KEYS[1], state, action)
        shown.append((bool(step.terminated), bool(step.terminated or step.truncated), bool(step.reward > 0)))
    assert shown[:-1] == [(False, False, False)] * (len(shown) - 1)
    assert shown[-1] == ((False, True, False) if max_steps == 4 else (True, True, True))


def test_transitions_are_those_of_navix():
    env = make("navix/Navix-DoorKey-5x5-v0")
    theirs = navix_suite.registry()["Navix-DoorKey-5x5-v0"]()
    state, step = env.reset(KEYS[0])
    expected = theirs.reset(KEYS[0])
    ours, raw = jax.jit(env.step), jax.jit(theirs._step)
    for key in KEYS:
        np.testing.assert_array_equal(decoded(step.obs, navix_suite.CATEGORIES), expected.observation)
        action = jax.random.randint(key, (), 0, env.num_actions)
        state, step = ours(key, state, action)
        expected = raw(expected, action)
        assert step.reward == expected.reward


@pytest.mark.parametrize("name", ["MiniGrid-DoorKey-5x5"])
def test_transitions_are_those_of_xminigrid(name):
    env = make(f"xminigrid/{name}")
    theirs, params = xminigrid.make(name)
    state, step = env.reset(KEYS[0])
    expected = theirs.reset(params, KEYS[0])
    ours, raw = jax.jit(env.step), jax.jit(theirs.step)
    for key in KEYS:
        np.testing.assert_array_equal(decoded(step.obs, xminigrid_suite.CATEGORIES), expected.observation)
        action = jax.random.randint(key, (), 0, env.num_actions)
        state, step = ours(key, state, action)
        expected = raw(params, expected, action)
        assert step.reward == expected.reward


def test_what_is_carried_is_shown_where_the_agent_stands():
    """The agent is moved in front of the key, and picks it up."""
    shown = make("xminigrid/MiniGrid-DoorKey-5x5", show_carried=True)
    state, before = shown.reset(KEYS[0])
    key_tile = xminigrid.core.constants.Tiles.KEY
    row, column = (int(x[0]) for x in jnp.where(state.state.grid[..., 0] == key_tile))
    neighbours = [(row + 1, column, 0), (row, column - 1, 1), (row - 1, column, 2), (row, column + 1, 3)]
    floor = xminigrid.core.constants.Tiles.FLOOR
    row, column, direction = next(place for place in neighbours if state.state.grid[place[0], place[1], 0] == floor)
    agent = state.state.agent.replace(position=jnp.array([row, column]), direction=jnp.asarray(direction))
    state = state.replace(state=state.state.replace(agent=agent))
    _, after = shown.step(KEYS[0], state, jnp.int32(3))
    own = [decoded(step.obs, xminigrid_suite.CATEGORIES)[-1, 3, 0] for step in (before, after)]
    assert (own[0] != key_tile, own[1]) == (True, key_tile)


def test_pictures_are_bytes():
    step = jax.eval_shape(make("navix/Navix-Empty-5x5-v0", observation="rgb_first_person").reset, KEYS[0])[1]
    assert (step.obs.dtype, len(step.obs.shape), step.obs.shape[-1]) == (jnp.uint8, 3, 3)
    narrow = jax.eval_shape(make("xminigrid/MiniGrid-Empty-5x5", view_size=3).reset, KEYS[0])[1]
    assert narrow.obs.shape == (3, 3, sum(xminigrid_suite.CATEGORIES))


@pytest.mark.parametrize(
    ("env_id", "options", "message"),
    [
        ("navix/Navix-Emty-5x5-v0", {}, "navix has no environment 'Navix-Emty-5x5-v0'; did you mean 'Navix-Empty-"),
        ("navix/Navix-Empty-5x5-v0", {"max_step": 5}, "has no option 'max_step'; did you mean 'max_steps'"),
        (
            "navix/Navix-Empty-5x5-v0",
            {"observation": "rgb_first"},
            "observation='rgb_first': expected one of symbolic, ",
        ),
        ("xminigrid/MiniGrid-Empty-5x6", {}, "did you mean 'MiniGrid-Empty-"),
        ("xminigrid/MiniGrid-Empty-5x5", {"view_size": 4}, "view_size=4: expected an odd number from 3, like 7"),
        ("xminigrid/MiniGrid-Empty-5x5", {"max_steps": 0}, "max_steps=0: expected a number like"),
        ("xminigrid/XLand-MiniGrid-R1-9x9", {}, "has no goal, as no rules come with it, so there is no reward"),
    ],
)
def test_errors(env_id, options, message):
    with pytest.raises(UserError, match=message):
        make(env_id, **options)
