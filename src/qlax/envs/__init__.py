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

    distribution: str  # name on the package index
    extra: str  # extra of qlax that installs the package: pip install 'qlax[<extra>]'
    on_host: bool = False  # True if the environments are HostEnvs, False if they are written in JAX


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
      UserError: There is no such suite, it is not installed, or it does not work with the installed version of JAX.
    """
    if name not in SUITES:
        raise UserError(f"unknown suite {name!r}{nearest(name, SUITES)}; suites: {', '.join(SUITES)}")
    try:
        return importlib.import_module(f"qlax.envs.suites.{name}")
    except ModuleNotFoundError as error:
        extra = SUITES[name].extra
        message = f"the suite {name!r} is not installed (no module {error.name!r}): pip install 'qlax[{extra}]'"
        raise UserError(message) from error
    except Exception as error:  # the package is too old or too new for the other installed packages
        raise UserError(f"the suite {name!r} does not work with JAX {jax.__version__}: {described(error)}") from error


class Maker(NamedTuple):
    """Constructor of an environment, and where the environment runs.

    Attributes:
      make: Constructor, called with the options of the environment; `num_envs` is one of them if `on_host`.
      on_host: True if `make` returns a `HostEnv`. A user's own class or function makes one if it has a parameter
        `num_envs`.
    """

    make: Callable[..., Any]
    on_host: bool


def maker(env_id: str) -> Maker:
    """Find the constructor of an environment by its name, see `make`.

    A user's own module is imported here, and nowhere else.

    Raises:
      UserError: The name is neither suite/name nor module:Name, or the user's own module cannot be imported.
    """
    if _is_own(env_id):
        own = import_object(env_id)
        try:
            on_host = "num_envs" in inspect.signature(own).parameters
        except (TypeError, ValueError):  # not callable, or a built-in without a signature
            on_host = False
        return Maker(functools.partial(_make_own, env_id, own), on_host)
    suite_name, slash, name = env_id.partition("/")
    if not slash:
        raise UserError(
            f"unknown environment {env_id!r}: expected suite/name or module:Name; suites: {', '.join(SUITES)}"
        )
    on_host = suite_name in SUITES and SUITES[suite_name].on_host
    return Maker(lambda **options: suite(suite_name).make(name, **options), on_host)


def make(env_id: str, /, **options: Any) -> Any:
    """Make an environment of a suite, `suite/name`, or one of your own by its import path, `module:Name`.

    Args:
      env_id: Name such as "gymnax/CartPole-v1" or "my_package.my_module:MyEnv"; modules in the working directory are
        found.
      options: Parameters of the environment, or arguments of your own class. Environments on the host need `num_envs`.

    Returns:
      An `Env`, or a `HostEnv` with `num_envs` environments if they run on the host.

    Raises:
      UserError: The environment is unknown or not installed, or it is an `Env` that breaks its contract (the contract
        of a `HostEnv` is checked by `check_env`).

    Example:
      ```python
      env = qlax.make("gymnax/CartPole-v1")
      ```
    """
    found = maker(env_id)
    if found.on_host and "num_envs" not in options:
        raise UserError(f"{env_id} runs on the host and needs num_envs, as in make({env_id!r}, num_envs=8)")
    return found.make(**options)


def options_to_draw(env_id: str) -> dict[str, Any]:
    """Return the options to pass to `make` if `render` will be called: some environments on the host require them."""
    return getattr(suite(env_id.partition("/")[0]), "TO_DRAW", {}) if not _is_own(env_id) else {}


def wrap(env: Env, wrappers: Iterable[str]) -> Env:
    """Put wrappers around an environment, the first one innermost.

    Args:
      env: The environment.
      wrappers: Names of wrappers in `qlax.envs.wrappers`, with their number if they take one, such as "flatten" or
        "frame_stack=4"; or import paths `module:Name` of your own wrappers, which are called with the environment.

    Returns:
      The wrapped environment.

    Raises:
      UserError: A wrapper is unknown or does not suit this environment, or the result breaks the contract of `Env`.

    Example:
      ```python
      env = qlax.wrap(qlax.make("gymnax/CartPole-v1"), ["frame_stack=4", "flatten"])
      ```
    """
    for name in wrappers:
        env = _make_own(name, import_object(name), env) if ":" in name else by_name(name, env)
    return env


def _is_own(env_id: str) -> bool:
    return ":" in env_id.partition("/")[0]  # names within a suite may contain a colon


def _make_own(path: str, own: Any, /, *arguments: Any, **options: Any) -> Any:
    """Make and check an environment with the user's own class or function, which was imported from `path`."""
    try:
        env = own(*arguments, **options)
    except UserError:
        raise
    except Exception as error:
        hint = "" if "num_envs" in options else " (an environment on the host has to accept num_envs)"
        raise UserError(
            f"{path} cannot be made: {described(error)}{hint if isinstance(error, TypeError) else ''}"
        ) from error
    if "num_envs" not in options:  # environments on the host are checked by their Worker, which has a timeout
        check_contract(env)
    return env
