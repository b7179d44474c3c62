"""Brax: its own transitions without wrappers, time limits and options. All of it compiles for long."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("brax")

from brax import envs

from qlax.envs import make
from qlax.envs.check.env import check_env
from qlax.envs.suites import brax as suite
from qlax.envs.vec import Vec
from qlax.errors import UserError

pytestmark = pytest.mark.slow
KEY = jax.random.key(0)


def test_names_are_those_that_this_jax_can_run():
    assert set(suite.names()) == {*envs._envs} - {"fast", *suite.NEED_OLD_JAX}
    assert {"ant", "halfcheetah", "hopper", "humanoid", "inverted_pendulum", "pusher", "reacher"} < set(suite.names())


@pytest.mark.parametrize(
    ("name", "backend", "limit"),
    [("inverted_pendulum", "generalized", 1000), ("inverted_double_pendulum", "spring", 9)],
)
def test_transitions_are_those_of_brax(name, backend, limit):
    env = make(f"brax/{name}", backend=backend, episode_length=limit)
    theirs = envs.get_environment(name, backend=backend)
    assert env.time_limit == limit
    np.testing.assert_allclose(env.fps, 1 / theirs.dt, rtol=1e-6)
    state, shown = jax.jit(env.reset)(KEY)
    expected = jax.jit(theirs.reset)(KEY)
    step, their_step = jax.jit(env.step), jax.jit(theirs.step)
    for count in range(1, limit + 1):
        np.testing.assert_allclose(shown.obs, expected.obs, rtol=1e-5, atol=1e-5)
        action = jnp.full(1, 0.3)
        state, shown = step(KEY, state, action)
        expected = their_step(expected, action)
        np.testing.assert_allclose(shown.reward, expected.reward, rtol=1e-5)
        assert bool(shown.terminated) == bool(expected.done)
        assert bool(shown.truncated) == (count == limit and not expected.done)
        if shown.terminated:
            break
    assert count == limit or (shown.terminated and count < 100)
    np.testing.assert_allclose(shown.obs, expected.obs, rtol=1e-5, atol=1e-5)  # the final observation
    assert shown.metrics["physics_failed"] == 0


def test_a_copy_shows_its_final_observation_and_is_then_reset():
    vec = Vec(make("brax/inverted_pendulum", backend="spring", episode_length=3), 2)
    state, step = jax.jit(vec.reset)(KEY)
    advance, shown = jax.jit(vec.step), []
    for _ in range(5):
        state, step = advance(KEY, state, jnp.zeros((2, 1, 1)))
        shown.append(step)
    assert [bool(step.truncated.all()) for step in shown] == [False, False, False, True, False]
    assert [float(step.metrics["episode_length"][0]) for step in shown][2] == 3
    assert not any(step.terminated.any() for step in shown)
    assert (np.abs(shown[2].obs) < 0.2).all()


def test_physics_that_fail_end_the_episode():
    env = make("brax/inverted_pendulum", backend="spring")
    state, first = jax.jit(env.reset)(KEY)
    step = jax.jit(env.step)
    robot = state.suite.pipeline_state
    broken = state._replace(suite=state.suite.replace(pipeline_state=jax.tree.map(lambda x: x * jnp.nan, robot)))
    _, shown = step(KEY, broken, jnp.zeros(1))
    assert (bool(shown.terminated), bool(shown.truncated)) == (True, False)
    assert shown.metrics["physics_failed"] == 1
    assert shown.reward == 0
    np.testing.assert_array_equal(shown.obs, first.obs)


@pytest.mark.parametrize("backend", suite.BACKENDS)
def test_random_play_keeps_the_contract(backend):
    check_env(make("brax/inverted_pendulum", backend=backend, episode_length=20), num_steps=60)


def test_options_are_arguments_of_the_class():
    env = make("brax/hopper", terminate_when_unhealthy=False, action_repeat=4, healthy_z_range=[0.5, 2])
    assert (env.time_limit, env.action_bounds[0].shape) == (250, (3,))
    assert not env._env._terminate_when_unhealthy


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("hoper", {}, "brax has no environment 'hoper'; did you mean 'hopper'"),
        ("fast", {}, "brax has no environment 'fast'"),
        ("reacher", {"backend": "sprong"}, "backend='sprong': expected generalized or .* mjx; did you mean 'spring'"),
        (
            "reacher",
            {"gravity": 1},
            "brax/reacher has no option 'gravity'.*options: action_repeat, backend",
        ),
        ("reacher", {"episode_length": 0}, "episode_length=0: expected a number like 1000"),
        ("ant", {"use_contact_forces": True}, "brax/ant cannot be made: NotImplementedError"),
    ],
)
def test_errors_name_what_was_wrong(name, options, message):
    with pytest.raises(UserError, match=message):
        make(f"brax/{name}", **options)


@pytest.mark.skipif(not suite.NEED_OLD_JAX, reason="this JAX still has jnp.clip(a_min=...)")
def test_a_task_that_needs_an_older_jax_says_so_in_one_line():
    with pytest.raises(UserError, match=rf"brax/swimmer does not work with JAX {jax.__version__}: it calls jnp.clip"):
        make("brax/swimmer")
    theirs = envs.get_environment("swimmer")
    with pytest.raises(TypeError, match="a_min"):  # otherwise the adapter refuses what would work
        jax.eval_shape(lambda key: theirs.step(theirs.reset(key), jnp.zeros(2)), KEY)
