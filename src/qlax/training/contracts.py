"""Checks of the user's own network and parts of the algorithm, made before the algorithm is traced."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from qlax.errors import UserError, described
from qlax.learning.heads import head_of
from qlax.pqn import Hyper
from qlax.types import Network, PyTree, Step


def check_network(name: str, network: Network, step: Step, num_actions: int, dimensions: int | None = None) -> None:
    """Check the shapes and dtypes of what a network returns; nothing is compiled.

    Args:
      name: Import path of the network, for messages.
      network: Network of the user's own.
      step: Shapes of the environments' first steps, `[N, M, ...]`.
      num_actions: Number of actions, A.
      dimensions: Number of dimensions of an action, D; None if an action is one number.

    Raises:
      UserError: The network has no parameters, its Q-values are not float `[1, B, A]` (or `[1, B, D, A]`), or its
        memory is not `[B, ...]` or changes its shapes or dtypes.
    """
    n, m = jax.tree.leaves(step.obs)[0].shape[:2]
    obs = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, n * m, *x.shape[2:]), x.dtype), step.obs)
    memory = jax.eval_shape(lambda: network.initial_memory(n * m))

    def expect(valid: bool, message: str) -> None:
        if not valid:
            raise UserError(f"network {name!r} {message}; see qlax.Network")

    has_rows = all(getattr(x, "shape", ())[:1] == (n * m,) for x in jax.tree.leaves(memory))
    expect(has_rows, f"has an initial_memory of {_described(memory)} for a batch of {n * m}; expected [B, ...]")
    first = jax.ShapeDtypeStruct((1, n * m), jnp.bool_)
    variables = jax.eval_shape(lambda *x: network.init(jax.random.key(0), *x, False), memory, obs, first)
    has_params = isinstance(variables, Mapping) and "params" in variables
    expect(has_params, "has no parameters; expected init to return a dict with 'params'")
    result, _ = jax.eval_shape(lambda *x: network.apply(*x, False, mutable=[]), variables, memory, obs, first)
    expect(isinstance(result, tuple) and len(result) == 2, f"returns {_kind(result)}; expected (q, memory)")
    q, after = result
    head = head_of(network)
    of_each, last = [] if dimensions is None else [dimensions], "A" if head.outputs == 1 else "K * A"
    shape = (1, n * m, *of_each, head.outputs * num_actions)
    wanted = f"expected float of shape {shape}, that is [L, B, {'D, ' if of_each else ''}{last}]"
    is_array = hasattr(q, "dtype")
    expect(is_array, f"returns {_kind(q)} as q; {wanted}")
    is_right = q.shape == shape and jnp.issubdtype(q.dtype, jnp.floating)
    expect(is_right, f"returns q of shape {q.shape} and dtype {q.dtype}; {wanted}")
    found, expected = _described(after), _described(memory)
    expect(found == expected, f"returns a memory of {found}; expected that of initial_memory: {expected}")


def check_parts(parts: dict[str, Any], step: Step, num_actions: int, dimensions: int | None, num_steps: int) -> None:
    """Check what the user's parts of the algorithm return; nothing is compiled.

    Args:
      parts: Arguments of `qlax.pqn.make`, by name.
      step: Shapes of the environments' first steps, `[N, M, ...]`.
      num_actions: Number of actions, A.
      dimensions: Number of dimensions of an action, D; None if an action is one number.
      num_steps: Number of steps of a rollout, T.

    Raises:
      UserError: A part returns an array of another shape or dtype, or something else.
    """
    n, m = jax.tree.leaves(step.obs)[0].shape[:2]
    m *= dimensions or 1
    scalar, q = jax.ShapeDtypeStruct((), jnp.float32), jax.ShapeDtypeStruct((n, m, num_actions), jnp.float32)
    action = jax.ShapeDtypeStruct((n, m), jnp.int32)

    def expect(name: str, found: Any, wanted: jax.ShapeDtypeStruct) -> None:
        if _described(found) != _described(wanted):
            raise UserError(f"{name} returns {_described(found)}; expected {_described(wanted)}, see qlax.pqn.make")

    if "loss" in parts:
        expect("loss", jax.eval_shape(parts["loss"], q), q)
    if "explore" in parts:
        _check_explore(parts["explore"], q, step.legal)
    if "mixing" in parts:
        value = jax.eval_shape(parts["mixing"].value, q, step.legal)
        learners = value.shape[-1] if getattr(value, "ndim", 0) == 2 else 1
        expect("mixing.value", value, jax.ShapeDtypeStruct((n, learners), jnp.float32))
        expect("mixing.q", jax.eval_shape(parts["mixing"].q, q, action), value)
    if "returns" in parts:
        reward, end = (jax.ShapeDtypeStruct((num_steps, n, 1), dtype) for dtype in (jnp.float32, jnp.bool_))
        value = jax.ShapeDtypeStruct((num_steps + 1, n, 1), jnp.float32)
        expect("returns", jax.eval_shape(parts["returns"], reward, end, end, value, scalar, scalar), value)
    if "optimizer" in parts:
        made = parts["optimizer"](Hyper(), 1)
        if not (callable(getattr(made, "init", None)) and callable(getattr(made, "update", None))):
            raise UserError(f"optimizer returns {_kind(made)}; expected an optax.GradientTransformation")


def _check_explore(explore: Any, q: jax.ShapeDtypeStruct, legal: jax.ShapeDtypeStruct | None) -> None:
    """Check what a function of `(key, q, legal, epsilon)` returns, where every environment has an epsilon of its own.

    Raises:
      UserError: It fails, or its actions are not int32 `[N, M]`.
    """
    n, m, actions = q.shape
    n += n == m  # so that numbers of environments do not pass for those of members
    q, legal = jax.ShapeDtypeStruct((n, m, actions), q.dtype), legal and jax.ShapeDtypeStruct((n, m, actions), bool)
    epsilon, action = jax.ShapeDtypeStruct((n, 1), jnp.float32), jax.ShapeDtypeStruct((n, m), jnp.int32)
    each = f"for epsilon {_described(epsilon)}, one number for every environment"
    try:
        found = jax.eval_shape(explore, jax.random.key(0), q, legal, epsilon)
    except Exception as error:
        raise UserError(f"explore fails {each}: {described(error)}; see qlax.pqn.make") from error
    if _described(found) != _described(action):
        returned = f"explore returns {_described(found)}; expected {_described(action)}"
        raise UserError(f"{returned} {each}, see qlax.pqn.make")


def _kind(x: Any) -> str:
    return type(x).__name__


def _described(tree: PyTree) -> str:
    """Return the dtypes and shapes of a tree's arrays, such as "float32[4,2]", or else the name of its type."""
    if not all(hasattr(leaf, "dtype") for leaf in jax.tree.leaves(tree)):
        return _kind(tree)
    shapes = [f"{x.dtype}[{','.join(map(str, x.shape))}]" for x in jax.tree.leaves(tree)]
    return " and ".join(shapes) or "nothing"
