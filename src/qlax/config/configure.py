"""Settings from a preset, an environment or the contents of a file."""

from __future__ import annotations  # Mixing needs JAX, which settings are checked without

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from qlax.config import presets
from qlax.config.kinds import LONGEST_NAME
from qlax.config.settings import FIELDS, Config, checked
from qlax.errors import UserError, nearest
from qlax.types import Optimizer
from qlax.util.text import shown

if TYPE_CHECKING:
    from qlax.learning.mixing import Mixing

Sweepable = float | str | Sequence[float]


class Overrides(TypedDict, total=False):
    """Types of the settings that `qlax.train` takes as keyword arguments; `qlax.Config` describes them.

    A field that may be swept takes one number, several, or a distribution such as "log-uniform:1e-5:1e-2".
    """

    env: str
    env_options: dict[str, Any]
    seed: int
    seeds: int
    draws: int | None
    total_steps: int
    until: float | None
    minutes: float | None
    num_envs: int
    num_steps: int
    num_minibatches: int
    num_epochs: int
    algorithm: str
    optimizer: str | Optimizer
    learning_rate: Sweepable
    learning_rate_end: Sweepable
    gamma: Sweepable
    lam: Sweepable
    lam_end: Sweepable
    lam_fraction: Sweepable
    epsilon_start: Sweepable
    epsilon_end: Sweepable
    epsilon_fraction: Sweepable
    epsilon_spread: Sweepable
    noise_start: Sweepable
    noise_end: Sweepable
    noise_fraction: Sweepable
    noise_spread: Sweepable
    drift_penalty: Sweepable
    drift_threshold: Sweepable
    greedy_target: bool
    critics: int
    critic_hidden: int | Sequence[int] | None
    reward_norm: bool
    max_grad_norm: Sweepable
    reward_scale: Sweepable
    population: str
    network: str | None
    encoder: str | None
    hidden: int | Sequence[int] | None
    norm: str
    input_norm: str | None
    memory: str
    head: str
    head_low: float
    head_high: float
    head_bins: int
    head_sigma: float
    head_transform: str
    head_members: int
    dueling: bool
    compute_dtype: str
    wrappers: Sequence[str]
    mixing: str | Mixing
    bins: int | None
    reset_ratio: int | None
    time_limit_is_terminal: bool
    overlap: bool
    host_timeout: float
    eval_episodes: int
    eval_epsilon: float
    eval_max_steps: int | None
    log_interval: int | None
    eval_interval: int | None
    checkpoint_interval: int | None
    keep: int
    trackers: Sequence[str]
    init: str | Path | None
    devices: int | None
    deterministic: bool
    cuda_graph: bool
    matmul_precision: str


def configure(target: str | Config | None = None, **overrides: Unpack[Overrides]) -> Config:
    """Return the settings of a preset or of an environment, with some of them replaced.

    Args:
      target: A preset such as "cartpole", an environment as "suite/name" or "module:Name", or other settings; None if
        `overrides` name the environment.
      overrides: Fields of `Config` to replace; options of the environment are added to those of the preset, and replace
        those of the same name.

    Raises:
      UserError: The preset or a field does not exist, or a value is invalid.
    """
    settings: dict[str, Any] = {}
    if isinstance(target, Config):
        settings = dataclasses.asdict(target)
    elif target is not None:
        checked(FIELDS["env"], target)
        if preset := presets.spelled(target):
            settings = {**presets.settings(preset), "preset": preset}
            if overrides.get("network") is not None:  # the preset's settings are those of qlax's own network
                settings = {
                    name: value for name, value in settings.items() if FIELDS[name].metadata["group"] != "network"
                }
        elif ":" in target or ("/" in target and not presets.is_almost(target)):
            settings = {"env": target}
        else:
            known = presets.names()
            hint = nearest(target, known)
            raise UserError(f"unknown preset {target!r}{hint}; presets: {', '.join(known)}; environments: suite/name")
    return from_dict(settings, "settings", **overrides)


def from_dict(settings: dict[str, Any], source: str, /, **overrides: Any) -> Config:
    """Return the settings that a dictionary holds, with some of them replaced.

    Args:
      settings: Fields of `Config`; missing ones have their defaults.
      source: Where the dictionary comes from, for error messages.
      overrides: Fields of `Config` to replace; options of the environment are added to those of the dictionary.

    Raises:
      UserError: A field does not exist, or a value is invalid.
    """
    for name in (*settings, *overrides):
        if name not in FIELDS:
            raise UserError(f"unknown setting {shown(repr(name))} in {source}{nearest(name[:LONGEST_NAME], FIELDS)}")
    for name in ("derived", "env_options"):  # `Config` checks all others
        for given in (settings, overrides):
            if name in given:
                checked(FIELDS[name], given[name])
    if overrides:  # settings that were derived from others are derived again
        settings = {name: value for name, value in settings.items() if name not in settings.get("derived", ())}
        settings.pop("derived", None)
    if "env" in overrides and checked(FIELDS["env"], overrides["env"]) != settings.get("env"):
        settings.pop("preset", None)  # the preset was made for another environment
    if "env_options" in overrides and "env_options" in settings and "env" not in overrides:
        overrides = {**overrides, "env_options": {**settings["env_options"], **overrides["env_options"]}}
    return Config(**{**settings, **overrides})
