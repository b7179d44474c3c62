"""Environments on the host, stepped on a thread of their own."""

import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from qlax.envs.check.common import action_axes
from qlax.envs.check.host import check_host_env
from qlax.errors import HostError, UserError, described, remedy
from qlax.switches import usual_switches
from qlax.types import HostEnv, Step


class Worker:
    """Thread that makes a `HostEnv` and steps it on request.

    Args:
      env_id: Name of the environment, for messages.
      make: Constructor of a `HostEnv` from its number of environments; called on the thread.
      num_envs: Number of this worker's environments, n.
      device: Device to which steps are copied.
      timeout: Seconds to wait for an answer, after which the environment counts as hanging.
      time_limit_is_terminal: If True, a time limit counts as termination.

    Attributes:
      env: The environments; set once the first `result` has returned.
    """

    env: HostEnv

    def __init__(
        self,
        env_id: str,
        make: Callable[[int], HostEnv],
        num_envs: int,
        *,
        device: jax.Device,
        timeout: float,
        time_limit_is_terminal: bool = False,
    ):
        self._env_id, self._make, self._num_envs = env_id, make, num_envs
        self._device, self._timeout, self._time_limit_is_terminal = device, timeout, time_limit_is_terminal
        self._specification: list[Any] = []
        self._hangs = False
        self._requests: queue.SimpleQueue = queue.SimpleQueue()
        self._answers: queue.SimpleQueue = queue.SimpleQueue()
        # The thread is a daemon, as one that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Begin to check the environment's contract; `result` returns the first steps."""
        self._requests.put(lambda: self._on_device(check_host_env(self.env)))

    def reset(self, seed: int) -> None:
        """Begin to reset the environments; `result` returns the first steps."""
        self._requests.put(lambda: self._on_device(self.env.reset(seed)))

    def step(self, action: np.ndarray) -> None:
        """Begin a step with actions `[n, M]`; `result` returns the step."""
        self._requests.put(lambda: self._on_device(self.env.step(self._for_env(action))))

    def result(self) -> tuple[Step, dict[str, np.ndarray]]:
        """Wait for the step begun last.

        Returns:
          The step on the device, with the axes `[n, M, ...]`, and its metrics on the host, `raw_reward` included.

        Raises:
          UserError: The environment cannot be made or breaks its contract.
          HostError: The environment crashed or did not answer in time.
        """
        return self._answer()

    def render(self) -> np.ndarray:
        """Render every environment.

        Returns:
          Uint8 `[n, height, width, 3]`. The memory belongs to the environment, which may reuse it in the next step.

        Raises:
          HostError: The environment crashed or did not answer in time.
        """
        self._requests.put(lambda: np.asarray(self.env.render()))  # type: ignore[attr-defined]
        return self._answer()

    def _answer(self) -> Any:
        try:
            answer = self._answers.get(timeout=self._timeout)
        except queue.Empty:
            self._hangs = True
            seconds = f"{self._timeout:g} seconds (--host-timeout)"
            raise HostError(f"{self._env_id} did not answer within {seconds}") from None
        if isinstance(answer, UserError | HostError):
            raise answer
        if isinstance(answer, EOFError | ConnectionError):
            raise HostError(f"{self._env_id} crashed: one of its processes ended") from answer
        if isinstance(answer, BaseException):
            raise HostError(f"{self._env_id} crashed: {described(answer)}{remedy(answer)}") from answer
        return answer

    def close(self) -> None:
        """Close the environment; kill it if it hangs and has a method `kill`."""
        self._requests.put(None)
        self._thread.join(timeout=0 if self._hangs else 5)
        if self._thread.is_alive():
            self._kill()

    @usual_switches()
    def _serve(self) -> None:
        try:
            self.env = self._make(self._num_envs)
            if self.env.num_envs != self._num_envs:
                found = f"{self.env.num_envs} environments; expected {self._num_envs}, as asked for by num_envs"
                raise UserError(f"{self._env_id} made {found}")
            while (request := self._requests.get()) is not None:
                self._answers.put(request())
        except BaseException as error:  # some back ends raise exceptions that are no Exception
            self._answers.put(error)
            self._kill()
        finally:
            with contextlib.suppress(Exception):
                self.env.close()

    def _for_env(self, action: np.ndarray) -> np.ndarray:
        return action.reshape(len(action), *action_axes(self.env))

    def _kill(self) -> None:
        env = getattr(self, "env", None)  # None if the environment could not be made
        getattr(env, "kill", lambda: None)()

    def _on_device(self, step: Step) -> tuple[Step, dict[str, np.ndarray]]:
        """Copy a step to the device, and return the copy; also return the metrics, which stay on the host."""
        step, metrics = _with_axes(self.env, step)
        if self._time_limit_is_terminal:
            step = step._replace(terminated=step.terminated | ~np.isnan(metrics["episode_return"]))
        specification = [(x.dtype, x.shape) for x in jax.tree.leaves(step)]
        if specification != (self._specification or specification):
            found = f"{specification}; expected {self._specification}, as in its first steps"
            raise HostError(f"{self._env_id} changed the dtypes and shapes of its steps to {found}")
        self._specification = specification
        if self._device.platform == "cpu":  # on a CPU, JAX may use a contiguous array's memory without copying it
            step = jax.tree.map(lambda x: x.copy() if x.flags.c_contiguous else x, step)
        # Wait for the copy on this thread, as the environment may reuse its memory afterwards.
        return jax.block_until_ready(jax.device_put(step, self._device)), metrics


def _with_axes(env: HostEnv, step: Step) -> tuple[Step, dict[str, np.ndarray]]:
    """Return a step with the axes and dtypes that `Step` documents, and its metrics, with `raw_reward` among them."""
    obs, legal = jax.tree.map(np.asarray, (step.obs, step.legal))
    if not hasattr(env, "num_agents"):
        obs = jax.tree.map(lambda x: x[:, None], obs)
    if legal is not None:
        legal = legal.reshape(len(legal), -1, env.num_actions)
    reward = np.asarray(step.reward, np.float32)
    metrics = {name: np.asarray(value, np.float32) for name, value in {"raw_reward": reward, **step.metrics}.items()}
    shown = {name: value for name, value in metrics.items() if name != "raw_reward"}
    return Step(obs, legal, reward, np.asarray(step.terminated, bool), np.asarray(step.truncated, bool), shown), metrics
