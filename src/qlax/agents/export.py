"""Export of a trained agent to one file for other programs: StableHLO, which JAX and XLA read, or ONNX."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from qlax.agents.agent import Agent, load
from qlax.agents.zoo import home_of
from qlax.errors import UserError, described, naming, nearest
from qlax.networks.plain import specs
from qlax.networks.plain_actor import plain
from qlax.networks.spaces import action, observation
from qlax.switches import usual_switches
from qlax.types import PyTree
from qlax.util.files import check_is_new, free_name, write_result

FORMATS = ("stablehlo", "onnx")
PLATFORMS = ("cpu", "cuda", "tpu")
OPSET = 17  # oldest version of ONNX's operators (2022) with layer normalisation, so that older runtimes work too


def export(
    run: Path | str, out: Path | str | None = None, *, format: str = "stablehlo", index: int = 0, best: bool = False
) -> Path:
    """Export a trained agent to a file that other programs can load without qlax.

    The file holds one function, with the agent's weights, for any number of rows B:

    - without memory, `obs -> q`;
    - with memory, `memory, obs, first -> q, memory`.

    `obs` is one array `[B, ...]`; or, if the environment returns several arrays, a dict with names such as
    `obs/position`. `q` is float32 `[B, A]`, or `[B, D, A]` if actions have D dimensions; the greedy action is the legal
    one with the largest value. An agent with an actor has `action`, float32 `[B, D]`, in place of `q`. `first` is bool
    `[B]`, True where an episode begins, which resets the memory of the row. `memory` is a tuple of arrays, zeros before
    the first step. In ONNX, every array is an input or an output of its own.

    A description of the agent, with the names, dtypes and shapes of all inputs and outputs, is written as JSON: for
    StableHLO to a second file, whose name has `.json` appended; for ONNX to the metadata, under the key `qlax`. If the
    agent keeps the spaces of its environment, the function takes observations that are converted already, and the
    description says how to convert, and to which action every entry of `q` belongs: `spaces` for programs, `conversion`
    in words.

    Args:
      run: Directory of a run, one file of its `agents/` or `best/`, or "zoo:" and the name of a trained agent.
      out: New file; None for `agent.stablehlo` or `agent.onnx` in the run's directory or beside the agent's file, or in
        the working directory for an agent of the zoo, with a number in its name if the file exists.
      format: "stablehlo", which `jax.export.deserialize` reads, for CPU, CUDA and TPU; or "onnx", which is always
        computed in float32 and needs the package `onnx` for writing.
      index: Number of the agent in the run.
      best: If True, export the weights of the best evaluation instead of the last ones.

    Returns:
      The file that was written.

    Raises:
      UserError: There is no such agent or format, the file exists or cannot be written, or the network is a user's own
        that cannot be exported.

    Example:
      ```python
      path = qlax.export("runs/a", "agent.stablehlo")
      ```
    """
    if format not in FORMATS:
        raise UserError(f"format={format!r}: expected {' or '.join(FORMATS)}{nearest(format, FORMATS)}")
    path = _new_path(run, out, format)
    agent = load(run, index, best=best, numpy_only=format == "onnx")
    if format == "onnx":
        return write_result(path, to_onnx(agent), is_named=out is not None)
    data, description = to_stablehlo(agent)
    path = write_result(path, data, is_named=out is not None)
    write_result(_description_file(path), json.dumps(description, indent=2).encode(), is_named=True)
    return path


def _new_path(run: Path | str, out: Path | str | None, format: str) -> Path:
    """Return the file to write; see `export` for the arguments.

    Raises:
      UserError: The file exists, or the ending of its name is that of the other format.
    """
    if out is None:
        path = free_name(home_of(run) / f"agent.{format}")
    else:
        path = check_is_new(out)
        if path.suffix[1:] in FORMATS and path.suffix[1:] != format:
            found = f"{path} has the ending of {path.suffix[1:]}, but the format is {format}"
            raise UserError(f"{found}; expected both to agree: change the format or the name")
    if format == "stablehlo":
        check_is_new(_description_file(path))
    return path


def _description_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


@usual_switches()
def to_stablehlo(agent: Agent) -> tuple[bytes, dict[str, Any]]:
    """Return the content of a StableHLO file, for `jax.export.deserialize`, and the description of the agent.

    Raises:
      UserError: The user's own network uses operations that StableHLO cannot hold.
    """
    import jax

    from qlax.learning import heads
    from qlax.networks import qnetwork

    info, names = agent.info, _names(agent.info)
    network = qnetwork.build(info["network"], info["num_actions"], info.get("action_dimensions"))
    if "network" in info["network"] and names != ["obs"]:
        raise UserError("a network of your own can only be exported if its observation is one array, not a tree")
    leaves, memory_tree = jax.tree.flatten(jax.eval_shape(lambda: network.initial_memory(1)))
    (batch,) = jax.export.symbolic_shape("batch")

    def look(memory: PyTree, obs: PyTree, first: Any) -> tuple[Any, tuple[Any, ...]]:
        obs = obs[None] if names == ["obs"] else [obs[name][None] for name in names]
        memory = jax.tree.unflatten(memory_tree, memory)
        outputs, memory = network.apply(agent.variables, memory, obs, first[None], train=False)
        return heads.q_values(network, outputs)[0], tuple(jax.tree.leaves(memory))

    def look_without_memory(obs: PyTree) -> Any:
        leaf = obs if names == ["obs"] else obs[names[0]]
        return look((), obs, jax.numpy.ones(leaf.shape[0], bool))[0]

    arrays = [jax.ShapeDtypeStruct((batch, *shape), dtype) for dtype, shape in specs(info)]
    obs = arrays[0] if names == ["obs"] else dict(zip(names, arrays, strict=True))
    memory = tuple(jax.ShapeDtypeStruct((batch, *leaf.shape[1:]), leaf.dtype) for leaf in leaves)
    first = jax.ShapeDtypeStruct((batch,), bool)
    function, inputs = (look, (memory, obs, first)) if agent.recurrent else (look_without_memory, (obs,))
    traced = jax.jit(function)
    with naming(f"{info['network'].get('network')!r} cannot be exported"):
        jax.eval_shape(traced, *inputs)
    try:
        exported = jax.export.export(traced, platforms=PLATFORMS)(*inputs)
        data = bytes(exported.serialize())
    except Exception as error:
        if "network" not in info["network"]:
            raise
        raise UserError(f"{info['network']['network']!r} cannot be exported: {described(error)}") from error
    memories = [(leaf.dtype, leaf.shape[1:]) for leaf in leaves]
    return data, _description(agent, memories)


def to_onnx(agent: Agent) -> bytes:
    """Return the content of an ONNX file, with the description of the agent.

    Raises:
      UserError: The network is a user's own, or the package `onnx` is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise UserError("onnx is not installed: pip install 'qlax[onnx]'") from error
    from onnx import helper

    network = plain(agent.info)
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
    return bytes(model.SerializeToString())


def _names(info: dict[str, Any]) -> list[str]:
    """Return the names of an observation's arrays: `obs` for a single one, else names such as `obs/position/x`."""
    paths = info.get("obs_paths") or [f"[{index}]" for index in range(len(info["obs"]))]
    if len(paths) == 1:
        return ["obs"]
    steps = re.compile(r"\[['\"]?(.*?)['\"]?\]|\.(\w+)")  # the format of `jax.tree_util.keystr`
    return ["/".join(["obs", *(key or field for key, field in steps.findall(path))]) for path in paths]


def _description(agent: Agent, memory: list[tuple[np.dtype, tuple[int, ...]]]) -> dict[str, Any]:
    """Return the description of an exported agent, for JSON.

    If the agent keeps spaces of its environment, `conversion` says in words how its observations become the inputs, and
    to which action every entry of q belongs.

    Args:
      agent: The agent.
      memory: Dtype and shape of every array of its memory, without the axis of the batch.
    """

    def array(name: str, dtype: Any, shape: tuple[int, ...]) -> dict[str, Any]:
        return {"name": name, "dtype": str(np.dtype(dtype)), "shape": ["batch", *shape]}

    obs = [array(name, *spec) for name, spec in zip(_names(agent.info), specs(agent.info), strict=True)]
    before = [array(f"memory/{index}", *spec) for index, spec in enumerate(memory)]
    after = [array(f"next_memory/{index}", *spec) for index, spec in enumerate(memory)]
    first = [array("first", bool, ())] if agent.recurrent else []
    q = array("q", np.float32, (*filter(None, [agent.dimensions]), agent.num_actions))
    if agent.is_continuous:
        q = array("action", np.float32, (len(agent.info["network"]["low"]),))
    spaces, conversion = agent.info.get("spaces", {}), {}
    if "observation" in spaces:
        conversion["observation"] = observation(spaces["observation"], "observation").words
    if "mask" in spaces:
        left_out = f"without the entry {spaces['mask']}, which says which entries of q belong to legal actions"
        conversion["observation"] = f"{left_out}: {conversion['observation']}"
    if "action" in spaces:
        conversion["action"] = action(spaces["action"]).words
    in_words = {"conversion": conversion} if conversion else {}
    return {"inputs": [*before, *obs, *first], "outputs": [q, *after], **in_words, **agent.info}


class _Value:
    """Array in an ONNX graph under construction.

    Args:
      operations: The graph.
      name: Name of the array in the graph.
    """

    def __init__(self, operations: "_Onnx", name: str):
        self.operations, self.name = operations, name

    __array_ufunc__ = None  # so that arrays of NumPy leave operations with this class to it

    def __add__(self, other: Any) -> "_Value":
        return self.operations.node("Add", self, other)

    def __sub__(self, other: Any) -> "_Value":
        return self.operations.node("Sub", self, other)

    def __mul__(self, other: Any) -> "_Value":
        return self.operations.node("Mul", self, other)

    def __matmul__(self, other: Any) -> "_Value":
        return self.operations.node("MatMul", self, other)

    def __rmatmul__(self, other: Any) -> "_Value":
        return self.operations.node("MatMul", other, self)


class _Onnx:
    """ONNX graph under construction: its methods, those of `qlax.networks.plain.Operations`, add nodes.

    Args:
      helper: The module `onnx.helper`.
    """

    def __init__(self, helper: Any):
        self.helper = helper
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}

    def node(self, kind: str, *inputs: Any, **attributes: Any) -> _Value:
        """Add a node and return its output; inputs that are not a `_Value` become constants of the graph."""
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

    def parted(self, x: _Value, *sizes: int) -> _Value:
        """See `Operations`."""
        return self.node("Reshape", x, np.array([-1, *sizes]))

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

    def exp(self, x: _Value) -> _Value:
        """See `Operations`."""
        return self.node("Exp", x)

    def softmax(self, x: _Value) -> _Value:
        """See `Operations`."""
        return self.node("Softmax", x, axis=1)

    def kept(self, memory: _Value, first: _Value) -> _Value:
        """See `Operations`."""
        return self.node("Where", self.node("Unsqueeze", first, np.array([1])), np.float32(0), memory)
