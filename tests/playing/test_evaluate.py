import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hosts import LIMIT
from playing import ONE, WALK, Script, Wants, play, saved
from probes import show
from runs import SMALL, is_refused_in_one_line, random_agent

import qlax
from qlax.cli.main import main
from qlax.config.configure import configure
from qlax.playing import evaluate
from qlax.storage.formats import to_json
from qlax.util.statistics import of_episodes


class Pays:
    """Environment whose reward is the action; action 0 is illegal. Episodes last 1 to 6 steps, or never end."""

    num_actions = 3

    def __init__(self, endless=False):
        self.endless = endless

    def reset(self, key):
        return (jax.random.randint(key, (), 1, 7), jnp.int32(0)), self._show(0.0, False, jnp.nan)

    def step(self, key, state, action):
        del key
        length, count = state[0], state[1] + 1
        ended = (count >= length) & ~jnp.bool_(self.endless)
        return (length, count), self._show(action, ended, jnp.where(ended, length.astype(jnp.float32), jnp.nan))

    def score(self, episode_return):
        return 10 * episode_return

    def _show(self, reward, ended, drawn):
        legal = jnp.array([False, True, True])
        return show(jnp.ones(1), reward, terminated=ended, legal=legal, metrics={"drawn": drawn})


@pytest.fixture(scope="module")
def paid(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("paid") / "run", "test_evaluate:Pays", ONE, actions=(1, 2), num_actions=3)


def test_the_first_whole_episode_of_each_environment_counts(paid):
    played = qlax.evaluate(paid, episodes=32)
    assert played.returns.shape == (2, 32)
    assert len(set(played.lengths[0])) > 3
    # All agents begin in the same environments.
    np.testing.assert_array_equal(played.lengths[0], played.lengths[1])
    np.testing.assert_array_equal(played.metrics["drawn"], played.lengths)
    np.testing.assert_array_equal(played.returns, played.lengths * np.array([[1], [2]]))
    assert not played.cut.any()
    assert [agent["seed"] for agent in played.agents] == [7, 8]
    assert played.overall.mean == pytest.approx(played.returns.mean())
    assert played.scores[0][1].mean == pytest.approx(10 * played.returns[1].mean())
    other = qlax.evaluate(paid, episodes=32, seed=1)
    assert not np.array_equal(other.lengths, played.lengths)


def test_agents_in_turns_or_alone_play_as_they_do_together(paid, monkeypatch):
    together = qlax.evaluate(paid, episodes=32, epsilon=0.5)
    monkeypatch.setattr(evaluate, "MOST_COPIES", 32)
    np.testing.assert_array_equal(qlax.evaluate(paid, episodes=32, epsilon=0.5).returns, together.returns)
    alone = qlax.evaluate(paid / "agents" / "1.safetensors", episodes=32, epsilon=0.5)
    np.testing.assert_array_equal(alone.returns, together.returns[1:])
    assert alone.agents == together.agents[1:]
    assert qlax.evaluate(paid, index=[1, 1], episodes=32, epsilon=0.5).agents == together.agents[1:]


def test_random_actions_are_legal_ones(paid):
    played = qlax.evaluate(paid, index=0, episodes=64, epsilon=0.5, env_options={"endless": True}, max_steps=20)
    np.testing.assert_array_equal(played.lengths, 20)
    assert played.cut.all()
    # Half of the actions are random, and half of the random ones are 2 instead of 1; action 0 would pay nothing.
    assert played.returns.mean() == pytest.approx(20 * 1.25, abs=4 * np.sqrt(20 * 0.1875 / 64))
    assert played.returns.min() >= 20


@pytest.mark.parametrize(("trained_in", "other"), [("hosts:Walk", "hosts:HostWalk"), ("hosts:HostWalk", "hosts:Walk")])
def test_agents_play_in_another_environment_that_looks_the_same(trained_in, other, tmp_path):
    run = saved(tmp_path / "run", trained_in, WALK, actions=(1, 0))
    for env in (None, other):
        played = qlax.evaluate(run, episodes=2, env=env)
        np.testing.assert_allclose(played.returns, [[2 - 0.3] * 2, [-0.7] * 2], rtol=1e-5)
        np.testing.assert_array_equal(played.lengths, [[4, 4], [LIMIT, LIMIT]])
        assert played.settings["max_steps"] == LIMIT


def test_the_same_environment_in_another_case_keeps_its_options(tmp_path):
    run = saved(tmp_path / "run", "gymnax/CartPole-v1", [["float32", [4]]], max_steps_in_episode=3)
    assert qlax.evaluate(run, episodes=2, env="Gymnax/cartpole-V1").lengths.tolist() == [[3, 3]]


def test_on_the_host_random_actions_are_drawn_by_the_seed(tmp_path):
    run = saved(tmp_path / "run", "hosts:HostWalk", WALK)
    one, same, other = (qlax.evaluate(run, episodes=16, epsilon=0.5, seed=seed).returns for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert len(set(one[0])) > 1
    assert not np.array_equal(one, other)


class Fades:
    """One-step task whose reported reward is shared by all copies and rises to 3; the reward for learning is -1."""

    num_actions = 2
    shared = jnp.float32(0)

    def shared_at(self, progress):
        return 3 * progress

    def reset(self, key):
        del key
        return jnp.int32(0), show(jnp.ones(1), metrics={"raw_reward": jnp.nan})

    def step(self, key, state, action, shared):
        del key, action
        return state, show(jnp.ones(1), -1, terminated=True, metrics={"raw_reward": shared})


class Mirror(Fades):
    """Environment that names another one for evaluation, once it was given the network."""

    def with_network(self, network):
        assert isinstance(network, Wants)
        self.evaluated = Pays()
        return self


def test_what_copies_share_is_as_at_the_end_of_training(tmp_path):
    np.testing.assert_array_equal(
        qlax.evaluate(saved(tmp_path / "a", "test_evaluate:Fades", ONE), episodes=2).returns, [[3, 3]]
    )


def test_who_plays_against_itself_is_evaluated_where_training_does(tmp_path):
    run = saved(tmp_path / "run", "test_evaluate:Mirror", ONE, num_actions=3)
    with pytest.raises(qlax.UserError, match="has observations float32\\[1\\] and 3 actions") as refused:
        qlax.evaluate(saved(tmp_path / "a", "test_evaluate:Mirror", ONE), episodes=2)
    assert "test_evaluate:Mirror" in str(refused.value)
    played = qlax.evaluate(run, episodes=32)
    np.testing.assert_array_equal(played.returns, played.lengths)
    with pytest.raises(qlax.UserError, match="plays against itself"):
        qlax.evaluate(run, wrappers=["flatten"])


def test_a_team_with_memory_plays_as_its_agent_does_by_hand(tmp_path):
    network = {"memory": "gru", "norm": "batch"}
    agent = random_agent(network, [["float32", [4]]], Script.num_actions, env="playing:Script")
    agent.save(tmp_path / "0.safetensors")
    played = qlax.evaluate(tmp_path / "0.safetensors", episodes=2)
    np.testing.assert_allclose(played.returns, play(agent), rtol=1e-5)
    agent.reset()
    assert play(agent, forget=True) != pytest.approx(played.overall.mean, rel=1e-2)


def test_episodes_are_cut_where_the_runs_own_evaluations_cut_them(tmp_path):
    run = saved(tmp_path / "run", "test_evaluate:Pays", ONE, num_actions=3, endless=True)
    config = configure("test_evaluate:Pays", **SMALL | {"eval_max_steps": 20})
    (run / "config.json").write_text(to_json(config))
    shutil.copytree(run / "agents", run / "best")
    for best in (False, True):
        played = qlax.evaluate(run, best=best)
        np.testing.assert_array_equal(played.lengths, np.full((1, 64), 20))
        assert played.cut.all()


def test_intervals_are_as_wide_as_theory_has_them():
    random = np.random.default_rng(0)
    values = random.normal(size=(12, 1)) + random.normal(scale=2, size=(12, 50))
    each, overall = of_episodes(values)
    for interval, row in zip(each, values, strict=True):
        half = 1.96 * row.std() / np.sqrt(50)
        np.testing.assert_allclose(interval, [row.mean() - half, row.mean() + half], atol=0.1 * half)
    half = 1.96 * np.sqrt(values.mean(1).var() / 12 + values.var(1).mean() / 50 / 12)
    np.testing.assert_allclose(overall, [values.mean() - half, values.mean() + half], atol=0.1 * half)


def test_a_single_episode_does_not_tell():
    assert of_episodes(np.array([[3.0]])) == ([None], None)
    assert of_episodes(np.array([[1.0], [3.0]])) == ([None, None], (1.0, 3.0))  # two agents have an interval


def test_the_command_shows_a_table_and_writes_all_of_it(paid, tmp_path, capsys):
    words = ["evaluate", str(paid), "--episodes", "32", "--epsilon", "0.1", "--json", str(tmp_path / "all.json")]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "test_evaluate:Pays: 32 episodes of each agent, epsilon 0.1, seed 0" in said
    assert "| index | seed | return | 95 % interval | lowest | highest | length | drawn | score |" in " ".join(
        said.split()
    )
    assert "Mean of 2 agents" in said
    written = json.loads((tmp_path / "all.json").read_text())
    played = qlax.evaluate(paid, episodes=32, epsilon=0.1)
    assert [agent["returns"] for agent in written["agents"]] == played.returns.tolist()
    assert [agent["lengths"] for agent in written["agents"]] == played.lengths.tolist()
    assert written["overall"]["interval"] == list(played.overall.interval)
    assert (written["env"], written["epsilon"], written["max_steps"]) == ("test_evaluate:Pays", 0.1, evaluate.LONGEST)
    is_refused_in_one_line(words, "all.json exists already", capsys, tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["RUNN"], "did you mean 'RUN'?"),
        (["RUN", "--index", "4"], "agents there: 0, 1"),
        (["RUN", "--index", "x"], "index=x: expected a whole number from 0"),
        (["RUN", "--best"], "a run writes best"),
        (["RUN/agents/1.safetensors", "--index", "1"], "is one agent"),
        (["RUN/agents/1.safetensors", "--best"], "is one file"),
        (["RUN", "--episodes", "0"], "episodes=0: expected a whole number from 1 to 100,000"),
        (["RUN", "--epsilon", "1.5"], "epsilon=1.5: expected a number from 0 to 1"),
        (["RUN", "--max-steps", "many"], "max_steps=many: expected a whole number from 1"),
        (
            ["RUN", "--env", "hosts:Walk"],
            "float32[5] and 2 actions; expected what the agents trained with in test_evaluate:Pays",
        ),
        (["RUN", "--env", "hosts:HostWalk"], "hosts:HostWalk has observations float32[5] and 2"),
        (["RUN", "--env", "gymnax/CartPole-v2"], "did you mean 'CartPole-v1'?"),
        (["RUN", "--env-options", "endles=true"], "endles"),
        (["RUN", "--wrappers", "frame_stak=2"], "did you mean 'frame_stack'?"),
        (["RUN", "--json", "RUN/none/x.json"], "there is no folder"),
        (["."], "holds runs, not agents; name one of them, as RUN"),
        (["minatar/breakout"], "the zoo has an agent of this name: zoo:minatar/breakout"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(words, message, tmp_path, capsys, monkeypatch):
    saved(tmp_path / "RUN", "test_evaluate:Pays", ONE, actions=(1, 2), num_actions=3)
    monkeypatch.chdir(tmp_path)
    is_refused_in_one_line(["evaluate", *words], message, capsys, tmp_path)
