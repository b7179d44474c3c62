import functools
import itertools
import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import CARTPOLE, SMALL, interrupt_at, lines_of, same_weights

import qlax
from qlax.cli.main import main
from qlax.config.configure import configure
from qlax.errors import Stopped, UserError
from qlax.networks.qnetwork import QNetwork
from qlax.storage.checkpoint import as_numbers
from qlax.training import population
from qlax.training.device_runs import functions
from qlax.training.plan import make
from qlax.training.population import FACTORS

SETTINGS = SMALL | {"learning_rate": "log-uniform:1e-5:1e-1", "lam": "uniform:0.1:0.9", "population": "pbt"}


@functools.cache
def plan(seeds=2, **settings):
    return make(configure(CARTPOLE, **(SETTINGS | {"seeds": seeds, "draws": 20 // seeds} | settings)), {})


@functools.cache
def exchange_of(of):
    return jax.jit(population.make(of.config, of.network))


def begun(of, updates=4):
    """Make states before an exchange, in which all weights of an agent equal its number."""
    state = functions(of).start(of.seeds, of.hyper, ())
    runs = len(of.seeds)

    def numbered(x):
        number = jnp.arange(runs, dtype=x.dtype).reshape(-1, *[1] * (x.ndim - 1))
        return jnp.zeros_like(x) + number

    weights = jax.tree.map(numbered, (state.params, state.stats, state.opt_state, state.memory))
    params, stats, opt_state, memory = weights
    state = state._replace(params=params, stats=stats, opt_state=opt_state, memory=memory)
    return state._replace(updates=jnp.full(runs, updates, jnp.int32)), jax.tree.map(jnp.asarray, of.new_record())


def numbers(tree):
    """Return the number that all weights of each agent hold, and check that they hold a single one."""
    leaves = [np.asarray(x, float).reshape(len(x), -1) for x in jax.tree.leaves(tree)]
    found = np.concatenate(leaves, axis=1)
    assert (found == found[:, :1]).all()
    return found[:, 0]


def test_the_worst_fifth_of_every_population_goes_on_as_one_of_its_best_fifth():
    of = plan()
    state, record = begun(of)
    scores = np.random.default_rng(0).permutation(20).astype(np.float32)
    returns = jnp.asarray(np.stack([scores - 1, scores + 1], axis=1))  # agents are ranked by means over episodes
    after, after_record, exchange = exchange_of(of)(state, record, returns, False)
    parent = np.asarray(exchange["parent"])
    for seed in range(2):  # agents are ordered by setting, then seed
        members = np.arange(seed, 20, 2)
        ranked = members[np.argsort(scores[members])]
        assert set(members[parent[members] != members]) == set(ranked[:2])
        assert set(parent[ranked[:2]]) <= set(ranked[-2:])
    np.testing.assert_array_equal(numbers((after.params, after.stats, after.opt_state)), parent)
    np.testing.assert_array_equal(numbers(after_record.sums), numbers(record.sums))
    for kept in ("env", "step", "key", "updates"):
        for one, other in zip(*(jax.tree.leaves(getattr(each, kept)) for each in (after, state)), strict=True):
            np.testing.assert_array_equal(as_numbers(one), as_numbers(other))
    new = parent != np.arange(20)
    for name in ("learning_rate", "lam"):
        before, now = np.asarray(getattr(state.hyper, name)), np.asarray(getattr(after.hyper, name))
        np.testing.assert_array_equal(exchange[name], before)
        np.testing.assert_array_equal(now[~new], before[~new])
        from_one = name == "lam"
        factor = (1 - now[new]) / (1 - before[parent[new]]) if from_one else now[new] / before[parent[new]]
        assert all(min(abs(one - each) for each in FACTORS) < 1e-5 or (from_one and one > 1) for one in factor)
    for name in set(state.hyper._fields) - {"learning_rate", "lam"}:
        np.testing.assert_array_equal(getattr(after.hyper, name), getattr(state.hyper, name))


def test_settings_stay_within_what_their_fields_allow():
    of = plan(lam=(0.0, 1.0), learning_rate=(3e38, 1e-3), draws=None)
    state, record = begun(of)
    returns = jnp.arange(8.0)[:, None]
    for updates in range(40):
        state, record, _ = exchange_of(of)(state._replace(updates=state.updates + updates), record, returns, False)
        assert (state.hyper.lam >= 0).all()
        assert (state.hyper.lam <= 1).all()
        assert jnp.isfinite(state.hyper.learning_rate).all()


def test_both_factors_are_tried_and_every_donor_has_its_turn():
    of = plan(seeds=1)
    state, record = begun(of)
    returns = jnp.arange(20.0)[:, None]
    exchange = exchange_of(of)
    seen = [exchange(state._replace(updates=jnp.full(20, n, jnp.int32)), record, returns, False) for n in range(30)]
    donors = {int(each) for _, _, found in seen for each in np.asarray(found["parent"])[:4]}
    assert donors == {16, 17, 18, 19}
    parents = np.array([found["parent"][0] for *_, found in seen])
    before = np.asarray(state.hyper.learning_rate)[parents]
    factors = np.array([after.hyper.learning_rate[0] for after, *_ in seen]) / before
    assert {round(float(factor), 3) for factor in factors} == set(FACTORS)


def test_after_the_last_evaluation_nobody_is_replaced():
    of = plan()
    state, record = begun(of)
    after, _, exchange = exchange_of(of)(state, record, jnp.arange(20.0)[:, None], True)
    np.testing.assert_array_equal(exchange["parent"], np.arange(20))
    jax.tree.map(np.testing.assert_array_equal, after.hyper, state.hyper)
    np.testing.assert_array_equal(numbers(after.params), np.arange(20))


def test_a_member_that_diverged_counts_as_the_worst_and_is_revived():
    of = plan(seeds=1)
    state, record = begun(of)
    record = record._replace(diverged=record.diverged.at[19].set(3))
    after, record, exchange = exchange_of(of)(state, record, jnp.arange(20.0)[:, None], False)
    assert exchange["parent"][19] in (15, 16, 17, 18)
    assert (record.diverged == -1).all()
    assert numbers(after.params)[19] == exchange["parent"][19]


def test_a_return_that_is_no_number_is_not_the_best():
    of = plan(seeds=1)
    state, record = begun(of)
    returns = jnp.arange(20.0).at[7].set(jnp.nan)[:, None]
    _, _, exchange = exchange_of(of)(state, record, returns, False)
    assert exchange["parent"][7] in (16, 17, 18, 19)
    assert 7 not in np.delete(np.asarray(exchange["parent"]), 7)


def test_those_that_are_equally_good_stay():
    of = plan(seeds=1)
    state, record = begun(of)
    after, _, exchange = exchange_of(of)(state, record, jnp.full((20, 1), 500.0), False)
    np.testing.assert_array_equal(exchange["parent"], np.arange(20))
    jax.tree.map(np.testing.assert_array_equal, after.hyper, state.hyper)


@pytest.mark.slow
def test_without_its_lines_a_population_has_no_lineage(tmp_path):
    """`metrics.jsonl` may be lost after the run has ended, and the summary is then written without it."""
    settings = SETTINGS | {"draws": 2, "total_steps": 8 * 32}
    run = qlax.train(CARTPOLE, out=tmp_path / "run", **settings).directory
    for name in ("metrics.jsonl", "summary.json"):
        (run / name).unlink()
    assert qlax.resume(run).summary["replaced"] == 0


def test_what_was_remembered_by_another_network_is_forgotten():
    of = plan(seeds=1, memory="gru")
    state, record = begun(of)
    state = state._replace(memory=jax.tree.map(jnp.ones_like, state.memory))
    after, _, exchange = exchange_of(of)(state, record, jnp.arange(20.0)[:, None], False)
    new = np.asarray(exchange["parent"]) != np.arange(20)
    assert new.sum() == 4
    for leaf in map(np.asarray, jax.tree.leaves(after.memory)):
        assert (leaf[new] == 0).all()
        assert (leaf[~new] == 1).all()


class Expectant(QNetwork):
    """Network whose initial memory is not zero."""

    def initial_memory(self, batch):
        return jax.tree.map(lambda x: x + 0.5, super().initial_memory(batch))


def expectant(num_actions):
    return Expectant(num_actions, memory="gru", hidden=(8,))


def test_a_member_that_is_replaced_remembers_what_its_network_begins_with():
    of = plan(seeds=1, network="test_population:expectant", hidden=None)
    state, record = begun(of)
    after, _, columns = exchange_of(of)(state, record, jnp.arange(20.0)[:, None], False)
    new = np.asarray(columns["parent"]) != np.arange(20)
    for before, leaf in zip(*(map(np.asarray, jax.tree.leaves(each.memory)) for each in (state, after)), strict=True):
        assert (leaf[new] == 0.5).all()
        np.testing.assert_array_equal(leaf[~new], before[~new])


def test_a_population_is_trained_resumed_bit_for_bit_and_drawn(monkeypatch, tmp_path):
    settings = SETTINGS | {"draws": 5, "checkpoint_interval": 2}
    undisturbed = qlax.train(CARTPOLE, out=tmp_path / "undisturbed", **settings)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 6 * 5, signal.SIGTERM)
        with pytest.raises(Stopped):
            qlax.train(CARTPOLE, out=tmp_path / "interrupted", **settings)
    resumed = qlax.resume(tmp_path / "interrupted")
    assert lines_of(resumed.directory) == lines_of(undisturbed.directory)
    assert same_weights(resumed, undisturbed)
    exchanged = [line for line in lines_of(undisturbed.directory) if "parent" in line]
    assert [line["updates"] for line in exchanged] == [4, 8, 12]
    replaced = [int(sum(np.array(line["parent"]) != np.arange(5))) for line in exchanged]
    assert replaced[0] == 1
    assert replaced[2] == 0
    assert undisturbed.summary["replaced"] == sum(replaced)
    for name in ("learning_rate", "lam"):
        first, final = undisturbed.summary["settings"][name], undisturbed.summary["final_settings"][name]
        assert first == pytest.approx(exchanged[0][name], rel=1e-5)
        assert final == pytest.approx(exchanged[-1][name], rel=1e-5)
        assert exchanged[-1][name] != exchanged[0][name]
        for before, after in itertools.pairwise(exchanged):
            parent = np.array(before["parent"])
            kept = parent == np.arange(5)
            np.testing.assert_array_equal(np.array(after[name])[kept], np.array(before[name])[kept])
        for index, agent in enumerate(undisturbed.agents):
            assert agent.info[name] == pytest.approx(final[index])
    assert (undisturbed.directory / "population.png").stat().st_size > 10_000
    assert not (undisturbed.directory / "sweep.csv").exists()


@pytest.mark.parametrize(
    ("target", "settings", "said"),
    [
        (CARTPOLE, {}, "population=pbt explores settings with several values or a distribution, but there are none"),
        (
            "hosts:HostWalk",
            {"lam": [0.1, 0.9]},
            "population is for environments in JAX; hosts:HostWalk runs on",
        ),
        (CARTPOLE, {"population": "pbtt"}, "did you mean 'pbt'?"),
    ],
)
def test_what_cannot_be_a_population(target, settings, said):
    with pytest.raises(UserError) as raised:
        make(configure(target, **(SMALL | {"population": "pbt"} | settings)), {})
    assert said in str(raised.value)


@pytest.mark.slow
def test_bad_learning_rates_recover(tmp_path):
    """Drawn rates are a hundredth of the preset's or less, with which agents learn next to nothing on their own."""
    words = ["cartpole-fast", "--learning-rate", "log-uniform:1e-6:3e-5", "--draws", "16", "--population", "pbt"]
    often = ["--log-interval", "4", "--eval-interval", "4", "--eval-episodes", "16"]
    assert main(["train", *words, *often, "--out", str(tmp_path / "run")]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["eval_return"]["mean"] >= 475
    assert max(summary["settings"]["learning_rate"]) < 3e-5 < min(summary["final_settings"]["learning_rate"])
