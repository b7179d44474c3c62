"""The table of measurements has everything that a run writes, and everything that the guard measures."""

from pathlib import Path

import pytest

from qlax.envs.check.common import check_metrics, expecting
from qlax.errors import UserError
from qlax.storage.history import read
from qlax.storage.measurements import MEASUREMENTS, evaluated, is_own, watched

RUN = Path(__file__).parents[1] / "data" / "format-0" / "finished"


def test_all_that_a_run_writes_is_in_the_table():
    history = read(RUN)
    assert history.summary is not None
    assert not [name for name in history.curves if is_own(name)]
    assert set(evaluated().values()) - {"eval_distinct"} <= history.curves.keys()  # newer than this run
    per_run = {name for name, value in history.summary.items() if isinstance(value, dict) and "per_run" in value}
    assert per_run == {key for key, each in MEASUREMENTS.items() if each.is_result} - {"eval_score"}


def test_the_guard_watches_in_the_order_that_checkpoints_know():
    assert [each.key for each in watched()] == ["reward", "value", "loss", "grad_norm", "parameters"]


@pytest.mark.parametrize("name", ["dead_units", "overestimation", "parent", "loss", "eval_return"])
def test_an_environment_cannot_take_the_name_of_a_measurement(name):
    with pytest.raises(UserError, match=f"metrics of a step have '{name}', which is one of qlax's own names"):
        check_metrics({name: 0.0}, "a step", (), expecting(object()))
