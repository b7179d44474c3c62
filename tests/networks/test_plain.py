"""Agents in NumPy, ONNX and StableHLO against Flax, with random weights, over sequences with ends of episodes."""

import inspect

import jax
import numpy as np
import onnxruntime
import pytest
from runs import random_agent

import qlax
from qlax.agents import export
from qlax.learning import heads
from qlax.networks import plain as plain_network
from qlax.networks import qnetwork
from qlax.networks.names import HEADS

VECTOR, FLAG, GRID = ["float32", [4]], ["bool", []], ["bool", [5, 6, 3]]
FAST = {  # description of the network, arrays of the observation
    "tree-batch-dueling": ({"encoder": "cnn", "norm": "batch", "input_norm": "layer", "dueling": True}, [FLAG, GRID]),
    "lru-batch_renorm": ({"memory": "lru", "norm": "batch_renorm", "input_norm": "batch_renorm"}, [VECTOR]),
    "lstm": ({"memory": "lstm", "norm": "none"}, [VECTOR]),
    "product-hl_gauss-symlog-dueling": (
        {"encoder": "product", "head": "hl_gauss", "head_transform": "symlog", "head_low": -3, "dueling": True},
        [GRID],
    ),
    "ensemble-dueling-dimensions": ({"head": "ensemble", "head_members": 3, "dueling": True}, [VECTOR]),
}
SLOW = {
    "hl_gauss": ({"head": "hl_gauss", "head_bins": 7, "head_sigma": 0.4, "memory": "gru"}, [VECTOR]),
    "hl_gauss-gru-dimensions": ({"head": "hl_gauss", "head_bins": 7, "memory": "gru"}, [VECTOR]),
    "gru": ({"memory": "gru", "dueling": True}, [VECTOR, FLAG]),
    "mingru": ({"memory": "mingru"}, [VECTOR]),
    "mlp": ({}, [VECTOR]),
    "nature": ({"encoder": "nature", "input_norm": "batch"}, [["uint8", [84, 84, 4]]]),
    "impala": ({"encoder": "impala"}, [["uint8", [21, 24, 4]]]),
    "hadamax": ({"encoder": "hadamax"}, [["uint8", [43, 40, 4]]]),
    "nature-gru-tree": ({"encoder": "nature", "memory": "gru"}, [VECTOR, ["uint8", [84, 84, 1]]]),
}
A, ROWS, STEPS = 5, 50, 20  # 1,000 observations


@pytest.fixture(params=[*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def agent(request):
    dimensions = {"action_dimensions": 3} if "dimensions" in request.param else {}
    return random_agent(*(FAST | SLOW)[request.param], A, **dimensions)


def sequence(agent, rows=ROWS):
    """Yield random observations and beginnings of episodes, step by step."""
    random = np.random.default_rng(1)
    for _ in range(STEPS):
        obs = [
            random.normal(size=(rows, *shape)).astype(dtype)
            if dtype == "float32"
            else (random.integers(256, size=(rows, *shape)) * (random.random((rows, *shape)) < 0.05)).astype(dtype)
            for dtype, shape in agent.info["obs"]
        ]
        yield (obs[0] if len(obs) == 1 else dict(zip("ab", obs, strict=True))), random.random(rows) < 0.1


def same(q, expected):
    np.testing.assert_allclose(q, expected, rtol=1e-4, atol=1e-5 * max(1, np.abs(expected).max()))
    np.testing.assert_array_equal(np.argmax(q, -1), expected.argmax(-1))


def test_every_form_acts_as_the_agent(agent):
    plain = qlax.Agent(agent.variables, agent.info, numpy_only=True)
    data, description = export.to_stablehlo(agent)
    stablehlo = jax.export.deserialize(bytearray(data)).call
    onnx = onnxruntime.InferenceSession(export.to_onnx(plain))
    shapes = [each["shape"][1:] for each in description["inputs"] if each["name"].startswith("memory")]
    memory = other = tuple(np.zeros((ROWS, *shape), np.float32) for shape in shapes)
    assert bool(memory) == agent.recurrent == plain.recurrent
    for obs, first in sequence(agent):
        expected = agent.q_values(obs, first)
        same(plain.q_values(obs, first), expected)
        leaves = {"obs": obs} if isinstance(obs, np.ndarray) else {f"obs/{name}": leaf for name, leaf in obs.items()}
        given = obs if isinstance(obs, np.ndarray) else leaves
        if agent.recurrent:
            q, memory = stablehlo(memory, given, first)
            leaves |= {"first": first} | {f"memory/{index}": leaf for index, leaf in enumerate(other)}
        else:
            q = stablehlo(given)
        same(np.asarray(q), expected)
        q, *other = onnx.run(None, leaves)
        same(q, expected)
        assert np.ptp(expected, axis=0).max() > 0.01  # otherwise all outputs are equal, and the test proves nothing


def test_what_the_networks_are_is_known_to_both():
    fields = qnetwork.QNetwork.__dataclass_fields__
    parts = {
        f"head_{name}": parameter.default
        for head in HEADS
        for name, parameter in inspect.signature(getattr(heads, head)).parameters.items()
    }
    for name, value in plain_network.DEFAULTS.items():
        if name == "head":
            assert fields[name].default == getattr(heads, value)()
        else:
            assert (parts[name] if name in parts else fields[name].default) == value
    rest = fields.keys() - plain_network.DEFAULTS.keys()
    assert rest == {"num_actions", "dimensions", "hidden", "compute_dtype", "axis_name", "parent", "name"}


def test_a_network_from_elsewhere_is_refused():
    info = {"num_actions": A, "obs": [VECTOR]}
    with pytest.raises(qlax.UserError, match="'mine:Network' is one of your own"):
        qlax.Agent({}, info | {"network": {"network": "mine:Network"}}, numpy_only=True)
    with pytest.raises(ValueError, match="unknown noise"):
        plain_network.PlainNetwork(info | {"network": {"hidden": [8], "noise": 1}})
