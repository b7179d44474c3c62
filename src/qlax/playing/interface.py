"""Checks that saved agents fit an environment and what is asked of them."""

from typing import Any

import jax

from qlax.agents.agent import Agent
from qlax.config.settings import Config
from qlax.errors import UserError
from qlax.networks.names import algorithm_of
from qlax.types import PyTree
from qlax.util.text import actions_in_words


def check_interface(info: dict[str, Any], config: Config, env: Any, obs: PyTree) -> None:
    """Check that agents fit an environment.

    Args:
      info: Description of the agents.
      config: Settings with the environment's name.
      env: The environment.
      obs: Observations of the environment, or their shapes, `[N, M, ...]`.

    Raises:
      UserError: The environment's observations or actions are not those of the agents.
    """
    leaves = jax.tree_util.tree_leaves_with_path(obs)
    paths = [jax.tree_util.keystr(path) for path, _ in leaves]
    found = [[str(leaf.dtype), list(leaf.shape[2:])] for _, leaf in leaves]
    wanted_paths = info.get("obs_paths", paths)
    if algorithm_of(info["network"]) == "pqn":
        actions = actions_in_words(int(env.num_actions), getattr(env, "action_dimensions", None))
        wanted = actions_in_words(info["num_actions"], info.get("action_dimensions"))
    else:
        actions = _in_range(*(bound.tolist() for bound in env.action_bounds))
        wanted = _in_range(info["network"]["low"], info["network"]["high"])
    if (found, paths, actions) == (info["obs"], wanted_paths, wanted):
        return
    here, there = _interface(paths, found, actions), _interface(wanted_paths, info["obs"], wanted)
    raise UserError(f"{config.env} has {here}; expected what the agents trained with in {info['env']}: {there}")


def _interface(paths: list[str], obs: list[list[Any]], actions: str) -> str:
    arrays = [f"{path} {dtype}{shape}".lstrip() for path, (dtype, shape) in zip(paths, obs, strict=True)]
    return f"observations {', '.join(arrays)} and {actions}"


def _in_range(low: list[float], high: list[float]) -> str:
    return f"actions from {low} to {high}"


def check_epsilon(agent: Agent, epsilon: float) -> None:
    """Check that actions are only chosen at random where they are a choice.

    Raises:
      UserError: The agent has an actor, and epsilon is not 0.
    """
    if epsilon and agent.is_continuous:
        raise UserError(f"epsilon={epsilon:g} is for a choice of actions, but the agent has an actor; leave it out")
