import pickle
import subprocess
import sys
from collections import OrderedDict
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pages import TESTS
from playing import play
from probes import show, strict_and_quick
from runs import CARTPOLE, SMALL, random_agent

import qlax
from qlax.networks.plain import leaves_with_paths
from qlax.networks.spaces import cast
from qlax.storage import checkpoint


@pytest.fixture(scope="module", params=["batch_renorm", "gru"])
def run(request, tmp_path_factory):
    """Make a run directory with two agents."""
    batch_renorm = {"norm": "batch_renorm", "input_norm": "batch_renorm"}
    network = {"memory": "gru"} if request.param == "gru" else batch_renorm
    directory = tmp_path_factory.mktemp("run")
    (directory / "agents").mkdir()
    for seed in range(2):
        agent = random_agent(network, [["float32", [4]]], 2, seed, env=CARTPOLE)
        agent.save(directory / "agents" / f"{seed}.safetensors")
    return directory


@pytest.fixture
def agent(run):
    return qlax.load(run)


def observations(*shape):
    return np.random.default_rng(0).normal(size=(*shape, 4)).astype(np.float32)


def test_agents_are_told_apart_by_their_number(run):
    assert qlax.load(run, 1).info["seed"] == 1
    assert not np.array_equal(*(qlax.load(run, index).q_values(observations()) for index in range(2)))


def test_weights_go_to_the_device_once(agent):
    agent.act(observations())
    held = jax.tree.leaves(agent.variables)
    assert all(isinstance(x, jax.Array) for x in held)
    agent.act(observations())
    assert all(x is y for x, y in zip(jax.tree.leaves(agent.variables), held, strict=True))


def test_leading_axes_are_kept_and_rows_do_not_mix(agent):
    obs = observations(2, 3)
    together = agent.q_values(obs)
    assert together.shape == (2, 3, 2)
    agent.reset()
    np.testing.assert_allclose(agent.q_values(obs[1, 2]), together[1, 2], rtol=1e-5)
    agent.reset()
    np.testing.assert_array_equal(agent.act(obs), together.argmax(-1))
    agent.reset()
    assert agent.act(obs[0, 0]).shape == ()


def test_only_legal_actions_are_chosen(agent):
    legal = np.array([[True, False], [False, True]])
    np.testing.assert_array_equal(agent.act(observations(2), legal), [0, 1])


@pytest.mark.parametrize(
    ("legal", "message"),
    [
        ([[True, False], [False, False]], r"legal\[1\] has no legal action; expected at least one"),
        ([True, False], r"legal is bool\[2\]; expected bool\[2, 2\]"),
        (np.ones((2, 3), bool), r"legal is bool\[2, 3\]; expected bool\[2, 2\]"),
        (np.ones((2, 2)), r"legal is float64\[2, 2\]; expected bool\[2, 2\]"),
    ],
)
def test_a_mask_that_cannot_be_is_refused_and_nothing_is_remembered(legal, message, agent):
    expected = agent.q_values(observations(2))
    agent.reset()
    with pytest.raises(qlax.UserError, match=message):
        agent.act(observations(2), legal)
    np.testing.assert_array_equal(agent.q_values(observations(2)), expected)


def test_first_fits_the_leading_axes(agent):
    with pytest.raises(qlax.UserError, match=r"first has shape \(3,\); expected \(2,\), or one value for all"):
        agent.act(observations(2), first=[True, False, True])


def test_an_agent_says_what_it_is(agent):
    assert repr(agent) in (
        "<qlax.Agent of gymnax/CartPole-v1: mlp, sees float32[4], 2 actions>",
        "<qlax.Agent of gymnax/CartPole-v1: mlp and gru, sees float32[4], 2 actions>",
    )
    assert agent.num_actions == 2
    assert agent.recurrent == ("gru" in repr(agent))


def test_without_jax_it_is_the_same_agent(agent, run):
    plain = qlax.load(run, numpy_only=True)
    for step, obs in enumerate(observations(5, 3)):
        first = [step == 3, False, False]
        np.testing.assert_allclose(plain.q_values(obs, first), agent.q_values(obs, first), rtol=1e-4, atol=1e-5)
    assert repr(plain) == repr(agent)


def test_memory_lasts_until_reset(agent):
    obs = observations(2)
    first, second = agent.q_values(obs), agent.q_values(obs)
    assert np.array_equal(first, second) != agent.recurrent
    if agent.recurrent:
        with pytest.raises(qlax.UserError, match="call reset"):
            agent.q_values(obs[0])
    agent.reset()
    np.testing.assert_array_equal(agent.q_values(obs), first)


def test_an_episode_may_begin_anew_in_some_rows(agent):
    obs = observations(2)
    first, second = agent.q_values(obs), agent.q_values(obs)
    third = agent.q_values(obs, first=[True, False])
    np.testing.assert_allclose(third[0], first[0], rtol=1e-5)
    agent.reset()
    for _ in range(2):
        agent.q_values(obs)
    np.testing.assert_array_equal(third[1], agent.q_values(obs)[1])
    assert np.array_equal(third[1], second[1]) != agent.recurrent


@pytest.mark.parametrize("numpy_only", [False, True])
def test_an_agent_can_be_pickled_in_the_middle_of_an_episode(run, numpy_only):
    agent = qlax.load(run, numpy_only=numpy_only)
    agent.act(observations(3))
    sent = pickle.loads(pickle.dumps(agent))
    np.testing.assert_array_equal(sent.q_values(observations(3)), agent.q_values(observations(3)))
    assert (sent.info, repr(sent)) == (agent.info, repr(agent))


@pytest.mark.parametrize(
    "obs", [np.zeros(3), np.zeros((4, 5)), 0.0, [], [[0.0], [0.0, 1.0]], {"a": np.zeros(4), "b": np.zeros(4)}]
)
def test_another_observation_is_refused(agent, obs):
    with pytest.raises(qlax.UserError, match=r"expected \(4,\)"):
        agent.act(obs)


def test_nothing_to_look_at_is_refused(agent):
    with pytest.raises(qlax.UserError, match=r"obs holds no observation: its leading axes are \(0,\)"):
        agent.act(observations(0))


def test_observations_are_cast_to_what_the_agent_was_trained_on(agent):
    whole = np.array([[0, 1, 2, 3]], np.uint8)
    expected = agent.q_values(whole.astype(np.float32))
    agent.reset()
    np.testing.assert_array_equal(agent.q_values(whole), expected)


@pytest.mark.parametrize(
    ("given", "held"), [(np.ones(2), np.uint8), (np.ones(2, int), bool), (np.ones(2), np.float32), ([1, 0], np.uint8)]
)
def test_numbers_are_cast_where_nothing_is_lost(given, held):
    assert cast(np.asarray(given), np.dtype(held), "").dtype == held


@pytest.mark.parametrize(
    ("given", "held"),
    [
        (np.full(2, 0.5), "uint8"),
        (np.array([0, 256]), "uint8"),
        (np.array([0, 256], np.uint16), "uint8"),
        (np.array([0, 2]), "bool"),
        (np.array(["a"]), "float32"),
    ],
)
def test_numbers_are_not_cast_to_others(given, held):
    with pytest.raises(
        qlax.UserError, match=rf"observation\['x'\] is {given.dtype}; expected {held}, which cannot hold"
    ):
        cast(given, np.dtype(held), "observation['x']")


class Seen(NamedTuple):
    second: object
    first: object


def test_a_tree_has_the_same_names_in_numpy_as_in_jax():
    leaf = np.zeros(1)
    tree = {"b": (leaf, [leaf, None, 2.0]), "a": Seen(leaf, {1: leaf}), "it's": OrderedDict(z=leaf, y=leaf)}
    expected = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    assert [path for path, _ in leaves_with_paths(tree)] == expected


def test_what_cannot_be_loaded_is_named(run, tmp_path):
    with pytest.raises(qlax.UserError, match="agents there: 0, 1"):
        qlax.load(run, 7)
    (tmp_path / "0.safetensors").write_bytes(b"no weights")
    with pytest.raises(qlax.UserError, match=r"0.safetensors is damaged"):
        qlax.load(tmp_path / "0.safetensors")
    checkpoint.save(tmp_path / "1.safetensors", {"params": np.zeros(2)}, {"updates": 3})
    with pytest.raises(qlax.UserError, match="holds no agent"):
        qlax.load(tmp_path / "1.safetensors")


@pytest.mark.parametrize("numpy_only", [False, True])
def test_weights_that_do_not_fit_their_description_are_refused(numpy_only, agent, tmp_path):
    layer = agent.variables["params"]["Dense_0"]
    agent.variables["params"]["Dense_0"] = layer | {"kernel": layer["kernel"][:3]}
    agent.save(tmp_path / "odd.safetensors")
    with pytest.raises(qlax.UserError, match=r"odd.safetensors holds weights that do not fit its description: \w+"):
        qlax.load(tmp_path / "odd.safetensors", numpy_only=numpy_only)


@pytest.mark.slow
def test_a_team_plays_in_a_new_process_as_it_was_evaluated(tmp_path):
    settings = SMALL | {"memory": "gru", "norm": "batch", "input_norm": "batch", "learning_rate": 0.01, "seed": 2}
    result = qlax.train("playing:Script", out=tmp_path / "run", **settings)
    evaluated = result.summary["eval_return"]["per_run"][0]
    code = "import sys, qlax, playing; print(playing.play(qlax.load(sys.argv[1])))"
    command = [sys.executable, "-c", code, str(result.directory)]
    said = subprocess.run(command, cwd=TESTS, check=True, capture_output=True, text=True).stdout
    assert float(said) == pytest.approx(evaluated, rel=1e-5)
    loaded, (trained,) = qlax.load(result.directory), result.agents
    for step in observations(3, 2):
        np.testing.assert_array_equal(loaded.q_values(step), trained.q_values(step))
    # Without its memory, or without the statistics of its norms, the agent acts differently.
    assert play(qlax.load(result.directory), forget=True) != pytest.approx(evaluated, rel=1e-2)
    agent = qlax.load(result.directory)
    agent.variables["batch_stats"] = jax.tree.map(lambda x: 0 * x + 0.1, agent.variables["batch_stats"])
    assert play(agent) != pytest.approx(evaluated, rel=1e-2)


class Sight(NamedTuple):
    planes: jax.Array
    rest: dict[str, jax.Array]


class Either:
    """One-step task with Q-values 1 and -1: the right action says if grid and vector, of two values each, differ."""

    num_actions = 2

    @staticmethod
    def obs(planes, sign):
        grid = jnp.zeros((3, 3, 2), bool).at[1, 2, planes.astype(int)].set(True)
        return Sight(grid, {"sign/": jnp.stack([jnp.where(sign, 1.0, -1.0), 0.5]), "rest": jnp.float32(0)})

    def reset(self, key):
        planes, sign = jax.random.bernoulli(key, 0.5, (2,))
        return (planes, sign), show(self.obs(planes, sign))

    def step(self, key, state, action):
        del key
        right = (action == 1) == (state[0] ^ state[1])
        return state, show(self.obs(*state), jnp.where(right, 1.0, -1.0), terminated=True)


def test_an_agent_learns_from_a_tree_of_arrays_and_is_loaded_with_it(tmp_path):
    with strict_and_quick():
        settings = SMALL | {
            "num_envs": 32,
            "num_steps": 2,
            "total_steps": 64 * 150,
            "hidden": (32,),
            "log_interval": 50,
        }
        settings |= {"learning_rate": 0.01, "epsilon_end": 1.0, "eval_interval": 150, "checkpoint_interval": 150}
        result = qlax.train("test_agent:Either", out=tmp_path / "run", **settings)
        cases = jnp.array([[0, 0], [0, 1], [1, 0], [1, 1]], bool)
        obs = jax.vmap(Either.obs)(*cases.T)
        agent = qlax.load(result.directory)
        q = agent.q_values(obs)
        np.testing.assert_array_equal(q, result.agents[0].q_values(obs))
        np.testing.assert_allclose(q, [[1, -1], [-1, 1], [-1, 1], [1, -1]], atol=0.1)
        one = jax.tree.map(lambda x: x[2], obs)
        np.testing.assert_allclose(agent.q_values(one), q[2], rtol=1e-5)
    assert result.config.encoder == "cnn"


TREE = {
    "network": {"encoder": "mlp", "hidden": [4]},
    "num_actions": 3,
    "obs": [["bool", [2]], ["float32", []]],
    "obs_paths": ["['b']", "['c']"],
}


@pytest.mark.parametrize("numpy_only", [False, True])
@pytest.mark.parametrize(
    ("obs", "message"),
    [
        (
            {"b": np.zeros((5, 2)), "d": np.zeros(5)},
            r"\['b'\] \(5, 2\), \['d'\] \(5,\); expected \['b'\] \(2,\), \['c'\] \(\)",
        ),
        ({"b": np.zeros(2)}, r"of shape \['b'\] \(2,\); expected \['b'\] \(2,\), \['c'\] \(\), after any leading axes"),
        ({"b": np.zeros((5, 2)), "c": np.zeros(4)}, r"\['c'\] \(4,\); expected"),
        ((np.zeros(2), 0.0), r"\[0\] \(2,\), \[1\] \(\); expected"),
        (np.zeros(2), r"of shape \(2,\); expected \['b'\] \(2,\)"),
        ({}, "of shape nothing; expected"),
    ],
)
def test_another_tree_is_refused(obs, message, numpy_only):
    with pytest.raises(qlax.UserError, match=message):
        qlax.Agent({}, TREE, numpy_only).q_values(obs)


def test_a_tree_with_other_names_is_refused_where_its_shapes_fit():
    info = TREE | {"obs": [["float32", [2]]] * 2}
    with pytest.raises(
        qlax.UserError, match=r"\['b'\] \(2,\), \['x'\] \(2,\); expected \['b'\] \(2,\), \['c'\] \(2,\)"
    ):
        qlax.Agent({}, info).q_values({"b": np.zeros(2), "x": np.zeros(2)})
