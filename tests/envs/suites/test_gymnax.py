import importlib
import re
import sys

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qlax.envs import make
from qlax.envs.check.env import check_env
from qlax.envs.suites import gymnax as suite
from qlax.envs.vec import Vec
from qlax.errors import UserError

NAMES = suite.names()
CHEAP = ("CartPole-v1", "MountainCar-v0", "Breakout-MinAtar", "FrozenLake-misc")
KEYS = jax.random.split(jax.random.key(0), 20)


def test_every_environment_that_needs_no_download_is_offered():
    assert set(gymnax.registered_envs) - set(NAMES) == {"MNISTBandit-bsuite"}


@pytest.mark.parametrize("name", NAMES)
def test_observations_are_bool_or_float(name):
    _, step = jax.eval_shape(Vec(make(f"gymnax/{name}"), 2).reset, KEYS[0])
    if name.endswith("-MinAtar"):
        assert step.obs.shape[:4] == (2, 1, 10, 10)
        assert step.obs.dtype == bool
    elif name == "FrozenLake-misc":
        assert (step.obs.shape, step.obs.dtype) == ((2, 1, 16), bool)
    else:
        assert step.obs.dtype == jnp.float32


@pytest.mark.parametrize("name", CHEAP)
def test_random_play_keeps_the_contract_and_compiles_once(name):
    env = make(f"gymnax/{name}", max_steps_in_episode=7)
    check_env(env, num_steps=20)
    vec, num_traces = Vec(env, 3), 0

    @jax.jit
    def advance(state, key):
        nonlocal num_traces
        num_traces += 1
        key_action, key_step = jax.random.split(key)
        return vec.step(key_step, state, jax.random.randint(key_action, (3, 1), 0, vec.num_actions))

    state, _ = jax.jit(vec.reset)(KEYS[-1])
    num_episodes = 0
    for key in KEYS:
        state, step = advance(state, key)
        length = step.metrics["episode_length"]
        assert np.array_equal(np.isfinite(length), np.isfinite(step.metrics["episode_return"]))
        assert np.all(np.isnan(length) | (length <= 7))
        num_episodes += np.isfinite(length).sum()
    assert num_traces == 1
    assert num_episodes >= 6


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("CartPole-v1", 500),
        ("Acrobot-v1", 500),
        ("MountainCar-v0", 200),
        ("Breakout-MinAtar", 1000),
        ("Freeway-MinAtar", 2500),
        ("DeepSea-bsuite", 8),
        ("BernoulliBandit-misc", 100),
        ("FourRooms-misc", 500),
    ],
)
def test_time_limits(name, limit):
    env = make(f"gymnax/{name}")
    assert env.time_limit == limit
    assert isinstance(env.time_limit, int)
    assert make(f"gymnax/{name}", max_steps_in_episode=5).time_limit == 5


def ends(env, actions):
    """Return (terminated, truncated) of every step of an episode, which is continued beyond its end."""
    step = jax.jit(env.step)
    state, _ = env.reset(KEYS[0])
    shown = []
    for action in actions:
        state, outcome = step(KEYS[0], state, jnp.int32(action))
        shown.append((bool(outcome.terminated), bool(outcome.truncated)))
    return shown


def test_a_time_limit_truncates_and_does_not_terminate():
    env = make("gymnax/CartPole-v1", max_steps_in_episode=5)
    assert ends(env, [0, 1, 0, 1, 0]) == [(False, False)] * 4 + [(False, True)]


def test_a_fall_terminates_and_does_not_truncate():
    shown = ends(make("gymnax/CartPole-v1"), [1] * 12)
    assert 5 < shown.index((True, False)) < 12
    assert not any(truncated for _, truncated in shown)


@pytest.mark.parametrize("name", ["CartPole-v1", "Breakout-MinAtar", "GaussianBandit-misc"])
def test_transitions_are_those_of_gymnax(name):
    env = make(f"gymnax/{name}", max_steps_in_episode=15)
    theirs, params = gymnax.make(name)
    params = params.replace(max_steps_in_episode=15)
    state, first = env.reset(KEYS[0])
    np.testing.assert_array_equal(first.obs, theirs.reset(KEYS[0], params)[0])
    step, num_ends = jax.jit(env.step), 0
    for key in KEYS:
        action = jax.random.randint(key, (), 0, env.num_actions)
        _, _, reward, terminated, truncated, info = theirs.step(key, state, action, params)
        state, ours = step(jax.random.split(key)[0], state, action)  # Gymnax uses the other half of the key for resets
        np.testing.assert_allclose(ours.obs, info["final_observation"], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(ours.reward, reward, rtol=1e-5)
        assert (ours.terminated, ours.truncated) == (terminated, truncated)
        num_ends += bool(terminated | truncated)
        if terminated | truncated:
            state, _ = env.reset(key)
    assert num_ends


@pytest.mark.parametrize("length", [3, 8])
def test_options_are_fields_of_the_parameters_or_arguments_of_the_class(length):
    env = make("gymnax/MemoryChain-bsuite", memory_length=length, num_bits=4)
    assert env.reset(KEYS[0])[1].obs.shape == (6,)
    shown = ends(env, [0] * (length + 1))
    assert shown == [(False, False)] * length + [(True, False)]
    deep_sea = make("gymnax/DeepSea-bsuite", size=length)
    assert (deep_sea.reset(KEYS[0])[1].obs.shape, deep_sea.time_limit) == ((length, length), length)
    assert make("gymnax/FrozenLake-misc", map_name="8x8").reset(KEYS[0])[1].obs.shape == (64,)


@pytest.mark.parametrize(
    ("env_id", "options", "message"),
    [
        ("gymnax/CartPole-v2", {}, "gymnax has no environment 'CartPole-v2'; did you mean 'CartPole-v1'?"),
        ("gymnax/", {}, "gymnax has no environment ''; 'qlax envs gymnax' lists them"),
        ("gymnax/CartPole-v1", {"gravitas": 1}, "has no option 'gravitas'; did you mean 'gravity'"),
        ("gymnax/MemoryChain-bsuite", {"bits": 1}, "options: .*memory_length, num_bits"),
        ("gimnax/CartPole-v1", {}, "unknown suite 'gimnax'; did you mean 'gymnax'?"),
        ("atari57/Pong", {}, "unknown suite 'atari57'; suites: gymnax"),
        ("CartPole-v1", {}, "unknown environment 'CartPole-v1': expected suite/name or module:Name; suites: gymnax"),
    ],
)
def test_errors_name_what_was_wrong_and_what_was_probably_meant(env_id, options, message):
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        make(env_id, **options)


def test_data_that_cannot_be_downloaded(monkeypatch):
    def offline(name):
        raise OSError("no route to host")

    monkeypatch.setattr(gymnax, "make", offline)
    with pytest.raises(UserError, match="gymnax/MNISTBandit-bsuite cannot download its data: no route to host"):
        make("gymnax/MNISTBandit-bsuite")


def test_a_suite_that_is_not_installed_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnax", None)
    monkeypatch.delitem(sys.modules, "qlax.envs.suites.gymnax")
    with pytest.raises(UserError, match=r"not installed \(no module 'gymnax'\): pip install 'qlax\[gymnax\]'"):
        make("gymnax/CartPole-v1")


def test_a_suite_that_does_not_work_with_this_jax_says_so_in_one_line(monkeypatch):
    def too_old(name):
        raise AttributeError("module 'jax.core' has no attribute 'get_aval'")

    monkeypatch.setattr(importlib, "import_module", too_old)
    expected = (
        f"the suite 'gymnax' does not work here, with JAX {jax.__version__}: AttributeError: module 'jax.core' has no"
    )
    with pytest.raises(UserError, match=re.escape(expected)):
        make("gymnax/CartPole-v1")


@pytest.fixture
def worlds(tmp_path, monkeypatch):
    """Write `worlds.py` to the working directory."""
    (tmp_path / "worlds.py").write_text("from counting import Counting\nclass Broken(Counting):\n    num_actions = 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    yield
    sys.modules.pop("worlds", None)


@pytest.mark.usefixtures("worlds")
def test_own_environments_are_imported_from_the_working_directory():
    env = make("worlds:Counting", lengths=(7,), time_limit=2)
    assert (type(env).__name__, env.time_limit, env.num_actions) == ("Counting", 2, 3)


@pytest.mark.usefixtures("worlds")
@pytest.mark.parametrize(
    ("env_id", "options", "message"),
    [
        (
            "wordls:Counting",
            {},
            "cannot import 'wordls' for 'wordls:Counting': ModuleNotFoundError: No module named 'wordls'",
        ),
        (":Counting", {}, "':Counting'"),
        (".worlds:Counting", {}, "relative import"),
        ("worlds:Countin", {}, "module 'worlds' has no 'Countin'; did you mean 'Counting'?"),
        ("worlds:", {}, "'worlds:' is not an import path; expected module:Name"),
        ("worlds:Counting", {"speed": 2}, "worlds:Counting cannot be made: .* unexpected keyword argument 'speed'"),
        ("worlds:Broken", {}, "environment Broken: num_actions is 0; expected a whole number"),
    ],
)
def test_own_environments_that_cannot_be_made(env_id, options, message):
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        make(env_id, **options)
