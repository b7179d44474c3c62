import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import CARTPOLE, SMALL

import qlax
from qlax.config.configure import configure
from qlax.errors import RunError, UserError
from qlax.training import memory, plan
from qlax.training.device_runs import DeviceRuns
from qlax.training.host_runs import HostRuns
from qlax.training.memory import Needs, Part, fit, machine_memory, nbytes
from qlax.training.placement import Placement, use_cores

GIB = 2**30
# Numbers: a layer 4 x 8 with bias, a norm, a head 8 x 2 with bias; then two moments of each, and two counters.
PARAMETERS = 4 * 8 + 8 + 8 + 8 + 8 * 2 + 2
WEIGHTS = 4 * (3 * PARAMETERS + 2)
# Bytes of a step in 4 environments: observation of 4 numbers, reward, two flags and two metrics.
STEP = 4 * (4 * 4 + 4 + 2 + 2 * 4)


@pytest.fixture(scope="module", autouse=True)
def cores():
    use_cores()
    return len(jax.devices())


@functools.cache
def planned(target=CARTPOLE, **settings):
    return plan.make(configure(target, **(SMALL | settings)), {})


@functools.cache
def compiled(target=CARTPOLE, **settings):
    the_plan = planned(target, **settings)
    on_host = the_plan.make_envs is not None
    runs = HostRuns(the_plan, (), lambda: False) if on_host else DeviceRuns(the_plan, ())
    runs.compile()
    return runs


def parts(needs):
    return {part.what: part.bytes for group in (needs.always, *needs.in_turn) for part in group}


def test_bytes_of_arrays_random_keys_included():
    tree = {"a": np.zeros((3, 5), np.int16), "b": jax.ShapeDtypeStruct((2**20, 2**20), jnp.float32), "none": ()}
    assert nbytes(tree) == 3 * 5 * 2 + 4 * 2**40
    assert nbytes(jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 7))) == 7 * 2 * 4


@pytest.mark.parametrize("devices", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_ten_agents_need_the_same_weights_on_one_core_and_on_two(devices, cores):
    if devices > cores:
        pytest.skip("one core")
    found = parts(compiled(seeds=10, devices=devices).needs())
    # The agents, a snapshot of them, and the weights that are evaluated.
    assert found["weights and the optimiser's state"] == 10 * (2 * WEIGHTS + 4 * PARAMETERS)
    # Agents take turns on a core: as many rollouts at a time as there are cores.
    assert found["rollouts"] == devices * 8 * STEP
    assert found["learning"] > 0
    assert found["evaluation"] > 0


def test_cores_that_split_the_environments_of_an_agent_each_have_its_weights(cores):
    if cores < 2:
        pytest.skip("one core")
    whole, split = (parts(compiled(devices=devices, num_minibatches=2).needs()) for devices in (1, 2))
    assert split["weights and the optimiser's state"] == 2 * whole["weights and the optimiser's state"]
    assert split["rollouts"] == whole["rollouts"] == 8 * STEP


@pytest.mark.parametrize("overlap", [False, True])
def test_on_the_host_a_rollout_lies_beside_the_program_and_another_where_both_overlap(overlap):
    runs = compiled("hosts:HostWalk", overlap=overlap, seeds=2)
    found, state = parts(runs.needs()), planned("hosts:HostWalk", overlap=overlap, seeds=2).shapes
    features = nbytes(state.step.obs) // (2 * 4)
    seen = 8 * 4 * (features + 3 + 3 * 4 + 2 * 4)  # three flags; action, value, reward; two metrics
    # The parts that took turns and the record are arguments of learning as well.
    assert (1 + overlap) * seen <= found["rollouts"] < (1 + overlap) * (seen + 1000)
    weights = nbytes((state.params, state.stats, state.opt_state)) + nbytes((state.params, state.stats)) / 3
    assert found["weights and the optimiser's state"] == 3 * weights


def test_what_xla_says_of_a_program_counts():
    small, large = (parts(compiled(num_envs=envs).needs()) for envs in (4, 64))
    assert large["rollouts"] == 16 * small["rollouts"]
    assert large["learning"] > 4 * small["learning"]


def test_a_gpu_with_little_memory_computes_fewer_agents_at_once(monkeypatch):
    runs = DeviceRuns(planned(seeds=6, devices=1, num_envs=16), ())
    runs._placement = runs._placement.taking_turns(6)  # as on a GPU, which computes agents side by side
    runs.compile()
    together, compilations = runs.needs(), []
    monkeypatch.setattr(memory, "device", lambda: Device({"bytes_limit": int(0.8 * together.bytes)}))
    monkeypatch.setattr(runs, "compile", lambda compile=runs.compile: compilations.append(compile()))
    fit(planned().config, runs.needs, runs.compile_fewer)
    assert runs._placement.at_once in (1, 2, 3)
    assert runs.needs().bytes < 0.8 * together.bytes
    assert len(compilations) == 1
    monkeypatch.setattr(memory, "device", lambda: Device({"bytes_limit": 5000}))
    with pytest.raises(UserError, match=r"4 KiB are available"):
        fit(planned().config, runs.needs, runs.compile_fewer)
    assert len(compilations) <= 2


@pytest.mark.parametrize(("there", "expected"), [(6_000_000, 5), (3_100_000, 3), (2_500_000, 2), (900_000, 1)])
def test_as_many_agents_at_once_as_memory_holds(there, expected):
    needs = Needs((Part("weights", 2000, ()),), ((Part("learning", 6_000_000, ()),),), "")
    assert memory.fewer_at_once(Placement(6, devices=1).taking_turns(6), needs, there) == expected


def test_a_run_that_does_not_fit_is_refused_after_compiling_and_before_its_directory_is_made(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(memory, "available", lambda: 10_000)
    message = (
        r"^the run needs about .* KiB of memory; its largest array is .*, float32\[.*\], .* KiB; "
        r"9 KiB are available, .* too few; (halve|divide|reducing one).*"
    )
    with pytest.raises(UserError, match=message):
        qlax.train(CARTPOLE, **SMALL, out="run")
    assert list(tmp_path.iterdir()) == []


def test_following_the_advice_makes_it_fit(monkeypatch):
    there = int(0.7 * compiled(num_envs=64).needs().bytes)
    monkeypatch.setattr(memory, "available", lambda: there)
    with pytest.raises(UserError, match=r"; halve num_envs, to 32$"):
        fit(planned(num_envs=64).config, compiled(num_envs=64).needs, compiled(num_envs=64).compile_fewer)
    fit(planned(num_envs=32).config, compiled(num_envs=32).needs, compiled(num_envs=32).compile_fewer)


def test_what_helps_is_what_has_to_be_halved_least():
    needs = Needs(
        (Part("weights", 100, ("seeds", "hidden")), Part("environments", 40, ("num_envs",))),
        ((Part("rollouts", 900, ("num_envs",)),), (Part("learning", 800, ("num_steps", "num_envs")),)),
        "obs",
    )
    assert needs.bytes == 1040
    assert needs.halved("num_envs", 1) == 100 + 20 + 450
    assert needs.halved("num_steps", 1) == 1040  # the program for rollouts then needs the most
    config = configure(CARTPOLE, **SMALL)
    assert memory._remedy(config, needs, 570) == "halve num_envs, to 2"
    assert memory._remedy(config, needs, 400) == "divide num_envs by 4, to 1"
    # Neither environments nor seeds can be fewer than one.
    assert memory._remedy(config, needs, 50) == "reducing one setting is not enough; halving num_envs saves most"
    config = configure(config, num_envs=1000, num_steps=1, num_minibatches=8)
    assert memory._remedy(config, needs, 150) == "divide num_envs by 32, to 24"  # as 8 does not divide 31


@pytest.mark.parametrize(
    ("number", "written"),
    [(1536, "1.5 KiB"), (1010 * 2**20, "1,010 MiB"), (131 * GIB, "131 GiB"), (2**52, "4,096 TiB")],
)
def test_bytes_as_written(number, written):
    assert memory._written(number) == written


def test_where_nobody_knows_nothing_is_refused(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: None)
    fit(planned().config, compiled().needs, compiled().compile_fewer)


@pytest.mark.parametrize(
    "error", [jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 5 bytes."), MemoryError()]
)
def test_a_device_out_of_memory_says_what_for(error):
    message = r"^the device is out of memory; the run needs about .* KiB of memory; its largest .*; halve \w+, to \S+$"
    with pytest.raises(RunError, match=message), memory.out_of_memory(planned().config, compiled().needs):
        raise error


def test_other_errors_stay_what_they_are():
    error = jax.errors.JaxRuntimeError("INTERNAL: something else")
    with pytest.raises(type(error), match="INTERNAL"), memory.out_of_memory(planned().config, compiled().needs):
        raise error


class Device:
    platform = "gpu"

    def __init__(self, stats):
        self.memory_stats = lambda: stats


def test_a_device_says_itself_how_much_there_is(monkeypatch):
    for stats, expected in (({"bytes_limit": 90, "bytes_in_use": 20}, 70), ({"bytes_limit": 90}, 90), (None, None)):
        monkeypatch.setattr(memory, "device", lambda stats=stats: Device(stats))
        assert memory.available() == expected


MEMINFO = "MemTotal:       24000 kB\nMemFree:         1000 kB\nMemAvailable:   20000 kB\nHugePages_Total:       0\n"
V2, V1 = "0::/jobs/mine\n", "5:devices:/\n4:memory:/mine\n0::/\n"


@pytest.mark.parametrize(
    ("files", "kilobytes"),
    [
        ({}, 20_000),
        ({"proc/self/cgroup": V2}, 20_000),  # the group's files do not exist
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/jobs/mine/memory.max": "max\n"}, 20_000),
        # The limit is 9,000 and 5,000 are in use, 1,000 of them for cached files.
        (
            {
                "proc/self/cgroup": V2,
                "sys/fs/cgroup/jobs/mine/memory.max": f"{9000 * 1024}\n",
                "sys/fs/cgroup/jobs/mine/memory.current": f"{5000 * 1024}\n",
                "sys/fs/cgroup/jobs/mine/memory.stat": f"anon 7\ninactive_file {1000 * 1024}\n",
            },
            5_000,
        ),
        # The parent group has less left.
        (
            {
                "proc/self/cgroup": V2,
                "sys/fs/cgroup/jobs/memory.max": f"{9000 * 1024}\n",
                "sys/fs/cgroup/jobs/memory.current": f"{8000 * 1024}\n",
                "sys/fs/cgroup/jobs/mine/memory.max": f"{7000 * 1024}\n",
                "sys/fs/cgroup/jobs/mine/memory.current": "0\n",
            },
            1_000,
        ),
        (
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{9000 * 1024}\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{3000 * 1024}\n",
            },
            6_000,
        ),
    ],
)
def test_memory_of_the_machine_and_of_the_group(tmp_path, files, kilobytes):
    for name, text in ({"proc/meminfo": MEMINFO} | files).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert machine_memory(tmp_path) == kilobytes * 1024


def test_where_there_is_no_such_file_it_is_what_is_built_in(tmp_path, monkeypatch):
    monkeypatch.setattr("os.sysconf", {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}.__getitem__)
    assert machine_memory(tmp_path) == 1000 * 4096
    monkeypatch.delattr("os.sysconf")
    assert machine_memory(tmp_path) is None
