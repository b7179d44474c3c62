"""Files of agents' weights: initial weights, weights of the best evaluations, and final weights."""

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
    """Best evaluation of every agent, whose weights are kept in `best/`.

    Args:
      plan: Plan of the run.
      directory: Directory of the run.
      info: Description of the checkpoint that training resumes from; empty for a new run.

    Attributes:
      returns: Mean return of each agent's best evaluation; -inf before the first evaluation.
    """

    def __init__(self, plan: Plan, directory: RunDirectory, info: dict[str, Any]):
        self._plan, self._directory = plan, directory
        names = ("seed", *plan.config.compared)
        own = [{name: agent[name] for name in names} for agent in plan.config.members]
        self.returns = [-np.inf] * len(own)
        if info:
            self.returns = [directory.best(i, *each) for i, each in enumerate(zip(own, info["best"], strict=True))]

    def keep(self, variables: PyTree, line: dict[str, Any]) -> None:
        """Save the weights of the agents that are better than in all earlier evaluations.

        Args:
          variables: Variables of the evaluated network, `[R, ...]`.
          line: Line of metrics with the results of the evaluation.
        """
        improved = {}
        for index, found in enumerate(line["eval_return"].tolist()):
            if found > self.returns[index]:
                self.returns[index] = found
                # The line holds settings only if they change during training, as in a population.
                own = {name: six_digits(line[name][index]) for name in self._plan.config.swept if name in line}
                improved[index] = own | {"updates": line["updates"], "eval_return": found}
        if improved:
            save(self._plan, self._directory, "best", jax.device_get(variables), improved)


def save(
    plan: Plan, directory: RunDirectory, folder: str, variables: PyTree, more: Mapping[int, dict[str, Any]]
) -> list[Agent]:
    """Write agents to a folder of the run's directory.

    Args:
      plan: Plan of the run.
      directory: Directory of the run.
      folder: "best" or "agents".
      variables: Variables of the network, `[R, ...]`.
      more: Further description of each agent to write, by the agent's index.

    Returns:
      Agents that were written.
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
    """Read the initial weights of a run, which its setting `init` names.

    `init` is one file of weights, which all agents begin with, or the directory of a run with one agent, or with as
    many agents as the new run.

    Args:
      plan: Plan of the new run.

    Returns:
      Variables of the network, `[R, ...]`.

    Raises:
      UserError: There are no weights, there is another number of agents, or the weights are of another network.
    """
    path, num_members = Path(plan.config.init or ""), len(plan.seeds)
    files = [path]
    if path.is_dir():
        files = sorted((path / "agents").glob(f"*{checkpoint.SUFFIX}"), key=lambda file: (len(file.stem), file.stem))
        if not files:
            raise UserError(f"init={path} has no agents/, which a run writes at its end; name a file in its best/")
        if (path / "config.json").exists() and len(files) != (made := config_of_file(path / "config.json").num_members):
            raise UserError(f"init={path} has only {len(files)} of its {made} agents; name one of their files")
    if len(files) not in (1, num_members):
        raise UserError(
            f"init={path} has {len(files)} agents, but the new run has {num_members}; name one file in its agents/, "
            "from which all agents start"
        )
    single = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), variables_of(plan.shapes))
    trees = [checkpoint.restore(file, single)[1] for file in files]
    return jax.tree.map(lambda *x: np.stack(x), *trees * (num_members // len(trees)))
