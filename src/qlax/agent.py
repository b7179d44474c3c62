"""A trained policy: saved, loaded and asked for actions."""

import contextlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from qlax import checkpoint, networks
from qlax.errors import UserError, described
from qlax.mixing import only_legal
from qlax.types import PyTree


class Agent:
    """The greedy policy of one run.

    Args:
      variables: parameters and norm statistics, as the network takes them.
      info: what describes it: `network` (see `qlax.networks.build`), `num_actions`, `obs` (dtype and shape of
        every array of one member's observation), `obs_paths` (where each is in the tree; older agents lack it), `env`,
        `env_options`, and what the run had of its own, such as `seed`.
    """

    def __init__(self, variables: PyTree, info: dict[str, Any]):
        self.info = info
        self.variables = variables
        self._network = networks.build(info["network"], info["num_actions"])
        self._look = jax.jit(lambda *inputs: self._network.apply(*inputs, train=False))
        self.reset()

    def reset(self) -> None:
        """Begin new episodes: forget whatever was seen. Needed by agents with memory alone."""
        self._memory: PyTree | None = None
        self._leading: tuple[int, ...] = ()

    def q_values(self, obs: Any, first: Any = False) -> np.ndarray:
        """Q of every action, and one step of memory.

        Args:
          obs: one observation, or any number of leading axes (environments, members) before its own; a tree of arrays
            where the environment shows one.
          first: where an episode begins, so that its memory is reset before; bool, of the leading axes or one for all.

        Returns:
          `[..., A]` float32, with the same leading axes.

        Raises:
          UserError: not an observation of this agent's environment, or the leading axes changed while there is
            something to remember.
        """
        expected = [(np.dtype(dtype), tuple(shape)) for dtype, shape in self.info["obs"]]
        paths = self.info.get("obs_paths")
        is_array = paths == [""] if paths else len(expected) == 1
        if is_array and isinstance(obs, list | tuple) and not hasattr(obs, "_fields"):
            with contextlib.suppress(ValueError):  # rows of different lengths are no array
                obs = np.asarray(obs)
        named, structure = jax.tree_util.tree_flatten_with_path(obs)
        leaves = [np.asarray(leaf) for _, leaf in named]
        axes = leaves[0].ndim - len(expected[0][1]) if leaves else 0
        leading = leaves[0].shape[: max(axes, 0)] if leaves else ()
        found = [jax.tree_util.keystr(path) for path, _ in named]
        fits = [leaf.shape for leaf in leaves] == [(*leading, *shape) for _, shape in expected]
        if not fits or found != (paths or found):
            has = _listed(found, [leaf.shape for leaf in leaves])
            wanted = _listed(paths or [""] * len(expected), [shape for _, shape in expected])
            raise UserError(f"observation of shape {has}; expected {wanted}, after any leading axes")
        rows = int(np.prod(leading, dtype=int))
        typed = zip(leaves, expected, strict=True)
        obs = jax.tree.unflatten(
            structure, [leaf.astype(dtype).reshape(1, rows, *shape) for leaf, (dtype, shape) in typed]
        )
        begin = np.broadcast_to(first, leading).reshape(1, rows)
        if self._memory is None:
            self._memory, self._leading, begin = self._network.initial_memory(rows), leading, np.ones((1, rows), bool)
        elif leading != self._leading:
            raise UserError(f"observations with leading axes {leading} after {self._leading}: call reset() between")
        q, memory = self._look(self.variables, self._memory, obs, begin)
        self._memory = memory if self._network.recurrent else None
        return np.asarray(q).reshape(*leading, -1)

    def act(self, obs: Any, legal: Any = None, first: Any = False) -> np.ndarray:
        """The best action, `[...]` int32 with the leading axes of `obs`; `legal [..., A]` bool where not all are."""
        q = self.q_values(obs, first)
        legal = None if legal is None else jnp.asarray(legal)
        return np.asarray(only_legal(jnp.asarray(q), legal).argmax(-1), np.int32)

    def save(self, path: Path) -> None:
        """Write weights and description to one file."""
        checkpoint.save(path, self.variables, self.info)


def _listed(paths: list[str], shapes: list[tuple[int, ...]]) -> str:
    return ", ".join(f"{path} {shape}".lstrip() for path, shape in zip(paths, shapes, strict=True)) or "nothing"


def load(run: Path | str, index: int = 0, *, best: bool = False) -> Agent:
    """The agent that a run directory holds.

    A file of weights holds no code. One of a network of the user's own names it as `module:Name`, which is imported
    from the user's own modules, as in a configuration.

    Args:
      run: the directory of a run, or one file of its `agents/` or `best/`.
      index: which of the runs that trained side by side.
      best: the weights of the best evaluation instead of the last ones. They are chosen by that evaluation, so a new
        one will return a little less on average.

    Raises:
      UserError: there is no such file, or it is damaged.
    """
    path = Path(run)
    path = path / ("best" if best else "agents") / f"{index}{checkpoint.SUFFIX}" if path.is_dir() else path
    if not path.exists():
        found = sorted(file.stem for file in path.parent.glob(f"*{checkpoint.SUFFIX}"))
        raise UserError(f"there is no agent {path}; agents there: {', '.join(found) or 'none'}")
    info, arrays = checkpoint.read(path)
    if "network" not in info:
        raise UserError(f"{path} holds no agent; those of a run are in its folder agents/")
    try:
        variables = unflatten_dict({tuple(name.split("/")): array for name, array in arrays.items()})
        agent, expected = Agent(variables, info), _described_variables(info, variables)
    except UserError:
        raise
    except Exception as error:  # its description may be anything
        raise UserError(f"{path} does not describe an agent: {described(error)}") from error
    held, wanted = (_leaves(tree) for tree in (variables, expected))
    for name in sorted(held.keys() | wanted.keys()):
        if held.get(name) != wanted.get(name):
            raise UserError(
                f"{path} does not hold what it describes: {name} is {held.get(name)}, expected {wanted.get(name)}"
            )
    return agent


def _described_variables(info: dict[str, Any], found: PyTree) -> PyTree:
    """Shapes of the variables that the described network has; of one of the user's own, those found."""
    if "network" in info["network"]:
        return found
    network = networks.build(info["network"], info["num_actions"])

    def variables():
        obs = [jnp.zeros((1, 1, *shape), dtype) for dtype, shape in info["obs"]]
        return network.init(jax.random.key(0), network.initial_memory(1), obs, jnp.ones((1, 1), bool), False)

    return jax.eval_shape(variables)


def _leaves(tree: PyTree) -> dict[str, str]:
    """Dtype and shape of every array by its name."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(where, simple=True, separator="/"): f"{x.dtype}{list(x.shape)}" for where, x in leaves}
