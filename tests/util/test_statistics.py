"""Statistics of runs, against numbers that rliable 1.2.0 gave for the same scores."""

import numpy as np
import pytest

from qlax.util.statistics import (
    interquartile_mean,
    performance_profile,
    probability_of_improvement,
    stratified_interval,
)

# Scores on three tasks, of five runs each, and of four runs each.
A = [np.array(x) for x in ([0.2, 0.4, 0.1, 0.4, 0.3], [0.9, 0.9, 0.7, 1.2, 0.8], [1.5, 1.1, 2.0, 1.6, 1.9])]
B = [np.array(x) for x in ([0.3, 0.2, 0.4, 0.1], [0.9, 0.5, 0.6, 0.9], [1.2, 1.0, 1.4, 1.6])]
THRESHOLDS = np.array([0, 0.3, 0.5, 0.9, 1.5, 2.0])


def test_estimates_are_rliables():
    assert interquartile_mean(A) == pytest.approx(0.8777777777777778, rel=1e-12)  # metrics.aggregate_iqm
    assert interquartile_mean(B) == pytest.approx(0.7166666666666667, rel=1e-12)
    assert probability_of_improvement(A, B) == pytest.approx(0.6833333333333332, rel=1e-12)
    assert probability_of_improvement(B, A) == pytest.approx(0.3166666666666667, rel=1e-12)
    profiles = [1, 0.8, 0.66666667, 0.4, 0.2, 0], [1, 0.75, 0.58333333, 0.33333333, 0.08333333, 0]
    for tasks, profile in zip((A, B), profiles, strict=True):  # library.create_performance_profile
        np.testing.assert_allclose(performance_profile(tasks, THRESHOLDS), profile, rtol=1e-7)


def test_intervals_are_rliables_up_to_what_is_drawn():
    # rliable drew 50,000 and 20,000 resamples. Few runs have few possible scores, so an end may be the next score.
    for tasks, expected in ((A, (0.77777778, 1.01111111)), (B, (0.6, 0.85))):
        np.testing.assert_allclose(stratified_interval(interquartile_mean, tasks), expected, atol=0.012)

    def probability(samples):
        return probability_of_improvement(samples[:3], samples[3:])

    np.testing.assert_allclose(stratified_interval(probability, [*A, *B]), (0.475, 0.86666667), atol=0.012)

    def profile(samples):
        return performance_profile(samples, THRESHOLDS)

    low, high = stratified_interval(profile, A)
    np.testing.assert_allclose(low, [1, 0.66666667, 0.66666667, 0.33333333, 0.06666667, 0], atol=1e-7)
    np.testing.assert_allclose(high, [1, 0.93333333, 0.66666667, 0.53333333, 0.33333333, 0], atol=1e-7)


def test_equal_scores_count_half_and_tasks_count_alike():
    assert probability_of_improvement([np.ones(3)], [np.ones(4)]) == 0.5
    assert probability_of_improvement([np.ones(3), np.ones(1)], [np.zeros(3), 2 * np.ones(9)]) == 0.5
    assert performance_profile([np.ones(3), np.zeros(9)], np.array([0.5])) == 0.5


def test_a_task_of_one_run_stays_and_runs_alone_have_no_interval():
    assert stratified_interval(interquartile_mean, [np.array([1.0]), np.array([3.0])]) is None
    low, high = stratified_interval(interquartile_mean, [np.array([10.0]), np.array([0.0, 2.0])])
    assert (low, high) == (pytest.approx(10 / 3), pytest.approx(14 / 3))


def test_a_curve_is_resampled_by_runs():
    """Every resample draws whole runs: if the second point has all scores shifted, its interval is shifted exactly."""
    curve = np.array([[0.0, 1.0, 4.0, 9.0, 7.0], [100.0, 101.0, 104.0, 109.0, 107.0]])
    low, high = stratified_interval(interquartile_mean, [curve], 500)
    assert (low[1] - low[0], high[1] - high[0]) == (100, 100)
    assert low[0] < interquartile_mean([curve])[0] < high[0]


def test_an_interval_over_five_runs_covers_less_than_it_should():
    """The pages and captions say so."""
    normal = np.random.default_rng(0).normal(size=(4_000, 5))
    for statistic, covered in ((lambda samples: samples[0].mean(axis=-1), 0.85), (interquartile_mean, 0.89)):
        low, high = stratified_interval(statistic, [normal], 500)
        assert np.mean((low <= 0) & (high >= 0)) == pytest.approx(covered, abs=0.015)
