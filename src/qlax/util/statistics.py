"""Estimates from few runs or episodes, with bootstrap confidence intervals.

Functions that compare runs take one array of scores `[..., n]` per task, where n is the task's number of runs. The
scores must not be nan.

Source: Agarwal et al., 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice",
https://arxiv.org/abs/2108.13264
"""

from collections.abc import Callable, Sequence

import numpy as np

Ends = tuple[float, float]  # lower and upper end of an interval

RESAMPLES = 10_000
MAX_BATCH = 2**24  # random indices per batch of resamples, which bounds memory


def interquartile_mean(samples: Sequence[np.ndarray]) -> np.ndarray:
    """Return the mean of the middle half of all values, those of all runs of all tasks together.

    The quarter that is left out at each end is rounded down, so that fewer than four runs give the plain mean.

    Source: section 4.3.
    """
    scores = np.concatenate(samples, axis=-1)
    first, end = scores.shape[-1] // 4, scores.shape[-1] - scores.shape[-1] // 4
    return np.partition(scores, (first, end - 1), axis=-1)[..., first:end].mean(axis=-1)


def performance_profile(samples: Sequence[np.ndarray], thresholds: np.ndarray) -> np.ndarray:
    """Return the share of runs that score above each threshold, averaged over tasks, `[thresholds, ...]`.

    Source: section 4.2, the score distribution.
    """
    shares = (
        (scores > thresholds.reshape(-1, *[1] * scores.ndim)).mean(axis=-1, dtype=np.float64) for scores in samples
    )
    return sum(shares) / len(samples)


def probability_of_improvement(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> np.ndarray:
    """Return the probability that a run of `first` outscores one of `second`, averaged over tasks, `[...]`.

    Ties count half. The result is the Mann-Whitney U statistic divided by its maximum.

    Source: section 4.3.
    """

    def in_task(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        x, y = x[..., :, None], y[..., None, :]
        return ((x > y).mean(axis=(-2, -1)) + (x >= y).mean(axis=(-2, -1))) / 2

    return np.mean([in_task(x, y) for x, y in zip(first, second, strict=True)], axis=0)


def stratified_interval(
    statistic: Callable[[Sequence[np.ndarray]], np.ndarray],
    samples: Sequence[np.ndarray],
    resamples: int = RESAMPLES,
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return a 95 % percentile interval of a stratified bootstrap; the random seed is fixed.

    Each resample keeps all tasks and draws the runs of each task with replacement.

    Args:
      statistic: Function of samples `[..., n]` that returns an array `[...]`.
      samples: Scores of each task, `[..., n]`.
      resamples: Number of resamples to draw.

    Returns:
      Lower and upper ends, `[...]` each; None if every task has only one run, which gives no estimate of the spread.

    Source: section 4.1.
    """
    if all(scores.shape[-1] == 1 for scores in samples):
        return None
    random = np.random.default_rng(0)
    resampled = [scores[..., _drawn(random, resamples, scores.shape[-1])] for scores in samples]
    low, high = np.percentile(statistic(resampled), [2.5, 97.5], axis=-1)
    return low, high


def _drawn(random: np.random.Generator, resamples: int, size: int) -> np.ndarray:
    """Draw indices with replacement for every resample, `[resamples, size]`."""
    return random.integers(size, size=(resamples, size))


def of_episodes(values: np.ndarray) -> tuple[list[Ends | None], Ends | None]:
    """Return 95 % bootstrap intervals of each agent's mean over its episodes, and of the mean over all agents.

    Percentile intervals with a fixed random seed. An agent's interval resamples its episodes. The interval of all
    agents resamples the agents first and then the episodes of each, because the agents are themselves a sample of
    those that training could have given.

    Args:
      values: One value per agent and episode, `[R, N]`.

    Returns:
      Interval of each agent, and the interval of all agents; None where there is only a single number.

    Source: Davison and Hinkley, 1997, "Bootstrap Methods and their Application", section 3.8.
    """
    agents, episodes = values.shape
    random, batch = np.random.default_rng(0), max(1, MAX_BATCH // values.size)
    batches = [min(batch, RESAMPLES - done) for done in range(0, RESAMPLES, batch)]
    means = [values[:, _drawn(random, number, episodes)].mean(axis=-1) for number in batches]
    resampled = np.concatenate(means, axis=1)
    random = np.random.default_rng(0)
    drawn = random.integers(agents, size=(RESAMPLES, agents)), random.integers(RESAMPLES, size=(RESAMPLES, agents))
    each = [_ends(means) if episodes > 1 else None for means in resampled]
    return each, _ends(resampled[drawn].mean(axis=1)) if values.size > 1 else None


def _ends(resampled: np.ndarray) -> Ends:
    low, high = np.percentile(resampled, [2.5, 97.5])
    return float(low), float(high)
