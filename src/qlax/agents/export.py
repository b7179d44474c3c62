"""A trained policy as one file for other programs: StableHLO, which JAX and XLA read, or ONNX.

Both hold the same function, with its weights, of any number of rows B:

- of an agent without memory, `obs -> q`;
- of one with memory, `memory, obs, first -> q, memory`.

`obs` is one array `[B, ...]`, or where the environment shows several, a dict of them by name, as `obs/position`; `q` is
`[B, A]` float32, and the best action `q.argmax(-1)`, among the legal ones where not all are. `first [B]` bool is True
where an episode begins: what that row's memory held before does not matter. `memory` is a tuple of arrays, zeros
before the first step. In ONNX every array is an input or an output of its own.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from qlax.agents.agent import Agent, load
from qlax.errors import UserError, described, nearest
from qlax.networks.plain import PlainNetwork, specs
from qlax.util.files import check_is_new, free_name, write_result

FORMATS = ("stablehlo", "onnx")
PLATFORMS = ("cpu", "cuda", "tpu")
OPSET = 17  # of ONNX, the first that has layer normalisation: 2022, for older runtimes as well


def export(
    run: Path | str, out: Path | str | None = None, *, format: str = "stablehlo", index: int = 0, best: bool = False
) -> Path:
    """Write a trained agent in a form that loads without qlax; see `qlax.agents.export` for the function it holds.

    What describes it, with the names, dtypes and shapes of everything that goes in and comes out, is JSON: beside a
    file of StableHLO in one with `.json` after its name, in one of ONNX under `qlax` of its metadata.

    Args:
      run: the directory of a run, or one file of its `agents/` or `best/`.
      out: the file; `agent.stablehlo` or `agent.onnx` beside, with a number if there is one.
      format: "stablehlo", read by `jax.export.deserialize`, for CPU, CUDA and TPU; or "onnx", which needs the package
        `onnx` to write, and computes in float32 whatever the network's `compute_dtype`.
      index: which of the runs that trained side by side.
      best: the weights of the best evaluation instead of the last ones.

    Returns:
      The file.

    Raises:
      UserError: there is no such agent or format, the file is there already or cannot be written, or the network is
        one of the user's own that cannot be exported.
    """
    if format not in FORMATS:
        raise UserError(f"format={format!r}: expected {' or '.join(FORMATS)}{nearest(format, FORMATS)}")
    path = _new_path(Path(run), out, format)
    agent = load(run, index, best=best, numpy_only=format == "onnx")
    if format == "onnx":
        return write_result(path, to_onnx(agent), is_named=out is not None)
    data, description = to_stablehlo(agent)
    path = write_result(path, data, is_named=out is not None)
    write_result(_beside(path), json.dumps(description, indent=2).encode(), is_named=True)
    return path


def _new_path(run: Path, out: Path | str | None, format: str) -> Path:
    if out is None:
        path = free_name((run if run.is_dir() else run.parent) / f"agent.{format}")
    else:
        path = check_is_new(out)
        if path.suffix[1:] in FORMATS and path.suffix[1:] != format:
            raise UserError(f"{path} is to be {format}, by its name {path.suffix[1:]}: name the format or another file")
    if format == "stablehlo":
        check_is_new(_beside(path))
    return path


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def to_stablehlo(agent: Agent) -> tuple[bytes, dict[str, Any]]:
    """What `jax.export.deserialize` reads, and what describes it.

    Raises:
      UserError: a network of the user's own cannot be exported.
    """
    import jax

    from qlax.networks import qnetwork

    info, names = agent.info, _names(agent.info)
    network = qnetwork.build(info["network"], info["num_actions"])
    if "network" in info["network"] and names != ["obs"]:
        raise UserError("a network of one's own can be exported if the observation is one array; this is a tree")
    leaves, memory_tree = jax.tree.flatten(jax.eval_shape(lambda: network.initial_memory(1)))
    (batch,) = jax.export.symbolic_shape("batch")

    def look(memory, obs, first):
        obs = obs[None] if names == ["obs"] else [obs[name][None] for name in names]
        memory = jax.tree.unflatten(memory_tree, memory)
        q, memory = network.apply(agent.variables, memory, obs, first[None], train=False)
        return q[0], tuple(jax.tree.leaves(memory))

    def look_without_memory(obs):
        leaf = obs if names == ["obs"] else obs[names[0]]
        return look((), obs, jax.numpy.ones(leaf.shape[0], bool))[0]

    arrays = [jax.ShapeDtypeStruct((batch, *shape), dtype) for dtype, shape in specs(info)]
    obs = arrays[0] if names == ["obs"] else dict(zip(names, arrays, strict=True))
    memory = tuple(jax.ShapeDtypeStruct((batch, *leaf.shape[1:]), leaf.dtype) for leaf in leaves)
    first = jax.ShapeDtypeStruct((batch,), bool)
    function, inputs = (look, (memory, obs, first)) if agent.recurrent else (look_without_memory, (obs,))
    try:
        exported = jax.export.export(jax.jit(function), platforms=PLATFORMS)(*inputs)
        data = bytes(exported.serialize())
    except Exception as error:
        if "network" not in info["network"]:
            raise
        raise UserError(f"{info['network']['network']!r} cannot be exported: {described(error)}") from error
    memories = [(leaf.dtype, leaf.shape[1:]) for leaf in leaves]
    return data, _description(agent, memories)


def to_onnx(agent: Agent) -> bytes:
    """What ONNX's runtimes read, with what describes it.

    Raises:
      UserError: its network is one of the user's own, or `onnx` is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise UserError("onnx is not installed: pip install 'qlax[onnx]'") from error
    from onnx import helper

    network = PlainNetwork(agent.info)
    operations = _Onnx(helper)
    description = _description(agent, [(np.dtype(np.float32), shape) for shape in network.memory_shapes])
    inputs = {each["name"]: _Value(operations, each["name"]) for each in description["inputs"]}
    obs = [inputs[name] for name in _names(agent.info)]
    memory = [value for name, value in inputs.items() if name.startswith("memory/")]
    q, memory = network(operations, agent.variables, memory, obs, inputs.get("first"))
    for value, each in zip([q, *memory], description["outputs"], strict=True):
        operations.nodes.append(helper.make_node("Identity", [value.name], [each["name"]]))

    def declared(arrays: list[dict[str, Any]]) -> list[Any]:
        return [
            helper.make_tensor_value_info(
                each["name"], helper.np_dtype_to_tensor_dtype(np.dtype(each["dtype"])), each["shape"]
            )
            for each in arrays
        ]

    weights = [onnx.numpy_helper.from_array(array, name) for name, array in operations.constants.items()]
    inside, outside = declared(description["inputs"]), declared(description["outputs"])
    graph = helper.make_graph(operations.nodes, "qlax", inside, outside, initializer=weights)
    model = helper.make_model_gen_version(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="qlax")
    helper.set_model_props(model, {"qlax": json.dumps(description)})
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def _names(info: dict[str, Any]) -> list[str]:
    """Of an observation's arrays: `obs` if it is one, else with where each is in the tree, as `obs/position/x`."""
    paths = info.get("obs_paths") or [f"[{index}]" for index in range(len(info["obs"]))]
    if len(paths) == 1:
        return ["obs"]
    steps = re.compile(r"\[['\"]?(.*?)['\"]?\]|\.(\w+)")  # as `jax.tree_util.keystr` writes them
    return ["/".join(["obs", *(key or field for key, field in steps.findall(path))]) for path in paths]


def _description(agent: Agent, memory: list[tuple[np.dtype, tuple[int, ...]]]) -> dict[str, Any]:
    """Of an exported agent, in JSON."""

    def array(name: str, dtype: Any, shape: tuple[int, ...]) -> dict[str, Any]:
        return {"name": name, "dtype": str(np.dtype(dtype)), "shape": ["batch", *shape]}

    obs = [array(name, *spec) for name, spec in zip(_names(agent.info), specs(agent.info), strict=True)]
    before = [array(f"memory/{index}", *spec) for index, spec in enumerate(memory)]
    after = [array(f"next_memory/{index}", *spec) for index, spec in enumerate(memory)]
    first = [array("first", bool, ())] if agent.recurrent else []
    q = array("q", np.float32, (agent.num_actions,))
    return {"inputs": [*before, *obs, *first], "outputs": [q, *after], **agent.info}


class _Value:
    """An array of a graph of ONNX that is being made."""

    def __init__(self, operations: "_Onnx", name: str):
        self.operations, self.name = operations, name

    def __add__(self, other: Any) -> "_Value":
        return self.operations.node("Add", self, other)

    def __sub__(self, other: Any) -> "_Value":
        return self.operations.node("Sub", self, other)

    def __mul__(self, other: Any) -> "_Value":
        return self.operations.node("Mul", self, other)

    def __matmul__(self, other: Any) -> "_Value":
        return self.operations.node("MatMul", self, other)


class _Onnx:
    """`qlax.networks.plain.Operations` that become nodes of a graph."""

    def __init__(self, helper: Any):
        self.helper = helper
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}

    def node(self, kind: str, *inputs: Any, **attributes: Any) -> _Value:
        """A new node, for whose inputs that are no values there will be constants."""
        values = [x if isinstance(x, _Value) else self._constant(x) for x in inputs]
        output = f"{kind}/{len(self.nodes)}"
        self.nodes.append(self.helper.make_node(kind, [x.name for x in values], [output], name=output, **attributes))
        return _Value(self, output)

    def _constant(self, x: Any) -> _Value:
        name = f"constant/{len(self.constants)}"
        self.constants[name] = np.asarray(x)
        return _Value(self, name)

    def number(self, x: _Value) -> _Value:
        """See `Operations`."""
        return self.node("Cast", x, to=self.helper.np_dtype_to_tensor_dtype(np.dtype(np.float32)))

    def flat(self, x: _Value) -> _Value:
        """See `Operations`."""
        return self.node("Flatten", x, axis=1)

    def planes(self, x: _Value) -> _Value:
        """See `Operations`."""
        return self.flat(self._channels_first(x))

    def joined(self, parts: list[_Value]) -> _Value:
        """See `Operations`."""
        return self.node("Concat", *parts, axis=1)

    def convolution(self, x: _Value, kernel: np.ndarray, stride: int, padding: str) -> _Value:
        """See `Operations`."""
        pads = {"VALID": "VALID", "SAME": "SAME_UPPER"}[padding]
        turned = np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))
        y = self.node("Conv", self._channels_first(x), turned, strides=[stride, stride], auto_pad=pads)
        return self._channels_last(y)

    def max_pool(self, x: _Value, size: int, stride: int) -> _Value:
        """See `Operations`."""
        window = {"kernel_shape": [size, size], "strides": [stride, stride], "auto_pad": "SAME_UPPER"}
        return self._channels_last(self.node("MaxPool", self._channels_first(x), **window))

    def _channels_first(self, x: _Value) -> _Value:
        return self.node("Transpose", x, perm=[0, 3, 1, 2])

    def _channels_last(self, x: _Value) -> _Value:
        return self.node("Transpose", x, perm=[0, 2, 3, 1])

    def layer_norm(self, x: _Value, scale: np.ndarray, bias: np.ndarray, epsilon: float) -> _Value:
        """See `Operations`."""
        return self.node("LayerNormalization", x, scale, bias, axis=-1, epsilon=epsilon)

    def relu(self, x: _Value) -> _Value:
        """See `Operations`."""
        return self.node("Relu", x)

    def tanh(self, x: _Value) -> _Value:
        """See `Operations`."""
        return self.node("Tanh", x)

    def kept(self, memory: _Value, first: _Value) -> _Value:
        """See `Operations`."""
        return self.node("Where", self.node("Unsqueeze", first, np.array([1])), np.float32(0), memory)
