"""Navix and XLand-MiniGrid: transitions equal the suite's own, and termination and truncation are told apart."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xminigrid
from navix.entities import Goal
from xminigrid.core.constants import TILES_REGISTRY, Colors, Tiles
from xminigrid.core.goals import AgentHoldGoal
from xminigrid.core.rules import EmptyRule
from xminigrid.types import RuleSet

from qlax.envs import make
from qlax.envs.check.env import check_contract
from qlax.envs.suites import navix as navix_suite
from qlax.envs.suites import xminigrid as xminigrid_suite
from qlax.errors import UserError
from qlax.networks.qnetwork import default_encoder
from qlax.types import strong

KEY = jax.random.key(0)
SUITES = {"navix": navix_suite, "xminigrid": xminigrid_suite}
ACTIONS = {  # numbers of the actions that both suites have
    "navix": {"right": 1, "forward": 2, "pick up": 3, "toggle": 5},
    "xminigrid": {"forward": 0, "right": 1, "pick up": 3, "toggle": 5},
}
EMPTY = {"navix": "navix/Navix-Empty-5x5-v0", "xminigrid": "xminigrid/MiniGrid-Empty-5x5"}
TO_THE_GOAL = ("forward", "forward", "right", "forward", "forward")  # path from one corner of the room to the other


def decoded(obs, categories):
    """Decode a one-hot grid to categories `[..., len(categories)]`, and check that each cell has one of every kind."""
    parts = np.split(np.asarray(obs), np.cumsum(categories)[:-1], axis=-1)
    assert [part.shape[-1] for part in parts] == list(categories)
    assert all((part.sum(-1) == 1).all() for part in parts)
    return np.stack([part.argmax(-1) for part in parts], axis=-1)


@functools.cache
def compiled(env_id, **options):
    """Return an environment with its compiled reset and step."""
    env = make(env_id, **options)
    return env, jax.jit(env.reset), jax.jit(env.step)


def of_suite(suite, name, max_steps):
    """Return the suite's own reset and step, and a function from a timestep to (terminated, truncated)."""
    if suite == "navix":
        env = navix_suite.registry()[name](max_steps=max_steps)
        return env.reset, env._step, lambda timestep: (timestep.step_type == 2, timestep.step_type == 1)
    env, params = xminigrid.make(name, max_steps=max_steps)

    def ends(timestep):
        last = timestep.step_type == 2
        return last & (timestep.discount == 0), last & (timestep.discount == 1)

    return functools.partial(env.reset, params), functools.partial(env.step, params), ends


@pytest.mark.parametrize(
    ("suite", "name", "max_steps"),
    [
        ("navix", "Navix-Dynamic-Obstacles-5x5-Random-v0", 12),
        ("xminigrid", "MiniGrid-EmptyRandom-5x5", 12),
        pytest.param("navix", "Navix-DoorKey-Random-5x5-v0", 100, marks=pytest.mark.slow),
        pytest.param("navix", "Navix-GoToDoor-5x5-v0", 60, marks=pytest.mark.slow),
        pytest.param("navix", "Navix-LavaGapS5-v0", 60, marks=pytest.mark.slow),
        pytest.param("xminigrid", "MiniGrid-DoorKey-5x5", 200, marks=pytest.mark.slow),
        pytest.param("xminigrid", "MiniGrid-MemoryS8", 60, marks=pytest.mark.slow),
    ],
)
def test_transitions_are_those_of_the_suite(suite, name, max_steps):
    """Many random episodes are played at once, and each is compared up to its end."""
    env = make(f"{suite}/{name}", max_steps=max_steps)
    their_reset, their_step, their_ends = of_suite(suite, name, max_steps)

    @jax.jit
    @jax.vmap
    def play(key):
        def advance(carry, key):
            state, theirs = carry
            action = jax.random.randint(key, (), 0, env.num_actions)
            (state, step), theirs = env.step(key, state, action), their_step(theirs, action)
            compared = (step.obs, step.reward, step.terminated, step.truncated)
            return (state, theirs), (compared, (theirs.observation, theirs.reward, *their_ends(theirs)))

        (state, step), theirs = env.reset(key), their_reset(key)
        _, steps = jax.lax.scan(advance, strong((state, theirs)), jax.random.split(key, max_steps))
        return (step.obs, theirs.observation), steps

    first, (ours, theirs) = jax.tree.map(np.asarray, play(jax.random.split(KEY, 128)))
    categories = SUITES[suite].CATEGORIES
    np.testing.assert_array_equal(decoded(first[0], categories), first[1])
    ended = np.maximum.accumulate(theirs[2] | theirs[3], axis=1)
    going = ~np.pad(ended, ((0, 0), (1, 0)))[:, :-1]  # True up to the last step of the first episode
    np.testing.assert_array_equal(decoded(ours[0][going], categories), theirs[0][going])
    for one, other in zip(ours[1:], theirs[1:], strict=True):
        np.testing.assert_array_equal(one[going], other[going])
    assert ended[:, -1].all()
    assert (theirs[2] & going).any()
    assert (theirs[3] & going).any()


@pytest.mark.parametrize("suite", EMPTY)
def test_the_goal_terminates_also_on_the_last_step_and_time_alone_truncates(suite):
    env, reset, advance = compiled(EMPTY[suite], max_steps=len(TO_THE_GOAL))
    assert env.time_limit == len(TO_THE_GOAL)
    prize = {"navix": 1, "xminigrid": 0.1}[suite]  # XLand-MiniGrid subtracts up to 0.9 for the time taken
    for words, ends in ((TO_THE_GOAL, (True, False, prize)), (["right"] * 5, (False, True, 0))):
        state, _ = reset(KEY)
        shown = []
        for word in words:
            state, step = advance(KEY, state, jnp.int32(ACTIONS[suite][word]))
            shown.append((bool(step.terminated), bool(step.truncated), round(float(step.reward), 3)))
        assert shown == [(False, False, 0)] * 4 + [ends]


def test_navix_shows_the_whole_grid():
    _, reset, _ = compiled(EMPTY["navix"], max_steps=len(TO_THE_GOAL))
    obs = decoded(reset(KEY)[1].obs, navix_suite.CATEGORIES)
    floor, wall, goal, player = (1, 0, 0), (2, 5, 0), (8, 1, 0), (10, 0, 0)  # numbers of MiniGrid
    expected = np.full((5, 5, 3), wall)
    expected[1:4, 1:4] = floor
    expected[1, 1], expected[3, 3] = player, goal
    np.testing.assert_array_equal(obs, expected)


def test_xminigrid_shows_what_lies_before_the_agent():
    """The agent faces right in the upper left corner: in its own view, right is up and down is right."""
    _, reset, _ = compiled(EMPTY["xminigrid"], max_steps=len(TO_THE_GOAL))
    obs = decoded(reset(KEY)[1].obs, xminigrid_suite.CATEGORIES)
    grid = np.full((5, 5, 2), (Tiles.WALL, Colors.GREY))
    grid[1:4, 1:4] = (Tiles.FLOOR, Colors.BLACK)
    grid[3, 3] = (Tiles.GOAL, Colors.GREEN)
    expected = np.full((7, 7, 2), (Tiles.EMPTY, Colors.EMPTY))
    expected[3:7, 2:7] = grid[:, 1:5].transpose(1, 0, 2)[::-1]
    np.testing.assert_array_equal(obs, expected)


def test_what_is_carried_is_shown_where_the_agent_stands_if_that_is_asked_for():
    env = make("xminigrid/MiniGrid-Empty-5x5", show_carried=True)
    state, first = env.reset(KEY)
    key = TILES_REGISTRY[Tiles.KEY, Colors.YELLOW]
    agent = state.state.agent.replace(pocket=key)
    carrying = state.replace(state=state.state.replace(agent=agent))
    seen = [first.obs, *(each._shown(carrying)[1].obs for each in (env, make("xminigrid/MiniGrid-Empty-5x5")))]
    nothing, shown, hidden = (decoded(obs, xminigrid_suite.CATEGORIES) for obs in seen)
    np.testing.assert_array_equal(nothing, hidden)
    assert np.argwhere((shown != hidden).any(-1)).tolist() == [[6, 3]]
    np.testing.assert_array_equal(shown[6, 3], key)


@pytest.mark.slow
def test_rules_of_ones_own_can_be_wrapped():
    env, params = xminigrid.make("XLand-MiniGrid-R1-9x9")
    ball = TILES_REGISTRY[Tiles.BALL, Colors.RED]
    goal, rules = AgentHoldGoal(tile=ball).encode(), EmptyRule().encode()[None]
    params = params.replace(ruleset=RuleSet(goal=goal, rules=rules, init_tiles=ball[None]))
    own = xminigrid_suite.XMiniGrid(env, params)
    check_contract(own)
    state, _ = own.reset(KEY)
    row, column = np.argwhere(state.state.grid[..., 0] == Tiles.BALL)[0]
    agent = state.state.agent.replace(position=jnp.array([row + 1, column]), direction=jnp.asarray(0))
    state = state.replace(state=state.state.replace(agent=agent))
    _, step = jax.jit(own.step)(KEY, state, jnp.int32(ACTIONS["xminigrid"]["pick up"]))
    assert (bool(step.terminated), bool(step.truncated)) == (True, False)
    np.testing.assert_allclose(step.reward, 1 - 0.9 / 243)


def test_only_environments_without_a_goal_are_left_out():
    """In Navix 0.7 these have a ball in place of the goal; XLand-MiniGrid's memory tasks have no goal, but do end."""
    left_out = set(navix_suite.registry()) - set(navix_suite.names())
    assert left_out
    for name in left_out:
        entities = jax.eval_shape(navix_suite.registry()[name]().reset, KEY).state.entities
        assert not isinstance(entities.get("goal"), Goal)
    left_out = set(xminigrid.registered_environments()) - set(xminigrid_suite.names())
    assert len(left_out) == 22
    goals = [xminigrid.make(name)[1].ruleset.goal for name in left_out if name.startswith("XLand")]
    goals.append(xminigrid.envs.minigrid.playground._goal_encoding)
    assert len(goals) == 22
    assert not np.any(goals)


@pytest.mark.parametrize(
    ("env_id", "limit"),
    [
        ("navix/Navix-Empty-8x8-v0", 256),
        ("navix/Navix-DoorKey-Random-6x6-v0", 144),
        ("xminigrid/MiniGrid-DoorKey-6x6", 360),
        ("xminigrid/MiniGrid-MemoryS8", 320),
    ],
)
def test_time_limits(env_id, limit):
    assert make(env_id).time_limit == limit
    assert make(env_id, max_steps=7).time_limit == 7


@pytest.mark.parametrize(
    ("env_id", "options", "shape", "encoder"),
    [
        ("navix/Navix-DistShift1-v0", {}, (7, 9, 21), "cnn"),
        ("navix/Navix-DistShift1-v0", {"observation": "symbolic_first_person"}, (7, 7, 21), "cnn"),
        ("navix/Navix-DistShift1-v0", {"observation": "rgb"}, (56, 72, 3), "nature"),
        ("navix/Navix-DistShift1-v0", {"observation": "rgb_first_person"}, (56, 56, 3), "nature"),
        ("xminigrid/MiniGrid-Empty-5x5", {"view_size": 3}, (3, 3, 25), "cnn"),
    ],
)
def test_sizes_and_what_understands_them(env_id, options, shape, encoder):
    env = make(env_id, **options)
    check_contract(env)
    obs = jax.eval_shape(env.reset, KEY)[1].obs
    assert (obs.shape, obs.dtype) == (shape, jnp.uint8 if encoder == "nature" else bool)
    assert default_encoder(obs) == encoder


@pytest.mark.slow
@pytest.mark.parametrize("env_id", [f"{suite}/{name}" for suite in SUITES for name in SUITES[suite].names()])
def test_random_play_leaves_no_category_out(env_id):
    env = make(env_id)

    @jax.jit
    @jax.vmap
    def play(key):
        def advance(state, key):
            state, step = env.step(key, state, jax.random.randint(key, (), 0, env.num_actions))
            return state, step.obs

        return jax.lax.scan(advance, env.reset(key)[0], jax.random.split(key, 100))[1]

    decoded(play(jax.random.split(KEY, 16)), SUITES[env_id.partition("/")[0]].CATEGORIES)


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
        ("navix/Navix-Empty-5x5-v0", {"observation": 3}, "observation=3: expected a word, like 'symbolic'"),
        ("xminigrid/MiniGrid-Empty-5x7", {}, "did you mean 'MiniGrid-Empty-"),
        ("xminigrid/MiniGrid-Empty-5x5", {"view_size": 4}, "view_size=4: expected an odd number from 3, like 7"),
        ("xminigrid/MiniGrid-Empty-5x5", {"view_size": 1}, "view_size=1: expected an odd number from 3, like 7"),
        ("xminigrid/MiniGrid-Empty-5x5", {"max_steps": 0}, "max_steps=0: expected a number like"),
        ("xminigrid/MiniGrid-Empty-5x5", {"show_carried": 1}, "show_carried=1: expected true or false, like False"),
        ("xminigrid/XLand-MiniGrid-R1-9x9", {}, "has no goal and no reward, as it comes without a ruleset"),
    ],
)
def test_errors(env_id, options, message):
    with pytest.raises(UserError, match=message):
        make(env_id, **options)


def test_an_environment_without_a_goal_says_so():
    name = next(name for name in navix_suite.registry() if name not in navix_suite.names())
    with pytest.raises(UserError, match=f"navix/{name} has no goal in navix "):
        make(f"navix/{name}")
