"""Scores over several targets: statistics and the table."""

import itertools

import numpy as np
import pytest
import scipy.stats

from qlax.reports.scores import aggregates, collect, result, table


def test_statistics_are_those_worked_out_by_hand():
    found = aggregates([[0.0, 10.0], [20.0, 40.0], [100.0, 300.0]])
    assert found["median"]["value"] == 30  # median of the games' means 5, 30 and 200
    assert found["mean"]["value"] == pytest.approx(235 / 3)
    assert found["iqm"]["value"] == (10 + 20 + 40 + 100) / 4  # without the smallest and the largest of the six values
    uneven = aggregates([[1.0], [2.0, 6.0], [9.0]])  # games with fewer seeds have the same weight
    assert (uneven["mean"]["value"], uneven["median"]["value"], uneven["iqm"]["value"]) == (14 / 3, 4, 4)


def test_interquartile_mean_is_scipys():
    random = np.random.default_rng(1)
    for games, runs in itertools.product((1, 3, 10), (1, 2, 3, 5)):
        scores = random.normal(size=(games, runs))
        expected = scipy.stats.trim_mean(scores, 0.25, axis=None)
        assert aggregates(scores.tolist())["iqm"]["value"] == pytest.approx(expected)


def test_intervals_are_of_runs_within_games():
    # Only runs are resampled, not games: if the runs of each game are equal, the interval has no width.
    assert aggregates([[1.0, 1.0], [5.0, 5.0]])["mean"] == {"value": 3.0, "interval": [3.0, 3.0]}
    # Resampling two runs of one game gives 0, 0.5 or 1 with chances 1/4, 1/2 and 1/4. With a second game of the
    # same kind, 0 and 1 have a chance of 1/16; with four games 1/256, and 1/8 has 8/256, so the 2.5 % quantile is 1/8.
    for games, low in ((1, 0.0), (2, 0.0), (4, 0.125)):
        assert aggregates([[0.0, 1.0]] * games)["mean"]["interval"] == [low, 1 - low]
    assert aggregates([[1.0], [3.0], [8.0]])["iqm"]["interval"] is None


def test_intervals_cover_the_truth_about_as_often_as_they_say(monkeypatch):
    monkeypatch.setattr("qlax.reports.scores.RESAMPLES", 500)
    random, truth = np.random.default_rng(2), np.array([0.0, 50.0, 100.0, 120.0, 300.0])
    covered = []
    for _ in range(300):
        scores = truth[:, None] + 10 * random.normal(size=(5, 15))
        low, high = aggregates(scores.tolist())["mean"]["interval"]
        covered.append(low <= truth.mean() <= high)
    # The spread of 15 runs is underestimated by a factor of sqrt(14/15): 94.2 %; 1.3 % standard error.
    assert 0.90 < np.mean(covered) < 0.98


def summary(env, per_run, scores=(), cut=0.0):
    """Return the summary of a complete run."""

    def measured(values):
        return {"mean": sum(values) / len(values), "per_run": values}

    found = {"preset": None, "env": env, "seeds": list(range(len(per_run))), "total_steps": 10_000_000, "device": "cpu"}
    found |= {"steps_per_second": 1234.5, "eval_episodes": 8, "eval_cut": [0.0, cut][: len(per_run)]}
    return found | {"eval_return": measured(per_run)} | ({"eval_score": measured(scores)} if scores else {})


def test_table_with_scores():
    targets = {
        "Pong": summary("ale/Pong", [20.0, 21.0], [115.0, 118.0]),
        "Breakout": summary("ale/Breakout", [301.25, 418.0], [1040.0, 1446.0], cut=0.5),
        "Skiing": summary("ale/Skiing", [-29000.0, -30000.0]),
    }
    results = collect("atari57", targets, {"Alien": "exit code 1: out of luck"}, ["Venture"])
    assert results["aggregates"]["targets"] == ["Pong", "Breakout"]
    assert results["targets"]["Pong"]["eval_score"]["per_run"] == [115, 118]
    assert (
        table(results)
        == """\
atari57: 3 of 5 targets, greedy returns

| target   | return |   of each seed | % of human | steps per seed | steps/s of the job |
| -------- | -----: | -------------: | ---------: | -------------: | -----------------: |
| Pong     |   20.5 |         20, 21 |      116.5 |     10,000,000 |              1,234 |
| Breakout |  359.6 |     301.2, 418 |       1243 |     10,000,000 |              1,234 |
| Skiing   | -29500 | -29000, -30000 |          - |     10,000,000 |              1,234 |

| over 2 targets | % of human | 95 % interval |
| -------------- | ---------: | ------------: |
| median         |      679.8 |  577.5 to 782 |
| mean           |      679.8 |  577.5 to 782 |
| IQM            |        579 |  577.5 to 782 |

- Median and mean: over targets, of each target's mean over seeds. IQM: middle half of all targets' seeds.
- Intervals: stratified bootstrap over the seeds of each target.
- Not in the statistics, because they have no score: Skiing.
- Some evaluation episodes were cut off at the step limit: Breakout.
- Left out because it failed: Alien (exit code 1: out of luck).
- Left out because they are not complete yet: Venture.
"""
    )


def test_one_seed_has_no_interval():
    results = collect("atari57", {"Pong": summary("envpool/Pong-v5", [20.0], [115.0])}, {}, [])
    written = table(results)
    assert "| mean          |        115 |             - |\n" in written
    assert "| over 1 target | % of human | 95 % interval |\n" in written
    assert "- Intervals: none, because every target has only one seed.\n" in written
    assert results["aggregates"]["iqm"] == {"value": 115, "interval": None}


def test_scores_of_different_units_have_no_statistics():
    targets = {"Pong": summary("ale/Pong", [20.0], [115.0]), "mine": summary("my:Env", [1.0], [0.5])}
    results = collect("both", targets, {}, [])
    assert results["aggregates"] is None
    assert "| % of human or score |" in table(results)
    assert "IQM" not in table(results)
    assert "score" not in table(collect("none", {"Skiing": summary("ale/Skiing", [-29000.0])}, {}, []))


def test_what_is_said_of_some_agents_is_theirs_alone():
    found = result(summary("ale/Pong", [20.0, 21.0], [115.0, 118.0], cut=0.5), [1])
    assert (found["seeds"], found["eval_cut"], found["total_steps"]) == ([1], [0.5], 10_000_000)
    assert found["eval_return"] == {"mean": 21, "per_run": [21]}
    assert found["eval_score"] == {"mean": 118, "per_run": [118]}
