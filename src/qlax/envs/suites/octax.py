"""OctaX: games of the CHIP-8 console of 1977, emulated in JAX (Radji et al., 2025, arXiv:2510.01764).

Adapts octax 0.1.1, whose `step` neither resets nor stops at the end of an episode.
"""

import functools
import importlib
import pkgutil
import re
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from octax import environments
from octax.environments import create_environment

from qlax.envs.suites.options import check_name, checked
from qlax.types import PyTree, Step

DEFAULTS = {"max_num_steps_per_episodes": 4500, "frame_skip": 4}


class Octax:
    """One game of OctaX; the observation is the last frames of the screen, bool `[64, 32, frame_skip]`.

    Every episode begins alike; what is random in it comes from the key of the reset.

    Args:
      env: Environment of octax.
    """

    def __init__(self, env: Any):
        self._env = env
        self.num_actions: int = env.num_actions
        self.time_limit: int = env.max_num_steps_per_episodes
        self.fps = env.fps / env.frame_skip
        self.action_names = (*(f"key {key:X}" for key in np.asarray(env.action_set).tolist()), "none")

    def reset(self, key: jax.Array) -> tuple[PyTree, Step]:
        """See `qlax.Env`."""
        state, obs, _ = self._env.reset(jax.random.key_data(key))
        return state, self._shown(obs, jnp.float32(0), jnp.bool_(False), jnp.bool_(False))

    def step(self, key: jax.Array, state: PyTree, action: jax.Array) -> tuple[PyTree, Step]:
        """See `qlax.Env`."""
        del key  # the state holds a key
        with warnings.catch_warnings():  # about dtypes in OctaX, once for each program
            warnings.simplefilter("ignore", FutureWarning)
            state, obs, reward, terminated, truncated, _ = self._env.step(state, action)
        return state, self._shown(obs, reward, terminated, truncated)

    def render(self, state: PyTree) -> np.ndarray:
        """See `qlax.Env`."""
        return np.asarray(self._env.render(state), np.uint8)

    def _shown(self, obs: jax.Array, reward: jax.Array, terminated: jax.Array, truncated: jax.Array) -> Step:
        obs = jnp.moveaxis(obs, 0, -1).astype(bool)
        return Step(obs, None, reward.astype(jnp.float32), jnp.bool_(terminated), jnp.bool_(truncated), {})


@functools.cache  # as making a level of a game gives its module a `rom_file`
def _names() -> tuple[str, ...]:
    modules = [module.name for module in pkgutil.iter_modules(environments.__path__)]
    roms = [file.stem for file in (Path(environments.__file__).parents[2] / "roms").glob("*.ch8")]
    levels = {name: sorted(rom for rom in roms if re.fullmatch(rf"{name}\d+", rom)) for name in modules}
    whole = [name for name in modules if hasattr(importlib.import_module(f"octax.environments.{name}"), "rom_file")]
    return (*sorted([*whole, *(level for name in modules if name not in whole for level in levels[name])]),)


def names() -> list[str]:
    """Return the names of the games; those with levels have one name for each level, such as `cavern1`."""
    return list(_names())


def make(name: str, /, **options: Any) -> Octax:
    """Make a game by its name.

    Args:
      name: Name of the game.
      options: `max_num_steps_per_episodes` and `frame_skip`, the number of frames of a step.

    Raises:
      UserError: The name or an option is unknown, or a value is not allowed.
    """
    check_name("octax", name, _names())
    env, _ = create_environment(name, render_mode="rgb_array", **DEFAULTS | checked(f"octax/{name}", options, DEFAULTS))
    return Octax(env)
