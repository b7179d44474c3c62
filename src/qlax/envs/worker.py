"""Environments on the host, each batch on a thread of its own."""

import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from qlax.envs.check.host import check_host_env
from qlax.errors import HostError, UserError, described
from qlax.types import HostEnv, Step


class Worker:
    """A `HostEnv` on a thread of its own.

    Args:
      env_id: for messages.
      make: makes so many environments; called on that thread.
      num_envs: of this worker, n.
      device: where its steps go.
      timeout: seconds, after which an environment counts as hanging.
      time_limit_is_terminal: learn as if nothing followed a time limit.

    Attributes:
      env: what `make` gave; there once the first result is.
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
        # A thread that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Begin to see whether the environment keeps its contract; `result` gives the first steps."""
        self._requests.put(lambda: self._delivered(check_host_env(self.env)))

    def reset(self, seed: int) -> None:
        """Begin new episodes; `result` gives their first steps."""
        self._requests.put(lambda: self._delivered(self.env.reset(seed)))

    def step(self, action: np.ndarray) -> None:
        """Begin a step, action `[n, M]`; `result` gives it."""
        self._requests.put(lambda: self._delivered(self.env.step(self._for_env(action))))

    def result(self) -> tuple[Step, dict[str, np.ndarray]]:
        """The step begun last: on the device, `[n, M, ...]`, and its metrics, with `raw_reward`, on the host.

        Raises:
          UserError: the environment cannot be made, or breaks its contract.
          HostError: it crashed, or gave no answer in time.
        """
        return self._answer()

    def render(self) -> np.ndarray:
        """Wait for a picture of every environment, uint8 `[n, height, width, 3]`: its own until the next step begins.

        Raises:
          HostError: it crashed, or gave no answer in time.
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
            raise HostError(f"{self._env_id} crashed: a process of it ended") from answer
        if isinstance(answer, BaseException):
            raise HostError(f"{self._env_id} crashed: {described(answer)}") from answer
        return answer

    def close(self) -> None:
        """Close the environment; what hangs is killed, if that can be."""
        self._requests.put(None)
        self._thread.join(timeout=0 if self._hangs else 5)
        if self._thread.is_alive():
            self._kill()

    def _serve(self) -> None:
        try:
            self.env = self._make(self._num_envs)
            if self.env.num_envs != self._num_envs:
                found = f"{self.env.num_envs} environments where {self._num_envs} were asked for"
                raise UserError(f"{self._env_id} made {found}")
            while (request := self._requests.get()) is not None:
                self._answers.put(request())
        except BaseException as error:  # whatever a back end raises
            self._answers.put(error)
            self._kill()
        finally:
            with contextlib.suppress(Exception):
                self.env.close()

    def _for_env(self, action: np.ndarray) -> np.ndarray:
        return action if hasattr(self.env, "num_agents") else action[:, 0]

    def _kill(self) -> None:
        env = getattr(self, "env", None)  # none if it could not be made
        getattr(env, "kill", lambda: None)()

    def _delivered(self, step: Step) -> tuple[Step, dict[str, np.ndarray]]:
        step, metrics = _with_axes(self.env, step)
        if self._time_limit_is_terminal:
            step = step._replace(terminated=step.terminated | ~np.isnan(metrics["episode_return"]))
        specification = [(x.dtype, x.shape) for x in jax.tree.leaves(step)]
        if specification != (self._specification or specification):
            raise HostError(f"{self._env_id} shows {specification}, where it was {self._specification} before")
        self._specification = specification
        if self._device.platform == "cpu":  # where JAX takes memory that lies right for its own, unasked
            step = jax.tree.map(lambda x: x.copy() if x.flags.c_contiguous else x, step)
        # Waiting here holds nobody up, and the environment may then use its memory again.
        return jax.block_until_ready(jax.device_put(step, self._device)), metrics


def _with_axes(env: HostEnv, step: Step) -> tuple[Step, dict[str, np.ndarray]]:
    """The step with the axes and dtypes that `Step` promises, and all its metrics, `raw_reward` among them."""
    obs, legal = jax.tree.map(np.asarray, (step.obs, step.legal))
    if not hasattr(env, "num_agents"):
        obs, legal = jax.tree.map(lambda x: x[:, None], (obs, legal))
    reward = np.asarray(step.reward, np.float32)
    metrics = {name: np.asarray(value, np.float32) for name, value in {"raw_reward": reward, **step.metrics}.items()}
    shown = {name: value for name, value in metrics.items() if name != "raw_reward"}
    return Step(obs, legal, reward, np.asarray(step.terminated, bool), np.asarray(step.truncated, bool), shown), metrics
