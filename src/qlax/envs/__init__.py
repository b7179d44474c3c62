"""Environments by name: `make("gymnax/CartPole-v1")`."""

import importlib
from typing import Any

from qlax.check import check_contract
from qlax.errors import UserError, described, nearest
from qlax.imports import import_object
from qlax.types import Env

SUITES = ("gymnax",)  # each a module of this package and an extra of the same name


def suite(name: str) -> Any:
    """The adapter of a suite: a module with `make(name, **options)` and `names()`.

    Raises:
      UserError: no such suite, or it is not installed.
    """
    if name not in SUITES:
        raise UserError(f"unknown suite {name!r}{nearest(name, SUITES)}; suites: {', '.join(SUITES)}")
    try:
        return importlib.import_module(f"qlax.envs.{name}")
    except ModuleNotFoundError as error:
        message = f"the suite {name!r} is not installed (no module {error.name!r}): pip install 'qlax[{name}]'"
        raise UserError(message) from error


def make(env_id: str, **options: Any) -> Env:
    """The environment called `suite/name`, or your own by import path, `module:Name`.

    Args:
      env_id: such as "gymnax/CartPole-v1" or "my_package.my_module:MyEnv"; the working directory is on the import path.
      options: parameters of the environment; arguments of your own class.

    Raises:
      UserError: unknown, not installed, or it breaks the contract of `Env`.
    """
    if ":" in env_id:
        own = import_object(env_id)
        try:
            env = own(**options)
        except Exception as error:
            raise UserError(f"{env_id} cannot be made: {described(error)}") from error
        check_contract(env)
        return env
    suite_name, slash, name = env_id.partition("/")
    if not slash:
        raise UserError(
            f"unknown environment {env_id!r}: expected suite/name or module:Name; suites: {', '.join(SUITES)}"
        )
    return suite(suite_name).make(name, **options)
