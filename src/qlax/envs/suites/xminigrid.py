"""XLand-MiniGrid: the tasks of MiniGrid written in JAX (Nikulin et al., 2023, arXiv:2312.12044).

Adapts xminigrid 0.9, whose environments do not reset themselves unless they are wrapped.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xminigrid
from xminigrid.core.constants import NUM_COLORS, NUM_TILES, Tiles
from xminigrid.rendering import rgb_render

from qlax.envs.suites.options import check_name, checked
from qlax.errors import UserError
from qlax.types import PyTree, Step

CATEGORIES = (NUM_TILES, NUM_COLORS)
WITHOUT_GOAL = ("XLand-MiniGrid", "MiniGrid-Playground")  # beginnings of the names of environments without a goal


class XMiniGrid:
    """One environment of XLand-MiniGrid.

    Observations are one-hot, bool `[view_size, view_size, sum(CATEGORIES)]`: the cells in front of the agent, which
    stands in the middle of the last row and looks up. A new grid costs as much as several steps, so 4 copies share
    one (`reset_ratio`).

    Args:
      env: Environment of xminigrid; it may be your own, for example one with a ruleset.
      params: Parameters of the environment.
      show_carried: If True, the agent sees the object that it carries in its own cell, as in MiniGrid.
    """

    reset_ratio = 4
    fps = 8.0
    action_names = ("forward", "right", "left", "pick up", "put down", "toggle")

    def __init__(self, env: Any, params: Any, show_carried: bool = False):
        self._env, self._params, self._show_carried = env, params, show_carried
        self.num_actions: int = env.num_actions(params)
        self.time_limit: int = params.max_steps

    def reset(self, key: jax.Array) -> tuple[PyTree, Step]:
        """See `qlax.Env`."""
        return self._shown(self._env.reset(self._params, key))

    def step(self, key: jax.Array, state: PyTree, action: jax.Array) -> tuple[PyTree, Step]:
        """See `qlax.Env`."""
        del key  # transitions are deterministic
        return self._shown(self._env.step(self._params, state, action))

    def render(self, state: PyTree) -> np.ndarray:
        """See `qlax.Env`; the picture shows the whole grid, the agent's view in a lighter shade."""
        return rgb_render.render(np.asarray(state.state.grid), state.state.agent, self._params.view_size)

    def _shown(self, timestep: Any) -> tuple[PyTree, Step]:
        view, carried = timestep.observation, timestep.state.agent.pocket
        if self._show_carried:
            cell = (view.shape[0] - 1, view.shape[1] // 2)
            view = view.at[cell].set(jnp.where(carried[0] == Tiles.EMPTY, view[cell], carried))
        each = [jax.nn.one_hot(view[..., i], n, dtype=bool) for i, n in enumerate(CATEGORIES)]
        terminated = timestep.discount == 0
        truncated = timestep.last() & ~terminated
        return timestep, Step(jnp.concatenate(each, axis=-1), None, timestep.reward, terminated, truncated, {})


def names() -> list[str]:
    """Return the names of the environments that have a goal."""
    return [name for name in xminigrid.registered_environments() if not name.startswith(WITHOUT_GOAL)]


def make(name: str, /, **options: Any) -> XMiniGrid:
    """Make an environment by its name.

    Args:
      name: Name of the environment.
      options: `max_steps`, `view_size`, and `show_carried` (False unless given), see `XMiniGrid`.

    Raises:
      UserError: The name or an option is unknown, a value is not allowed, or the environment gives no reward, as it is
        meant for tasks that are added to it.
    """
    if name in xminigrid.registered_environments() and name.startswith(WITHOUT_GOAL):
        remedy = "an environment of your own can add one, see docs/environments.md"
        raise UserError(f"xminigrid/{name} has no goal and no reward, as it comes without a ruleset; {remedy}")
    check_name("xminigrid", name, names())
    env, params = xminigrid.make(name)
    defaults = {"max_steps": params.max_steps, "view_size": params.view_size, "show_carried": False}
    chosen = defaults | checked(f"xminigrid/{name}", options, defaults)
    show_carried, view_size = chosen.pop("show_carried"), chosen["view_size"]
    if view_size < 3 or view_size % 2 == 0:
        raise UserError(f"view_size={view_size}: expected an odd number from 3, like {params.view_size}")
    return XMiniGrid(env, params.replace(**chosen), show_carried)
