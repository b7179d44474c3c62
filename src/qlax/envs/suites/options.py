"""Options of environments: a value takes the type of its default."""

import math
from typing import Any

import numpy as np

from qlax.errors import UserError

STEP_LIMITS = ("max_steps", "max_steps_in_episode", "max_timesteps", "time_limit")


def like_default(default: Any, option: str, value: Any) -> Any:
    """The value with the type of the default: XLA does not mix whole numbers and others in one `select`.

    Raises:
      UserError: it cannot have it.
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
