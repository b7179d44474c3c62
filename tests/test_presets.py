"""Presets reach the scores that issue and README promise; all but the quickest are slow."""

import pytest

import qlax


@pytest.mark.parametrize(
    ("preset", "seeds", "settings", "least", "most"),
    [
        pytest.param("cartpole", 1, {}, 475, 500, id="cartpole"),
        pytest.param("acrobot", 2, {}, -100, -60, id="acrobot", marks=pytest.mark.slow),
        pytest.param("mountaincar", 2, {}, -130, -80, id="mountaincar", marks=pytest.mark.slow),
        pytest.param("memory-chain", 2, {}, 0.9, 1, id="memory", marks=pytest.mark.slow),
        pytest.param("memory-chain", 2, {"memory": "none"}, -0.5, 0.5, id="no memory", marks=pytest.mark.slow),
        pytest.param("minatar/breakout", 2, {"total_steps": 1e6}, 10, 100, id="breakout", marks=pytest.mark.slow),
    ],
)
def test_a_preset_reaches_its_score(preset, seeds, settings, least, most, tmp_path):
    result = qlax.train(preset, out=tmp_path / "run", seeds=seeds, **settings)
    assert least <= result.summary["eval_return"]["mean"] <= most
