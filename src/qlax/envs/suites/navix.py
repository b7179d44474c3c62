"""Navix: the tasks of MiniGrid written in JAX (Pignatelli et al., 2024, arXiv:2407.19396).

Adapts navix 0.7 and 4.0, whose raw step, `_step`, does not reset and distinguishes terminations from time limits.
"""

from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qlax.envs.suites.options import check_name, checked
from qlax.errors import UserError, nearest
from qlax.types import PyTree, Step
from qlax.util.imports import imported_when_used

with imported_when_used("wandb", "wandb.util"):  # used only by navix's own agents; a quarter of its import time
    from navix import observations
    from navix.entities import Directions, EntityIds
    from navix.environments.registry import registry
    from navix.rendering.cache import RenderingCache
    from navix.rendering.registry import PALETTE

OBSERVATIONS = ("symbolic", "symbolic_first_person", "rgb", "rgb_first_person")
# Beginnings of the names of environments without a reward: in navix 0.7, KeyCorridor has a ball in place of its goal.
WITHOUT_GOAL = ("Navix-KeyCorridor",) if version("navix").startswith("0.") else ("Navix-Playground",)


def _constants(kind: type) -> list[int]:
    """Return the numbers that a class of navix defines as constants."""
    return [int(value) for value in vars(kind).values() if isinstance(value, jax.Array)]


# Numbers of kinds of objects, of colours, and of states (the player's direction, or a door's open, closed, locked).
CATEGORIES = (1 + max(_constants(EntityIds)), len(PALETTE.as_array()), 1 + max(_constants(Directions)))


class Navix:
    """One Navix environment.

    Symbolic observations are one-hot, bool `[height, width, sum(CATEGORIES)]`; images are uint8. Observations never
    show the mission (such as which door to go to), and first-person observations do not show what the player carries.
    A new grid costs as much as several steps, so 4 copies share one (`reset_ratio`).

    Args:
      env: Environment of navix.
      is_image: True if its observations are images, False if they are symbolic.
    """

    reset_ratio = 4
    fps = 8.0

    def __init__(self, env: Any, is_image: bool):
        self._env, self._is_image = env, is_image
        self.num_actions = len(env.action_set)
        self.time_limit: int = env.max_steps
        self.action_names = tuple(action.__name__.replace("_", " ") for action in env.action_set)
        self._draw = jax.jit(lambda state: observations.rgb(state.replace(cache=RenderingCache.init(state.grid))))

    def reset(self, key: jax.Array) -> tuple[PyTree, Step]:
        """See `qlax.Env`."""
        return self._shown(self._env.reset(key))

    def step(self, key: jax.Array, state: PyTree, action: jax.Array) -> tuple[PyTree, Step]:
        """See `qlax.Env`."""
        del key  # the state holds a key
        return self._shown(self._env._step(state, action))

    def render(self, state: PyTree) -> np.ndarray:
        """See `qlax.Env`; the picture shows the whole grid."""
        return np.asarray(self._draw(state.state))

    def _shown(self, timestep: Any) -> tuple[PyTree, Step]:
        obs, state = timestep.observation, timestep.replace(observation=None, info={})
        if not self._is_image:
            each = [jax.nn.one_hot(obs[..., i], n, dtype=bool) for i, n in enumerate(CATEGORIES)]
            obs = jnp.concatenate(each, axis=-1)
            state = state.replace(state=state.state.replace(cache=None))  # only for rendering, and most of the state
        return state, Step(obs, None, timestep.reward, timestep.is_termination(), timestep.is_truncation(), {})


def names() -> list[str]:
    """Return the names of the environments that have a goal."""
    return [name for name in registry() if not name.startswith(WITHOUT_GOAL)]


def make(name: str, /, **options: Any) -> Navix:
    """Make an environment by its name.

    Args:
      name: Name of the environment.
      options: `max_steps`, and `observation`, one of `OBSERVATIONS` ("symbolic" unless given).

    Raises:
      UserError: The name or an option is unknown, a value is not allowed, or the environment has no goal.
    """
    if name in registry() and name.startswith(WITHOUT_GOAL):
        raise UserError(f"navix/{name} has no goal in navix {version('navix')}, so there is never a reward")
    check_name("navix", name, names())
    construct = registry()[name]  # navix's own `make` sets a limit of 100 steps for every grid in version 0.7
    defaults = {"max_steps": construct().max_steps, "observation": OBSERVATIONS[0]}
    chosen = defaults | checked(f"navix/{name}", options, defaults)
    observation = chosen["observation"]
    if observation not in OBSERVATIONS:
        hint = nearest(observation, OBSERVATIONS)
        raise UserError(f"observation={observation!r}: expected one of {', '.join(OBSERVATIONS)}{hint}")
    env = construct(max_steps=chosen["max_steps"], observation_fn=getattr(observations, observation))
    return Navix(env, observation.startswith("rgb"))
