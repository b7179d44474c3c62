"""Craftax, which takes long to compile on a CPU: most tests only trace it, and the others share one compiled step."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import probes
import pytest
from craftax import craftax_env

from qlax.envs import make
from qlax.envs.check.env import check_env
from qlax.envs.suites import craftax as suite
from qlax.envs.vec import Vec
from qlax.errors import UserError

CLASSIC = "craftax/Craftax-Classic-Symbolic-v1"
SYMBOLIC = [name for name in suite.NAMES if "Pixels" not in name]
PIXELS = [name for name in suite.NAMES if "Pixels" in name]  # the first use computes textures for minutes
KEY = jax.random.key(0)
LIMIT = 4
NOTHING = jnp.zeros(2, jnp.int32)  # action "do nothing" in both copies


@functools.cache
def short():
    """Return the state and first step of 2 copies of Classic with a time limit of 4 steps, and a compiled step.

    The compiled step returns the next state, our environment's step, and what Craftax's own environment returns.
    """
    env = make(CLASSIC, max_timesteps=LIMIT)
    theirs = craftax_env.make_craftax_env_from_name("Craftax-Classic-Symbolic-v1", auto_reset=False)
    params = theirs.default_params.replace(max_timesteps=LIMIT)

    @jax.jit
    def step(state, action):
        both = jax.vmap(lambda *of_copy: (env.step(KEY, *of_copy), theirs.step_env(KEY, *of_copy, params)))
        (state, shown), (obs, _, reward, done, info) = both(state, action)
        return state, shown, (obs, reward, done, info)

    with probes.strict_and_quick():
        state, first = jax.jit(jax.vmap(env.reset))(jax.random.split(KEY, 2))
        step = step.lower(state, jnp.zeros(2, jnp.int32)).compile()
    return state, first, step


@pytest.mark.parametrize(
    "name", [*SYMBOLIC[1:], *(pytest.param(name, marks=pytest.mark.slow) for name in (SYMBOLIC[0], *PIXELS))]
)
def test_sizes_and_scores(name):
    env = make(f"craftax/{name}")
    assert Vec(env, 32).reset_ratio == 16
    step = jax.eval_shape(env.reset, KEY)[1]
    achievements = [metric for metric in step.metrics if metric.startswith("achievement/")]
    if "Classic" in name:
        assert (env.num_actions, env.time_limit, len(achievements)) == (17, 10_000, 22)
        assert env.score(11) == 50
    else:
        assert (env.num_actions, env.time_limit, len(achievements)) == (43, 100_000, 67)
        assert env.score(113) == 50
    assert step.obs.dtype == (jnp.uint8 if "Pixels" in name else jnp.float32)


@pytest.mark.slow  # the test compiles the world's generation again
def test_a_time_limit_truncates_and_death_terminates():
    state, first, step = short()
    assert np.isnan(list(first.metrics.values())).all()
    for count in range(1, LIMIT + 1):
        state, shown, _ = step(state, NOTHING)
        assert list(shown.truncated) == [count == LIMIT] * 2
        assert not shown.terminated.any()
    dying = short()[0].replace(player_health=jnp.array([0, 9]))
    _, shown, _ = step(dying, NOTHING)
    assert (list(shown.terminated), list(shown.truncated)) == ([True, False], [False, False])
    late = dying.replace(timestep=jnp.array([LIMIT - 1, LIMIT - 1]))
    _, shown, _ = step(late, NOTHING)
    assert (list(shown.terminated), list(shown.truncated)) == ([True, False], [False, True])


def test_achievements_are_reported_where_an_episode_ended():
    state, _, step = short()
    state = state.replace(achievements=state.achievements.at[0, 3].set(True), player_health=jnp.array([0, 9]))
    _, shown, _ = step(state, NOTHING)
    assert shown.metrics["achievement/collect_sapling"][0] == 1  # fourth achievement of Craftax's enumeration
    assert sum(float(value[0]) for value in shown.metrics.values()) == 1
    assert np.isnan([value[1] for value in shown.metrics.values()]).all()


def test_transitions_are_those_of_craftax():
    state, _, step = short()
    for action in (1, 5, 3, 2):
        state, shown, (obs, reward, done, info) = step(state, NOTHING + action)
        np.testing.assert_array_equal(shown.obs, obs)
        np.testing.assert_array_equal(shown.reward, reward)
        np.testing.assert_array_equal(shown.terminated | shown.truncated, done)
    for name, value in shown.metrics.items():
        np.testing.assert_array_equal(100 * value, info["Achievements/" + name.partition("/")[2]])


@pytest.mark.slow
@pytest.mark.parametrize("name", suite.NAMES)
def test_random_play_keeps_the_contract(name):
    check_env(make(f"craftax/{name}", max_timesteps=5), num_steps=12)


@pytest.mark.parametrize(
    ("env_id", "options", "message"),
    [
        ("craftax/Craftax-Symbolic", {}, "craftax has no environment 'Craftax-Symbolic'; did you mean 'Craftax-Symb"),
        (
            CLASSIC,
            {"max_steps": 5},
            "has no option 'max_steps'; did you mean 'max_timesteps'?; options: .*max_timesteps",
        ),
        (CLASSIC, {"max_timesteps": 0.5}, "max_timesteps=0.5: expected a number like 10000"),
    ],
)
def test_errors_name_what_was_wrong_and_what_was_probably_meant(env_id, options, message):
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        make(env_id, **options)


def test_a_suite_that_is_not_installed_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "craftax", None)
    monkeypatch.delitem(sys.modules, "qlax.envs.suites.craftax")
    with pytest.raises(UserError, match=r"not installed \(no module 'craftax.*'\): pip install 'qlax\[craftax\]'"):
        make(CLASSIC)
