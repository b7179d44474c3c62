"""Whole runs with the parts beyond PQN: resumed, loaded, evaluated, or refused before anything is written."""

import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probes import ActionReward, Team
from runs import CARTPOLE, SMALL, interrupt_at, lines_of, same_weights

import qlax
from qlax.training.plan import make

HL_GAUSS = {"head": "hl_gauss", "head_low": 0, "head_high": 20, "head_bins": 20}
PARTS = {
    "hl_gauss": {
        **HL_GAUSS,
        **{"epsilon_spread": [1.0, 4.0], "lam": 0.9, "lam_end": 0.5, "lam_fraction": 0.5, "optimizer": "muon"},
    },
    "ensemble": {
        **{"head": "ensemble", "head_members": 3, "dueling": True, "optimizer": "adamw", "memory": "gru"},
        **{"norm": "batch_renorm", "compute_dtype": "bfloat16"},
    },
}


class Pair(Team):
    """Team of two, which tests name as `module:Name`."""

    def __init__(self):
        super().__init__(ActionReward(), 2)


@pytest.mark.parametrize("name", PARTS)
def test_runs_with_parts_are_resumed_bit_for_bit_and_loaded(name, monkeypatch, tmp_path):
    whole = qlax.train(CARTPOLE, out=tmp_path / "whole", **SMALL, **PARTS[name])
    agents = len(whole.agents)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 6 * agents, signal.SIGTERM)
        with pytest.raises(qlax.Stopped):
            qlax.train(CARTPOLE, out=tmp_path / "cut", **SMALL, **PARTS[name])
    assert same_weights(qlax.resume(tmp_path / "cut"), whole)
    lines = lines_of(tmp_path / "cut")
    np.testing.assert_equal(lines, lines_of(tmp_path / "whole"))
    if name == "hl_gauss":
        assert all(0 <= share <= 1 for line in lines for share in line["target_outside"])
        (same, spread) = lines[-1]["epsilon"]
        ladder = same * 4.0 ** (np.array([-3, -1, 1, 3]) / 4)
        assert spread == pytest.approx(ladder.mean(), rel=1e-5)
    obs = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    if name == "hl_gauss":  # with bfloat16, NumPy's products are more precise
        q = qlax.load(tmp_path / "cut").q_values(obs)
        np.testing.assert_allclose(qlax.load(tmp_path / "cut", numpy_only=True).q_values(obs), q, rtol=1e-4)
        assert q.shape == (5, 2)
    assert len(qlax.evaluate(tmp_path / "cut", episodes=2, max_steps=5).agents) == agents


def test_environments_on_the_host_have_the_same_ladder(tmp_path):
    settings = SMALL | {"total_steps": 4 * 32, "epsilon_fraction": 0, "epsilon_end": 0.1, "epsilon_spread": 4}
    qlax.train("gymnasium/CartPole-v1", out=tmp_path / "run", overlap=True, **HL_GAUSS, **settings)
    ladder = 0.1 * 4.0 ** (np.array([-3, -1, 1, 3]) / 4)
    assert lines_of(tmp_path / "run")[-1]["epsilon"] == [pytest.approx(ladder.mean(), rel=1e-5)]


def test_what_does_not_fit_hl_gauss_is_refused_in_one_line_and_nothing_is_written():
    with pytest.raises(qlax.UserError, match=r"their sum or mean has none; expected mixing=none or head=scalar"):
        qlax.train("test_parts:Pair", out="run", **HL_GAUSS, **SMALL)
    with pytest.raises(qlax.UserError, match=r"loss and head=hl_gauss cannot be combined"):
        qlax.train(CARTPOLE, out="run", loss=jnp.abs, **HL_GAUSS, **SMALL)
    with pytest.raises(qlax.UserError, match=r"optimizer=adam and an optimiser of your own cannot be combined"):
        qlax.train(qlax.Config(env=CARTPOLE, **SMALL, optimizer="adam"), out="run", optimizer=qlax.pqn.radam)
    with pytest.raises(qlax.UserError, match=r"head is for qlax's own network; it has no effect on 'test_parts:Pair'"):
        qlax.train(CARTPOLE, out="run", network="test_parts:Pair", **HL_GAUSS)
    assert not Path("run").exists()


def test_exploration_for_one_epsilon_works_or_is_told_the_shape():
    def coin(key, q, legal, epsilon):
        at_random = jax.random.bernoulli(key, epsilon, q.shape[:-1])
        return jnp.where(at_random, 0, q.argmax(-1)).astype(jnp.int32)

    def softmax(key, q, legal, epsilon):
        return jax.random.categorical(key, q / epsilon).astype(jnp.int32)

    config = qlax.Config(env=CARTPOLE, **SMALL)
    plan = make(config, {"explore": coin})
    assert plan.shapes.step.reward.shape == (1, 4)
    with pytest.raises(qlax.UserError, match=r"explore .*for epsilon float32\[4,1\], one number for every environment"):
        make(config, {"explore": softmax})
