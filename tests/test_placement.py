import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from qlax.placement import CPU_OPTIONS, Placement, compiler_options

RUNS = np.arange(12, dtype=np.float32).reshape(6, 2)


def python(code, *arguments):
    """What a fresh process prints last, as JSON."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("at_once", [1, 2, 3, 6])
def test_the_result_does_not_depend_on_how_many_runs_are_computed_at_once(at_once):
    placement = Placement(6)
    placement.at_once = at_once
    compiled = placement.compile(placement.lower(lambda runs, factor: runs * factor, RUNS, shared=(np.float32(3),)))
    np.testing.assert_array_equal(compiled(jax.device_put(RUNS, placement.sharding), np.float32(3)), RUNS * 3)


def test_runs_take_turns_on_a_cpu():
    placement = Placement(6)
    assert placement.at_once == 1
    assert "in turns" in str(placement)
    assert str(Placement(1)) == ""


class Device:
    """Of limited memory."""

    platform = "gpu"

    def __init__(self, limit):
        self.limit = limit

    def memory_stats(self):
        return {"bytes_limit": self.limit}


class Needed:
    """What XLA says that the program below needs: a megabyte a run computed at once, and its state."""

    argument_size_in_bytes = output_size_in_bytes = alias_size_in_bytes = 1000

    def __init__(self, at_once):
        self.temp_size_in_bytes = at_once * 1_000_000

    def memory_analysis(self):
        return self


@pytest.mark.parametrize(
    ("limit", "expected"), [(7_000_000, 6), (6_000_000, 3), (3_100_000, 3), (2_500_000, 2), (900_000, 1)]
)
def test_as_many_runs_are_computed_at_once_as_memory_holds(limit, expected):
    placement = Placement(6)
    placement.at_once, placement._device = placement._on_each, Device(limit)
    if placement.num_devices > 1:
        pytest.skip("the numbers are for one device")
    tries = 0
    while not placement.fit(Needed(placement.at_once)):
        tries += 1
    assert placement.at_once == expected
    assert tries <= 2
    assert ("at a time" in str(placement)) == (expected in (2, 3))


def test_options_xla_does_not_know_are_left_out(monkeypatch):
    assert compiler_options("gpu") == {}
    known = dict(CPU_OPTIONS)
    monkeypatch.setitem(CPU_OPTIONS, "xla_cpu_no_such_option", True)
    compiler_options.cache_clear()
    assert compiler_options("cpu") == known
    compiler_options.cache_clear()


TRAIN = """
import json, sys
import jax
jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
import qlax
from qlax.placement import Placement
from runs import CARTPOLE, SMALL
result = qlax.train(CARTPOLE, out=sys.argv[2], seeds=4, progress=False, **dict(SMALL, total_steps=96))
weights = [jax.tree.leaves(jax.tree.map(lambda x: x.tolist(), agent.variables)) for agent in result.agents]
print(json.dumps([str(Placement(4)), str(Placement(3)), weights]))
"""


def test_runs_on_two_cores_learn_what_they_learn_on_one(tmp_path):
    one, two = (python(TRAIN, devices, str(tmp_path / devices)) for devices in ("1", "2"))
    assert one[:2] == ["in turns", "in turns"]
    assert two[:2] == ["spread over 2 cores, in turns", "in turns, as 2 cores do not divide them"]
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), one[2], two[2])


EMPTY = """
import json, sys
import jax
import jax.numpy as jnp
jax.config.update("jax_num_cpu_devices", 2)
from qlax.placement import Placement
placement = Placement(2)
state = {"nothing": jnp.zeros((2, 3, 0)), "number": jnp.ones(2)}
double = placement.compile(placement.lower(lambda state: jax.tree.map(lambda x: 2 * x, state), state))
print(json.dumps(double(double(jax.device_put(state, placement.sharding)))["number"].tolist()))
"""


def test_results_go_in_again_arrays_without_elements_included():
    assert python(EMPTY) == [4, 4]


USE = """
import json, sys
import jax
from qlax.placement import use_cores
exec(sys.argv[1])
use_cores()
print(json.dumps(len(jax.devices())))
"""


def test_cores_are_devices_unless_jax_was_told_or_has_counted():
    cores = python("import os, json; print(json.dumps(len(os.sched_getaffinity(0))))")
    assert python(USE, "") == cores
    assert python(USE, "jax.config.update('jax_num_cpu_devices', 5)") == 5
    assert python(USE, "jax.devices()") == 1
