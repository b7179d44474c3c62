"""Intervals of logging, evaluation and checkpoints that follow from the size of a run."""

import math

from qlax.config.settings import Config


def with_intervals(config: Config, time_limit: int | None, on_host: bool = False) -> Config:
    """Derive the intervals that are None, from the sizes of the run alone.

    A line of metrics stands for some seconds of a laptop's work, or for a thousandth of a long run. All evaluations
    together take at most a tenth of the run's arithmetic and of its sequential steps, or a tenth of its steps if the
    environments are on the host. Checkpoints are at most a minute of a laptop's work apart, or a two-hundredth of a
    long run.

    Args:
      config: Settings of the run.
      time_limit: Steps after which an episode is cut; None without a limit.
      on_host: Whether the environments are on the host.
    """
    steps = config.steps_per_update * config.num_members
    line_steps, checkpoint_steps = (2_048, 16_384) if on_host else (16_384, 200_000)
    log_interval = config.log_interval or min(
        max(math.ceil(line_steps / steps), math.ceil(config.num_updates / 1000)),
        *(interval for interval in (config.eval_interval, config.checkpoint_interval, config.num_updates) if interval),
    )
    if not config.log_interval:  # intervals asked for are kept, so the derived one has to divide them
        log_interval = math.gcd(log_interval, *(i for i in (config.eval_interval, config.checkpoint_interval) if i))
    max_steps = config.eval_max_steps or time_limit or 10_000
    # A backward pass costs two forward passes. Small batches cost as much as large ones, hence the second bound.
    cost = 1 if on_host else 1 + 3 * config.num_epochs
    arithmetic = config.total_steps * cost / (config.eval_episodes * max_steps)
    gradient_steps = config.num_epochs * config.num_minibatches
    sequence = config.num_updates * (config.num_steps + 3 * gradient_steps) / max_steps
    evaluations = min(20, max(1, int(0.1 * min(arithmetic, sequence))))
    lines = config.num_updates / log_interval
    checkpoint_lines = max(math.ceil(checkpoint_steps / (steps * log_interval)), math.ceil(lines / 200))
    return config.derive(
        log_interval=log_interval,
        eval_interval=log_interval * math.ceil(lines / evaluations),
        checkpoint_interval=log_interval * checkpoint_lines,
        eval_max_steps=max_steps,
    )
