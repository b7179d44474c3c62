"""A trained policy: saved, loaded and asked for actions."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from qlax import checkpoint, networks
from qlax.errors import UserError
from qlax.pqn import only_legal
from qlax.types import PyTree


class Agent:
    """The greedy policy of one run.

    Args:
      variables: parameters and norm statistics, as the network takes them.
      info: what describes it: `network` (see `qlax.networks.build`), `num_actions`, `obs_axes` (of one
        member's observation), `env`, `env_options`, and what the run had of its own, such as `seed`.
    """

    def __init__(self, variables: PyTree, info: dict[str, Any]):
        self.info = info
        self.variables = variables
        self._network = networks.build(info["network"], info["num_actions"])
        self._look = jax.jit(lambda memory, obs, first: self._network.apply(self.variables, memory, obs, first, False))
        self.reset()

    def reset(self) -> None:
        """Begin new episodes: forget whatever was seen. Needed by agents with memory alone."""
        self._memory: PyTree | None = None
        self._leading: tuple[int, ...] = ()

    def q_values(self, obs: Any) -> np.ndarray:
        """Q of every action, and one step of memory.

        Args:
          obs: one observation, or any number of leading axes (environments, members) before its own.

        Returns:
          `[..., A]` float32, with the same leading axes.

        Raises:
          UserError: the leading axes changed while there is something to remember.
        """
        obs = jnp.asarray(obs) if isinstance(obs, list) else jax.tree.map(jnp.asarray, obs)
        leaf, axes = jax.tree.leaves(obs)[0], self.info["obs_axes"]
        leading = leaf.shape[: leaf.ndim - axes]
        rows = int(np.prod(leading, dtype=int))
        obs = jax.tree.map(lambda x: x.reshape(1, rows, *x.shape[len(leading) :]), obs)
        first = self._memory is None
        if first:
            self._memory, self._leading = self._network.initial_memory(rows), leading
        elif leading != self._leading:
            raise UserError(f"observations with leading axes {leading} after {self._leading}: call reset() between")
        q, memory = self._look(self._memory, obs, jnp.full((1, rows), first))
        self._memory = memory if self._network.recurrent else None
        return np.asarray(q).reshape(*leading, -1)

    def act(self, obs: Any, legal: Any = None) -> np.ndarray:
        """The best action, `[...]` int32 with the leading axes of `obs`; `legal [..., A]` bool where not all are."""
        q = self.q_values(obs)
        legal = None if legal is None else jnp.asarray(legal)
        return np.asarray(only_legal(jnp.asarray(q), legal).argmax(-1), np.int32)

    def save(self, path: Path) -> None:
        """Write weights and description to one file."""
        checkpoint.save(path, self.variables, self.info)


def load(run: Path | str, index: int = 0) -> Agent:
    """The agent that a run directory holds.

    Args:
      run: the directory of a run, or one file of its `agents/`.
      index: which of the runs that trained side by side.

    Raises:
      UserError: there is no such file, or it is damaged.
    """
    path = Path(run)
    path = path / "agents" / f"{index}{checkpoint.SUFFIX}" if path.is_dir() else path
    if not path.exists():
        found = sorted(file.stem for file in path.parent.glob(f"*{checkpoint.SUFFIX}"))
        raise UserError(f"there is no agent {path}; agents there: {', '.join(found) or 'none'}")
    named = {tuple(name.split("/")): array for name, array in checkpoint.read(path).items()}
    return Agent(unflatten_dict(named), checkpoint.read_info(path))
