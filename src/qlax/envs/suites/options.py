"""Checks of environments' names and options; a value takes the type of its default."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from qlax.errors import UserError, nearest

STEP_LIMITS = ("max_steps", "max_steps_in_episode", "max_timesteps", "time_limit", "episode_length", "action_repeat")


def check_name(suite: str, name: str, known: Iterable[str]) -> None:
    """Check that a suite has an environment of this name.

    Raises:
      UserError: The suite has no such environment.
    """
    if name not in known:
        hint = nearest(name, known)
        raise UserError(f"{suite} has no environment {name!r}{hint}; 'qlax envs {suite}' lists them")


def check_options(env_id: str, options: Iterable[str], known: Iterable[str]) -> None:
    """Check that an environment has these options.

    Raises:
      UserError: The environment lacks an option; the message names the first one.
    """
    known = sorted(known)
    for option in options:
        if option not in known:
            raise UserError(f"{env_id} has no option {option!r}{nearest(option, known)}; options: {', '.join(known)}")


def checked(env_id: str, options: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the given options with the types of their defaults.

    Raises:
      UserError: The environment has no such option, or a value does not have the type of its default.
    """
    check_options(env_id, options, defaults)
    return {option: like_default(defaults[option], option, value) for option, value in options.items()}


def like_default(default: Any, option: str, value: Any) -> Any:
    """Convert a value to the type of its default, as XLA does not mix integers and floats in one `select`.

    Raises:
      UserError: The value cannot be converted without loss.
    """
    for kind, expected in ((bool, "true or false"), (str, "a word")):
        if isinstance(default, kind) and not isinstance(value, kind):
            raise UserError(f"{option}={value!r}: expected {expected}, like {default!r}")
    if not isinstance(default, int | float) or isinstance(default, bool):
        return value
    lowest = 1 if option in STEP_LIMITS else -math.inf
    number = (
        isinstance(value, int | float) and not isinstance(value, bool) and lowest <= value <= np.iinfo(np.int32).max
    )
    if not number or type(default)(value) != value:
        raise UserError(f"{option}={value!r}: expected a number like {default!r}")
    return type(default)(value)
