"""Gymnasium: any environment with discrete actions, in this process or in processes of their own."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode

from qlax.envs.suites.spaces import SpacesEnv
from qlax.errors import UserError, described, nearest
from qlax.util.imports import import_object, import_own

TO_DRAW = {"render_mode": "rgb_array"}
FPS = 30.0  # where an environment does not say
VECTORIZATIONS = ("sync", "async", "vector_entry_point")
AUTORESETS = {"next_step": AutoresetMode.NEXT_STEP, "same_step": AutoresetMode.SAME_STEP}


class Gymnasium(SpacesEnv):
    """A vector environment of Gymnasium as a `qlax.HostEnv`.

    It has `render` if it was made with the option `render_mode="rgb_array"`: some are slower for it even while nobody
    looks, as they keep what only pictures show.
    """

    def __init__(self, env_id: str, env: gymnasium.vector.VectorEnv, time_limit: int | None):
        mode = env.metadata.get("autoreset_mode")
        if mode not in AUTORESETS.values():
            raise UserError(f"{env_id} resets its environments by {mode}; expected {' or '.join(AUTORESETS)}")
        takes_a_step = mode == AutoresetMode.NEXT_STEP
        super().__init__(env_id, env, env.single_observation_space, env.single_action_space, env.num_envs, takes_a_step)
        if time_limit and time_limit > 0:  # -1 is none
            self.time_limit = time_limit
        if env.render_mode == "rgb_array":
            self.fps = float(env.metadata.get("render_fps", FPS))
            self.render: Callable[[], np.ndarray] = lambda: np.stack(env.render())  # type: ignore[arg-type]

    def kill(self) -> None:
        """See `qlax.HostEnv`."""
        for process in getattr(self._env.unwrapped, "processes", ()):
            process.kill()
        self._env.unwrapped.closed = True  # nobody is left to be asked


def names() -> list[str]:
    """The environments that Gymnasium itself registers; those of other packages work as well."""
    return sorted(gymnasium.registry)


def make(
    name: str,
    /,
    num_envs: int,
    *,
    wrappers: Iterable[str] = (),
    vectorization: str = "sync",
    autoreset: str | None = None,
    **options: Any,
) -> Gymnasium:
    """N environments of `name`, such as "LunarLander-v3", or "my_package:MyEnv-v0" to import what registers it.

    Args:
      name: of the environment.
      num_envs: N.
      wrappers: import paths, `module:Name`, of what is put around each, the first one innermost.
      vectorization: "sync" steps them in turn, "async" each in a process of its own, "vector_entry_point" as the
        environment itself wants it.
      autoreset: "next_step" (unless given) or "same_step", see `Episodes`. For a vector entry point it is fixed.
      options: arguments of the environment.

    Raises:
      UserError: unknown name, option or wrapper, something not installed, or spaces PQN cannot use.
    """
    env_id = f"gymnasium/{name}"
    chosen = {"vectorization": (vectorization, VECTORIZATIONS), "autoreset": (autoreset or "next_step", AUTORESETS)}
    for option, (value, known) in chosen.items():
        if value not in known:
            raise UserError(f"{env_id}: {option}={value!r}{nearest(str(value), known)}; expected {', '.join(known)}")
    if options.get("render_mode") == TO_DRAW["render_mode"]:
        os.environ.setdefault("SDL_AUDIODRIVER", "dummy")  # Pygame looks for a sound card, and complains without one
    own = [import_object(path) for path in wrappers]
    maker = os.getpid()

    # Here, so that it is sent to the processes as it is: to import it there would be to import JAX.
    def without_interrupts(env):
        """Ctrl-C reaches every process of a terminal; those of environments end when the training does."""
        if os.getpid() != maker:  # one is made in this process too, for its spaces
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        return env

    vector_kwargs: dict[str, Any] = {}
    if vectorization != "vector_entry_point":
        vector_kwargs["autoreset_mode"] = AUTORESETS[autoreset or "next_step"]
    elif autoreset is not None:
        raise UserError(f"{env_id}: autoreset is the environment's own with vectorization=vector_entry_point")
    if vectorization == "async":
        own.insert(0, without_interrupts)
        # JAX runs threads, which a forked process would lack; a server that forks has none.
        methods = multiprocessing.get_all_start_methods()
        vector_kwargs["context"] = "forkserver" if "forkserver" in methods else "spawn"
    module, colon, _ = name.partition(":")
    try:
        if colon:
            import_own(module)
        env = gymnasium.make_vec(
            name,
            num_envs,
            vectorization_mode=vectorization,
            vector_kwargs=vector_kwargs,
            wrappers=own,
            **options,
        )
    except gymnasium.error.UnregisteredEnv as error:
        raise UserError(f"{env_id}: {error}; 'qlax envs gymnasium' lists what is registered") from error
    except Exception as error:
        raise UserError(f"{env_id} cannot be made: {described(error)}") from error
    try:
        return Gymnasium(env_id, env, options.get("max_episode_steps", getattr(env.spec, "max_episode_steps", None)))
    except BaseException:
        env.close()  # it may have processes
        raise
