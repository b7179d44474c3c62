"""Weights of agents in files: those of the best evaluations and the last ones."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from qlax.agents.agent import Agent
from qlax.storage.directory import RunDirectory
from qlax.training.plan import Plan
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
        agents, names = plan.config.members, ("seed", *plan.config.compared)
        before = info.get("best", [])  # none where training begins
        self.returns = (
            [-np.inf] * len(agents)
            if not info
            else [
                directory.best(index, {name: agent[name] for name in names}, best)
                for index, (agent, best) in enumerate(zip(agents, before, strict=True))
            ]
        )

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
