"""The score sheet: docs/results.md and the presets agree with the records, and comparisons follow the stated rule."""

import json
import sys

import numpy as np
import pytest
from pages import ROOT
from scipy import stats

from qlax.config import presets

sys.path.insert(0, str(ROOT / "benchmarks"))

import regression
import scores
import sheet
from rows import Published, Row, rows

NAMED = Published(kind="greedy", steps=1_000, what="DQN", source="a paper", low=10, high=12)


def test_the_page_is_that_of_the_records():
    assert (ROOT / "docs" / "results.md").read_text() == sheet.page(rows().values())


def test_the_table_of_the_readme_is_that_of_the_records():
    text = sheet.README.read_text()
    assert sheet.with_table(text, [rows()[name] for name in sheet.IN_README]) == text


@pytest.mark.parametrize("preset", presets.names())
def test_the_header_of_a_preset_is_that_of_the_records(preset):
    text = sheet.preset_file(preset).read_text()
    assert sheet.with_header(text, sheet.header(preset, rows().values())) == text


@pytest.mark.parametrize(
    ("ours", "steps", "expected"),
    [
        ([13.0, 13.1, 12.9], 1_000, "**ahead**"),
        ([9.0, 9.1, 8.9], 1_000, "**behind**"),
        ([9.0, 15.0, 12.0], 1_000, "equal"),
        ([13.0, 13.1, 12.9], 500, "not comparable: more steps there"),
        ([13.0, 13.1, 12.9], 1_010, "**ahead**"),
        ([13.0], 1_000, "not comparable: a single seed here"),
        ([], 1_000, "not comparable: not measured here"),
    ],
)
def test_a_verdict_follows_the_rule(ours, steps, expected):
    assert sheet.verdict(ours, steps, NAMED) == expected


def test_a_known_difference_is_not_comparable():
    found = sheet.verdict([13.0, 13.1, 12.9], 1_000, NAMED._replace(differs="another version"))
    assert found == "not comparable: another version"


def test_the_least_expected_mean_is_exceeded_by_995_of_1000_means():
    random = np.random.default_rng(0)
    drawn = [random.normal(50, 7, (2, 20)) for _ in range(4_000)]
    below = [new[:4].mean() < regression.bound(list(recorded), 4) for recorded, new in drawn]
    assert stats.binomtest(sum(below), len(below), 0.005).pvalue > 0.01


def test_a_row_is_continued_and_keeps_its_agents(tmp_path, monkeypatch):
    monkeypatch.setattr(scores, "RESULTS", tmp_path / "results")
    row = Row("tiny", "Classic control", 1, "qlax train cartpole-fast --total-steps 4096 --eval-episodes 2", 0.01)
    state = scores.State(row, tmp_path)
    assert state.progress() is None
    assert scores.train(state)
    assert state.progress() == 1.0
    record = json.loads((tmp_path / "results" / "tiny.json").read_text())
    assert record == json.loads(state.record.read_text())
    assert record["command"] == row.command
    assert record["cores_used_by_others"] >= 0
    assert len(record["epsilon_return"]["per_run"]) == 1
    assert (state.run / "agents" / "0.safetensors").exists()
    other = scores.State(row._replace(command=row.command + " --seed 1"), tmp_path)
    assert other.progress() is None
    assert "not begun" in scores.listed([other])
