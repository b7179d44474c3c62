"""Craftax: an open world of crafting and fighting, and its smaller Classic (Matthews et al., 2024, arXiv:2402.16801).

Adapts craftax 1.6, whose environments do not distinguish death from the time limit.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from craftax import craftax_env

from qlax.envs.suites.options import check_name, checked
from qlax.types import PyTree, Step
from qlax.util.imports import silently

NAMES = ("Craftax-Symbolic-v1", "Craftax-Pixels-v1", "Craftax-Classic-Symbolic-v1", "Craftax-Classic-Pixels-v1")
BLOCK_PIXELS = 16  # width and height of the original texture of a block
NO_LIMIT = 2**30  # steps, more than any game takes


class Craftax:
    """One Craftax environment.

    `metrics` hold 1 or 0 for every achievement at the end of an episode. Pixels are uint8. A new world costs as much
    as ten to a hundred steps, so 16 copies share one (`reset_ratio`).

    Args:
      name: Name of the environment.
      env: Environment of craftax without auto-reset.
      params: Parameters of the environment.
    """

    reset_ratio = 16
    fps = 8.0

    def __init__(self, name: str, env: Any, params: Any):
        self._env, self._params = env, params
        self._endless = params.replace(max_timesteps=NO_LIMIT)
        self._is_image = "Pixels" in name
        self._is_classic = "Classic" in name
        if self._is_classic:
            from craftax.craftax_classic.constants import Achievement, Action

            self._max_return = float(len(Achievement))
        else:
            from craftax.craftax.constants import ACHIEVEMENT_REWARD_MAP, Achievement, Action

            self._max_return = float(ACHIEVEMENT_REWARD_MAP.sum())
        self._achievements = {f"achievement/{each.name.lower()}": each.value for each in Achievement}
        self.num_actions: int = env.num_actions
        self.action_names = tuple(action.name.lower().replace("_", " ") for action in Action)
        self.time_limit = int(params.max_timesteps)

    def score(self, episode_return: float) -> float:
        """Return an episode's return in percent of the reward of all achievements, which is 226, or 22 in Classic."""
        return 100 * episode_return / self._max_return

    def reset(self, key: jax.Array) -> tuple[PyTree, Step]:
        """See `qlax.Env`."""
        obs, state = self._env.reset_env(key, self._params)
        return state, self._step(obs, state, jnp.float32(0), jnp.bool_(False), jnp.bool_(False))

    def step(self, key: jax.Array, state: PyTree, action: jax.Array) -> tuple[PyTree, Step]:
        """See `qlax.Env`."""
        obs, state, reward, ended, _ = self._env.step_env(key, state, action, self._params)
        terminated = self._env.is_terminal(state, self._endless)
        return state, self._step(obs, state, reward, terminated, ended & ~terminated)

    def render(self, state: PyTree) -> np.ndarray:
        """See `qlax.Env`; the first call prepares textures, which takes up to a minute."""
        return np.asarray(self._draw(state)).round().clip(0, 255).astype(np.uint8)

    @functools.cached_property
    def _draw(self) -> Callable[[PyTree], jax.Array]:
        """The compiled function from a state to its picture."""
        if self._is_classic:
            from craftax.craftax_classic import constants, renderer
        else:
            from craftax.craftax import constants, renderer

        def textures():
            """Load the textures of one size; craftax would prepare all sizes, which takes minutes, and cache them."""
            if Path(constants.TEXTURE_CACHE_FILE).exists():
                return constants.load_all_textures()
            return {BLOCK_PIXELS: constants.load_all_textures_given_size(BLOCK_PIXELS)}

        with silently(), mock.patch.object(renderer, "load_all_textures", textures):
            return jax.jit(renderer.make_craftax_pixel_renderer(BLOCK_PIXELS))

    def _step(self, obs: jax.Array, state: Any, reward: jax.Array, terminated: jax.Array, truncated: jax.Array) -> Step:
        if self._is_image:
            obs = jnp.round(255 * obs).astype(jnp.uint8)
        achieved = jnp.where(terminated | truncated, state.achievements.astype(jnp.float32), jnp.nan)
        metrics = {name: achieved[index] for name, index in self._achievements.items()}
        return Step(obs, None, reward, terminated, truncated, metrics)


def names() -> list[str]:
    """Return the names of the environments."""
    return list(NAMES)


def make(name: str, /, **options: Any) -> Craftax:
    """Make an environment by its name.

    Args:
      name: Name of the environment.
      options: Fields of the environment's parameters, such as `max_timesteps`.

    Raises:
      UserError: The name or an option is unknown, or a value is not allowed.
    """
    check_name("craftax", name, NAMES)
    with silently():  # craftax prints messages while it prepares textures
        env = craftax_env.make_craftax_env_from_name(name, auto_reset=False)
    params = env.default_params
    defaults = {field.name: getattr(params, field.name) for field in dataclasses.fields(params)}
    defaults = {option: value for option, value in defaults.items() if isinstance(value, bool | int | float)}
    return Craftax(name, env, params.replace(**checked(f"craftax/{name}", options, defaults)))
