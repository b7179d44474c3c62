"""Every environment of a suite keeps its contract: CI tests a few of each suite, and the slow tests all of them."""

import re
import tomllib
from importlib.util import find_spec

import jax
import pytest
from pages import ROOT

from qlax import envs
from qlax.config import environments
from qlax.envs.check.common import action_form
from qlax.envs.check.env import check_contract, check_env
from qlax.envs.vec import Vec
from qlax.networks.qnetwork import default_encoder

FEW = (
    *(f"gymnax/{name}" for name in envs.suite("gymnax").names()),
    *("pgx/connect_four", "pgx/kuhn_poker", "pgx/2048", "pgx/minatar-freeway"),
    *("jumanji/Maze-v0", "jumanji/Tetris-v0", "jumanji/LevelBasedForaging-v0", "jumanji/Knapsack-v1"),
    *("navix/Navix-Empty-5x5-v0", "xminigrid/MiniGrid-Empty-5x5"),
    *("craftax/Craftax-Classic-Symbolic-v1", "jaxmarl/smax/3m", "jaxmarl/overcooked/cramped_room", "jaxmarl/hanabi"),
    *("jaxmarl/mpe/simple_spread", "jaxmarl/mpe/simple_speaker_listener"),
)
PLAYED = ("gymnax/MountainCar-v0", "pgx/kuhn_poker", "jumanji/Knapsack-v1", "jaxmarl/mpe/simple_speaker_listener")
KEY = jax.random.key(0)


def named():
    for suite in envs.SUITES:
        try:
            yield from (f"{suite}/{name}" for name in envs.suite(suite).names())
        except envs.UserError:  # not installed
            continue


ALL = tuple(named())
IN_JAX = tuple(name for name in ALL if not envs.maker(name).on_host)


def test_every_suite_has_a_module_and_an_extra_that_installs_it():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name, suite in envs.SUITES.items():
        assert find_spec(f"qlax.envs.suites.{name}")
        assert suite.distribution in [re.split("[>=]", needed)[0] for needed in extras[suite.extra]]


def in_ci(few, names):
    return [*few, *(pytest.param(name, marks=pytest.mark.slow) for name in names if name not in few)]


@pytest.mark.parametrize("env_id", in_ci(FEW, IN_JAX))
def test_shapes_and_dtypes_are_those_of_the_contract_and_types_are_strong(env_id):
    env = envs.make(env_id)
    check_contract(env)
    vec = Vec(env, 2)
    state, step = jax.eval_shape(vec.reset, KEY)
    axes, dtype = action_form(env)
    action = jax.ShapeDtypeStruct((2, *axes) if axes else (2, 1), dtype)
    after = jax.eval_shape(vec.step, KEY, state, action)
    assert _specified((state, step)) == _specified(after)
    default_encoder(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[2:], x.dtype), step.obs))  # some encoder suits


def _specified(tree):
    leaves, structure = jax.tree.flatten(tree)  # compares leaves, because nodes may define their own equality
    return structure, [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in leaves]


@pytest.mark.parametrize("env_id", in_ci(PLAYED, IN_JAX))
def test_random_play_keeps_the_contract(env_id):
    check_env(envs.make(env_id), num_steps=60)


@pytest.mark.slow
@pytest.mark.parametrize("env_id", [name for name in ALL if name not in IN_JAX and not name.startswith("envpool/")])
def test_random_play_on_the_host_keeps_the_contract(env_id):
    try:
        env = envs.make(env_id, num_envs=2)
    except envs.UserError as error:  # PQN cannot use all of Gymnasium's, or a package is missing
        assert env_id.startswith("gymnasium/")
        pytest.skip(str(error))
    try:
        check_env(env, num_steps=60)
    finally:
        env.close()


@pytest.mark.parametrize("suite", environments.SUITES)
def test_the_recorded_names_are_those_of_the_suite(suite):
    """If this test fails, `python tests/envs/names.py` records the names again."""
    recorded = environments.recorded(suite)
    try:
        installed = environments.installed_version(suite)
    except envs.UserError as error:
        pytest.skip(str(error))
    if installed != recorded.version:
        pytest.skip(f"{suite} {installed} is installed, and the names are those of {recorded.version}")
    names = [name for name in ALL if name.startswith(f"{suite}/")]
    if suite == "gymnasium":  # other packages add their environments to Gymnasium's registry
        assert {f"{suite}/{name}" for name in recorded.names} <= {*names}
    else:
        assert [f"{suite}/{name}" for name in recorded.names] == names
    for name in recorded.others.get("continuous actions", [])[:30]:
        options = {"num_envs": 1} if environments.SUITES[suite].on_host else {}
        with pytest.raises(envs.UserError, match=r"PQN needs discrete actions|is not installed"):
            envs.make(f"{suite}/{name}", **options)
