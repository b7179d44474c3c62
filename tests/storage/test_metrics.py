import json

import numpy as np
import pytest

from qlax.storage.metrics import MetricsFile, curves


@pytest.fixture
def metrics(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.append({"updates": 1, "seconds": 10.0, "loss": np.array([1.5, np.nan]), "eval": np.array([np.nan, np.inf])})
    file.append({"updates": 2, "seconds": float("inf"), "loss": np.array([1.0, 2.0]), "eval": np.array([3.0, 4.0])})
    return file


def test_what_has_no_value_is_null(metrics):
    first, second = (json.loads(line) for line in metrics.path.read_text().splitlines())
    assert first == {"updates": 1, "seconds": 10.0, "loss": [1.5, None], "eval": [None, None]}
    assert second["seconds"] is None


def test_curves_are_arrays_with_nan(metrics):
    arrays = curves(metrics.read(2))
    np.testing.assert_array_equal(arrays["updates"], [1, 2])
    np.testing.assert_array_equal(arrays["loss"], [[1.5, np.nan], [1, 2]])
    np.testing.assert_array_equal(arrays["eval"], [[np.nan, np.nan], [3, 4]])


def test_a_line_cut_short_is_left_out(metrics):
    with metrics.path.open("a") as file:
        file.write('{"updates": 3, "lo')
    assert [line["updates"] for line in metrics.read(2)] == [1, 2]


@pytest.mark.parametrize(
    "damage",
    [
        '"loss": [1.0, 2.0, 3.0]',  # a line for another number of agents
        '"loss": 1.0',
        '"loss": null',
        '"seconds": [1.0, 2.0]',
        '"loss": [1.0, true]',
        '"loss": [1.0, [2.0]]',
        f'"loss": [1.0, 1{"0" * 400}]',
    ],
)
def test_a_line_that_these_runs_never_write_is_left_out(metrics, damage):
    with metrics.path.open("a") as file:
        file.write(f'{{"updates": 3, {damage}}}\n{{"updates": 4, "loss": [5.0, 6.0]}}\n')
    assert [line["updates"] for line in metrics.read(2)] == [1, 2, 4]
    np.testing.assert_array_equal(curves(metrics.read(2))["loss"], [[1.5, np.nan], [1, 2], [5, 6]])
    np.testing.assert_array_equal(curves(metrics.read(2))["eval"], [[np.nan, np.nan], [3, 4], [np.nan, np.nan]])


def test_later_lines_are_dropped(metrics):
    before = metrics.checksums()
    first = metrics.path.read_bytes()
    metrics.append({"updates": 3})
    assert metrics.cut(before) == ""
    assert metrics.path.read_bytes() == first
    assert [path.name for path in metrics.path.parent.iterdir()] == ["metrics.jsonl"]


def test_of_a_damaged_file_the_lines_that_are_as_they_were_are_kept(metrics):
    wanted = metrics.checksums()
    damaged = metrics.path.read_bytes().replace(b"10.0", b"11.0")
    metrics.path.write_bytes(damaged)
    assert "1 of 2 lines are intact; moved aside as metrics.damaged.jsonl" in metrics.cut(wanted)
    assert [line["updates"] for line in metrics.read(2)] == [2]
    assert metrics.path.with_name("metrics.damaged.jsonl").read_bytes() == damaged
