"""Intervals of logging, evaluation and checkpoints that follow from the size of a run."""

import math

from qlax.config.settings import Config

PLANNED = 25  # smallest number of evaluations, of which a run leaves out some if they take much
OF_POPULATION = 20  # largest number of evaluations
SHARE = 0.1  # of a run's work that its evaluations may take


def evaluation_steps(config: Config, on_host: bool) -> float:
    """Return how many steps of an evaluation, in all its episodes side by side, take as long as one update.

    The smaller of two numbers holds: that of arithmetic, in which a backward pass counts as two forward passes; and
    that of operations one after the other, since small batches take as long as large ones. On the host only the steps
    of the environments count as arithmetic.

    Args:
      config: Settings of the run.
      on_host: Whether the environments are on the host.
    """
    cost = 1 if on_host else 1 + 3 * config.num_epochs
    arithmetic = config.steps_per_update * cost / config.eval_episodes
    return min(arithmetic, config.num_steps + 3 * config.num_epochs * config.num_minibatches)


def with_intervals(config: Config, time_limit: int | None, on_host: bool = False) -> Config:
    """Derive the intervals that are None, from the sizes of the run alone.

    A line of metrics stands for some seconds of a laptop's work, or for a thousandth of a long run, or for a 25th of a
    short one. There are at least 25 evaluations, of which `qlax.training.budget` leaves out those that would
    take more than a tenth of the run's work. Populations, whose agents are exchanged after evaluations, have as many as
    take a tenth if every episode is as long as it can be. Checkpoints are at most a minute of a laptop's work apart, or
    a two-hundredth of a long run.

    Args:
      config: Settings of the run.
      time_limit: Steps after which an episode is cut; None without a limit.
      on_host: Whether the environments are on the host.
    """
    steps, is_population = config.steps_per_update * config.num_members, config.population != "none"
    line_steps, checkpoint_steps = (2_048, 16_384) if on_host else (16_384, 200_000)
    log_interval = config.log_interval or min(
        max(math.ceil(line_steps / steps), math.ceil(config.num_updates / 1000)),
        max(1, config.num_updates // (1 if is_population else PLANNED)),
        *(interval for interval in (config.eval_interval, config.checkpoint_interval) if interval),
    )
    if not config.log_interval:  # intervals asked for are kept, so the derived one has to divide them
        log_interval = math.gcd(log_interval, *(i for i in (config.eval_interval, config.checkpoint_interval) if i))
    max_steps = config.eval_max_steps or time_limit or 10_000
    lines = config.num_updates / log_interval
    evaluation_lines = max(1, int(lines) // PLANNED)
    if is_population:
        longest = config.num_updates * evaluation_steps(config, on_host) / max_steps  # evaluations worth the run
        evaluation_lines = math.ceil(lines / min(OF_POPULATION, max(1, int(SHARE * longest))))
    checkpoint_lines = max(math.ceil(checkpoint_steps / (steps * log_interval)), math.ceil(lines / 200))
    return config.derive(
        log_interval=log_interval,
        eval_interval=log_interval * evaluation_lines,
        checkpoint_interval=log_interval * checkpoint_lines,
        eval_max_steps=max_steps,
    )
