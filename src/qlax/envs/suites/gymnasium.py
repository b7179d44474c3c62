"""Gymnasium: any environment with discrete actions, stepped in this process or in processes of its own."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode

from qlax.config.environments import unsuitable
from qlax.envs.suites import masks
from qlax.envs.suites.spaces import SpacesEnv
from qlax.envs.wrappers import by_path
from qlax.errors import UserError, described, nearest
from qlax.util.imports import import_own

TO_DRAW = {"render_mode": "rgb_array"}
FPS = 30.0  # frames per second of environments that do not specify them
VECTORIZATIONS = ("sync", "async", "vector_entry_point")
AUTORESETS = {"next_step": AutoresetMode.NEXT_STEP, "same_step": AutoresetMode.SAME_STEP}


class Gymnasium(SpacesEnv):
    """Vector environment of Gymnasium as a `qlax.HostEnv`.

    The method `render` exists only if the environment was made with the option `render_mode="rgb_array"`, which makes
    some environments slower even if they are never rendered.
    """

    def __init__(self, env_id: str, env: gymnasium.vector.VectorEnv, time_limit: int | None):
        mode = env.metadata.get("autoreset_mode")
        if mode not in AUTORESETS.values():
            raise UserError(f"{env_id} has the autoreset mode {mode}; expected {' or '.join(AUTORESETS)}")
        takes_a_step = mode == AutoresetMode.NEXT_STEP
        super().__init__(env_id, env, env.single_observation_space, env.single_action_space, env.num_envs, takes_a_step)
        if time_limit and time_limit > 0:  # Gymnasium writes -1 for no limit
            self.time_limit = time_limit
        if env.render_mode == "rgb_array":
            self.fps = float(env.metadata.get("render_fps", FPS))
            self.render: Callable[[], np.ndarray] = lambda: np.stack(env.render())  # type: ignore[arg-type]

    def kill(self) -> None:
        """See `qlax.HostEnv`."""
        for process in getattr(self._env.unwrapped, "processes", ()):
            process.kill()
        self._env.unwrapped.closed = True  # so that `close` does not wait for the processes


def names() -> list[str]:
    """Return the names of the registered environments, without those of which it is known that PQN cannot use them."""
    return sorted(set(gymnasium.registry) - unsuitable("gymnasium"))


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
    """Make N environments by their name.

    Args:
      name: Name of the environment, such as "LunarLander-v3"; or, as in "my_package:MyEnv-v0", with the module that
        registers it before the colon.
      num_envs: Number of environments, N.
      wrappers: Gymnasium wrappers to put around each environment, the first innermost, see `qlax.wrap`: import paths
        `module:Name`, or `module:Name=4` with an argument.
      vectorization: "sync" steps the environments one after the other, "async" each in a process of its own,
        "vector_entry_point" as the environment's own vector implementation does.
      autoreset: "next_step" (unless given) or "same_step", see `Episodes`. It cannot be chosen for a vector entry
        point.
      options: Arguments of the environment.

    Raises:
      UserError: The name, an option or a wrapper is unknown, a package is not installed, or PQN cannot use the
        environment's spaces.
    """
    env_id = f"gymnasium/{name}"
    chosen = {"vectorization": (vectorization, VECTORIZATIONS), "autoreset": (autoreset or "next_step", AUTORESETS)}
    for option, (value, known) in chosen.items():
        if value not in known:
            raise UserError(f"{env_id}: {option}={value!r}{nearest(str(value), known)}; expected {', '.join(known)}")
    if options.get("render_mode") == TO_DRAW["render_mode"]:
        os.environ.setdefault("SDL_AUDIODRIVER", "dummy")  # Pygame warns if there is no sound card
    maker = os.getpid()

    # Nested functions are pickled by value; functions of this module would make the processes import JAX.
    def naming(word):
        """Name a wrapper in the exceptions that it raises when it is put around an environment."""
        put_around = by_path(word)

        def put(env):
            try:
                return put_around(env)
            except Exception as error:
                raise UserError(f"{env_id}: wrapper {word} cannot be made: {described(error)}") from error

        return put

    def without_interrupts(env):
        """Ignore Ctrl-C in a process of an environment, which ends when the training does."""
        if os.getpid() != maker:  # Gymnasium makes one environment in this process too, for its spaces
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        return env

    limits: list[int | None] = []

    def noting(env):
        """Note the time limit of an environment made in this process, which a wrapper may have shortened."""
        if os.getpid() == maker:
            limits.append(getattr(getattr(env, "spec", None), "max_episode_steps", None))
        return env

    own = [naming(word) for word in wrappers]
    vector_kwargs: dict[str, Any] = {}
    if vectorization != "vector_entry_point":
        own += [noting, masks.alone()]
        vector_kwargs["autoreset_mode"] = AUTORESETS[autoreset or "next_step"]
    elif autoreset is not None:
        raise UserError(f"{env_id}: autoreset cannot be chosen with vectorization=vector_entry_point; leave it out")
    if vectorization == "async":
        own.insert(0, without_interrupts)
        # JAX has threads, which a forked process would lack; a fork server has none.
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
    try:
        limits.append(options.get("max_episode_steps", getattr(env.spec, "max_episode_steps", None)))
        return Gymnasium(env_id, env, limits[0])  # the last one for vector entry points
    except BaseException:
        env.close()  # the environment may have started processes
        raise
