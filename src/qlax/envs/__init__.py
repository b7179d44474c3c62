"""Environments by name: `make("gymnax/CartPole-v1")`."""

import functools
import importlib
import inspect
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax

from qlax.envs.check.env import check_contract
from qlax.envs.wrappers import by_name
from qlax.errors import UserError, described, nearest
from qlax.types import Env
from qlax.util.imports import import_object


class Suite(NamedTuple):
    """Package of environments whose adapter is the module of this name in `qlax.envs.suites`."""

    distribution: str  # its name on the package index
    extra: str  # of qlax, which installs it
    on_host: bool = False


SUITES = {
    "gymnax": Suite("gymnax", extra="gymnax"),
    "pgx": Suite("pgx", extra="pgx"),
    "jumanji": Suite("jumanji", extra="jumanji"),
    "navix": Suite("navix", extra="navix"),
    "xminigrid": Suite("xminigrid", extra="xminigrid"),
    "craftax": Suite("craftax", extra="craftax"),
    "jaxmarl": Suite("jaxmarl", extra="jaxmarl"),
    "ale": Suite("ale-py", extra="atari", on_host=True),
    "envpool": Suite("envpool", extra="envpool", on_host=True),
    "gymnasium": Suite("gymnasium", extra="gymnasium", on_host=True),
}


def suite(name: str) -> Any:
    """Import the adapter of a suite: a module with `make(name, **options)` and `names()`.

    Raises:
      UserError: no such suite, it is not installed, or it does not work with the JAX that is.
    """
    if name not in SUITES:
        raise UserError(f"unknown suite {name!r}{nearest(name, SUITES)}; suites: {', '.join(SUITES)}")
    try:
        return importlib.import_module(f"qlax.envs.suites.{name}")
    except ModuleNotFoundError as error:
        extra = SUITES[name].extra
        message = f"the suite {name!r} is not installed (no module {error.name!r}): pip install 'qlax[{extra}]'"
        raise UserError(message) from error
    except Exception as error:  # its package is too old or too new for what else is installed
        raise UserError(f"the suite {name!r} does not work with JAX {jax.__version__}: {described(error)}") from error


class Maker(NamedTuple):
    """What makes the environments of a name, and where they live.

    Attributes:
      make: called with the options of the environment; on the host `num_envs` is one of them.
      on_host: whether it makes a `HostEnv`: your own does if what the import path names takes `num_envs`.
    """

    make: Callable[..., Any]
    on_host: bool


def maker(env_id: str) -> Maker:
    """Find what makes an environment, see `make`; your own module is imported here, and nowhere else.

    Raises:
      UserError: the name is neither suite/name nor module:Name, or your own cannot be imported.
    """
    if _is_own(env_id):
        own = import_object(env_id)
        try:
            on_host = "num_envs" in inspect.signature(own).parameters
        except (TypeError, ValueError):  # not to be called, or of those of Python's own that do not tell
            on_host = False
        return Maker(functools.partial(_own, env_id, own), on_host)
    suite_name, slash, name = env_id.partition("/")
    if not slash:
        raise UserError(
            f"unknown environment {env_id!r}: expected suite/name or module:Name; suites: {', '.join(SUITES)}"
        )
    on_host = suite_name in SUITES and SUITES[suite_name].on_host
    return Maker(lambda **options: suite(suite_name).make(name, **options), on_host)


def make(env_id: str, /, **options: Any) -> Any:
    """Make the environment called `suite/name`, or your own by import path, `module:Name`.

    Args:
      env_id: such as "gymnax/CartPole-v1" or "my_package.my_module:MyEnv"; modules of the working directory are found.
      options: parameters of the environment; arguments of your own class. Those on the host need `num_envs`.

    Returns:
      An `Env`, or a `HostEnv` of `num_envs`, see `Maker`.

    Raises:
      UserError: unknown, not installed, or it breaks the contract of `Env`; see `check_env` for a `HostEnv`.
    """
    found = maker(env_id)
    if found.on_host and "num_envs" not in options:
        raise UserError(f"{env_id} lives on the host: say how many, as in make({env_id!r}, num_envs=8)")
    return found.make(**options)


def options_to_draw(env_id: str) -> dict[str, Any]:
    """Return the options that `make` needs where pictures will be asked for: some on the host draw only if told so."""
    return getattr(suite(env_id.partition("/")[0]), "TO_DRAW", {}) if not _is_own(env_id) else {}


def wrap(env: Env, wrappers: Iterable[str]) -> Env:
    """Put wrappers around an environment, the first one innermost.

    Args:
      env: the environment.
      wrappers: of `qlax.envs.wrappers` by name, where there is one with its number, as "frame_stack=4"; or the import
        path `module:Name` of your own, called with what it wraps.

    Raises:
      UserError: unknown, not for this environment, or what it makes breaks the contract of `Env`.
    """
    for name in wrappers:
        env = _own(name, import_object(name), env) if ":" in name else by_name(name, env)
    return env


def _is_own(env_id: str) -> bool:
    return ":" in env_id.partition("/")[0]  # a suite's names may have a colon


def _own(path: str, own: Any, /, *arguments: Any, **options: Any) -> Any:
    """Make and check an environment of the user's own class or function, which stands at an import path."""
    try:
        env = own(*arguments, **options)
    except UserError:
        raise
    except Exception as error:
        hint = "" if "num_envs" in options else " (one on the host has to take num_envs)"
        raise UserError(
            f"{path} cannot be made: {described(error)}{hint if isinstance(error, TypeError) else ''}"
        ) from error
    if "num_envs" not in options:  # others are examined where it is known how long that may take
        check_contract(env)
    return env
