"""A trained policy: saved, loaded and asked for actions."""

import contextlib
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from qlax.errors import UserError, described
from qlax.networks.plain import NumPy, PlainNetwork, specs
from qlax.storage import checkpoint
from qlax.types import PyTree
from qlax.util.imports import imported_when_used

with imported_when_used("jax"):  # an agent may do without
    import jax


class Agent:
    """The greedy policy of one run.

    Args:
      variables: parameters and norm statistics, as the network takes them. From the first look on the attribute of
        this name holds them on JAX's device.
      info: what describes it: `network` (see `qlax.networks.qnetwork.build`), `num_actions`, `obs` (dtype and shape of
        every array of one member's observation), `obs_paths` (where each is in the tree; older agents lack it), `env`,
        `env_options`, and what the run had of its own, such as `seed`.
      numpy_only: act without JAX; see `load`.
    """

    def __init__(self, variables: PyTree, info: dict[str, Any], numpy_only: bool = False):
        self.info = info
        self.variables = variables
        self._obs = specs(info)
        self._policy: _InJax | _InNumPy = (_InNumPy if numpy_only else _InJax)(info)
        self.reset()

    def __repr__(self) -> str:
        network = self.info["network"]
        kind = network.get("network") or " and ".join(
            name for name in (network.get("encoder"), network.get("memory", "none")) if name != "none"
        )
        shows = ", ".join(f"{dtype}{list(shape)}" for dtype, shape in self._obs)
        return f"<qlax.Agent of {self.info.get('env')}: {kind}, sees {shows}, {self.num_actions} actions>"

    @property
    def num_actions(self) -> int:
        """A; actions are 0 to A - 1."""
        return self.info["num_actions"]

    @property
    def recurrent(self) -> bool:
        """Whether it has a memory, and so is to be told where episodes begin."""
        return self._policy.recurrent

    def reset(self) -> None:
        """Begin new episodes: forget whatever was seen. Needed by agents with memory alone."""
        self._memory: PyTree | None = None
        self._leading: tuple[int, ...] = ()

    def q_values(self, obs: Any, first: Any = False) -> np.ndarray:
        """Q of every action, and one step of memory.

        Args:
          obs: one observation, or any number of leading axes (environments, members) before its own; a tree of arrays
            where the environment shows one. Of another dtype than in training it is cast, if that loses nothing but
            digits.
          first: where an episode begins, so that its memory is reset before; bool, of the leading axes or one for all.

        Returns:
          `[..., A]` float32, with the same leading axes.

        Raises:
          UserError: no observation, or none of this agent's environment, or the leading axes changed while there is
            something to remember.
        """
        paths = self.info.get("obs_paths")
        is_array = paths == [""] if paths else len(self._obs) == 1
        if is_array and isinstance(obs, list | tuple) and not hasattr(obs, "_fields"):
            with contextlib.suppress(ValueError):  # rows of different lengths are no array
                obs = np.asarray(obs)
        named = self._policy.leaves(obs)
        found, leaves = [path for path, _ in named], [np.asarray(leaf) for _, leaf in named]
        axes = leaves[0].ndim - len(self._obs[0][1]) if leaves else 0
        leading = leaves[0].shape[: max(axes, 0)] if leaves else ()
        fits = [leaf.shape for leaf in leaves] == [(*leading, *shape) for _, shape in self._obs]
        if not fits or found != (paths or found):
            has = _listed(found, [leaf.shape for leaf in leaves])
            wanted = _listed(paths or [""] * len(self._obs), [shape for _, shape in self._obs])
            raise UserError(f"observation of shape {has}; expected {wanted}, after any leading axes")
        if self._memory is not None and leading != self._leading:
            raise UserError(f"observations with leading axes {leading} after {self._leading}: call reset() between")
        rows = int(np.prod(leading, dtype=int))
        if not rows:
            raise UserError(f"observations with leading axes {leading}, and so none; expected at least one")
        arrays = [
            _cast(leaf, dtype, path).reshape(rows, *shape)
            for leaf, path, (dtype, shape) in zip(leaves, found, self._obs, strict=True)
        ]
        try:
            begins = np.broadcast_to(np.asarray(first, bool), leading).reshape(rows)
        except ValueError:
            raise UserError(f"first of shape {np.shape(first)}; expected {leading}, or one value for all") from None
        if self._memory is None:
            begins = np.ones(rows, bool)
        self.variables = self._policy.placed(self.variables)
        q, memory = self._policy.look(self.variables, self._memory, obs, arrays, begins)
        self._memory, self._leading = (memory if self.recurrent else None), leading
        return q.reshape(*leading, -1)

    def act(self, obs: Any, legal: Any = None, first: Any = False) -> np.ndarray:
        """The best action.

        Args:
          obs: as for `q_values`.
          legal: `[..., A]` bool, where not all actions are; at least one in every row.
          first: as for `q_values`.

        Returns:
          `[...]` int32, with the leading axes of `obs`.

        Raises:
          UserError: as for `q_values`, or `legal` has another shape or a row without any action.
        """
        before = self._memory, self._leading
        q = self.q_values(obs, first)
        if legal is not None:
            try:
                q = np.where(_mask(legal, q.shape), q, -np.inf)
            except UserError:
                self._memory, self._leading = before  # nothing happened
                raise
        return np.asarray(q.argmax(-1), np.int32)

    def save(self, path: Path | str) -> None:
        """Write weights and description to one file, an old one replaced; its name ends with .safetensors."""
        checkpoint.save(Path(path), self.variables, self.info)


class _InJax:
    """How an agent looks at things in JAX, compiled once for every number of rows."""

    def __init__(self, info: dict[str, Any]):
        from qlax.networks import qnetwork

        self.info = info
        self.network = qnetwork.build(info["network"], info["num_actions"])
        self.recurrent = bool(self.network.recurrent)
        self.compiled = jax.jit(lambda *inputs: self.network.apply(*inputs, train=False))

    def placed(self, variables: PyTree) -> PyTree:
        """Where it looks at things, so that they are not brought there every time."""
        is_there = all(isinstance(x, jax.Array) for x in jax.tree.leaves(variables))
        return variables if is_there else jax.device_put(variables)

    def leaves(self, obs: Any) -> list[tuple[str, Any]]:
        """Every array of an observation, with its path."""
        return [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(obs)]

    def look(
        self, variables: PyTree, memory: PyTree | None, obs: Any, arrays: list[np.ndarray], first: np.ndarray
    ) -> tuple[np.ndarray, PyTree]:
        """`arrays`, each `[B, ...]`, to be put into the places of `obs`, `first [B]` -> `q [B, A]`, memory."""
        memory = self.network.initial_memory(len(first)) if memory is None else memory
        obs = jax.tree.unflatten(jax.tree.structure(obs), [array[None] for array in arrays])
        q, memory = self.compiled(variables, memory, obs, first[None])
        return np.asarray(q[0]), memory

    def misfit(self, variables: PyTree) -> str:
        """What of these variables is not as the described network has it; of one of the user's own nothing is known."""
        if "network" in self.info["network"]:
            return ""

        def initial():
            obs = [jax.numpy.zeros((1, 1, *shape), dtype) for dtype, shape in specs(self.info)]
            memory, first = self.network.initial_memory(1), jax.numpy.ones((1, 1), bool)
            return self.network.init(jax.random.key(0), memory, obs, first, False)

        held, wanted = _signatures(variables), _signatures(jax.eval_shape(initial))
        odd = sorted(name for name in held.keys() | wanted.keys() if held.get(name) != wanted.get(name))
        return f"{odd[0]} is {held.get(odd[0])}, expected {wanted.get(odd[0])}" if odd else ""


def _signatures(tree: PyTree) -> dict[str, str]:
    """Dtype and shape of every array by its name."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(where, simple=True, separator="/"): f"{x.dtype}{list(x.shape)}" for where, x in leaves}


class _InNumPy:
    """The same without JAX."""

    def __init__(self, info: dict[str, Any]):
        self.network = PlainNetwork(info)
        self.recurrent = bool(self.network.memory_shapes)

    def placed(self, variables: PyTree) -> PyTree:
        """See `_InJax`."""
        return variables

    def leaves(self, obs: Any) -> list[tuple[str, Any]]:
        """See `_InJax`."""
        return list(_leaves(obs))

    def look(
        self, variables: PyTree, memory: PyTree | None, obs: Any, arrays: list[np.ndarray], first: np.ndarray
    ) -> tuple[np.ndarray, PyTree]:
        """See `_InJax`."""
        del obs
        if memory is None:
            memory = [np.zeros((len(first), *shape), np.float32) for shape in self.network.memory_shapes]
        return self.network(NumPy(), variables, memory, arrays, first)

    def misfit(self, variables: PyTree) -> str:
        """See `_InJax`."""
        nothing = [np.zeros((1, *shape), dtype) for dtype, shape in self.network.obs]
        try:
            self.look(variables, None, None, nothing, np.ones(1, bool))
        except Exception as error:
            return described(error)
        return ""


def _leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict):
        names = tree if isinstance(tree, OrderedDict) else sorted(tree)
        inner = [(f"[{name!r}]", tree[name]) for name in names]
    elif isinstance(tree, tuple) and hasattr(tree, "_fields"):
        inner = [(f".{name}", leaf) for name, leaf in zip(tree._fields, tree, strict=True)]
    elif isinstance(tree, list | tuple):
        inner = [(f"[{index}]", leaf) for index, leaf in enumerate(tree)]
    elif tree is None:
        return
    else:
        yield path, tree
        return
    for step, leaf in inner:
        yield from _leaves(leaf, path + step)


def _cast(leaf: np.ndarray, dtype: np.dtype, path: str) -> np.ndarray:
    """An array in the dtype that the agent was trained on."""
    if np.can_cast(leaf.dtype, dtype, "same_kind"):
        return leaf.astype(dtype)
    if leaf.dtype.kind in "biuf":
        with np.errstate(invalid="ignore"):  # of nan and what is too large
            cast = leaf.astype(dtype)
        if np.array_equal(cast, leaf):
            return cast
    raise UserError(f"observation{path} of dtype {leaf.dtype} has values that {dtype}, which is expected, cannot hold")


def _mask(legal: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Legal actions, of this shape, in NumPy."""
    legal = np.asarray(legal)
    if legal.shape != shape or legal.dtype.kind not in "biu":
        raise UserError(f"legal is {legal.dtype}{list(legal.shape)}; expected bool{list(shape)}")
    legal = legal.astype(bool)
    if not (rows := legal.any(-1)).all():
        where = np.argwhere(~rows)[0].tolist()
        raise UserError(f"legal{where if where else ''} allows no action; expected at least one")
    return legal


def _listed(paths: list[str], shapes: list[tuple[int, ...]]) -> str:
    return ", ".join(f"{path} {shape}".lstrip() for path, shape in zip(paths, shapes, strict=True)) or "nothing"


def load(run: Path | str, index: int = 0, *, best: bool = False, numpy_only: bool = False) -> Agent:
    """The agent that a run directory holds.

    A file of weights holds no code. One of a network of the user's own names it as `module:Name`, which is imported
    from the user's own modules, as in a configuration.

    Args:
      run: the directory of a run, or one file of its `agents/` or `best/`.
      index: which of the runs that trained side by side.
      best: the weights of the best evaluation instead of the last ones. They are chosen by that evaluation, so a new
        one will return a little less on average.
      numpy_only: act in plain NumPy, and import neither JAX nor anything else that takes long: for programs that only
        play. Q-values agree to rounding; a `compute_dtype` of fewer bits is computed in float32.

    Raises:
      UserError: there is no such file, it is damaged, or its network is one of the user's own and JAX is not wanted.
    """
    path = Path(run)
    path = path / ("best" if best else "agents") / f"{index}{checkpoint.SUFFIX}" if path.is_dir() else path
    if not path.exists():
        found = sorted(file.stem for file in path.parent.glob(f"*{checkpoint.SUFFIX}"))
        if not found and Path(run).is_dir():
            raise UserError(
                f"{run} holds no such agents: a run leaves best/ from its first evaluation on, and agents/ at its end"
            )
        raise UserError(f"there is no agent {path}; agents there: {', '.join(found) or 'none'}")
    info, arrays = checkpoint.read(path)
    if "network" not in info:
        raise UserError(f"{path} holds no agent; those of a run are in its folder agents/")
    try:
        agent = Agent(_nested(arrays), info, numpy_only)
        misfit = agent._policy.misfit(agent.variables)
    except UserError:
        raise
    except Exception as error:  # its description may be anything
        raise UserError(f"{path} does not describe an agent: {described(error)}") from error
    if misfit:
        raise UserError(f"{path} does not hold what it describes: {misfit}")
    return agent


def _nested(arrays: dict[str, np.ndarray]) -> PyTree:
    tree: PyTree = {}
    for name, array in arrays.items():
        *folders, last = name.split("/")
        inner = tree
        for folder in folders:
            inner = inner.setdefault(folder, {})
        inner[last] = array
    return tree
