"""Weights of agents in files: those to begin with, those of the best evaluations and the last ones."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from qlax.agents.agent import Agent
from qlax.errors import UserError
from qlax.storage import checkpoint
from qlax.storage.directory import RunDirectory
from qlax.storage.formats import config_of_file
from qlax.training.plan import Plan, variables_of
from qlax.types import PyTree
from qlax.util.text import six_digits


class Best:
    """The best evaluation of every agent, whose weights are kept in `best/`.

    Args:
      plan: of what is trained.
      directory: of the run.
      info: of the checkpoint that training goes on from; empty where it begins.

    Attributes:
      returns: of the best evaluations; -inf before the first.
    """

    def __init__(self, plan: Plan, directory: RunDirectory, info: dict[str, Any]):
        self._plan, self._directory = plan, directory
        names = ("seed", *plan.config.compared)
        own = [{name: agent[name] for name in names} for agent in plan.config.members]
        self.returns = [-np.inf] * len(own)
        if info:
            self.returns = [directory.best(i, *each) for i, each in enumerate(zip(own, info["best"], strict=True))]

    def keep(self, variables: PyTree, line: dict[str, Any]) -> None:
        """Keep the weights of the agents that are better than before.

        Args:
          variables: of the network that was evaluated, `[R, ...]`.
          line: of metrics, about the evaluation.
        """
        improved = {}
        for index, found in enumerate(line["eval_return"].tolist()):
            if found > self.returns[index]:
                self.returns[index] = found
                # Settings are in the line if they change while agents are trained.
                own = {name: six_digits(line[name][index]) for name in self._plan.config.swept if name in line}
                improved[index] = own | {"updates": line["updates"], "eval_return": found}
        if improved:
            save(self._plan, self._directory, "best", jax.device_get(variables), improved)


def save(
    plan: Plan, directory: RunDirectory, folder: str, variables: PyTree, more: Mapping[int, dict[str, Any]]
) -> list[Agent]:
    """Write agents to a folder of the run's directory.

    Args:
      plan: what is trained.
      directory: of the run.
      folder: `best` or `agents`.
      variables: of the network, `[R, ...]`.
      more: what describes each agent to write beside its own settings, by its index.

    Returns:
      The agents that are written.
    """
    settings = plan.config.members
    agents = {
        index: Agent(
            jax.tree.map(lambda x, index=index: np.asarray(x[index]), variables),
            {**plan.agent_info, **settings[index], **about},
        )
        for index, about in more.items()
    }
    directory.save_agents(folder, {index: (agent.variables, agent.info) for index, agent in agents.items()})
    return list(agents.values())


def initial(plan: Plan) -> PyTree:
    """Read the weights of an earlier run, for agents that begin with them: variables of the network, `[R, ...]`.

    Args:
      plan: whose setting `init` is a run's directory, whose agents are dealt to as many agents, or whose only one to
        all; or one file of weights.

    Raises:
      UserError: there are none, or they are not of such a network.
    """
    path, num_members = Path(plan.config.init or ""), len(plan.seeds)
    files = [path]
    if path.is_dir():
        files = sorted((path / "agents").glob(f"*{checkpoint.SUFFIX}"), key=lambda file: (len(file.stem), file.stem))
        if not files:
            raise UserError(f"init={path} has no agents/: a run leaves them when it ends; or name a file of its best/")
        if (path / "config.json").exists() and len(files) != (made := config_of_file(path / "config.json").num_members):
            raise UserError(f"init={path} has {len(files)} of the {made} agents it had; name one file of them")
    if len(files) not in (1, num_members):
        raise UserError(
            f"init={path} has {len(files)} agents, and the run has {num_members}; name one file of its agents/"
        )
    single = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), variables_of(plan.shapes))
    trees = [checkpoint.restore(file, single)[1] for file in files]
    return jax.tree.map(lambda *x: np.stack(x), *trees * (num_members // len(trees)))
