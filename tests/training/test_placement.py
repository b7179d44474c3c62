import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from pages import TESTS

from qlax.errors import UserError
from qlax.training.placement import CPU_OPTIONS, GPU_OPTIONS, Placement, compiler_options

RUNS = np.arange(12, dtype=np.float32).reshape(6, 2)


def python(code, *arguments, optimised=False):
    """Return what a fresh process prints last, as JSON; it compiles as users do if `optimised`, else as tests."""
    command = [sys.executable, "-c", code, *arguments]
    environment = os.environ | ({"JAX_DISABLE_MOST_OPTIMIZATIONS": "False"} if optimised else {})
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=TESTS, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("at_once", [1, 2, 3, 6])
def test_the_result_does_not_depend_on_how_many_runs_are_computed_at_once(at_once):
    placement = Placement(6).taking_turns(at_once)
    compiled = placement.compile(placement.lower(lambda runs, factor: runs * factor, RUNS, shared=(np.float32(3),)))
    np.testing.assert_array_equal(compiled(jax.device_put(RUNS, placement.runs), np.float32(3)), RUNS * 3)


def test_runs_take_turns_on_a_cpu():
    placement = Placement(6)
    assert placement.at_once == 1
    assert "in turns" in str(placement)
    assert str(Placement(1)) == ""


@pytest.mark.parametrize(("at_once", "expected"), [(6, 6), (5, 3), (3, 3), (2, 2), (1, 1)])
def test_agents_take_turns_in_groups_of_one_size(at_once, expected):
    placement = Placement(6, devices=1).taking_turns(at_once)
    assert placement.at_once == expected
    assert ("at a time" in str(placement)) == (expected in (2, 3))


@pytest.fixture
def optimised():
    """Compile with the optimisations that users have, which other tests lack."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", False)
    compiler_options.cache_clear()
    yield
    jax.config.update("jax_disable_most_optimizations", before)
    compiler_options.cache_clear()


@pytest.mark.usefixtures("optimised")
def test_options_xla_does_not_know_are_left_out(monkeypatch):
    assert compiler_options("gpu") == {}
    known = dict(CPU_OPTIONS)
    monkeypatch.setitem(CPU_OPTIONS, "xla_cpu_no_such_option", True)
    assert compiler_options("cpu") == known


@pytest.mark.usefixtures("optimised")
def test_settings_for_gpus_are_options_there_only_and_have_to_be_known(monkeypatch):
    for setting, options in GPU_OPTIONS.items():
        assert compiler_options("gpu", (setting,)) == options
        assert compiler_options("cpu", (setting,)) == compiler_options("cpu")
    monkeypatch.setitem(GPU_OPTIONS, "cuda_graph", {"xla_gpu_no_such_option": True})
    compiler_options.cache_clear()
    with pytest.raises(UserError, match="cuda_graph: the installed version of XLA has no option xla_gpu_no_such"):
        compiler_options("gpu", ("deterministic", "cuda_graph"))
    monkeypatch.setitem(GPU_OPTIONS, "cuda_graph", {"xla_gpu_autotune_level": "no number"})
    compiler_options.cache_clear()
    with pytest.raises(UserError, match="xla_gpu_autotune_level, or does not understand its value 'no number'; use a"):
        compiler_options("gpu", ("cuda_graph",))


def test_the_level_of_optimisation_is_jax_s_where_it_was_asked_for_little(optimised):
    assert compiler_options("cpu")["xla_backend_optimization_level"] == 1
    jax.config.update("jax_disable_most_optimizations", True)
    compiler_options.cache_clear()
    assert "xla_backend_optimization_level" not in compiler_options("cpu")


TRAIN = """
import json, sys
import jax
jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
import qlax
from runs import CARTPOLE, SMALL

def trained(name, **settings):
    settings = SMALL | {"num_envs": 16, "total_steps": 5 * 128, "eval_episodes": 5} | settings
    result = qlax.train(CARTPOLE, out=f"{sys.argv[2]}/{name}", progress=False, **settings)
    made_with = qlax.storage.checkpoint.read(sorted((result.directory / "checkpoints").iterdir())[-1])[0]["made_with"]
    weights = [jax.tree.leaves(jax.tree.map(lambda x: x.tolist(), agent.variables)) for agent in result.agents]
    return made_with["num_devices"], weights, result.curves["eval_return"].tolist()

print(json.dumps([trained(name, **settings) for name, settings in json.loads(sys.argv[3]).items()]))
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return a function that trains on some devices, and gives the number used, all weights and evaluations."""

    def train(devices, optimised=True, **settings):
        folder = tmp_path_factory.mktemp("runs")
        done = python(TRAIN, str(devices), str(folder), json.dumps(settings), optimised=optimised)
        return [(used, [np.concatenate([np.ravel(x) for x in run]) for run in runs], seen) for used, runs, seen in done]

    return train


@pytest.mark.parametrize(("devices", "optimised"), [(2, False), pytest.param(4, True, marks=pytest.mark.slow)], ids=str)
def test_a_run_learns_the_same_alone_among_others_and_on_any_number_of_devices(trained, devices, optimised):
    seeds, whole = {"seeds": devices}, {"devices": devices}
    alone, together = trained(1, optimised, alone={"seed": devices - 1}, together=seeds)
    spread, split, again = trained(devices, optimised, spread=seeds, split=whole, again=whole)
    assert [used for used, *_ in (alone, together, spread, split)] == [1, 1, devices, devices]
    assert len(alone[1]) == 1
    np.testing.assert_array_equal(alone[1][0], together[1][-1])  # agents take turns on a CPU
    np.testing.assert_allclose(together[1], spread[1], atol=1e-5)  # XLA fuses differently for several devices
    assert np.abs(np.subtract(spread[1][0], spread[1][1])).max() > 1e-2
    # An agent whose environments are split acts with other random keys: other results, but the same every time.
    assert np.isfinite(split[1]).all()
    assert np.abs(np.subtract(split[1][0], spread[1][0])).max() > 1e-3
    np.testing.assert_array_equal(split[1], again[1])
    assert split[2] == again[2]


@pytest.mark.slow
def test_fewer_agents_than_devices_take_one_each(trained):
    spread, part = trained(4, spread={"seeds": 4}, part={"seeds": 3})
    assert [used for used, *_ in (spread, part)] == [4, 3]
    np.testing.assert_array_equal(part[1], spread[1][:3])


SPLIT = """
import json, sys
import jax
jax.config.update("jax_num_cpu_devices", 2)
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from qlax.storage.checkpoint import as_numbers, from_numbers
from qlax.config.configure import configure
from qlax.pqn import Rollout
from qlax.training.device_runs import functions
from qlax.training.plan import make
from runs import CARTPOLE, SMALL

def update(plan):
    def one(state):
        state, rollout = plan.rollout(state)
        return state, rollout.transitions
    return jax.vmap(one)

def learned(plan):
    def one(state, transitions):
        record = jax.tree.map(lambda x: x[0], plan.new_record())
        after, record = plan.learn(state, record, Rollout((), transitions))
        return (after.params, after.stats), record
    return jax.vmap(one)

settings = SMALL | {"num_envs": 8, "num_minibatches": 1} | json.loads(sys.argv[1])
two, one = (make(configure(CARTPOLE, devices=devices, **settings), {}) for devices in (2, 1))
place, runs = two.placement, two.placement.runs
of_steps = NamedSharding(runs.mesh, PartitionSpec("runs", None, "data"))
state = jax.jit(place.spread(functions(two).start, (runs, runs, runs), two.where))(two.seeds, two.hyper, ())
# Moments that devices differ in: one of them has all the episodes that end.
state, steps = jax.jit(place.spread(update(two), (two.where,), (two.where, of_steps)))(state)
weights, record = jax.jit(place.spread(learned(two), (two.where, of_steps), (runs, runs)))(state, steps)
state, steps = (jax.tree.map(lambda x: from_numbers(as_numbers(x), x), tree) for tree in (state, steps))
expected = jax.jit(learned(one))(state, steps)
def largest(x, y):
    pairs = zip(*(map(np.asarray, jax.tree.leaves(tree)) for tree in (x, y)), strict=True)
    return max(float(np.abs(one - other).max()) for one, other in pairs)
moved = largest(weights[0], state.params)
means = [{k: (v.total / v.weight).tolist() for k, v in x.sums.items()} for x in (record, expected[1])]
halves = [x[:, :, :4] != x[:, :, 4:] for x in map(np.asarray, (jax.tree.leaves(steps.obs)[0], steps.action))]
found = [two.placement.parts, moved, largest(weights, expected[0]), means, [bool(x.any()) for x in halves]]
print(json.dumps(found))
"""


@pytest.mark.parametrize(
    "norms",
    [{"norm": "batch", "input_norm": "batch_renorm"}, pytest.param({}, marks=pytest.mark.slow)],
    ids=["batch", "layer"],
)
def test_what_devices_learn_together_from_their_parts_is_what_one_learns_from_the_whole(norms):
    parts, moved, differing, (together, alone), halves_differ = python(SPLIT, json.dumps(norms))
    assert parts == 2
    assert moved > 1e-5 > 1e-6 > differing
    for name in alone:  # each device has its own sample for dead units
        np.testing.assert_allclose(together[name], alone[name], rtol=1e-4, atol=0.2 if name == "dead_units" else 1e-6)
    assert halves_differ == [True, True]  # environments and exploration differ between devices


EMPTY = """
import json, sys
import jax
import jax.numpy as jnp
jax.config.update("jax_num_cpu_devices", 2)
from qlax.config.configure import configure
from qlax.training.placement import Placement
from qlax.training.plan import make
from runs import SMALL
placement = Placement(2, devices=1)
state = {"nothing": jnp.zeros((2, 3, 0)), "number": jnp.ones(2)}
double = placement.compile(placement.lower(lambda state: jax.tree.map(lambda x: 2 * x, state), state))
number = double(double(jax.device_put(state, placement.runs)))["number"].tolist()
plans = [make(configure(name, **SMALL | {"seeds": 2}), {}) for name in ("minatar/asterix", "pgx/minatar-asterix")]
print(json.dumps([number, [plan.placement.num_devices for plan in plans]]))
"""


@pytest.mark.slow
def test_arrays_without_elements_are_not_spread_but_computed_in_turns():
    assert python(EMPTY) == [[4, 4], [2, 1]]


USE = """
import json, sys
import jax
from qlax.training.placement import use_cores
exec(sys.argv[1])
use_cores()
print(json.dumps(len(jax.devices())))
"""


def test_cores_are_devices_unless_jax_was_told_or_has_counted():
    assert python(USE, "") == len(os.sched_getaffinity(0))
    assert python(USE, "jax.config.update('jax_num_cpu_devices', 5)") == 5
    assert python(USE, "jax.devices()") == 1
