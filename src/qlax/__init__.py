"""qlax: deep Q-learning without replay or target network (PQN), whole training runs compiled by JAX.

The public names; each is imported when it is first used, so that `import qlax` is quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

from qlax._version import __version__ as __version__

if TYPE_CHECKING:
    from qlax import pqn as pqn
    from qlax.agents.agent import Agent as Agent
    from qlax.agents.agent import load as load
    from qlax.agents.export import export as export
    from qlax.config.settings import Config as Config
    from qlax.envs import make as make
    from qlax.envs import wrap as wrap
    from qlax.envs.check.env import check_env as check_env
    from qlax.envs.vec import Vec as Vec
    from qlax.errors import DivergedError as DivergedError
    from qlax.errors import HostError as HostError
    from qlax.errors import RunError as RunError
    from qlax.errors import Stopped as Stopped
    from qlax.errors import UserError as UserError
    from qlax.networks.qnetwork import QNetwork as QNetwork
    from qlax.play.evaluate import evaluate as evaluate
    from qlax.play.film import render as render
    from qlax.reports.html import report as report
    from qlax.reports.plot import plot as plot
    from qlax.returns import q_lambda as q_lambda
    from qlax.training import extend as extend
    from qlax.training import resume as resume
    from qlax.training import train as train
    from qlax.training.result import Result as Result
    from qlax.types import Env as Env
    from qlax.types import HostEnv as HostEnv
    from qlax.types import Network as Network
    from qlax.types import Step as Step

_HOME = {
    "Agent": "agents.agent",
    "Config": "config.settings",
    "DivergedError": "errors",
    "Env": "types",
    "HostEnv": "types",
    "HostError": "errors",
    "Network": "types",
    "QNetwork": "networks.qnetwork",
    "Result": "training.result",
    "RunError": "errors",
    "Step": "types",
    "Stopped": "errors",
    "UserError": "errors",
    "Vec": "envs.vec",
    "check_env": "envs.check.env",
    "evaluate": "play.evaluate",
    "export": "agents.export",
    "extend": "training",
    "load": "agents.agent",
    "make": "envs",
    "plot": "reports.plot",
    "q_lambda": "returns",
    "report": "reports.html",
    "render": "play.film",
    "resume": "training",
    "train": "training",
    "wrap": "envs",
}

__all__ = [*_HOME, "pqn"]


if not TYPE_CHECKING:  # to a type checker there are the names above, and no others

    def __getattr__(name: str) -> Any:
        if name == "pqn":
            return importlib.import_module("qlax.pqn")
        if name not in _HOME:
            raise AttributeError(f"module 'qlax' has no attribute {name!r}")
        return getattr(importlib.import_module(f"qlax.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
