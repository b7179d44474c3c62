"""Trained agent that can be saved, loaded and asked for actions."""

import contextlib
from pathlib import Path
from typing import Any

import numpy as np

from qlax.agents.zoo import located
from qlax.errors import UserError, described
from qlax.networks.names import algorithm_of
from qlax.networks.plain import NumPy, leaves_with_paths, specs
from qlax.networks.plain_actor import plain
from qlax.networks.spaces import action, cast, in_words, observation, without
from qlax.storage import checkpoint
from qlax.switches import usual_switches
from qlax.types import PyTree
from qlax.util.files import given_path
from qlax.util.imports import imported_when_used
from qlax.util.text import actions_in_words

with imported_when_used("jax"):  # an agent loaded with numpy_only does not need JAX
    import jax


class Agent:
    """Greedy policy of a trained agent.

    An agent of Gymnasium or EnvPool, Atari excepted, keeps the spaces of its environment. It takes observations as that
    environment shows them, converts them as in training, and returns actions that the environment takes. If training
    wrapped the environment (`info["wrappers"]`), the wrapped one is meant. `qlax.make` shows what is converted already.

    Any other agent takes observations as the environment of `qlax.make` shows them, wrapped by `qlax.wrap` as in
    training: with the wrapper `last_action`, for example, every observation ends with the one-hot last action. It
    returns numbers of actions, 0 to A - 1; or, if the environment's actions are continuous, actions between its bounds.

    Args:
      variables: Variables of the network: parameters and statistics of its normalisation. The attribute of this name
        holds them on JAX's device once the agent has acted.
      info: Description of the agent: `network` (name and arguments of the network), `num_actions`, `obs` (dtype and
        shape of every array of one member's observation), `obs_paths` (path of each array in the observation's tree;
        missing in older agents), `action_dimensions` (missing if an action is one number), `spaces` (descriptions of
        the environment's spaces, `observation` and `action`, and `mask`, the entry of observations that holds the legal
        actions; only those that the environment has, and missing in older agents), `env`, `env_options`, and the
        agent's own settings, such as `seed`.
      numpy_only: If True, act without JAX; see `load`.
    """

    def __init__(self, variables: PyTree, info: dict[str, Any], numpy_only: bool = False):
        self.info = info
        self.variables = variables
        self._obs = specs(info)
        spaces = info.get("spaces", {})
        self._mask: str | None = spaces.get("mask")
        self._convert = observation(spaces["observation"], "observation") if "observation" in spaces else None
        self._action = action(spaces["action"]) if "action" in spaces else None
        self._policy: _InJax | _InNumPy = (_InNumPy if numpy_only else _InJax)(info)
        self.reset()

    def __repr__(self) -> str:
        network = self.info["network"]
        parts = [network.get("encoder"), network.get("memory", "none")]
        kind = network.get("network") or " and ".join(name for name in parts if name not in (None, "none"))
        shows = ", ".join(f"{dtype}{list(shape)}" for dtype, shape in self._obs)
        if "observation" in self.info.get("spaces", {}):
            shows = in_words(self.info["spaces"]["observation"])
        if not self.is_continuous:
            acts = actions_in_words(self.num_actions, self.dimensions)
        else:
            number = len(network["low"])
            kind, acts = "actor and critics", f"continuous actions of {number} dimension{'s' if number > 1 else ''}"
        return f"<qlax.Agent of {self.info.get('env')}: {kind}, sees {shows}, {acts}>"

    def __getstate__(self) -> dict[str, Any]:
        """Return the agent without its compiled network, so that it can be sent to another process."""
        state = self.__dict__ | {"_policy": isinstance(self._policy, _InNumPy)}
        return state | {name: self._policy.fetched(state[name]) for name in ("variables", "_memory")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Build the network of an agent that was sent from another process."""
        self.__dict__ |= state | {"_policy": (_InNumPy if state["_policy"] else _InJax)(state["info"])}

    @property
    def num_actions(self) -> int:
        """Number of actions, A; several simultaneous choices are one joint action, and the last changes fastest.

        It is 0 if an actor chooses continuous actions.
        """
        return int(self.info["num_actions"])

    @property
    def dimensions(self) -> int | None:
        """Number of dimensions of an action, D, each of which is one of A values; None if an action is one number."""
        return self.info.get("action_dimensions")

    @property
    def is_continuous(self) -> bool:
        """True if an actor chooses continuous actions, as by algorithm=pqn-continuous; there are no Q-values then."""
        return algorithm_of(self.info["network"]) == "pqn-continuous"

    @property
    def recurrent(self) -> bool:
        """True if the agent has a memory, and so has to be told where episodes begin."""
        return self._policy.recurrent

    def reset(self) -> None:
        """Clear the memory, before new episodes; agents without memory do not need this."""
        self._memory: PyTree | None = None
        self._leading: tuple[int, ...] = ()

    def q_values(self, obs: Any, first: Any = False) -> np.ndarray:
        """Return the Q-values of all actions, and update the memory.

        Args:
          obs: Observation that the environment returns: an array, or a tree of arrays; `Agent` says which environment.
            Each array may have any number of leading axes, such as environments and members. Another dtype than in
            training is converted if that loses nothing but precision.
          first: True where an episode begins, which resets the memory first; bool with the leading axes of `obs`, or
            one value for all.

        Returns:
          Q-values, float32 `[..., A]`, with the leading axes of `obs`; `[..., D, A]` if an action has D dimensions.

        Raises:
          UserError: `obs` is empty or does not fit the agent, its leading axes changed while the agent has a memory, or
            an actor chooses continuous actions.
        """
        if self.is_continuous:
            raise UserError("an agent with an actor has no Q-values of a choice of actions; act returns its action")
        return self._outputs(self._converted(obs), first)

    def _converted(self, obs: Any) -> PyTree:
        """Return an observation of the environment as the network sees it."""
        if self._mask is not None and isinstance(obs, dict):
            obs = without(self._mask, obs)
        return obs if self._convert is None else self._convert(obs)

    def _outputs(self, obs: PyTree, first: Any) -> np.ndarray:
        """Return the Q-values, or the actor's action, of an observation that is converted already; see `q_values`."""
        paths = self.info.get("obs_paths")
        is_array = paths == [""] if paths else len(self._obs) == 1
        if is_array and isinstance(obs, list | tuple) and not hasattr(obs, "_fields"):
            with contextlib.suppress(ValueError):  # raised for rows of different lengths, which are refused below
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
            changed = f"leading axes of the observation changed from {self._leading} to {leading}"
            raise UserError(f"{changed}; expected the same as long as the memory is kept: call reset() in between")
        rows = int(np.prod(leading, dtype=int))
        if not rows:
            raise UserError(f"obs holds no observation: its leading axes are {leading}; expected at least one")
        arrays = [
            cast(leaf, dtype, f"observation{path}").reshape(rows, *shape)
            for leaf, path, (dtype, shape) in zip(leaves, found, self._obs, strict=True)
        ]
        try:
            begins = np.broadcast_to(np.asarray(first, bool), leading).reshape(rows)
        except ValueError:
            raise UserError(f"first has shape {np.shape(first)}; expected {leading}, or one value for all") from None
        if self._memory is None:
            begins = np.ones(rows, bool)
        self.variables = self._policy.placed(self.variables)
        q, memory = self._policy.look(self.variables, self._memory, obs, arrays, begins)
        self._memory, self._leading = (memory if self.recurrent else None), leading
        return q.reshape(*leading, *q.shape[1:])

    def act(self, obs: Any, legal: Any = None, first: Any = False) -> np.ndarray:
        """Return the action with the largest Q-value, or that of the actor, and update the memory.

        Args:
          obs: See `q_values`.
          legal: Legal actions, bool in the shape and order of the Q-values, with at least one True in every row. If
            None, all actions are legal, unless observations of the environment hold a mask, which then counts.
          first: See `q_values`.

        Returns:
          Actions with the leading axes of `obs`: numbers, int32 `[...]`, or `[..., D]` if an action has D dimensions;
          or, if the agent keeps the environment's action space, as for continuous actions, actions of that space. An
          actor's actions are float32 `[..., D]`, or of that space.

        Raises:
          UserError: See `q_values`; or `legal` has the wrong shape, or a row without a legal action.
        """
        if self.is_continuous:
            if legal is not None:
                raise UserError("legal is for a choice of actions, but the agent has continuous ones; leave it out")
            action = self._outputs(self._converted(obs), first)
            return action if self._action is None else self._action(action)
        before = self._memory, self._leading
        q = self.q_values(obs, first)
        if legal is None and isinstance(obs, dict) and self._mask in obs:
            legal = self._in_shape(obs[self._mask], q.shape)
        if legal is not None:
            try:
                q = np.where(_mask(legal, q.shape), q, -np.inf)
            except UserError:
                self._memory, self._leading = before  # a refused call does not change the memory
                raise
        if self._action is not None and self._action.exists is not None:
            q = np.where(self._action.exists, q, -np.inf)
        number = np.asarray(q.argmax(-1), np.int32)
        return number if self._action is None else self._action(number)

    def _in_shape(self, mask: Any, shape: tuple[int, ...]) -> np.ndarray:
        """Return the mask of an observation, of all values that exist in turn, in the shape of the Q-values.

        No action has to be legal where an episode ended. A mask that does not fit is returned as it is.
        """
        exists = None if self._action is None else self._action.exists
        every = np.array(np.broadcast_to(True if exists is None else exists, shape))
        is_legal = np.asarray(mask).astype(bool)
        if is_legal.size != every.sum():
            return is_legal
        legal = every.copy()
        legal[every] = is_legal.ravel()
        return legal | (every & ~legal.any(-1 if self.dimensions is None else (-2, -1), keepdims=True))

    def save(self, path: Path | str) -> None:
        """Write the weights and the description to a file.

        Args:
          path: File whose name ends with .safetensors; an existing file is replaced.
        """
        checkpoint.save(given_path(path), self.variables, self.info)


class _InJax:
    """Network of an agent in JAX, compiled once for every number of rows.

    Args:
      info: Description of the agent.
    """

    @usual_switches()
    def __init__(self, info: dict[str, Any]):
        from qlax.learning import heads
        from qlax.networks import qnetwork

        self.info = info
        self.network = qnetwork.build(info["network"], info["num_actions"], info.get("action_dimensions"))
        self.recurrent = bool(self.network.recurrent)

        def look(*inputs: Any) -> tuple[Any, PyTree]:
            outputs, memory = self.network.apply(*inputs, train=False)
            return heads.q_values(self.network, outputs), memory

        self.compiled = jax.jit(look)

    @usual_switches()
    def placed(self, variables: PyTree) -> PyTree:
        """Return the variables on JAX's device, so that they are copied there only once."""
        is_there = all(isinstance(x, jax.Array) for x in jax.tree.leaves(variables))
        return variables if is_there else jax.device_put(variables)

    @usual_switches()
    def fetched(self, tree: PyTree) -> PyTree:
        """Return arrays as those of NumPy."""
        return jax.device_get(tree)

    def leaves(self, obs: Any) -> list[tuple[str, Any]]:
        """Return the arrays of an observation, each with its path in the tree."""
        return [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(obs)]

    @usual_switches()
    def look(
        self, variables: PyTree, memory: PyTree | None, obs: Any, arrays: list[np.ndarray], first: np.ndarray
    ) -> tuple[np.ndarray, PyTree]:
        """Apply the network to one step.

        Args:
          variables: Variables of the network.
          memory: Memory after the step before; None at the beginning.
          obs: Observation, of which only the structure of the tree is used.
          arrays: Arrays of the observation, each `[B, ...]`.
          first: Bool `[B]`, True where an episode begins.

        Returns:
          Q-values `[B, A]`, or `[B, D, A]`, or the actor's actions `[B, D]`, and the new memory.
        """
        memory = self.network.initial_memory(len(first)) if memory is None else memory
        obs = jax.tree.unflatten(jax.tree.structure(obs), [array[None] for array in arrays])
        q, memory = self.compiled(variables, memory, obs, first[None])
        return np.asarray(q[0]), memory

    @usual_switches()
    def misfit(self, variables: PyTree) -> str:
        """Return the first array whose dtype or shape differs from that of the described network; "" if none does.

        The variables of a user's own network are not checked.
        """
        if "network" in self.info["network"]:
            return ""

        def initial() -> PyTree:
            obs = [jax.numpy.zeros((1, 1, *shape), dtype) for dtype, shape in specs(self.info)]
            memory, first = self.network.initial_memory(1), jax.numpy.ones((1, 1), bool)
            return self.network.init(jax.random.key(0), memory, obs, first, False)

        held, wanted = _signatures(variables), _signatures(jax.eval_shape(initial))
        odd = sorted(name for name in held.keys() | wanted.keys() if held.get(name) != wanted.get(name))
        return f"{odd[0]} is {held.get(odd[0])}, expected {wanted.get(odd[0])}" if odd else ""


def _signatures(tree: PyTree) -> dict[str, str]:
    """Return dtype and shape of every array of a tree, by its path in the tree."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(where, simple=True, separator="/"): f"{x.dtype}{list(x.shape)}" for where, x in leaves}


class _InNumPy:
    """Network of an agent in NumPy, with the methods of `_InJax`.

    Args:
      info: Description of the agent.
    """

    def __init__(self, info: dict[str, Any]):
        self.network = plain(info)
        self.recurrent = bool(self.network.memory_shapes)

    def placed(self, variables: PyTree) -> PyTree:
        """See `_InJax`."""
        return variables

    def fetched(self, tree: PyTree) -> PyTree:
        """Return arrays as those of NumPy."""
        return tree

    def leaves(self, obs: Any) -> list[tuple[str, Any]]:
        """See `_InJax`."""
        return list(leaves_with_paths(obs))

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


def _mask(legal: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Check legal actions, which have to be of this shape, and return them as a bool array of NumPy."""
    legal = np.asarray(legal)
    if legal.shape != shape or legal.dtype.kind not in "biu":
        raise UserError(f"legal is {legal.dtype}{list(legal.shape)}; expected bool{list(shape)}")
    legal = legal.astype(bool)
    if not (rows := legal.any(-1)).all():
        where = np.argwhere(~rows)[0].tolist()
        raise UserError(f"legal{where if where else ''} has no legal action; expected at least one")
    return np.asarray(legal)


def _listed(paths: list[str], shapes: list[tuple[int, ...]]) -> str:
    """Return paths and shapes as text, for messages."""
    return ", ".join(f"{path} {shape}".lstrip() for path, shape in zip(paths, shapes, strict=True)) or "nothing"


def load(run: Path | str, index: int = 0, *, best: bool = False, numpy_only: bool = False) -> Agent:
    """Load an agent of a run.

    A file of weights contains no code. If the agent's network is a user's own, the file has its import path
    `module:Name`, and the module is imported.

    Args:
      run: Directory of a run, or one file of its `agents/` or `best/`; or "zoo:" and the name of a trained agent, which
        `qlax zoo` lists.
      index: Number of the agent in the run.
      best: If True, load the weights of the best evaluation in training instead of the last ones. As they were chosen
        for their high return, a new evaluation returns a little less on average.
      numpy_only: If True, act in plain NumPy without importing JAX, which makes programs that only act start faster.
        Q-values agree with JAX's except for rounding; a `compute_dtype` other than float32 is computed in float32.

    Raises:
      UserError: There is no such file or agent of the zoo, the file is damaged, or `numpy_only` is asked for a user's
        own network.

    Example:
      ```python
      agent = qlax.load("runs/a")
      action = agent.act([0.01, 0.02, 0.03, 0.04])  # one observation, or a batch

      agent = qlax.load("zoo:cartpole")  # trained already
      ```
    """
    path = folder = located(run)
    path = path / ("best" if best else "agents") / f"{index}{checkpoint.SUFFIX}" if path.is_dir() else path
    if not path.exists():
        found = sorted(file.stem for file in path.parent.glob(f"*{checkpoint.SUFFIX}"))
        if not found and folder.is_dir():
            raise UserError(
                f"{run} has no {path.parent.name}/: a run writes best/ at its first evaluation, and agents/ at its end"
            )
        raise UserError(f"there is no agent {path}; agents there: {', '.join(found) or 'none'}")
    info, arrays = checkpoint.read(path)
    if "network" not in info:
        raise UserError(f"{path} holds no agent; the agents of a run are in its folder agents/")
    try:
        agent = Agent(_nested(arrays), info, numpy_only)
        misfit = agent._policy.misfit(agent.variables)
    except UserError:
        raise
    except Exception as error:  # the description in a damaged file may be anything
        raise UserError(f"{path} does not describe an agent: {described(error)}") from error
    if misfit:
        raise UserError(f"{path} holds weights that do not fit its description: {misfit}")
    return agent


def _nested(arrays: dict[str, np.ndarray]) -> PyTree:
    """Return nested dicts of the arrays, whose names are paths such as "params/Dense_0/kernel"."""
    tree: PyTree = {}
    for name, array in arrays.items():
        *folders, last = name.split("/")
        inner = tree
        for folder in folders:
            inner = inner.setdefault(folder, {})
        inner[last] = array
    return tree
