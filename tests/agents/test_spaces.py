"""Agents of environments with spaces take the environment's own observations, and return its own actions."""

import json
import pickle

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from pages import TESTS
from runs import SMALL, random_agent
from shown import BYTES, PARTS
from test_export import read_without

import qlax
from qlax.agents import export
from qlax.envs.suites.spaces import described, described_action
from qlax.errors import HostError
from qlax.networks.spaces import action, in_words, observation

IMAGE = np.random.default_rng(0).integers(0, 256, (2, 5, 6)).astype(np.uint8)
LAST = np.stack([IMAGE[0], IMAGE[1]], axis=-1)
TURNED = spaces.Box(0, 255, (2, 5, 6), np.uint8)
CASES = [  # a space, an element of it, and the converted element that networks receive
    (BYTES, np.array([0, 51, 255, 102], np.uint8), np.array([0, 0.2, 1, 0.4], np.float32)),
    (spaces.Box(0, 9, (2, 2), np.int64), np.array([[1, 2], [3, 9]]), np.array([[1, 2], [3, 9]], np.float32)),
    (spaces.Box(-1, 1, (), np.float64), np.array(0.5), np.array(0.5, np.float32)),
    (TURNED, IMAGE, LAST),
    (spaces.Box(0, 255, (5, 6, 2), np.uint8), LAST, LAST),
    (spaces.Discrete(5, start=1), 3, np.array([0, 0, 1, 0, 0], bool)),
    (spaces.MultiDiscrete([2, 3], start=[0, 5]), np.array([1, 6]), np.array([0, 1, 0, 1, 0], bool)),
    (
        spaces.MultiDiscrete([[2, 2], [1, 3]]),
        np.array([[1, 0], [0, 2]]),
        np.array([0, 1, 1, 0, 1, 0, 0, 1], bool),
    ),
    (spaces.MultiBinary((2, 2)), np.array([[0, 1], [1, 1]], np.int8), np.array([[0, 1], [1, 1]], bool)),
    (
        spaces.Dict({"a": spaces.Box(0, 255, (1,), np.uint8), "b": spaces.Discrete(2, start=1)}),
        {"b": np.int64(2), "a": np.array([51], np.uint8)},
        np.array([0.2, 0, 1], np.float32),
    ),
    (
        spaces.Tuple((spaces.Discrete(2), spaces.Dict({"c": spaces.MultiBinary(2)}))),
        (1, {"c": np.array([1, 0], np.int8)}),
        np.array([0, 1, 1, 0], np.float32),
    ),
    (
        spaces.Dict({"a": TURNED, "b": spaces.Tuple((spaces.Discrete(2), spaces.Discrete(3)))}),
        {"a": IMAGE, "b": (1, 0)},
        {"a": LAST, "b": np.array([0, 1, 1, 0, 0], np.float32)},
    ),
]
ACTIONS = [  # a space, and its actions in the order of the Q-values
    (spaces.Discrete(2, start=1), [1, 2]),
    (spaces.Discrete(3, start=-1, dtype=np.int32), [-1, 0, 1]),
    (spaces.MultiDiscrete([2, 3], start=[0, 5]), [[0, 5], [0, 6], [0, 7], [1, 5], [1, 6], [1, 7]]),
    (spaces.MultiDiscrete([[2, 1], [1, 2]]), [[[0, 0], [0, 0]], [[0, 0], [0, 1]], [[1, 0], [0, 0]], [[1, 0], [0, 1]]]),
    (spaces.MultiBinary(2), [[0, 0], [0, 1], [1, 0], [1, 1]]),
]


def agent_of(space, converted, action_space=ACTIONS[0][0], numpy_only=True):
    """Return an agent that keeps the space, and one with the same network but without spaces."""
    arrays = list(converted.values()) if isinstance(converted, dict) else [converted]
    obs = [[str(array.dtype), list(array.shape)] for array in arrays]
    both = {"observation": described("test", space), "action": described_action("test", action_space)}
    agent = random_agent({}, obs, action(both["action"]).num_actions, spaces=json.loads(json.dumps(both)))
    bare = {name: agent.info[name] for name in agent.info.keys() - {"spaces"}}
    return tuple(qlax.Agent(agent.variables, info, numpy_only) for info in (agent.info, bare))


def batch(space, samples):
    """Batch samples as Gymnasium's vector environments do."""
    empty = gymnasium.vector.utils.create_empty_array(space, len(samples))
    return gymnasium.vector.utils.concatenate(space, samples, empty)


@pytest.mark.parametrize(
    ("space", "raw", "converted", "numpy_only"), [*((*case, True) for case in CASES), (*CASES[-1], False)]
)
def test_an_agent_sees_of_an_observation_what_training_saw(space, raw, converted, numpy_only):
    assert space.contains(raw)
    agent, bare = agent_of(space, converted, numpy_only=numpy_only)
    expected = bare.q_values(converted)
    assert expected.shape == (2,)
    for each in (agent, pickle.loads(pickle.dumps(agent))):
        np.testing.assert_allclose(each.q_values(raw), expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(each.q_values(batch(space, [raw] * 3)), [expected] * 3, rtol=1e-4, atol=1e-5)
        assert each.act(raw) == 1 + expected.argmax()


@pytest.mark.parametrize(("space", "raw", "converted"), CASES)
def test_training_and_agents_convert_alike(space, raw, converted):
    convert = observation(described("test", space), "test")
    given = convert(batch(space, [raw, raw]))
    flat = given if isinstance(given, dict) else {"": given}
    for name, array in (converted if isinstance(converted, dict) else {"": converted}).items():
        assert flat[name].dtype == array.dtype
        np.testing.assert_allclose(flat[name], np.stack([array] * 2), rtol=1e-6)


@pytest.mark.parametrize(("space", "actions"), ACTIONS)
def test_an_agent_answers_with_actions_of_the_environment(space, actions):
    agent, bare = agent_of(BYTES, np.zeros(4, np.float32), space)
    raw = np.random.default_rng(0).integers(0, 256, (4, 50, 4)).astype(np.uint8)
    number = bare.q_values(raw / np.float32(255)).argmax(-1)
    found = agent.act(raw)
    np.testing.assert_array_equal(found, np.array(actions)[number])
    assert all(space.contains(action) for action in found.reshape(-1, *space.shape))
    assert space.contains(agent.act(raw[0, 0]))
    legal = np.arange(len(actions)) == len(actions) - 1
    np.testing.assert_array_equal(agent.act(raw[0, 0], legal), actions[-1])
    assert agent.q_values(raw).shape == (4, 50, len(actions))


@pytest.mark.parametrize(
    ("space", "raw", "message"),
    [
        (BYTES, np.array([0, 0.2, 1, 0.4], np.float32), "observation is float32; expected uint8, which cannot hold"),
        (BYTES, [0, 1, 2, 300], "observation is int64; expected uint8, which cannot hold"),
        (BYTES, np.zeros((2, 3), np.uint8), r"observation has shape \(2, 3\); expected \(4,\), after any leading"),
        (TURNED, LAST, r"observation has shape \(5, 6, 2\); expected \(2, 5, 6\)"),
        (spaces.Discrete(3), 7, r"observation holds 7; expected values of Discrete\(3\)"),
        (spaces.Discrete(3, start=1), [1, 0], r"observation holds 0; expected values of Discrete\(3, start=1\)"),
        (spaces.Discrete(3), np.array([False, True, False]), "observation is bool; expected values of Discrete"),
        (spaces.MultiDiscrete([2, 3]), [1, 3], r"observation holds 3; expected values of MultiDiscrete\(\[2, 3\]\)"),
        (spaces.MultiBinary(2), [0, 2], r"observation holds 2; expected values of MultiBinary\(\[2\]\)"),
        (PARTS, {"bits": [0, 1]}, "observation is parts bits; expected a dict of bits, bytes, frames, kind"),
        (PARTS["kind"], 3, "observation is int; expected a tuple of 0, 1"),
        (PARTS["kind"], (9, [0, 5]), r"observation\[0\] holds 9"),
        (PARTS["kind"], ([0, 1], [0, 5]), "the leading axes of observation are .*; expected the same"),
        (BYTES, [[1], [1, 2]], "observation is not an array"),
        (BYTES, np.zeros((0, 4), np.uint8), "obs holds no observation"),
    ],
)
def test_what_is_not_in_the_space_is_refused(space, raw, message):
    sample = observation(described("test", space), "test")(batch(space, [space.sample()]))
    arrays = {name: x[0] for name, x in sample.items()} if isinstance(sample, dict) else sample[0]
    agent, _ = agent_of(space, arrays)
    with pytest.raises(qlax.UserError, match=message) as refused:
        agent.act(raw)
    assert "\n" not in str(refused.value)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Train for two updates in an environment whose observation has all kinds of spaces."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TESTS)
        out = tmp_path_factory.mktemp("spaces") / "run"
        qlax.train("gymnasium/shown:Parts-v0", out=out, encoder="mlp", **SMALL | {"total_steps": 64})
        yield out


def by_hand(obs):
    """Convert an observation of that run for the network, without the code under test."""
    kind, (one, other) = obs["kind"]
    return {
        "bits": obs["bits"] == 1,
        "bytes": obs["bytes"] / np.float32(255),
        "frames": np.stack([obs["frames"][0], obs["frames"][1]], axis=-1),
        "kind": np.array([*(kind == np.arange(-1, 2)), one == 0, one == 1, other == 5, other == 6], np.float32),
    }


def test_a_trained_agent_plays_in_a_loop_of_gymnasium(run):
    env, trained = gymnasium.make("Parts-v0"), qlax.load(run)
    network = qlax.Agent(trained.variables, {name: trained.info[name] for name in trained.info.keys() - {"spaces"}})
    for agent in (trained, pickle.loads(pickle.dumps(trained)), qlax.load(run, numpy_only=True)):
        obs, _ = env.reset(seed=0)
        for _ in range(10):
            expected = network.q_values(by_hand(obs))
            np.testing.assert_allclose(agent.q_values(obs), expected, rtol=1e-4, atol=1e-5)
            action = agent.act(obs)
            np.testing.assert_array_equal(action, [expected.argmax() // 3, 5 + expected.argmax() % 3])
            obs, _, terminated, _, _ = env.step(action)  # the environment refuses actions that are not in its space
        assert terminated


def test_videos_and_evaluations_show_agents_what_is_converted_already(run, tmp_path):
    film = qlax.render(run, tmp_path / "film.gif", episodes=2, max_steps=3)
    assert film.lengths == [3, 3]
    assert qlax.evaluate(run, episodes=2).lengths.tolist() == [[10, 10]]


def test_an_agent_of_categories_plays_frozen_lake():
    env = gymnasium.make("FrozenLake-v1")  # the actions of FrozenLake are keys of a dict
    agent, bare = agent_of(env.observation_space, np.zeros(16, bool), env.action_space)
    obs, _ = env.reset(seed=0)
    for _ in range(3):
        np.testing.assert_array_equal(agent.q_values(obs), bare.q_values(np.arange(16) == obs))
        obs, *_ = env.step(agent.act(obs))


@pytest.mark.filterwarnings("ignore:.*not within the observation space")  # Gymnasium itself only warns
def test_a_value_that_is_not_in_the_space_ends_training(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(TESTS)
    env_id, message = (
        "gymnasium/shown:Category-v0",
        r"^gymnasium/shown:Category-v0: observation holds 7; expected .*3\)$",
    )
    with pytest.raises(qlax.UserError, match=message):  # refused before anything is written
        qlax.train(env_id, out=tmp_path / "run", env_options={"odd": 7}, **SMALL)
    assert not (tmp_path / "run").exists()
    env = qlax.make(env_id, num_envs=2, odd=7, after=1)
    env.reset(0)
    with pytest.raises(HostError, match=message):  # training ends after a checkpoint
        env.step(np.zeros(2, np.int32))
    env.close()


def test_an_agent_of_gymnasium_does_not_need_gymnasium(tmp_path):
    agent, _ = agent_of(PARTS["kind"], np.zeros(7, np.float32))
    agent.save(tmp_path / "agent.safetensors")
    code = "import qlax; print(qlax.load(sys.argv[1] + '/agent.safetensors', numpy_only=True).act((1, [1, 6])))"
    said = read_without(["gymnasium", "jax"], code, tmp_path)
    assert int(said) == agent.act((1, [1, 6]))


@pytest.mark.parametrize(("parts", "others"), [(None, ()), ([2, 3], ("extra",))])
def test_an_agent_takes_the_mask_in_an_observation(parts, others, monkeypatch):
    monkeypatch.syspath_prepend(TESTS)
    env = gymnasium.make("masked:Masked-v0", form="observation", parts=parts, others=others)
    vec = qlax.make("gymnasium/masked:Masked-v0", num_envs=2, form="observation", parts=parts, others=others)
    vec.close()
    shown = [["float32", list(vec.reset(0).obs.shape[1:])]]
    in_jax = random_agent({}, shown, vec.num_actions, spaces=json.loads(json.dumps(vec.described_spaces)))
    agent = qlax.Agent(in_jax.variables, in_jax.info, numpy_only=True)
    assert agent.info["spaces"]["mask"] == "action_mask"
    masked = 0
    for seed in range(20):
        obs, _ = env.reset(seed=seed)
        rest = {name: part for name, part in obs.items() if name != "action_mask"}
        rest = rest if others else rest["observation"]
        q, mask = agent.q_values(obs), obs["action_mask"]
        np.testing.assert_array_equal(q, agent.q_values(rest))
        best = np.where(mask, q, -np.inf).argmax()
        masked += best != q.argmax()
        expected = best if parts is None else np.unravel_index(best, parts)
        np.testing.assert_array_equal(agent.act(obs), expected)
        both = {name: np.stack([part, part]) for name, part in obs.items()}
        both["action_mask"][1] = 0  # as after the end of an episode
        np.testing.assert_array_equal(agent.act(both), [expected, agent.act(rest)])
        every = np.ones(len(mask), bool)
        np.testing.assert_array_equal(agent.act(obs, every), agent.act(rest))
        env.step(agent.act(obs))  # an action that is not legal raises
    assert masked
    with pytest.raises(qlax.UserError, match=r"legal is bool\[2\]; expected bool"):
        agent.act(obs | {"action_mask": np.ones(2)})
    assert export.to_stablehlo(agent)[1]["conversion"]["observation"].startswith(
        "without the entry action_mask, which says which entries of q belong to legal actions: "
    )


def test_the_mask_in_an_observation_has_the_values_of_each_dimension():
    choices = spaces.MultiDiscrete([20, 15])
    both = {"observation": described("test", BYTES), "action": described_action("test", choices), "mask": "action_mask"}
    info = {"spaces": both, "action_dimensions": 2}
    in_jax = random_agent({}, [["float32", [4]]], 20, **info)
    agent = qlax.Agent(in_jax.variables, in_jax.info, numpy_only=True)
    random = np.random.default_rng(0)
    raw, mask = random.integers(256, size=(9, 4)).astype(np.uint8), random.random((9, 35)) < 0.3
    mask[:, [0, 20]], mask[8] = True, False
    q = agent.q_values({"obs": raw, "action_mask": mask})
    found = agent.act({"obs": raw, "action_mask": mask.astype(np.int8)})
    for row in range(8):
        best = [
            np.where(legal, q[row, dimension, : legal.size], -np.inf).argmax()
            for dimension, legal in enumerate(np.split(mask[row], [20]))
        ]
        np.testing.assert_array_equal(found[row], best)
    np.testing.assert_array_equal(found[8], agent.act(raw[8]))  # as after the end of an episode
    with pytest.raises(qlax.UserError, match=r"legal is bool\[9, 34\]"):
        agent.act({"obs": raw, "action_mask": mask[:, 1:]})


def test_the_card_of_an_exported_agent_says_how_to_convert():
    agent, _ = agent_of(PARTS["kind"], np.zeros(7, np.float32), ACTIONS[2][0])
    _, card = export.to_stablehlo(agent)
    assert card["spaces"] == agent.info["spaces"]
    assert card["conversion"] == {
        "observation": "(0: one-hot, bool [3], of x - -1; 1: one-hot, bool [4], of x - [0, 5] for each of the 2 "
        "values, concatenated), each flattened, as float32, and concatenated in this order",
        "action": "entry i of q belongs to the action numpy.unravel_index(i, (2, 3)) + [0, 5]",
    }
    agent, _ = agent_of(TURNED, LAST)
    assert export.to_stablehlo(agent)[1]["conversion"] == {
        "observation": "uint8, with the first axis moved to the end",
        "action": "entry i of q belongs to the action i + 1",
    }


def test_an_agent_says_what_it_sees():
    agent, _ = agent_of(PARTS["kind"], np.zeros(7, np.float32))
    assert "sees Tuple(Discrete(3, start=-1), MultiDiscrete([2, 2], start=[0, 5])), 2 actions" in repr(agent)
    assert in_words(described("test", PARTS)).startswith("Dict(bits: MultiBinary([2]), bytes: Box((4,), uint8), ")
