"""Environments by name: `make("gymnax/CartPole-v1")`."""

import contextlib
import functools
import importlib
import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from qlax.config import environments
from qlax.config.environments import SUITES, is_own, suite_called
from qlax.envs.check.common import action_form
from qlax.envs.check.env import check_contract
from qlax.envs.wrappers import by_name, by_path
from qlax.errors import RunError, UserError, described, matching, remedy
from qlax.switches import usual_switches
from qlax.types import Env, strong
from qlax.util.imports import import_object


@usual_switches()
def suite(name: str) -> Any:
    """Import the adapter of a suite: a module with `make(name, **options)` and `names()`.

    Raises:
      UserError: There is no such suite, it is not installed, or it cannot be imported.
    """
    name = suite_called(name)
    try:
        with reported(f"the suite {name!r} does not work here, with JAX {jax.__version__}"):
            return importlib.import_module(f"qlax.envs.suites.{name}")
    except UserError as error:
        if not isinstance(error.__cause__, ModuleNotFoundError):
            raise
        missing = f"the suite {name!r} is not installed (no module {error.__cause__.name!r})"
        raise UserError(f"{missing}: pip install 'qlax[{SUITES[name].extra}]'") from error.__cause__


@contextlib.contextmanager
def reported(what: str) -> Iterator[None]:
    """Report an exception of another package in one line, which says what to install if something is missing.

    Packages import some of their modules only when these are first used, so making an environment may fail in any way,
    also by exceptions that are no `Exception`.

    Args:
      what: Beginning of the message, such as "envpool/Pong-v5 cannot be made".

    Raises:
      UserError: The package raised an exception, which is the cause.
    """
    try:
        yield
    except (UserError, RunError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise UserError(f"{what}: {described(error)}{remedy(error)}") from error


def spelled(env_id: str) -> str:
    """Return the name of an environment in the spelling of its suite, whatever case it is given in.

    The suite is imported only if its environment was not recorded under this name, see `environments.recorded`.

    Raises:
      UserError: The suite has to be imported, and cannot be.
    """
    env_id = environments.spelled(env_id)
    suite_name, _, name = env_id.partition("/")
    if is_own(env_id) or suite_name not in SUITES or environments.is_recorded(suite_name, name):
        return env_id
    with reported(f"the environments of {suite_name} cannot be listed"):
        return f"{suite_name}/{matching(name, suite(suite_name).names()) or name}"


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
    if is_own(env_id):
        own = import_object(env_id)
        try:
            on_host = "num_envs" in inspect.signature(own).parameters
        except (TypeError, ValueError):  # not callable, or a built-in without a signature
            on_host = False
        return Maker(functools.partial(_make_own, env_id, own), on_host)
    suite_name, slash, name = spelled(env_id).partition("/")
    if not slash:
        raise UserError(
            f"unknown environment {env_id!r}: expected suite/name or module:Name; suites: {', '.join(SUITES)}"
        )
    on_host = suite_name in SUITES and SUITES[suite_name].on_host
    return Maker(functools.partial(_make_of_suite, suite_name, name), on_host)


@usual_switches()
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
    env = found.make(**options)
    if not (found.on_host or is_own(env_id)):
        _keep_usual_switches(env)
    return env


def _keep_usual_switches(env: Any) -> None:
    """Let a user call an environment of a suite under any global options of JAX, also within a compiled function."""
    reset, step, (_, dtype) = env.reset, env.step, action_form(env)
    # Python's numbers in a state would become arrays under the user's switches, and an argmax may have 64 bits.
    env.reset = usual_switches()(lambda *arguments: strong(reset(*arguments)))
    env.step = usual_switches()(
        lambda key, state, action, *shared: strong(step(key, state, jnp.asarray(action, dtype), *shared))
    )
    if hasattr(env, "render"):
        env.render = usual_switches()(env.render)


def options_to_draw(env_id: str) -> dict[str, Any]:
    """Return the options to pass to `make` if `render` will be called: some environments on the host require them."""
    return getattr(suite(env_id.partition("/")[0]), "TO_DRAW", {}) if not is_own(env_id) else {}


@usual_switches()
def wrap(env: Env, wrappers: Iterable[str]) -> Env:
    """Put wrappers around an environment, the first one innermost.

    Args:
      env: The environment.
      wrappers: Names of wrappers: "time_limit=500", "frame_stack=4", "clip_reward=1", "symlog_reward",
        "one_hot=16", "flatten", "last_action" and "last_reward", with your own numbers; or import paths `module:Name`
        of your own wrappers, which are called with the environment. `module:Name=4` calls one with a second argument,
        and `module:Name={"size": 4}` with arguments by name.

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
        has_path = ":" in name.partition("=")[0]
        env = _make_own(name, by_path(name), env) if has_path else by_name(name, env)
    return env


def _make_of_suite(suite_name: str, name: str, /, **options: Any) -> Any:
    adapter = suite(suite_name)
    with reported(f"{suite_name}/{name} cannot be made"):
        return adapter.make(name, **options)


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
