"""What few runs and episodes tell: estimates with the intervals that a bootstrap gives them.

Of runs the functions take a sequence of samples: of every task, the scores of its runs `[..., n]`, where n may differ
from task to task and none is nan.

Source: Agarwal et al., 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice",
https://arxiv.org/abs/2108.13264
"""

from collections.abc import Callable, Sequence

import numpy as np

Ends = tuple[float, float]  # of an interval

RESAMPLES = 10_000
MOST_DRAWN = 2**24  # numbers at once


def interquartile_mean(samples: Sequence[np.ndarray]) -> np.ndarray:
    """The mean of all runs of all tasks without a quarter of them, rounded down, at either end: `[...]`.

    Of fewer than four runs it is the mean.

    Source: section 4.3.
    """
    scores = np.concatenate(samples, axis=-1)
    first, end = scores.shape[-1] // 4, scores.shape[-1] - scores.shape[-1] // 4
    return np.partition(scores, (first, end - 1), axis=-1)[..., first:end].mean(axis=-1)


def performance_profile(samples: Sequence[np.ndarray], thresholds: np.ndarray) -> np.ndarray:
    """The share of runs whose score is higher than each threshold, a mean over tasks: `[thresholds, ...]`.

    Source: section 4.2, the score distribution.
    """
    shares = (
        (scores > thresholds.reshape(-1, *[1] * scores.ndim)).mean(axis=-1, dtype=np.float64) for scores in samples
    )
    return sum(shares) / len(samples)


def probability_of_improvement(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> np.ndarray:
    """How likely a run of the first scores higher than one of the second, a mean over tasks: `[...]`.

    Equal scores count half. It is the statistic of the Mann-Whitney test over its largest value.

    Source: section 4.3.
    """

    def of_task(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        x, y = x[..., :, None], y[..., None, :]
        return ((x > y).mean(axis=(-2, -1)) + (x >= y).mean(axis=(-2, -1))) / 2

    return np.mean([of_task(x, y) for x, y in zip(first, second, strict=True)], axis=0)


def stratified_interval(
    statistic: Callable[[Sequence[np.ndarray]], np.ndarray],
    samples: Sequence[np.ndarray],
    resamples: int = RESAMPLES,
) -> tuple[np.ndarray, np.ndarray] | None:
    """The ends of a 95 % interval, between the percentiles of a stratified bootstrap; the same ones every time.

    The runs of each task are drawn anew with replacement, the tasks stay. A task of one run stays as it is.

    Args:
      statistic: of samples `[..., n]`; gives an array whose last axes are `[...]`.
      samples: of every task, `[..., n]`.
      resamples: that are drawn.

    Returns:
      Of what `statistic` gives the ends; None where no task has a second run: a single one does not tell.

    Source: section 4.1.
    """
    if all(scores.shape[-1] == 1 for scores in samples):
        return None
    random = np.random.default_rng(0)
    resampled = [scores[..., _drawn(random, resamples, scores.shape[-1])] for scores in samples]
    low, high = np.percentile(statistic(resampled), [2.5, 97.5], axis=-1)
    return low, high


def _drawn(random: np.random.Generator, resamples: int, size: int) -> np.ndarray:
    """Draw the members of each resample, with replacement: `[resamples, size]` indices."""
    return random.integers(size, size=(resamples, size))


def of_episodes(values: np.ndarray) -> tuple[list[Ends | None], Ends | None]:
    """95 % intervals of the mean of each agent over its episodes, and of the mean of all agents.

    They are between the percentiles of a bootstrap; the same ones every time. Of an agent its episodes are drawn anew
    with replacement; of all agents first the agents are, then episodes of each: the agents at hand are some of those
    that training gives.

    Args:
      values: of every episode, `[R, N]`.

    Returns:
      The ends of each; None where a single number does not tell.

    Source: Davison and Hinkley, 1997, "Bootstrap Methods and their Application", section 3.8.
    """
    agents, episodes = values.shape
    random, batch = np.random.default_rng(0), max(1, MOST_DRAWN // values.size)
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
