import numpy as np
import pytest
from runs import CARTPOLE, SMALL

import qlax


@pytest.fixture(scope="module", params=["batch_renorm", "gru"])
def trained(request, tmp_path_factory):
    memory = request.param == "gru"
    settings = {"memory": "gru"} if memory else {"norm": request.param, "input_norm": request.param}
    return qlax.train(CARTPOLE, out=tmp_path_factory.mktemp("run") / "run", seeds=2, **SMALL, **settings)


@pytest.fixture
def agent(trained):
    return qlax.load(trained.directory)


def observations(*shape):
    return np.random.default_rng(0).normal(size=(*shape, 4)).astype(np.float32)


def test_a_loaded_agent_is_the_trained_one(trained):
    for index, agent in enumerate(trained.agents):
        loaded = qlax.load(trained.directory, index)
        for step in observations(5, 3):
            np.testing.assert_array_equal(loaded.q_values(step), agent.q_values(step))
    assert qlax.load(trained.directory, 1).info["seed"] == 1
    assert not np.array_equal(*(qlax.load(trained.directory, i).q_values(observations()) for i in range(2)))


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


def test_memory_lasts_until_reset(agent):
    obs = observations(2)
    first, second = agent.q_values(obs), agent.q_values(obs)
    remembers = agent.info["network"]["memory"] != "none"
    assert np.array_equal(first, second) != remembers
    if remembers:
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
    assert np.array_equal(third[1], second[1]) == (agent.info["network"]["memory"] == "none")


@pytest.mark.parametrize("obs", [np.zeros(3), np.zeros((4, 5)), 0.0, [], {"a": np.zeros(4), "b": np.zeros(4)}])
def test_another_observation_is_refused(agent, obs):
    with pytest.raises(qlax.UserError, match=r"expected \(4,\)"):
        agent.act(obs)


def test_observations_are_cast_to_what_the_agent_was_trained_on(agent):
    whole = np.array([[0, 1, 2, 3]], np.uint8)
    expected = agent.q_values(whole.astype(np.float32))
    agent.reset()
    np.testing.assert_array_equal(agent.q_values(whole), expected)


def test_what_cannot_be_loaded_is_named(trained, tmp_path):
    with pytest.raises(qlax.UserError, match="agents there: 0, 1"):
        qlax.load(trained.directory, 7)
    (tmp_path / "0.safetensors").write_bytes(b"no weights")
    with pytest.raises(qlax.UserError, match=r"0.safetensors cannot be read"):
        qlax.load(tmp_path / "0.safetensors")
    with pytest.raises(qlax.UserError, match="holds no agent"):
        qlax.load(next((trained.directory / "checkpoints").iterdir()))
