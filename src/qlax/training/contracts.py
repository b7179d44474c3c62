"""Contracts of the user's own network and parts of the algorithm, checked before anything else is traced."""

from typing import Any

import jax
import jax.numpy as jnp

from qlax.errors import UserError
from qlax.pqn import Hyper
from qlax.types import Network, PyTree, Step


def check_network(name: str, network: Network, step: Step, num_actions: int) -> None:
    """Check the shapes and dtypes of what a network returns; nothing is compiled.

    Args:
      name: Import path of the network, for messages.
      network: Network of the user's own.
      step: Shapes of the environments' first steps, `[N, M, ...]`.
      num_actions: Number of actions, A.

    Raises:
      UserError: The Q-values are not float `[1, B, A]`, or the memory changes its shapes or dtypes.
    """
    n, m = jax.tree.leaves(step.obs)[0].shape[:2]
    obs = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, n * m, *x.shape[2:]), x.dtype), step.obs)
    memory = jax.eval_shape(lambda: network.initial_memory(n * m))

    def applied(memory: PyTree, obs: PyTree) -> Any:
        first = jnp.ones((1, n * m), bool)
        variables = network.init(jax.random.key(0), memory, obs, first, False)
        return network.apply(variables, memory, obs, first, False, mutable=[])

    def expect(valid: bool, message: str) -> None:
        if not valid:
            raise UserError(f"network {name!r} {message}; see qlax.Network")

    result, _ = jax.eval_shape(applied, memory, obs)
    expect(isinstance(result, tuple) and len(result) == 2, f"returns {_kind(result)}; expected (q, memory)")
    q, after = result
    wanted = f"expected float of shape {(1, n * m, num_actions)}, that is [L, B, A]"
    is_array = hasattr(q, "dtype")
    expect(is_array, f"returns {_kind(q)} as q; {wanted}")
    is_right = q.shape == (1, n * m, num_actions) and jnp.issubdtype(q.dtype, jnp.floating)
    expect(is_right, f"returns q of shape {q.shape} and dtype {q.dtype}; {wanted}")
    found, expected = _described(after), _described(memory)
    expect(found == expected, f"returns a memory of {found}; expected that of initial_memory: {expected}")


def check_parts(parts: dict[str, Any], step: Step, num_actions: int) -> None:
    """Check what the user's parts of the algorithm return; nothing is compiled.

    Args:
      parts: Arguments of `qlax.pqn.make`, by name; `returns` is checked when targets are first computed.
      step: Shapes of the environments' first steps, `[N, M, ...]`.
      num_actions: Number of actions, A.

    Raises:
      UserError: A part returns an array of another shape or dtype, or something else.
    """
    n, m = jax.tree.leaves(step.obs)[0].shape[:2]
    scalar, q = jax.ShapeDtypeStruct((), jnp.float32), jax.ShapeDtypeStruct((n, m, num_actions), jnp.float32)
    action = jax.ShapeDtypeStruct((n, m), jnp.int32)

    def expect(name: str, found: Any, wanted: jax.ShapeDtypeStruct) -> None:
        if _described(found) != _described(wanted):
            raise UserError(f"{name} returns {_described(found)}; expected {_described(wanted)}, see qlax.pqn.make")

    if "loss" in parts:
        expect("loss", jax.eval_shape(parts["loss"], q), q)
    if "explore" in parts:
        expect("explore", jax.eval_shape(parts["explore"], jax.random.key(0), q, step.legal, scalar), action)
    if "mixing" in parts:
        value = jax.eval_shape(parts["mixing"].value, q, step.legal)
        expect("mixing.q", jax.eval_shape(parts["mixing"].q, q, action), value)
    if "optimizer" in parts:
        made = parts["optimizer"](Hyper(), 1)
        if not (callable(getattr(made, "init", None)) and callable(getattr(made, "update", None))):
            raise UserError(f"optimizer returns {_kind(made)}; expected an optax.GradientTransformation")


def _kind(x: Any) -> str:
    return type(x).__name__


def _described(tree: PyTree) -> str:
    """Return dtypes and shapes of arrays, as float32[4,2]."""
    if not all(hasattr(leaf, "dtype") for leaf in jax.tree.leaves(tree)):
        return _kind(tree)
    shapes = [f"{x.dtype}[{','.join(map(str, x.shape))}]" for x in jax.tree.leaves(tree)]
    return " and ".join(shapes) or "nothing"
