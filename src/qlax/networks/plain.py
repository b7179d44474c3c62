"""Q-networks without JAX, for acting: the arithmetic of `qlax.networks.qnetwork` for one step, in a few operations.

The operations exist in NumPy here, and as nodes of an ONNX graph in `qlax.agents.export`. Everything is computed in
float32, whatever the network's `compute_dtype`.

Axes: B rows of a batch; H and W rows and columns of an image with C channels, h and w those of a layer's output, K
those of a square kernel; I inputs and F features of a layer; A actions, and O outputs of each.
"""

import math
from collections import Counter, OrderedDict
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from qlax.errors import UserError
from qlax.networks.names import (
    EPSILONS,
    MEMORIES,
    REACH,
    Norm,
    is_convolved,
    is_image,
)

Array = Any  # array of the kind that the operations handle; it has +, -, * and @, also with NumPy's arrays
Spec = tuple[np.dtype, tuple[int, ...]]  # dtype and shape of one array of an observation, without the axis B

DEFAULTS: dict[str, Any] = {
    **{"encoder": "mlp", "norm": "layer", "input_norm": "none", "memory": "none", "dueling": False},
    **{"head": "scalar", "head_low": -10.0, "head_high": 10.0, "head_bins": 51, "head_sigma": 0.75},
    **{"head_transform": "none", "head_members": 10},
}


class Operations(Protocol):
    """Operations that a network needs besides sums, differences, products and matrix products."""

    def number(self, x: Array) -> Array:
        """Convert to float32."""

    def flat(self, x: Array) -> Array:
        """Flatten `[B, ...]` to `[B, F]`."""

    def planes(self, x: Array) -> Array:
        """Flatten an image `[B, H, W, C]` to `[B, F]`, one plane after the other."""

    def joined(self, parts: list[Array]) -> Array:
        """Concatenate arrays `[B, I]`, each with an I of its own, along the last axis."""

    def parted(self, x: Array, *sizes: int) -> Array:
        """Divide an array into parts of these sizes, `[-1, *sizes]`."""

    def convolution(self, x: Array, kernel: np.ndarray, stride: int, padding: str) -> Array:
        """Convolve `x [B, H, W, C]` with `kernel [K, K, C, F]` to `[B, h, w, F]`; padding is "VALID" or "SAME"."""

    def max_pool(self, x: Array, size: int, stride: int) -> Array:
        """Apply max pooling with padding "SAME": `[B, H, W, C]` to `[B, h, w, C]`."""

    def layer_norm(self, x: Array, scale: np.ndarray, bias: np.ndarray, epsilon: float) -> Array:
        """Apply layer normalisation over the last axis."""

    def relu(self, x: Array) -> Array:
        """Return the larger of each number and 0."""

    def tanh(self, x: Array) -> Array:
        """Return the hyperbolic tangent."""

    def exp(self, x: Array) -> Array:
        """Return the exponential function."""

    def softmax(self, x: Array) -> Array:
        """Apply the softmax function over the second axis of `[B, O, A]`."""

    def kept(self, memory: Array, first: Array) -> Array:
        """Replace the rows of `memory [B, F]` by 0 where `first [B]` is True, even if they are nan."""


class NumPy:
    """Operations in NumPy."""

    def number(self, x: np.ndarray) -> np.ndarray:
        """See `Operations`."""
        return x.astype(np.float32)

    def flat(self, x: np.ndarray) -> np.ndarray:
        """See `Operations`."""
        return x.reshape(len(x), math.prod(x.shape[1:]))

    def planes(self, x: np.ndarray) -> np.ndarray:
        """See `Operations`."""
        return self.flat(x.transpose(0, 3, 1, 2))

    def joined(self, parts: list[np.ndarray]) -> np.ndarray:
        """See `Operations`."""
        return np.concatenate(parts, axis=-1)

    def parted(self, x: np.ndarray, *sizes: int) -> np.ndarray:
        """See `Operations`."""
        return x.reshape(-1, *sizes)

    def convolution(self, x: np.ndarray, kernel: np.ndarray, stride: int, padding: str) -> np.ndarray:
        """See `Operations`."""
        windows = _windows(x, len(kernel), stride, padding, 0)
        patches = windows.transpose(0, 1, 2, 4, 5, 3).reshape(-1, math.prod(kernel.shape[:3]))
        return (patches @ kernel.reshape(-1, kernel.shape[-1])).reshape(*windows.shape[:3], -1)

    def max_pool(self, x: np.ndarray, size: int, stride: int) -> np.ndarray:
        """See `Operations`."""
        return _windows(x, size, stride, "SAME", -np.inf).max((-2, -1))

    def layer_norm(self, x: np.ndarray, scale: np.ndarray, bias: np.ndarray, epsilon: float) -> np.ndarray:
        """See `Operations`."""
        centered = x - x.mean(-1, keepdims=True)
        variance = np.square(centered).mean(-1, keepdims=True)
        return centered / np.sqrt(variance + np.float32(epsilon)) * scale + bias

    def relu(self, x: np.ndarray) -> np.ndarray:
        """See `Operations`."""
        return np.maximum(x, 0)

    def tanh(self, x: np.ndarray) -> np.ndarray:
        """See `Operations`."""
        return np.tanh(x)

    def exp(self, x: np.ndarray) -> np.ndarray:
        """See `Operations`."""
        return np.exp(x)

    def softmax(self, x: np.ndarray) -> np.ndarray:
        """See `Operations`."""
        raised = np.exp(x - x.max(1, keepdims=True))
        return raised / raised.sum(1, keepdims=True)

    def kept(self, memory: np.ndarray, first: np.ndarray) -> np.ndarray:
        """See `Operations`."""
        return np.where(first[:, None], np.float32(0), memory)


def _windows(x: np.ndarray, size: int, stride: int, padding: str, value: float) -> np.ndarray:
    """Return all windows of an image, `[B, H, W, C]` to `[B, h, w, C, K, K]`, as a view."""
    if padding == "SAME":
        missing = [max((-(-side // stride) - 1) * stride + size - side, 0) for side in x.shape[1:3]]
        pads = [(0, 0), *((each // 2, each - each // 2) for each in missing), (0, 0)]
        x = np.pad(x, pads, constant_values=value)
    return np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))[:, ::stride, ::stride]


class PlainNetwork:
    """Network of an agent, with the results of `qlax.networks.qnetwork.QNetwork`.

    Args:
      info: Description of the agent, see `qlax.Agent`.

    Raises:
      UserError: The network is a user's own.
      ValueError: The description has unknown fields.
    """

    def __init__(self, info: dict[str, Any]):
        if "network" in info["network"]:
            raise UserError(f"network {info['network']['network']!r} is one of your own, which needs JAX")
        if unknown := info["network"].keys() - {*DEFAULTS, "hidden", "compute_dtype"}:
            raise ValueError(f"unknown {', '.join(unknown)}")
        self.description = DEFAULTS | info["network"]
        self.num_actions, self.dimensions = info["num_actions"], info.get("action_dimensions")
        self.obs = specs(info)
        width = self.description["hidden"][-1]
        self.memory_shapes = [(width,)] * MEMORIES[self.description["memory"]]  # float32, without the axis B

    def __call__(
        self, operations: Operations, variables: dict[str, Any], memory: list[Array], obs: list[Array], first: Array
    ) -> tuple[Array, list[Array]]:
        """Compute Q-values for one step.

        Args:
          operations: Operations to compute with.
          variables: Flax's variables, `{"params": ..., "batch_stats": ...}`, in NumPy.
          memory: Arrays `[B, F]` of the memory; any values where an episode begins.
          obs: Arrays of the observation, each `[B, ...]`.
          first: Bool `[B]`, True where an episode begins.

        Returns:
          Q-values, float32 `[B, A]`, or `[B, D, A]` if an action has D dimensions, and the memory after the step.
        """
        layers = Layers(self.description, variables, operations)
        parts = [layers.features(x, *spec, len(obs) == 1) for x, spec in zip(obs, self.obs, strict=True)]
        x = parts[0] if len(parts) == 1 else operations.joined(parts)
        for _ in self.description["hidden"]:
            x = layers.activate(layers.dense(x))
        if memory:
            cell = _Cell(variables["params"]["memory_cell"], operations)
            step = getattr(cell, self.description["memory"])
            x, memory = step([operations.kept(part, first) for part in memory], x)
        outputs = operations.parted(
            layers.dense(x), self._outputs, self.num_actions
        )  # dimensions are rows from here on
        if self.description["dueling"]:
            value = operations.parted(layers.dense(x), self._outputs, 1)
            # The product is the mean over the actions.
            outputs = value + outputs - outputs @ np.full([self.num_actions] * 2, 1 / self.num_actions, np.float32)
        q = operations.flat(self._q(operations, outputs))
        return (q if self.dimensions is None else operations.parted(q, self.dimensions, self.num_actions)), memory

    @property
    def _head(self) -> dict[str, Any]:
        """Arguments of the head, see `qlax.heads`."""
        return {name.removeprefix("head_"): x for name, x in self.description.items() if name.startswith("head_")}

    @property
    def _outputs(self) -> int:
        """Number of outputs of an action, K."""
        match self.description["head"]:
            case "ensemble":
                return int(self._head["members"])
            case "hl_gauss":
                return int(self._head["bins"]) + 2 * math.ceil(REACH * self._head["sigma"])
        return 1

    def _q(self, operations: Operations, outputs: Array) -> Array:
        """Return the Q-values `[B, 1, A]` that `qlax.heads` gives for outputs `[B, K, A]`."""
        head = self._head
        if self.description["head"] != "hl_gauss":
            return np.full([1, self._outputs], 1 / self._outputs, np.float32) @ outputs
        is_log, ends = head["transform"] == "symlog", np.array([head["low"], head["high"]])
        begin, end = np.sign(ends) * np.log1p(np.abs(ends)) if is_log else ends
        beyond = math.ceil(REACH * head["sigma"])
        centers = begin + (end - begin) / head["bins"] * (np.arange(-beyond, head["bins"] + beyond) + 0.5)
        q = centers.astype(np.float32)[None] @ operations.softmax(outputs)
        one = np.float32(1)
        if is_log:
            return operations.relu(operations.exp(q) - one) - operations.relu(operations.exp(q * -one) - one)
        return q


def specs(info: dict[str, Any]) -> list[Spec]:
    """Return dtype and shape of every array of an agent's observation."""
    return [(np.dtype(dtype), tuple(shape)) for dtype, shape in info["obs"]]


def leaves_with_paths(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of a tree with their paths, as `jax.tree_util` does."""
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
        yield from leaves_with_paths(leaf, path + step)


class Layers:
    """Layers of a network, whose parameters are found by counting calls, as Flax names layers in the order of calls."""

    def __init__(self, description: dict[str, Any], variables: dict[str, Any], operations: Operations):
        self.params, self.statistics = variables["params"], variables.get("batch_stats", {})
        self.description, self.operations = description, operations
        self.counts: Counter[str] = Counter()

    def _next(self, kind: str) -> dict[str, np.ndarray]:
        """Return the parameters and statistics of the next layer of this kind."""
        name = f"{kind}_{self.counts[kind]}"
        self.counts[kind] += 1
        return self.params[name] | self.statistics.get(name, {})

    def dense(self, x: Array) -> Array:
        """Apply the next dense layer."""
        return _dense(x, self._next("Dense"))

    def convolution(self, x: Array, stride: int = 1, padding: str = "SAME") -> Array:
        """Apply the next convolution."""
        layer = self._next("Convolution")
        return self.operations.convolution(x, layer["kernel"], stride, padding) + layer["bias"]

    def activate(self, x: Array) -> Array:
        """Normalise, then apply the activation function of the encoder."""
        x = self.normalise(self.description["norm"], x)
        return (
            _gelu(x, self.operations)
            if self.description["encoder"] in ("product", "hadamax")
            else self.operations.relu(x)
        )

    def normalise(self, norm: Norm, x: Array) -> Array:
        """Apply the next norm of this kind."""
        if norm == "none":
            return x
        if norm == "layer":
            layer = self._next("LayerNorm")
            return self.operations.layer_norm(x, layer["scale"], layer["bias"], EPSILONS["layer"])
        layer = self._next({"batch": "BatchNorm", "batch_renorm": "BatchRenorm"}[norm])
        slope = layer["scale"] / np.sqrt(layer["var"] + np.float32(EPSILONS[norm]))
        return (x - layer["mean"]) * slope + layer["bias"]

    def features(self, x: Array, dtype: np.dtype, shape: tuple[int, ...], is_all: bool) -> Array:
        """Return the features `[B, F]` of one array of the observation.

        Args:
          x: The array, `[B, ...]`.
          dtype: Its dtype in the environment.
          shape: Its shape without the axis B.
          is_all: True if the observation is this array alone.
        """
        encoder, norm = self.description["encoder"], self.description["input_norm"]
        convolved = is_convolved(encoder, shape)
        x = self.operations.number(x)
        x = x * np.float32(1 / 255) if is_image(dtype, shape) else x
        x = x if convolved else self.operations.flat(x)
        if is_all or norm != "layer" or (shape[-1] if convolved else math.prod(shape)) > 1:
            x = self.normalise(norm, x)
        return self.operations.planes(getattr(self, encoder)(x)) if convolved else x

    def cnn(self, x: Array) -> Array:
        """Apply the encoder of this name, as the methods below."""
        return self.activate(self.convolution(x, padding="VALID"))

    def product(self, x: Array) -> Array:
        """See `cnn`."""
        halves = _halves(self._next("Convolution"))
        one, other = (
            self.activate(self.operations.convolution(x, half["kernel"], 1, "VALID") + half["bias"]) for half in halves
        )
        return self.operations.max_pool(one * other, 2, 2)

    def nature(self, x: Array) -> Array:
        """See `cnn`."""
        for stride in (4, 2, 1):
            x = self.activate(self.convolution(x, stride, "VALID"))
        return x

    def impala(self, x: Array) -> Array:
        """See `cnn`."""
        for _ in range(3):
            x = self.operations.max_pool(self.convolution(x), 3, 2)
            for _ in range(2):
                y = x
                for _ in range(2):
                    y = self.convolution(self.activate(y))
                x = x + y
        return self.activate(x)

    def hadamax(self, x: Array) -> Array:
        """See `cnn`."""
        for window, stride in ((4, 4), (2, 2), (3, 1)):
            one, other = (self.activate(self.convolution(x)) for _ in range(2))
            x = self.operations.max_pool(one * other, window, stride)
        return x


class _Cell:
    """One step of each kind of memory.

    The methods map the memory, arrays `[B, F]`, and the input `[B, I]` to the output `[B, F]` and the new memory.
    """

    def __init__(self, params: dict[str, Any], operations: Operations):
        self.params, self.operations = params, operations

    def lstm(self, memory: list[Array], x: Array) -> tuple[Array, list[Array]]:
        c, h = memory
        i, f, g, o = (_dense(x, self.params[f"i{gate}"]) + _dense(h, self.params[f"h{gate}"]) for gate in "ifgo")
        c = self._sigmoid(f) * c + self._sigmoid(i) * self.operations.tanh(g)
        h = self._sigmoid(o) * self.operations.tanh(c)
        return h, [c, h]

    def gru(self, memory: list[Array], x: Array) -> tuple[Array, list[Array]]:
        (h,) = memory
        (x_r, h_r), (x_z, h_z), (x_n, h_n) = (
            (_dense(x, self.params[f"i{gate}"]), _dense(h, self.params[f"h{gate}"])) for gate in "rzn"
        )
        z = self._sigmoid(x_z + h_z)
        n = self.operations.tanh(x_n + self._sigmoid(x_r + h_r) * h_n)
        h = n + z * (h - n)
        return h, [h]

    def mingru(self, memory: list[Array], x: Array) -> tuple[Array, list[Array]]:
        gate, candidate = (_dense(x, half) for half in _halves(self.params["Dense_0"]))
        (h,) = memory
        h = h + self._sigmoid(gate) * (candidate - h)
        return self._gated(h, self.params["Dense_1"]), [h]

    def lru(self, memory: list[Array], x: Array) -> tuple[Array, list[Array]]:
        params = self.params
        modulus, angle = np.exp(-np.exp(params["nu_log"])), np.exp(params["theta_log"])
        cosine, sine = modulus * np.cos(angle), modulus * np.sin(angle)
        gamma = np.exp(params["gamma_log"])
        real, imaginary = memory
        to_real, to_imaginary = (_dense(x, half) * gamma for half in _halves(params["Dense_0"]))
        real, imaginary = (
            real * cosine - imaginary * sine + to_real,
            imaginary * cosine + real * sine + to_imaginary,
        )
        y = _dense(self.operations.joined([real, imaginary]), params["Dense_1"]) + x * params["D"]
        return self._gated(y, params["Dense_2"]), [real, imaginary]

    def _gated(self, h: Array, layer: dict[str, np.ndarray]) -> Array:
        value, gate = (_dense(_gelu(h, self.operations), half) for half in _halves(layer))
        return value * self._sigmoid(gate)

    def _sigmoid(self, x: Array) -> Array:
        half = np.float32(0.5)
        return self.operations.tanh(x * half) * half + half  # unlike 1 / (1 + exp(-x)), this never overflows


def _dense(x: Array, layer: dict[str, np.ndarray]) -> Array:
    y = x @ layer["kernel"]
    return y + layer["bias"] if "bias" in layer else y


def _halves(layer: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Split a layer into two, with the first and the second half of its features."""
    parts = zip(*(np.split(layer[name], 2, axis=-1) for name in ("kernel", "bias")), strict=True)
    return [{"kernel": kernel, "bias": bias} for kernel, bias in parts]


def _gelu(x: Array, operations: Operations) -> Array:
    """Apply GELU in the approximation with tanh, as `flax.linen.gelu`."""
    half, one, root, cubic = map(np.float32, (0.5, 1, math.sqrt(2 / math.pi), 0.044715))
    return x * half * (operations.tanh((x + x * x * x * cubic) * root) + one)
