"""Actor without JAX, for acting: the arithmetic of `qlax.networks.actor_critic`, see `qlax.networks.plain`."""

from typing import Any

import numpy as np

from qlax.networks.names import FARTHEST, SMALLEST_VARIANCE, algorithm_of, is_image
from qlax.networks.plain import Array, Layers, Operations, PlainNetwork, specs


class PlainActor:
    """Actor of an agent, with the results of `qlax.networks.actor_critic.ActorCritic`; methods as of `PlainNetwork`.

    Args:
      info: Description of the agent, see `qlax.Agent`.
    """

    def __init__(self, info: dict[str, Any]):
        self.description, self.obs = info["network"], specs(info)
        self.memory_shapes: list[tuple[int, ...]] = []

    def __call__(
        self, operations: Operations, variables: dict[str, Any], memory: list[Array], obs: list[Array], first: Array
    ) -> tuple[Array, list[Array]]:
        """Return the actions, float32 `[B, D]`, and the memory; see `PlainNetwork`."""
        del first
        description, scope = self.description, {**variables, "params": variables["params"]["actor"]}
        layers = Layers({**description, "encoder": "mlp"}, scope, operations)
        parts = [
            operations.flat(operations.number(x)) * np.float32(1 / 255 if is_image(*spec) else 1)
            for x, spec in zip(obs, self.obs, strict=True)
        ]
        x = parts[0] if len(parts) == 1 else operations.joined(parts)
        if description["input_norm"] == "running":
            seen, one, far = variables["running"]["seen"], np.float32(1), np.float32(FARTHEST)
            x = (x - seen["mean"]) * (one / np.sqrt(seen["var"] + np.float32(SMALLEST_VARIANCE)))
            x = operations.relu(x + far) - far
            x = operations.relu(x * -one + far) * -one + far  # clipped
        else:
            x = layers.normalise(description["input_norm"], x)
        for _ in description["hidden"]:
            x = layers.activate(layers.dense(x))
        low, high = (np.array(description[end], np.float32) for end in ("low", "high"))
        return operations.tanh(layers.dense(x)) * ((high - low) / 2) + (high + low) / 2, memory


def plain(info: dict[str, Any]) -> "PlainNetwork | PlainActor":
    """Return the network of an agent without JAX.

    Args:
      info: Description of the agent, see `qlax.Agent`.

    Raises:
      UserError: The network is a user's own.
      ValueError: The description has unknown fields.
    """
    return PlainActor(info) if algorithm_of(info["network"]) == "pqn-continuous" else PlainNetwork(info)
