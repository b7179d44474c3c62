import subprocess
import sys

import jax
import numpy as np
import pytest

from qlax.placement import CPU_OPTIONS, Placement, _compiler_options

RUNS = np.arange(12, dtype=np.float32).reshape(6, 2)


def step(runs, factor):
    return runs * factor


@pytest.mark.parametrize("at_once", [1, 2, 3, 6])
def test_the_result_does_not_depend_on_how_many_runs_are_computed_at_once(at_once):
    placement = Placement(6)
    placement.at_once = at_once
    compiled = placement.compile(step, RUNS, np.float32(3))
    np.testing.assert_array_equal(compiled(jax.device_put(RUNS, placement.sharding), np.float32(3)), RUNS * 3)


def test_runs_take_turns_on_a_cpu():
    placement = Placement(6)
    assert placement.at_once == 1
    assert str(placement).endswith("in turns")
    assert str(Placement(1)) == ""


class Small:
    """A device whose memory holds two of the six runs below."""

    platform = "gpu"

    def memory_stats(self):
        return {"bytes_limit": 2_500_000}


def test_where_memory_is_short_fewer_runs_are_computed_at_once():
    placement = Placement(6)
    placement.at_once, placement._device = 6, Small()
    runs = jax.ShapeDtypeStruct((6, 10), np.float32)

    def hungry(runs):  # a megabyte or so a run, while it lasts
        return jax.vmap(lambda run: jax.lax.sort(jax.lax.sort(run[0] + jax.numpy.arange(131_072.0))[::-1])[:10])(runs)

    placement.compile(hungry, runs)
    assert placement.at_once in (1, 2)
    assert "at a time" in str(placement) or "in turns" in str(placement)


def test_options_xla_does_not_know_are_left_out(monkeypatch):
    assert _compiler_options("gpu") == {}
    _compiler_options.cache_clear()
    assert _compiler_options("cpu") == CPU_OPTIONS
    _compiler_options.cache_clear()
    monkeypatch.setitem(CPU_OPTIONS, "xla_cpu_no_such_option", True)
    assert _compiler_options("cpu") == {}
    _compiler_options.cache_clear()


def test_four_runs_use_two_cores_and_get_the_same_bits(tmp_path):
    code = """
import jax, json, sys
jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
import qlax
from runs import CARTPOLE, SMALL
settings = dict(SMALL, total_steps=96)
result = qlax.train(CARTPOLE, out=sys.argv[2], seeds=4, progress=False, **settings)
print(json.dumps([result.curves["loss"].tolist(), result.summary["eval_return"]]))
"""
    outputs = []
    for devices in ("1", "2"):
        command = [sys.executable, "-c", code, devices, str(tmp_path / devices)]
        outputs.append(subprocess.run(command, capture_output=True, text=True, check=True, cwd="tests").stdout)
    assert outputs[0] == outputs[1]
