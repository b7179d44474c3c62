"""XLand-MiniGrid: the tasks of MiniGrid written in JAX (Nikulin et al., 2023, arXiv:2312.12044).

Adapts xminigrid 0.9, whose environments do not reset unless they are wrapped.
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
WITHOUT_GOAL = ("XLand-MiniGrid", "MiniGrid-Playground")  # how their names begin


class XMiniGrid:
    """One environment of XLand-MiniGrid, or `env` and `params` of your own: with a ruleset, say.

    Observations are one-hot, bool `[view_size, view_size, sum(CATEGORIES)]`: what lies before the agent, which looks
    up from the middle of the last row. With `show_carried` it sees there what it carries, as in MiniGrid itself.
    A fresh grid costs as much as several steps, so there is one at most for every 4 copies at a step (`reset_ratio`).
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
        del key  # nothing is left to chance
        return self._shown(self._env.step(self._params, state, action))

    def render(self, state: PyTree) -> np.ndarray:
        """See `qlax.Env`: the whole grid, with what the agent sees in a lighter shade."""
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
    """The environments that have a goal."""
    return [name for name in xminigrid.registered_environments() if not name.startswith(WITHOUT_GOAL)]


def make(name: str, /, **options: Any) -> XMiniGrid:
    """`options` are `max_steps`, `view_size`, and `show_carried` (False): see `XMiniGrid`.

    Raises:
      UserError: unknown name or option, a value that cannot be, or an environment without a goal.
    """
    if name in xminigrid.registered_environments() and name.startswith(WITHOUT_GOAL):
        remedy = "wrap one that has rules of your own in qlax.envs.suites.xminigrid.XMiniGrid"
        raise UserError(f"xminigrid/{name} has no goal, as no rules come with it, so there is no reward; {remedy}")
    check_name("xminigrid", name, names())
    env, params = xminigrid.make(name)
    defaults = {"max_steps": params.max_steps, "view_size": params.view_size, "show_carried": False}
    chosen = defaults | checked(f"xminigrid/{name}", options, defaults)
    show_carried, view_size = chosen.pop("show_carried"), chosen["view_size"]
    if view_size < 3 or view_size % 2 == 0:
        raise UserError(f"view_size={view_size}: expected an odd number from 3, like {params.view_size}")
    return XMiniGrid(env, params.replace(**chosen), show_carried)
