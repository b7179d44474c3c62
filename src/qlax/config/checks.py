"""Checks of settings that have to fit each other."""

import dataclasses
import math
from typing import Any

from qlax.config.kinds import LARGEST_COUNT, nearest_divisors
from qlax.errors import UserError, nearest

MOST_MEMBERS = 2**16
TRACKERS = ("tensorboard", "wandb")
OF_ACTOR: dict[str, tuple[Any, ...]] = {  # settings that algorithm=pqn-continuous restricts to these values
    **{"encoder": (None, "mlp"), "norm": ("layer", "none"), "input_norm": (None, "running", "layer", "none")},
    **{"memory": ("none",), "head": ("scalar",), "dueling": (False,), "network": (None,), "bins": (None,)},
    "eval_epsilon": (0.0,),
}
Config = Any  # `qlax.Config`, whose module imports this one


def check(config: Config) -> None:
    """Check that settings fit each other.

    Raises:
      UserError: Some do not.
    """
    if not config.env:
        raise UserError("env is missing: name a preset, or an environment as suite/name or module:Name")
    _check_algorithm(config)
    _check_members(config)
    _check_sizes(config)
    _check_trackers(config)
    _check_divisors(config)
    if config.head_low >= config.head_high:
        raise UserError(
            f"head_low={config.head_low:g} and head_high={config.head_high:g}: expected the first to be lower"
        )


def _check_algorithm(config: Config) -> None:
    """Check that settings are for the algorithm."""
    has_actor = config.algorithm == "pqn-continuous"
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), field.name
        is_other = field.metadata["group"] == ("exploration" if has_actor else "actor")
        if is_other and value != field.default:
            fitting = "pqn" if has_actor else "pqn-continuous"
            raise UserError(f"{name} is for algorithm={fitting}, but algorithm={config.algorithm}; leave one out")
        if has_actor and value not in OF_ACTOR.get(name, (value,)):
            allowed = " or ".join("none" if each is None else f"{each}" for each in dict.fromkeys(OF_ACTOR[name]))
            raise UserError(f"{name}={value} is not for algorithm=pqn-continuous; expected {allowed}")
    if config.input_norm == "running" and not has_actor:
        raise UserError("input_norm=running is for algorithm=pqn-continuous; expected layer, batch or none")
    if has_actor and config.reward_norm and config.overlap:
        raise UserError("reward_norm and overlap exclude each other, as returns are summed in the order of rollouts")


def _check_members(config: Config) -> None:
    """Check that lists of values, distributions and the number of draws fit each other."""
    if config.population != "none" and not config.swept:
        raise UserError(
            f"population={config.population} explores settings with several values or a distribution, but there are "
            "none; give for example learning_rate=log-uniform:1e-5:1e-2 and draws=16"
        )
    drawn = {name: getattr(config, name) for name in config.swept if isinstance(getattr(config, name), str)}
    for name, values in config.listed.items():
        if twice := [value for value in values if values.count(value) > 1]:
            raise UserError(f"{name}: {twice[0]:g} is given twice; for more agents of a setting use seeds")
    if drawn and config.draws is None:
        name, value = next(iter(drawn.items()))
        raise UserError(
            f"{name}={value} is a distribution: give the number of settings to draw from it, as in draws=16"
        )
    if config.draws is not None and not drawn:
        raise UserError(
            f"draws={config.draws}: no setting has a distribution; leave draws out, or give one, as in "
            "learning_rate=log-uniform:1e-5:1e-2"
        )


def _check_sizes(config: Config) -> None:
    """Check that all counts fit into the int32 counters of a device, and that there are not too many agents."""
    gradient_steps = config.num_updates * config.num_epochs * config.num_minibatches
    among = f" (num_updates={config.num_updates:,} x num_epochs x num_minibatches)"
    lists = [f"{len(values)} values of {name}" for name, values in config.listed.items()]
    factors = [*([f"draws={config.draws}"] if config.draws else []), f"seeds={config.seeds}", *lists]
    for what, count, most in (
        (f"num_envs={config.num_envs} x num_steps={config.num_steps}", config.steps_per_update, LARGEST_COUNT),
        (f"total_steps={config.total_steps}: the gradient steps{among}", gradient_steps, LARGEST_COUNT),
        (f"{' x '.join(factors)}: the agents", config.num_members, MOST_MEMBERS),
        (f"seed={config.seed} and seeds={config.seeds}: the last seed", config.seed + config.seeds - 1, LARGEST_COUNT),
    ):
        if count > most:
            raise UserError(f"{what} would be {count:,}; expected at most {most:,}")


def _check_trackers(config: Config) -> None:
    """Check that each tracker is one of qlax's, or has the form `module:Name` of a user's own."""
    for name in config.trackers:
        known = f"{', '.join(TRACKERS)}, or module:Name of your own{nearest(name, TRACKERS)}"
        if name not in TRACKERS and ":" not in name:
            raise UserError(f"trackers={name}: expected {known}")
        if config.trackers.count(name) > 1:
            raise UserError(f"trackers: {name} is given twice")


def _check_divisors(config: Config) -> None:
    """Check that sizes and intervals divide those that they are parts of."""
    is_recurrent = config.memory != "none"
    segments = config.num_envs if is_recurrent else config.num_envs * config.num_steps
    if segments % config.num_minibatches:
        more = " (whole rollouts, as the network has a memory)" if is_recurrent else f" x {config.num_steps} steps"
        what = f"{config.num_envs} environments{more}"
        fitting = nearest_divisors(segments, config.num_minibatches)
        raise UserError(f"num_minibatches={config.num_minibatches} does not divide the {what}; use {fitting}")
    if config.reset_ratio and config.num_envs % config.reset_ratio:
        fitting = nearest_divisors(config.num_envs, config.reset_ratio)
        raise UserError(f"reset_ratio={config.reset_ratio} does not divide num_envs={config.num_envs}; use {fitting}")
    for name in ("eval_interval", "checkpoint_interval"):
        interval, log_interval = getattr(config, name), config.log_interval
        if interval and log_interval and interval % log_interval:
            fitting = f"use {math.ceil(interval / log_interval) * log_interval}, or another log_interval"
            raise UserError(f"{name}={interval} is not a multiple of log_interval={log_interval}; {fitting}")
