"""qlax: deep Q-learning without replay or target network (PQN), whole training runs compiled by JAX.

The public names; each is imported when it is first used, so that `import qlax` is quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qlax import pqn as pqn
    from qlax.agent import Agent as Agent
    from qlax.agent import load as load
    from qlax.check import check_env as check_env
    from qlax.config import Config as Config
    from qlax.envs import make as make
    from qlax.envs import wrap as wrap
    from qlax.envs.vec import Vec as Vec
    from qlax.errors import RunError as RunError
    from qlax.errors import Stopped as Stopped
    from qlax.errors import UserError as UserError
    from qlax.figures import plot as plot
    from qlax.host import HostError as HostError
    from qlax.networks import QNetwork as QNetwork
    from qlax.page import report as report
    from qlax.playing import evaluate as evaluate
    from qlax.portable import export as export
    from qlax.returns import q_lambda as q_lambda
    from qlax.session import DivergedError as DivergedError
    from qlax.session import Result as Result
    from qlax.trainer import extend as extend
    from qlax.trainer import resume as resume
    from qlax.trainer import train as train
    from qlax.types import Env as Env
    from qlax.types import HostEnv as HostEnv
    from qlax.types import Network as Network
    from qlax.types import Step as Step
    from qlax.video import render as render

_HOME = {
    "Agent": "agent",
    "Config": "config",
    "DivergedError": "session",
    "Env": "types",
    "HostEnv": "types",
    "HostError": "host",
    "Network": "types",
    "QNetwork": "networks",
    "Result": "session",
    "RunError": "errors",
    "Step": "types",
    "Stopped": "errors",
    "UserError": "errors",
    "Vec": "envs.vec",
    "check_env": "check",
    "evaluate": "playing",
    "export": "portable",
    "extend": "trainer",
    "load": "agent",
    "make": "envs",
    "plot": "figures",
    "q_lambda": "returns",
    "report": "page",
    "render": "video",
    "resume": "trainer",
    "train": "trainer",
    "wrap": "envs",
}

__all__ = [*_HOME, "pqn"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "pqn":
        return importlib.import_module("qlax.pqn")
    if name not in _HOME:
        raise AttributeError(f"module 'qlax' has no attribute {name!r}")
    return getattr(importlib.import_module(f"qlax.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
