"""MuJoCo Playground: its own transitions without wrappers, time limits and options. All of it compiles for long."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("mujoco_playground")

from mujoco_playground import dm_control_suite, registry
from mujoco_playground._src import mjx_env

from qlax.envs import make
from qlax.envs.check.env import check_env
from qlax.envs.suites import playground as suite
from qlax.errors import UserError

pytestmark = pytest.mark.slow
KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def _nothing_is_downloaded(monkeypatch, tmp_path):
    """The robots of Menagerie are not there, and a download fails."""
    monkeypatch.setattr(mjx_env, "MENAGERIE_PATH", tmp_path / "menagerie")
    monkeypatch.setattr(mjx_env, "_clone_with_progress", lambda *_: pytest.fail("a test downloads"))


def test_names_are_those_whose_robots_come_with_the_package():
    assert suite.names() == list(dm_control_suite.ALL_ENVS)
    assert {"CartpoleBalance", "ReacherEasy", "HumanoidRun"} < set(suite.names())


@pytest.mark.parametrize(("name", "limit"), [("CartpoleBalance", 6), ("PendulumSwingup", 1000)])
def test_transitions_are_those_of_playground(name, limit):
    env = make(f"playground/{name}", **({"episode_length": limit} if limit < 1000 else {}))
    theirs = dm_control_suite.load(name, config_overrides={"impl": "jax"})
    assert env.time_limit == limit
    np.testing.assert_allclose(env.fps, 1 / theirs.dt)
    np.testing.assert_array_equal(env.action_bounds, np.float32(theirs.mj_model.actuator_ctrlrange.T))
    state, shown = jax.jit(env.reset)(KEY)
    expected = jax.jit(theirs.reset)(KEY)
    step, their_step = jax.jit(env.step), jax.jit(theirs.step)
    for count in range(1, 7):
        np.testing.assert_allclose(shown.obs, expected.obs, rtol=1e-5, atol=1e-5)
        action = jnp.full(1, 0.3)
        state, shown = step(KEY, state, action)
        expected = their_step(expected, action)
        np.testing.assert_allclose(shown.reward, expected.reward, rtol=1e-5, atol=1e-6)
        assert (bool(shown.terminated), bool(shown.truncated)) == (False, count == limit)
    np.testing.assert_allclose(shown.obs, expected.obs, rtol=1e-5, atol=1e-5)  # the final observation, if it ended
    broken = state._replace(
        suite=state.suite.replace(data=state.suite.data.replace(qvel=state.suite.data.qvel * jnp.nan))
    )
    _, last = step(KEY, broken, action)
    assert (bool(last.terminated), bool(last.truncated), float(last.reward)) == (True, False, 0)
    assert last.metrics["physics_failed"] == 1
    np.testing.assert_array_equal(last.obs, shown.obs)


def test_random_play_keeps_the_contract():
    check_env(make("playground/PendulumSwingup", episode_length=20, action_repeat=2), num_steps=60)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("CartpoleBalanc", {}, "playground has no environment 'CartpoleBalanc'; did you mean 'CartpoleBalance'"),
        ("Go1JoystickFlatTerrain", {}, r"needs the robots of MuJoCo Menagerie, .*: python -c 'from .*ensure_menagerie"),
        ("PandaPickCube", {"impl": "jax"}, "playground/PandaPickCube needs the robots of MuJoCo Menagerie"),
        ("CartpoleBalance", {"impl": "wrap"}, "impl='wrap': expected jax or warp; did you mean 'warp'"),
        (
            "CartpoleBalance",
            {"vision": True},
            "has no option 'vision'.*options: action_repeat, ctrl_dt",
        ),
        ("CartpoleBalance", {"action_repeat": 0}, "action_repeat=0: expected a number like 1"),
    ],
)
def test_errors_name_what_was_wrong(name, options, message):
    with pytest.raises(UserError, match=message):
        make(f"playground/{name}", **options)


def test_every_other_task_is_refused_before_anything_is_downloaded():
    others = set(registry.ALL_ENVS) - set(suite.names())
    assert len(others) > 20
    for name in others:
        with pytest.raises(UserError, match="Menagerie"):
            make(f"playground/{name}")
    options = suite._flat(registry.get_default_config("Go1JoystickFlatTerrain").to_dict())
    assert "reward_config.scales.tracking_lin_vel" in options
