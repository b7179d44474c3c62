"""Under JAX's global switches qlax computes the same numbers, and the switches are left as the user has set them."""

import contextlib
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hosts import HostWalk
from probes import show
from runs import CARTPOLE, SMALL, same_weights

import qlax
from qlax.envs import survey
from qlax.envs.worker import Worker
from qlax.switches import USUAL
from qlax.training.device_runs import DeviceRuns
from qlax.training.loop import Loop

OTHER = {
    "enable_x64": True,
    "numpy_dtype_promotion": "strict",
    "numpy_rank_promotion": "raise",
    "debug_nans": True,
    "debug_infs": True,
    "disable_jit": True,
    "debug_key_reuse": True,
    "enable_custom_prng": True,
    "legacy_prng_key": "error",
    "default_prng_impl": "rbg",
    "threefry_partitionable": False,
}
TINY = SMALL | {"total_steps": 4 * 32, "eval_interval": 2, "checkpoint_interval": 4}


@contextlib.contextmanager
def switched(*names):
    """Set these switches of JAX for the whole process, as a user may do."""
    before = {name: jax.config.values[f"jax_{name}"] for name in names}
    try:
        for name in names:
            jax.config.update(f"jax_{name}", OTHER[name])
        yield
        assert {name: jax.config.values[f"jax_{name}"] for name in names} == {name: OTHER[name] for name in names}
    finally:
        for name in names:
            jax.config.update(f"jax_{name}", before[name])


class Careless:
    """Environment that depends on every switch: it leaves dtypes to JAX, and mixes dtypes, ranks and kinds of keys."""

    num_actions = 2
    time_limit = 6

    def reset(self, key):
        old = jax.random.uniform(jax.random.PRNGKey(3), (2, 3))
        state = (jnp.zeros(3), jax.random.uniform(key, (3,)) + jax.random.normal(key, (3,)), old, 0)
        return jax.tree.map(jnp.asarray, state), self._show(state, jnp.float32(0))

    def step(self, key, state, action):
        summed, drawn, old, time = state
        inf = jnp.log(jnp.zeros(()))
        summed = (summed + drawn + jax.random.uniform(key, (2, 3)) * action + old).sum(0) + jnp.where(inf > 0, inf, 0)
        state = (summed, drawn * jnp.arange(3), old, time + 1)
        return state, self._show(state, (summed * jnp.arange(3)).mean())

    def _show(self, state, reward):
        obs = jnp.concatenate([state[0], state[1], jnp.linspace(0, 1, 3)])
        return show(obs, reward, truncated=state[3] >= 6, metrics={"half": jnp.where(state[3] >= 6, 0.5, jnp.nan)})

    def render(self, state):
        return np.full((8, 8, 3), abs(float(state[0].sum())) % 200, np.uint8)


def everything(out):
    """Train, load, evaluate, render and export a run, and return all numbers."""
    result = qlax.train("test_switches:Careless", out=out, **TINY)
    agent, obs = qlax.load(out), np.linspace(-1, 1, 18, dtype=np.float32).reshape(2, 9)
    found = qlax.evaluate(out, episodes=2)
    film = qlax.render(out, out / "film.gif", episodes=2)
    qlax.check_env(Careless(), 20)
    file = qlax.export(out, out / "agent.stablehlo")
    numbers = [result.curves["loss"], result.curves["eval_return"], agent.q_values(obs), agent.act(jnp.asarray(obs))]
    return result, [*numbers, found.returns, found.lengths, film.returns], file.read_bytes()


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    return everything(tmp_path_factory.mktemp("run") / "usual")


def checks_for_nan():
    """Return whether JAX checks a compiled function for nan at every call, not only at the first one."""
    divided = jax.jit(lambda x: 2 * x / x)
    divided(jnp.ones(3)), divided(jnp.ones(3))
    with contextlib.suppress(FloatingPointError):
        divided(jnp.zeros(3))
        return False
    return True


@pytest.mark.parametrize(
    "names", [[*OTHER], *(pytest.param([name], marks=pytest.mark.slow) for name in OTHER)], ids=",".join
)
def test_a_run_and_all_that_follows_are_the_same(usual, names, tmp_path):
    with switched(*names):
        result, numbers, exported = everything(tmp_path / "run")
    before, expected, expected_export = usual
    assert same_weights(result, before)
    assert result.agents[0].info["obs"] == [["float32", [9]]]
    for ours, theirs in zip(numbers, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    obs = np.ones((2, 9), np.float32)
    q, expected = (np.asarray(jax.export.deserialize(file).call(obs)) for file in (exported, expected_export))
    assert q.dtype == np.float32
    np.testing.assert_array_equal(q, expected)


def test_every_switch_is_tested():
    assert [*OTHER] == [*USUAL]
    assert all(jax.config.values[f"jax_{name}"] == value for name, value in USUAL.items() if name != "disable_jit")


def test_jax_still_checks_for_nan_afterwards():
    def in_a_new_thread():  # a new thread, in which JAX has not switched the checks off yet
        assert checks_for_nan()
        qlax.wrap(Careless(), ["flatten"])
        assert checks_for_nan()

    with switched("debug_nans"), ThreadPoolExecutor() as pool:
        pool.submit(in_a_new_thread).result()


def played(reset, step, *action):
    """Return the observations and the reward of a reset and a step."""
    state, first = reset(jax.random.key(0, impl="threefry2x32"))
    _, after = step(jax.random.key(1, impl="threefry2x32"), state, jnp.zeros((*action, 2)).argmax(-1))
    return jax.tree.map(np.asarray, (first.obs, after.obs, after.reward))


MILD = [name for name in OTHER if name not in ("debug_nans", "disable_jit", "debug_key_reuse")]


@pytest.mark.slow
def test_a_loop_of_the_users_own_computes_the_same():
    def computed():
        env, vec = qlax.make("gymnax/Freeway-MinAtar"), qlax.Vec(Careless(), 3)
        algorithm = qlax.pqn.make(vec, qlax.QNetwork(2, hidden=(4,)), qlax.pqn.Shape(3, 2, 1, 1))
        world, step = vec.reset(jax.random.key(0, impl="threefry2x32"))
        state = algorithm.init(jax.random.key(1, impl="threefry2x32"), qlax.pqn.Hyper(), step, world)
        state = jax.jit(algorithm.update)(state)[0]
        return (
            played(jax.jit(env.reset), jax.jit(env.step)),
            played(vec.reset, vec.step, 3, 1),
            state._replace(key=jax.random.key_data(state.key)),
        )

    usual = computed()
    with switched(*MILD):
        found = computed()
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(usual), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


def test_a_loop_of_the_users_own_is_refused_where_jax_checks_for_nan():
    vec = qlax.Vec(Careless(), 2)
    with switched("debug_nans"), pytest.raises(qlax.UserError) as refused:
        jax.jit(vec.reset)(jax.random.key(0))
    message = str(refused.value)
    assert message.startswith("JAX_DEBUG_NANS is on")
    assert message.endswith("call them within jax.debug_nans(False)")


class HostWalkInJax(HostWalk):
    def _show(self, *arguments):
        step = super()._show(*arguments)
        return step._replace(obs=np.asarray(jnp.arange(5) * 0.5 + step.obs))


def test_the_thread_of_an_environment_on_the_host_has_the_usual_switches():
    with switched(*OTHER):
        worker = Worker("walk", HostWalkInJax, 2, device=jax.devices()[0], timeout=60)
        worker.check()
        step, _ = worker.result()
        worker.close()
    assert step.obs.dtype == np.float32


def test_environments_are_listed_with_the_observations_that_agents_see():
    usual = survey.sizes("test_switches:Careless")
    with switched(*OTHER):
        assert survey.sizes("test_switches:Careless") == usual


def fail(*_):
    raise FloatingPointError("invalid value (nan)")


def test_a_run_that_fails_at_its_start_leaves_no_directory(monkeypatch, tmp_path):
    monkeypatch.setattr(DeviceRuns, "compile", lambda _: None)
    monkeypatch.setattr("qlax.training.memory.fit", lambda *_: None)
    monkeypatch.setattr(DeviceRuns, "begin", lambda *_: (None, None))
    monkeypatch.setattr(Loop, "train", fail)
    with pytest.raises(FloatingPointError):
        qlax.train(CARTPOLE, out=tmp_path / "run", **TINY)
    assert not (tmp_path / "run").exists()
