"""Norm and clipping of gradients against those of Optax."""

import jax
import numpy as np
import optax
import pytest

from qlax.learning import gradients

TREE = {
    "kernel": np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32),
    "bias": np.float32([3, -4]),
    "scalar": np.float32(2),
}


@pytest.fixture(params=["cpu", "default"], autouse=True)
def branch(request, monkeypatch):
    """Run one branch, whatever the device is."""
    choose = lambda *arguments, **branches: branches[request.param](*arguments)  # noqa: E731
    monkeypatch.setattr(jax.lax, "platform_dependent", choose)


@pytest.mark.parametrize("more", [{"complex": np.complex64([3 + 4j, 1j])}, {"empty": np.zeros((2, 0), np.float32)}])
def test_the_norm_of_unusual_arrays_equals_that_of_optax(more):
    np.testing.assert_allclose(gradients.norm(TREE | more), optax.tree.norm(TREE | more), rtol=1e-6)


def test_rows_are_summed():
    np.testing.assert_allclose(gradients.sum_of_rows(TREE["kernel"][0]), TREE["kernel"][0].sum(0), rtol=1e-6)


def test_the_norm_equals_that_of_optax():
    np.testing.assert_allclose(gradients.norm(TREE), optax.tree.norm(TREE), rtol=1e-6)


@pytest.mark.parametrize("maximum", [1.0, 1e3])
def test_clipping_equals_that_of_optax_and_has_the_same_state(maximum):
    ours, theirs = gradients.clip_by_norm(maximum), optax.clip_by_global_norm(maximum)
    assert ours.init(TREE) == theirs.init(TREE)
    (clipped, state), (expected, expected_state) = (tx.update(TREE, tx.init(TREE)) for tx in (ours, theirs))
    assert state == expected_state
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), clipped, expected)
    assert (optax.tree.norm(clipped) < 1.001) == (maximum == 1)


def test_a_gradient_that_is_not_finite_makes_the_norm_so():
    assert not np.isfinite(gradients.norm({"a": np.float32([[1, np.nan]]), "b": np.float32([1])}))
