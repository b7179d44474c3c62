import functools
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import CARTPOLE, SMALL

from qlax import QNetwork
from qlax.config.configure import configure
from qlax.errors import RunError, UserError
from qlax.training import memory
from qlax.training.memory import Needs, Part, estimate, machine_memory, nbytes, peak
from qlax.training.plan import make

GIB = 2**30


@functools.cache
def plan_of(target=CARTPOLE, **settings):
    return make(configure(target, **(SMALL | settings)), {})


def part(needs, what):
    return next(part.bytes for parts in (needs.always, *needs.in_turn) for part in parts if part.what == what)


def held(function, *shapes, **options):
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return peak(jax.make_jaxpr(function)(*shapes).jaxpr, "cpu", **options)


def test_bytes_of_arrays_random_keys_included():
    tree = {"a": np.zeros((3, 5), np.int16), "b": jax.ShapeDtypeStruct((2**20, 2**20), jnp.float32), "none": ()}
    assert nbytes(tree) == 3 * 5 * 2 + 4 * 2**40
    assert nbytes(jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 7))) == 7 * 2 * 4


def test_bytes_of_a_tiny_run_worked_by_hand():
    needs = estimate(plan_of(seeds=2), at_once=2)
    # A layer of 4 x 8 with its bias, a norm, a head of 8 x 2 with its bias; two moments of each, and two counters.
    parameters = 4 * 8 + 8 + 8 + 8 + 8 * 2 + 2
    # The runs of both seeds, and a snapshot of them.
    assert part(needs, "weights and the optimiser's state") == 2 * 2 * 4 * (3 * parameters + 2)
    # 8 steps in 4 environments: three flags, 4 numbers seen, action, value, reward, return and length.
    assert part(needs, "rollouts") == 2 * 8 * 4 * (3 + 4 * 4 + 3 * 4 + 2 * 4)


def test_runs_in_turns_need_one_rollout_but_gather_their_states_twice():
    plan = plan_of(seeds=4)
    together, in_turns, spread = estimate(plan, 4), estimate(plan, 1), estimate(plan, 2, num_devices=2)
    assert 4 * part(in_turns, "rollouts") == part(together, "rollouts") == 2 * part(spread, "rollouts")
    state = part(together, "weights and the optimiser's state") // (2 * 4)
    assert part(in_turns, "weights and the optimiser's state") == (2 * 4 + 4 + 1) * state
    assert part(spread, "weights and the optimiser's state") == 2 * 2 * state


@pytest.mark.parametrize(("overlap", "copies"), [(False, 2), (True, 3)])
def test_on_the_host_a_rollout_is_stacked_into_a_copy(overlap, copies):
    plan = plan_of("hosts:HostWalk", overlap=overlap)
    seen = jax.tree.leaves(plan.shapes.step.obs)[0]
    features = int(np.prod(seen.shape[2:])) * seen.dtype.itemsize
    assert part(estimate(plan), "rollouts") == copies * 8 * 4 * (3 + features + 3 * 4 + 2 * 4)


def test_what_is_multiplied_is_held_until_it_was_used():
    a, b, c = (100, 10), (10, 50), (50, 3)
    assert held(lambda a, b, c: a @ b @ c, a, b, c) == [4 * (100 * 50 + 100 * 3)]
    # The first product is no longer needed when the third is made.
    assert held(lambda a, b, c: (a @ b @ c) @ c.T, a, b, c) == [4 * (100 * 3 + 100 * 50)]


def test_what_is_used_where_it_is_made_takes_no_memory():
    x = (100, 10)
    assert held(lambda x: (2 * x + 1).sum(), x) == [4]
    assert held(lambda x: jnp.transpose(x).reshape(-1)[:5], x) == [4 * 5]
    assert held(lambda x: x.at[0].get(mode="clip") + jnp.zeros(10), x)[0] <= 2 * 4 * 10
    # A product is not made of what is nowhere; and what is dear is not computed for each of several uses.
    assert held(lambda x: (2 * x + 1) @ jnp.ones((10, 1)), x) == [4 * (100 * 10 + 10 + 100)]
    assert held(lambda x: jnp.exp(x).sum() + jnp.square(jnp.exp(x)).max(), x) in ([4 * 2], [4 * 3])
    assert held(lambda x: (lambda y: y.sum() + (y * x).max())(jnp.exp(x)), x)[0] >= 4 * 100 * 10


def test_nobody_keeps_what_is_not_used():
    assert held(lambda x: ((x @ x.T).sum(), x[0, 0])[1], (100, 10)) == [4]


def test_a_function_called_twice_makes_two_arrays():
    double = jax.jit(lambda x: x @ jnp.ones((10, 10)))
    once = held(lambda x: double(x), (100, 10))[0]
    twice = held(lambda x: jnp.concatenate([double(x), double(x + 1)]) @ jnp.ones((10, 1)), (100, 10))[0]
    assert twice - once >= 4 * 100 * 10


def test_a_loop_holds_what_it_stacks_and_one_turn():
    def stacking(x):
        return jax.lax.scan(lambda x, _: (x, (x @ x).sum(0)), x, length=7)[1]

    assert held(stacking, (10, 10)) == [4 * 7 * 10, 4 * (10 * 10 + 10)]

    def changing(x):  # in the memory of its argument
        return jax.lax.fori_loop(0, 3, lambda _, x: x + 1, x)

    assert sum(held(changing, (100, 100))) < 100

    def kept_beside(x):
        return changing(x), x + 1

    assert sum(held(kept_beside, (100, 100))) >= 4 * 2 * 100 * 100


def test_only_the_code_of_the_platform_counts():
    def differently(x):
        return jax.lax.platform_dependent(x, cpu=lambda x: (x @ x.T).sum(0), default=lambda x: x.sum(1))

    jaxpr = jax.make_jaxpr(differently)(jax.ShapeDtypeStruct((100, 10), jnp.float32)).jaxpr
    assert peak(jaxpr, "cpu") == [4 * (100 * 100 + 100)]
    assert peak(jaxpr, "gpu") == peak(jaxpr, "tpu") == [4 * 100]


def test_a_gradient_needs_what_xla_reserves_for_it():
    network = QNetwork(3, hidden=(64, 32))
    obs, first = jax.ShapeDtypeStruct((1, 500, 5), jnp.float32), jax.ShapeDtypeStruct((1, 500), jnp.bool_)
    params = jax.eval_shape(network.init, jax.random.key(0), (), obs, first, False)

    def gradient(params, obs, first):
        return jax.grad(lambda params: jnp.square(network.apply(params, (), obs, first, True)[0]).mean())(params)

    reserved = jax.jit(gradient).lower(params, obs, first).compile().memory_analysis()
    needed = peak(jax.make_jaxpr(gradient)(params, obs, first).jaxpr, "cpu")
    assert 0.7 < sum(needed) / (reserved.temp_size_in_bytes + reserved.output_size_in_bytes) < 1.5


@pytest.mark.parametrize(
    ("number", "written"),
    [(1536, "1.5 KiB"), (1010 * 2**20, "1,010 MiB"), (131 * GIB, "131 GiB"), (2**52, "4,096 TiB")],
)
def test_bytes_as_written(number, written):
    assert memory._written(number) == written


def compilations(caplog):
    return [record for record in caplog.records if "Finished XLA compilation" in record.getMessage()]


def test_what_cannot_fit_is_refused_at_once_and_nothing_is_compiled(monkeypatch, caplog):
    monkeypatch.setattr(memory, "available", lambda: 32 * GIB)
    plan_of()  # what tracing for the first time compiles
    begun = time.perf_counter()
    with jax.log_compiles(), caplog.at_level("WARNING"):
        plan = plan_of(num_envs=10**9, num_steps=2, num_minibatches=32, total_steps=2 * 10**9)
        with pytest.raises(UserError, match=r"this needs about .* GiB, of which .* and there are 32 GiB: .* too much"):
            memory.check(plan)
        assert not compilations(caplog)
        jax.jit(lambda x: x + 12345)(1)
        assert compilations(caplog)  # so the check can fail
    assert time.perf_counter() - begun < 10


@pytest.mark.parametrize(
    ("largest", "settings"),
    [
        ("rollouts (num_envs x num_steps)", {"num_envs": 64, "num_steps": 256, "num_minibatches": 512}),
        ("activations (num_envs x num_steps / num_minibatches)", {"num_envs": 128, "hidden": (64,)}),
        ("weights and the optimiser's state (seeds x hidden)", {"seeds": 16, "hidden": (512,)}),
        ("weights and the optimiser's state (seeds x hidden)", {"hidden": (256, 256)}),
        ("evaluation (eval_episodes)", {"eval_episodes": 10_000}),
    ],
)
@pytest.mark.parametrize("share", [0.6, 0.25])
def test_halving_what_is_named_makes_it_fit(monkeypatch, largest, settings, share):
    plan = plan_of(**settings)
    there = int(share * estimate(plan).bytes)
    monkeypatch.setattr(memory, "available", lambda: there)
    with pytest.raises(UserError) as refused:
        memory.check(plan)
    assert f"are {largest}" in str(refused.value)
    how, factor, name, value = re.search(
        r"; (halve|double|divide by|multiply by)(?: (\d+):)? (\w+), to (\S+)$", str(refused.value)
    ).groups()
    before, after = plan.config.__dict__[name], tuple(map(int, value.split(",")))
    before, after = (before, after) if name == "hidden" else (before, after[0])
    scale = int(factor or 2) if how in ("double", "multiply by") else 1 / int(factor or 2)
    assert after == (tuple(int(scale * width) for width in before) if name == "hidden" else scale * before)
    memory.check(plan_of(**(settings | {name: after})))


def test_what_helps_is_what_has_to_be_halved_least():
    needs = Needs(
        (Part("weights", 100, ("seeds", "hidden")), Part("environments", 40, ("num_envs",))),
        ((Part("acting", 900, ("num_envs",)),), (Part("activations", 800, ("num_minibatches", "num_envs")),)),
    )
    assert needs.bytes == 1040
    assert needs.halved("num_envs", 1).bytes == 100 + 20 + 450
    assert needs.halved("num_minibatches", 1).bytes == 1040  # as acting then is what most is held by
    assert needs.times(3).bytes == 3 * 1040
    config = configure(CARTPOLE, **SMALL)
    assert memory._remedy(config, needs, 570) == "halve num_envs, to 2"
    assert memory._remedy(config, needs, 400) == "divide by 4: num_envs, to 1"
    # One environment is the least there can be, and one seed.
    assert memory._remedy(config, needs, 50) == "no setting suffices alone, but this saves most: halve num_envs, to 2"
    config = configure(config, num_envs=1000, num_steps=1, num_minibatches=8)
    assert memory._remedy(config, needs, 150) == "divide by 32: num_envs, to 24"  # as 8 does not divide 31


def test_a_preset_fits_easily(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: GIB // 16)
    memory.check(make(configure("minatar/breakout"), {}), num_devices=2)


def test_where_nobody_knows_nothing_is_refused(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: None)
    memory.check(plan_of(num_envs=10**8))


def test_devices_of_a_cpu_share_its_memory(monkeypatch):
    plan = plan_of(seeds=2)
    there = int(1.5 * estimate(plan, 1, 2).bytes / memory.DOUBT)
    monkeypatch.setattr(memory, "available", lambda: there)
    with pytest.raises(UserError, match="too much"):
        memory.check(plan, num_devices=2)


@pytest.mark.parametrize(
    "error", [jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 5 bytes."), MemoryError()]
)
def test_a_device_out_of_memory_says_what_for(error):
    message = r"^the device is out of memory; this needs about .* KiB, of which .*; (halve|double) \w+, to \S+$"
    with pytest.raises(RunError, match=message), memory.out_of_memory(plan_of()):
        raise error


def test_other_errors_stay_what_they_are():
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), memory.out_of_memory(plan_of()):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")


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
        ({"proc/self/cgroup": V2}, 20_000),  # of another machine's tree: nothing there
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/jobs/mine/memory.max": "max\n"}, 20_000),
        # 9,000 may be taken and 5,000 are, of which 1,000 hold what was read from files.
        (
            {
                "proc/self/cgroup": V2,
                "sys/fs/cgroup/jobs/mine/memory.max": f"{9000 * 1024}\n",
                "sys/fs/cgroup/jobs/mine/memory.current": f"{5000 * 1024}\n",
                "sys/fs/cgroup/jobs/mine/memory.stat": f"anon 7\ninactive_file {1000 * 1024}\n",
            },
            5_000,
        ),
        # The group it is part of has less left.
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
