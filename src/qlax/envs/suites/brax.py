"""Brax: classic robots of MuJoCo's tasks, simulated in JAX (Freeman et al., 2021, arXiv:2106.13281).

Adapts brax 0.14, whose environments do not reset themselves and have no time limit until they are wrapped.
"""

import inspect
import warnings
from typing import Any

import jax
import jax.numpy as jnp
from brax import envs

from qlax.envs.suites.options import check_name, checked
from qlax.envs.suites.physics import Robot
from qlax.errors import UserError, nearest

BACKENDS = ("generalized", "positional", "spring", "mjx")  # simulators of Brax; the first is its default
ONLY_GENERALIZED = ("swimmer",)  # simulated by the first of them alone
FOR_TESTS = ("fast",)  # without physics
# Forces of fluids call jnp.clip by the names of arguments that JAX has removed.
NEED_OLD_JAX = () if "a_min" in inspect.signature(jnp.clip).parameters else ("swimmer",)
LIMITS = {"episode_length": 1000, "action_repeat": 1}  # defaults of brax.envs.create


def names() -> list[str]:
    """Return the names of the environments that work with the installed version of JAX."""
    return [name for name in envs._envs if name not in (*FOR_TESTS, *NEED_OLD_JAX)]


def make(name: str, /, **options: Any) -> Robot:
    """Make an environment by its name.

    Args:
      name: Name of the environment.
      options: `backend`, `episode_length` (1000 unless given) and `action_repeat` (1), and the arguments of the
        environment's class, such as `reset_noise_scale`.

    Raises:
      UserError: The name or an option is unknown, a value is not allowed, or the environment needs an older JAX.
    """
    env_id = f"brax/{name}"
    if name in NEED_OLD_JAX:
        why = "it calls jnp.clip(a_min=...), which JAX has removed"
        raise UserError(f"{env_id} does not work with JAX {jax.__version__}: {why}")
    check_name("brax", name, names())
    kind = envs._envs[name]
    parameters = inspect.signature(kind).parameters.values()
    own = {each.name: each.default for each in parameters if each.default is not inspect.Parameter.empty}
    options = LIMITS | checked(env_id, options, {"backend": BACKENDS[0]} | own | LIMITS)
    backend = options.get("backend", BACKENDS[0])
    known = BACKENDS[:1] if name in ONLY_GENERALIZED else BACKENDS
    if backend not in known:
        raise UserError(f"backend={backend!r}: expected {' or '.join(known)}{nearest(backend, known)}")
    limits = {option: options.pop(option) for option in LIMITS}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that Brax recommends MuJoCo Playground
        return Robot(kind(**options), **limits)
