import random
import re
import time
import warnings
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counting import Counting

import qlax
from qlax.envs.check.env import check_contract, check_env
from qlax.envs.check.host import check_host_env
from qlax.envs.episodes import Episodes
from qlax.errors import UserError
from qlax.types import Step


def unchanged(state, step):
    return state, step


def world(reset=unchanged, step=unchanged, env=None, **attributes):
    """Return a counting environment, or `env`, with changed results of reset and step, and with further attributes."""
    env = env or Counting(lengths=(3, 5), time_limit=4)
    env.reset, env.step = reset and then(env.reset, reset), step and then(env.step, step)
    for name, value in attributes.items():
        setattr(env, name, value)
    return env


def then(function, change):
    return lambda *arguments: change(*function(*arguments))


def both(**fields):
    """Return the arguments of `world` that change fields of `Step` in reset and step alike: `field=function`."""

    def change(state, step):
        return state, step._replace(**{name: function(getattr(step, name)) for name, function in fields.items()})

    return {"reset": change, "step": change}


def doubled(x):
    return jnp.stack([x, x])


class Team(Counting):
    num_agents = 2
    shared = jnp.float32(1)

    def reset(self, key):
        return both(obs=doubled)["reset"](*super().reset(key))

    def step(self, key, state, action, shared):
        state, step = both(obs=doubled)["step"](*super().step(key, state, action[0]))
        return state, step._replace(reward=shared * action.sum())


def if_on_a_tracer(state, step):
    return (state, step) if step.reward > 0 else (state, step._replace(reward=jnp.float32(1)))


def numpy_on_a_tracer(state, step):
    return state, step._replace(reward=jnp.float32(np.maximum(step.reward, 0)))


def int_of_a_tracer(state, step):
    return state, step._replace(reward=jnp.float32(int(step.reward)))


class HoldsState(Counting):
    """Mistake: keeps its state as an attribute, and returns only a part of it."""

    def reset(self, key):
        self.inner, step = super().reset(key)
        return self.inner["count"], step

    def step(self, key, state, action):
        self.inner, step = super().step(key, self.inner, action)
        return self.inner["count"], step


class CountsInPython(Counting):
    steps = 0

    def reset(self, key):
        self.steps = 0
        return super().reset(key)

    def step(self, key, state, action):
        self.steps += 1
        return super().step(key, state, action)


class FillsAList(CountsInPython):
    def __init__(self):
        super().__init__()
        self.steps = [0]

    def reset(self, key):
        return Counting.reset(self, key)

    def step(self, key, state, action):
        self.steps[0] += 1
        return Counting.step(self, key, state, action)


class OwnGenerator(Counting):
    def __init__(self):
        super().__init__()
        self.random = np.random.default_rng(0)

    def step(self, key, state, action):
        self.random.random()
        return super().step(key, state, action)


left_behind = []


class LeavesBehind(Counting):
    def reset(self, key):
        state, step = super().reset(key)
        left_behind[:] = [state["start"]]
        return state, step

    def step(self, key, state, action):
        return super().step(key, {**state, "start": left_behind[0]}, action)


class Cached(Counting):
    """No mistake: computes a table when it is first needed, and keeps it."""

    table = None

    def __init__(self):
        super().__init__()
        self.tables = {}

    def step(self, key, state, action):
        self.table = np.arange(3) if self.table is None else self.table
        self.tables[3] = self.table
        state, step = super().step(key, state, action)
        return state, step._replace(reward=step.reward + jnp.asarray(self.tables[3])[action])


def noise_of_numpy(state, step):
    return state, step._replace(reward=step.reward + np.random.random())


def noise_of_python(state, step):
    return state, step._replace(reward=step.reward + random.random())


def fails(message):
    def change(state, step):
        raise ValueError(message)

    return change


class NotReady(Counting):
    @property
    def time_limit(self):
        raise RuntimeError("not\nready")

    @time_limit.setter
    def time_limit(self, limit):
        pass


def legal_as(dtype, *shape):
    return both(legal=lambda _: jnp.ones(shape, dtype))


def with_state(change):
    return lambda state, step: (change(state), step)


BREAKS_THE_CONTRACT = {
    "no reset": ({"reset": None}, "it has no method 'reset'; see qlax.Env"),
    "no step": ({"step": None}, "it has no method 'step'; see qlax.Env"),
    "no num_actions": ({"num_actions": None}, "num_actions is None; expected a whole number of discrete actions"),
    "num_actions 0": ({"num_actions": 0}, "num_actions is 0; expected a whole number of discrete actions, at least 1"),
    "num_actions 2.5": ({"num_actions": 2.5}, "num_actions is 2.5; expected a whole number of discrete actions"),
    "not a pair": ({"reset": lambda state, step: step}, "reset(key) returns Step; expected (state, Step)"),
    "a triple": (
        {"step": lambda state, step: (state, step, {})},
        "step(key, state, action) returns tuple; expected (state, Step)",
    ),
    "not a Step": (
        {"step": lambda state, step: (state, tuple(step))},
        "step(key, state, action) returns tuple as its second result; expected a qlax.Step",
    ),
    "reward a list": (both(reward=lambda _: None), "reward of reset has shape None; expected a scalar"),
    "reward per member": (both(reward=doubled), "reward of reset has shape (2,); expected a scalar (one reward"),
    "terminated per member": (both(terminated=doubled), "terminated of reset has shape (2,); expected a scalar"),
    "truncated per member": (both(truncated=doubled), "truncated of reset has shape (2,); expected a scalar"),
    "int terminated": (both(terminated=jnp.int32), "terminated of reset is int32; expected bool"),
    "float truncated": (both(truncated=jnp.float32), "truncated of reset is float32; expected bool"),
    "int terminated of step": (
        {"step": both(terminated=jnp.int32)["step"]},
        "terminated of step is int32; expected bool",
    ),
    "bool reward": (both(reward=jnp.bool_), "reward of reset is bool; expected float32"),
    "legal too short": (legal_as(bool, 2), "legal of reset is bool[2]; expected bool[3]"),
    "legal too deep": (legal_as(bool, 1, 3), "legal of reset is bool[1, 3]; expected bool[3]"),
    "int legal": (legal_as(jnp.int32, 3), "legal of reset is int32[3]; expected bool[3]"),
    "legal of a team": ({"env": Team(), **legal_as(bool, 3)}, "legal of reset is bool[3]; expected bool[2, 3]"),
    "obs of a team": (
        {"env": Team(), **both(obs=lambda obs: obs[0, :1])},
        "obs of reset has shape (1,); expected (2,) first: a row for each member",
    ),
    "metrics not a dict": (both(metrics=lambda _: ()), "metrics of reset are (); expected a dict of scalars"),
    "metrics per member": (both(metrics=lambda _: {"count": jnp.zeros(2)}), "metrics"),
    "other state": (
        {"step": with_state(lambda state: state | {"count": jnp.float32(0)})},
        "state['count'] differs between reset and step: int32[] against float32[]; make both alike, as with .astype",
    ),
    "larger state": ({"reset": with_state(lambda state: state | {"new": jnp.int32(0)})}, "state differs between reset"),
    "other obs": (
        {"step": both(obs=lambda obs: obs[:1])["step"]},
        "obs differs between reset and step: float32[2] against float32[1]",
    ),
    "other dtype of obs": (
        {"step": both(obs=jnp.int32)["step"]},
        "obs differs between reset and step: float32[2] against int32[2]",
    ),
    "legal later": (
        {"step": legal_as(bool, 3)["step"]},
        "legal differs between reset and step: None against bool[3]",
    ),
    "other metrics": (
        {"step": both(metrics=lambda _: {"bonus": jnp.float32(0)})["step"]},
        "metrics differs between reset and step: {'count': 'float32[]'} against {'bonus': 'float32[]'}",
    ),
    "half a copy": ({"reset_ratio": 0.5}, "reset_ratio is 0.5; expected a whole number of copies"),
    "nothing shared": ({"shared_at": lambda progress: progress}, "it has shared_at but no shared"),
    "other shared": (
        {"shared": jnp.int32(1), "shared_at": lambda progress: 1 - progress},
        "shared_at returns float32[], but shared is int32[]",
    ),
    "if on a tracer": ({"step": if_on_a_tracer}, "step(key, state, action) cannot be traced by JAX: Attempted boolean"),
    "how to fix an if": ({"step": if_on_a_tracer}, "; use jnp.where or jax.lax.cond instead of if"),
    "NumPy on a tracer": ({"step": numpy_on_a_tracer}, "; use jax.numpy instead of NumPy"),
    "int of a tracer": ({"step": int_of_a_tracer}, "; use .astype(...) instead of int(...)"),
    "state on the environment": ({"env": HoldsState()}, "reset(key) changes self.inner, but JAX runs Python only once"),
    "steps counted in Python": ({"env": CountsInPython()}, "step(key, state, action) changes self.steps"),
    "steps counted in a list": ({"env": FillsAList()}, "changes self.steps, but JAX runs Python only once"),
    "state in a global variable": (
        {"env": LeavesBehind()},
        "step(key, state, action) uses a value that another call stored",
    ),
    "NumPy's randomness in step": (
        {"step": noise_of_numpy},
        "step(key, state, action) draws NumPy's random numbers; expected a pure function: draw with jax.random",
    ),
    "NumPy's randomness in reset": (
        {"reset": with_state(lambda state: state | {"start": np.random.randint(1 << 20) + state["start"]})},
        "reset(key) draws NumPy's random numbers; expected a pure function: draw with jax.random",
    ),
    "Python's randomness": ({"step": noise_of_python}, "step(key, state, action) draws Python's random numbers"),
    "a generator of its own": ({"env": OwnGenerator()}, "draws self.random's random numbers; expected a pure"),
    "no team": ({"num_agents": 0}, "num_agents is 0; expected a whole number of members, at least 1; leave it out"),
    "half a limit": ({"time_limit": 2.5}, "time_limit is 2.5; expected a whole number of steps, at least 1"),
    "score a number": ({"score": 100}, "score is not a function; expected score(return), a number"),
    "complex reward": (both(reward=jnp.complex64), "reward of reset is complex64; expected float32: .astype"),
    "no obs": (both(obs=lambda _: {}), "obs of reset holds no array: {}; expected an array or a tree of them"),
    "a name of the log": (
        both(metrics=lambda _: {"steps": jnp.float32(jnp.nan)}),
        "metrics of reset have 'steps', which is one of qlax's own names; expected another name",
    ),
    "a name of evaluations": (
        both(metrics=lambda _: {"eval_return": jnp.float32(0)}),
        "metrics of reset have 'eval_return'",
    ),
    "error in reset": ({"reset": lambda state, step: 1 / 0}, "reset(key) cannot be traced by JAX: division by zero"),
    "an error of many words": (
        {"reset": fails("\n\n" + "x" * 999 + "\ny")},
        f"cannot be traced by JAX: {'x' * 200}...",
    ),
    "an empty obs": (
        both(obs=lambda _: jnp.zeros((0, 3))),
        "obs of reset has shape (0, 3), so it is empty; expected an array",
    ),
    "a tree of metrics": (
        both(metrics=lambda _: {"own": {"count": jnp.float32(0)}}),
        "metrics of reset have 'own' of shape None; expected a dict of scalars",
    ),
    "metrics by number": (
        both(metrics=lambda _: {1: jnp.float32(0)}),
        "metrics of reset have the name 1; expected text",
    ),
    "a key among the metrics": (
        both(metrics=lambda _: {"own": jax.random.key(0)}),
        "metrics of reset have 'own' of type key<fry>; expected numbers",
    ),
    "no end of actions": ({"num_actions": 10**30}, "num_actions is 1000000000000000000000000000000; expected a whole"),
    "too many actions": (
        {"num_actions": 2**26, "num_agents": 2},
        "num_envs x num_agents x action_dimensions x num_actions is 134,217,728; expected at most 67,108,864",
    ),
    "too long a limit": ({"time_limit": 2**31}, "time_limit is 2147483648; expected a whole number of steps"),
    "score of two": ({"score": lambda x, y: x}, "score(0.0) is not a number: TypeError: "),
    "score in words": ({"score": lambda x: "high"}, "score(0.0) is not a number: ValueError: could not convert string"),
    "a property that fails": (
        {"env": NotReady()},
        "time_limit cannot be read: RuntimeError: not ready (",
    ),
}


@pytest.mark.parametrize(("changes", "message"), BREAKS_THE_CONTRACT.values(), ids=BREAKS_THE_CONTRACT)
def test_check_contract_says_what_is_wrong_and_what_was_expected(changes, message):
    env = world(**changes)
    with pytest.raises(UserError, match=f"^environment {type(env).__name__}: .*{re.escape(message)}"):
        check_contract(env)


def nan_at_count_2(field):
    def change(state, step):
        x = getattr(step, field)
        return state, step._replace(**{field: jnp.where(state["count"] == 2, jnp.nan, x)})

    return change


def noise_of_the_clock(state, step):
    return state, step._replace(reward=step.reward + time.perf_counter() % 1)


def nan_raw_reward_at_count_2(state, step):
    return state, step._replace(metrics={"raw_reward": jnp.where(state["count"] == 2, jnp.nan, step.reward)})


class Restarting(Counting):
    """Mistake: resets itself where an episode ends."""

    def step(self, key, state, action):
        state, step = super().step(key, state, action)
        ended = step.terminated | step.truncated
        fresh, first = self.reset(jax.random.split(key)[1])
        state, obs = jax.tree.map(lambda new, old: jnp.where(ended, new, old), (fresh, first.obs), (state, step.obs))
        return state, step._replace(obs=obs)


def cut_is_over(state, step):
    """Mistake of many environments: report the time limit as a termination."""
    return state, step._replace(terminated=step.terminated | step.truncated, truncated=jnp.bool_(False))


def done_is_both(state, step):
    done = step.terminated | step.truncated
    return state, step._replace(terminated=done, truncated=done)


def never_cut(state, step):
    return state, step._replace(truncated=jnp.bool_(False), obs=jnp.zeros(2), reward=jnp.float32(0))


def nothing_legal_where(ended):
    def change(state, step):
        return state, step._replace(legal=jnp.ones(3, bool) & ~ended(step))

    return {"reset": change, "step": change}


BREAKS_WHILE_RUNNING = {
    "goes on after its limit": ({"step": never_cut}, "an episode goes on after 4 steps, but time_limit is 4; expected"),
    "a cut is a termination": (
        {"step": cut_is_over},
        "terminated is set at the time limit of 4 steps; expected truncated instead, or leave",
    ),
    "one end for both": (
        {"step": done_is_both},
        "terminated and truncated are both set at every end; expected terminated where the task ended, truncated where",
    ),
    "resets itself": (
        {"env": Restarting(lengths=(9, 17))},
        "where an episode ended, step begins a new one; expected the final state and observation of the one that "
        "ended: never reset in step, as qlax does it",
    ),
    "resets itself after a cut": ({"env": Restarting(time_limit=6, random_starts=False)}, "step begins a new one"),
    "nothing legal after a cut": (
        nothing_legal_where(lambda step: step.truncated),
        "expected at least one per member, also where an episode is cut: add an action that waits, or end the episode",
    ),
    "nan in the first obs": (
        {"reset": both(obs=lambda obs: obs * jnp.nan)["reset"]},
        "obs is not finite after 0 steps; expected numbers, in final observations too",
    ),
    "raw reward": (
        {"reset": nan_raw_reward_at_count_2, "step": nan_raw_reward_at_count_2},
        "raw_reward is not finite after 2 steps",
    ),
    "contract": (both(terminated=jnp.int32), "terminated of reset is int32; expected bool"),
    "the clock": (
        {"step": noise_of_the_clock},
        "step gave two outcomes for the same input; expected a pure function, in which everything random comes from",
    ),
    "running return": (
        both(metrics=lambda _: {"episode_return": jnp.float32(0)}),
        "episode_return has to be nan exactly where no episode ended",
    ),
    "nan reward": ({"step": nan_at_count_2("reward")}, "reward is not finite after 2 steps"),
    "nan obs": ({"step": nan_at_count_2("obs")}, "obs is not finite after 2 steps"),
    "nothing legal": (
        both(legal=lambda _: jnp.zeros(3, bool)),
        "no legal action after 0 steps; expected at least one per member",
    ),
    "one member without legal action": (
        {"env": Team(), **both(legal=lambda _: jnp.array([[True] * 3, [False] * 3]))},
        "no legal action after 0 steps; expected at least one per member",
    ),
    "reset terminated": (
        {"reset": both(terminated=jnp.logical_not)["reset"]},
        "reset returns a reward or an end of the episode; expected reward 0 and no end",
    ),
    "reset truncated": ({"reset": both(truncated=jnp.logical_not)["reset"]}, "reset returns a reward or an end"),
    "reset with a reward": ({"reset": both(reward=lambda x: x + 1)["reset"]}, "reset returns a reward or an end"),
}


@pytest.mark.parametrize(("changes", "message"), BREAKS_WHILE_RUNNING.values(), ids=BREAKS_WHILE_RUNNING)
def test_check_env_says_what_is_wrong_and_what_was_expected(changes, message):
    env = world(**changes)
    with pytest.raises(UserError, match=f"^environment {type(env).__name__}: .*{re.escape(message)}"):
        check_env(env)


class Walk:
    """Walk whose subclasses look like a mistake and are none; `move` defines their steps."""

    num_actions = 2

    def reset(self, key):
        del key
        return jnp.int32(0), self.show(jnp.int32(0), jnp.bool_(False))

    def step(self, key, state, action):
        del key
        return self.move(state, action)

    def show(self, state, ended):
        obs = jnp.stack([state.astype(jnp.float32), jnp.float32(1)])
        return Step(obs, None, jnp.float32(0), ended, jnp.bool_(False), {})


class Leaving(Walk):
    """Walk in which action 1 ends the episode and leaves the state unchanged, even that after a reset."""

    def move(self, state, action):
        return state + 1 - action, self.show(state + 1 - action, action == 1)


class Home(Walk):
    """Walk that ends where it began, so that its last state cannot be told from a reset."""

    def move(self, state, action):
        state = state + 2 * action - 1
        return state, self.show(state, state == 0)


class Bandit(Walk):
    """Walk whose episodes last one step."""

    def move(self, state, action):
        return state + 1, self.show(state + 1, jnp.bool_(True))


GOOD = {
    "one of two lengths": Counting(lengths=(2, 3), time_limit=2),
    "a team": Team(),
    "whole rewards, one legal action": world(**both(reward=jnp.int32, legal=lambda _: jnp.array([True, False, False]))),
    "NumPy's number of actions": world(num_actions=np.int64(3)),
    "no time limit": world(env=Leaving(), time_limit=None),
    "a cache": Cached(),
    "nothing legal after a termination": world(**nothing_legal_where(lambda step: step.terminated & ~step.truncated)),
    "an end that changes nothing": Leaving(),
    "one step an episode": Bandit(),
    "terminated where the limit falls, now and then": Counting(lengths=(4, 9), time_limit=4),
}


@pytest.mark.parametrize("env", GOOD.values(), ids=GOOD)
def test_good_environments_pass_without_a_word(env):
    with no_warning_but_of_clocks():
        check_env(env)


@contextmanager
def no_warning_but_of_clocks():
    """Turn warnings into errors, except for the one about observed time, which is right for `Counting` and `Host`."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*: obs tells the time")
        yield


def with_strong_types(state):
    return jax.tree.map(jnp.int32, state)


ADVICE = {
    "whole numbers": (
        both(obs=jnp.int32),
        "obs is int32[2], which no network of qlax accepts; expected bool, float, or uint8 with three axes (an image): "
        "show categories one-hot and counts as float32, or train with --wrappers one_hot=<categories>",
    ),
    "one of several": (
        both(obs=lambda x: {"seen": x, "map": jnp.zeros((2, 2), jnp.uint8)}),
        "obs['map'] is uint8[2, 2]",
    ),
    "a single number": (
        both(obs=lambda x: x[..., :1]),
        "obs is a single number, which layer normalisation makes almost invisible: add a constant feature",
    ),
    "a weak type": (
        {"reset": with_state(lambda state: state | {"count": 0}), "step": with_state(with_strong_types)},
        "the type of state['count'] is weak after reset or after step, but not after both: qlax fixes it, but a loop "
        "of your own would compile twice; give numbers a dtype, as jnp.float32(0) or .astype(jnp.float32)",
    ),
    "both at the limit": (
        {"step": lambda state, step: (state, step._replace(terminated=step.terminated | step.truncated))},
        "terminated and truncated are both set at the time limit of 4 steps, and count as terminated: "
        "set only truncated there, or",
    ),
    "cut before the limit": (
        {
            "env": Counting(time_limit=9),
            "step": lambda state, step: (state, step._replace(truncated=state["count"] > 3)),
        },
        "episodes are cut after 4 steps, but time_limit is 9: make both the same",
    ),
    "may reset itself": (
        {"env": Home()},
        "the state at the end of an episode equals an initial state: never reset in step, as qlax does it",
    ),
}


@pytest.mark.parametrize(("changes", "message"), ADVICE.values(), ids=ADVICE)
def test_advice_is_a_warning_of_whoever_asks(changes, message):
    env = world(**changes)
    with pytest.warns(UserWarning, match=f"^environment {type(env).__name__}: {re.escape(message)}") as warned:
        check_env(env)
    assert len([each for each in warned if "obs tells the time" not in str(each.message)]) == 1
    assert warned[0].filename == __file__


REAL = ("CartPole-v1", "Breakout-MinAtar", "MemoryChain-bsuite", "FrozenLake-misc")
REAL_SLOW = ("gymnax/DeepSea-bsuite", "gymnax/MountainCar-v0", "jaxmarl/smax/3m", "jaxmarl/mpe/simple_spread")


@pytest.mark.parametrize(
    "env_id",
    [*(f"gymnax/{name}" for name in REAL), *(pytest.param(name, marks=pytest.mark.slow) for name in REAL_SLOW)],
)
def test_nothing_is_wrong_with_real_environments(env_id):
    env = qlax.make(env_id)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        check_env(env, num_steps=220)
    if env_id.partition("/")[2] in REAL:
        assert not [each for each in warned if "environment" in str(each.message)]


def test_check_env_takes_only_legal_actions_and_ends_no_episode_twice():
    def punish(state, step):  # nan for the illegal action 1, and for a step after the end
        wrong = (step.reward == 1) | (state["count"] > 4)
        return state, step._replace(reward=jnp.where(wrong, jnp.nan, step.reward))

    def masked(change):
        return lambda state, step: change(state, step._replace(legal=jnp.array([True, False, True])))

    check_env(world(reset=masked(unchanged), step=masked(punish)))


def test_check_env_handles_random_keys_in_the_state():
    keyed = with_state(lambda state: state | {"key": jax.random.key(0)})

    class Unkeyed(Counting):
        def step(self, key, state, action):
            return super().step(key, {name: state[name] for name in ("start", "count")}, action)

    check_env(world(reset=keyed, step=keyed, env=Unkeyed()), num_steps=5)


class Host:
    """Three counters on the host, which end by action 1 once they have reached 3, or by the time limit.

    Each step pays 1, or `pay(count)`. As in most back ends, a reset takes a step. `qlax.Episodes` makes the steps, or
    with `raw` the class itself.
    """

    num_actions = 2

    def __init__(self, *, time_limit=6, reset_takes_a_step=True, random_starts=False, pay=lambda count: 1.0, raw=False):
        self.num_envs, self.time_limit, self.limit, self.pay, self.raw = 3, time_limit, time_limit, pay, raw
        self.reset_takes_a_step, self.random_starts = reset_takes_a_step, random_starts
        self.memory = np.zeros((3, 2), np.float32)  # memory that is used for every observation
        self.episodes = Episodes(3, reset_takes_a_step=reset_takes_a_step)

    def reset(self, seed):
        self.random = np.random.default_rng(seed)
        self.start, self.count, self.over = np.zeros(3), np.zeros(3, int), np.zeros(3, bool)
        self.total, self.length = np.zeros(3), np.zeros(3)
        self.begin(np.ones(3, bool))
        return self.episodes.begin(self.show())

    def begin(self, where):
        self.start = np.where(where, self.random.random(3) if self.random_starts else 0, self.start)
        self.count = np.where(where, 0, self.count)

    def show(self):
        self.memory[:] = np.stack([self.start, self.count], axis=1)
        return self.memory

    def step(self, action):
        begins = self.over if self.reset_takes_a_step else np.zeros(3, bool)
        self.count = self.count + 1
        reward = np.where(begins, 0, [self.pay(count) for count in self.count])
        terminated = (action == 1) & (self.count >= 3) & ~begins
        truncated = (self.count >= self.limit) & ~begins
        self.over = terminated | truncated
        self.begin(begins if self.reset_takes_a_step else self.over)
        if self.raw:
            return self.own(reward, terminated, truncated)
        return self.episodes.step(self.show(), reward, terminated, truncated)

    def own(self, reward, terminated, truncated):
        """Make a step without `qlax.Episodes`; the returns and lengths count every step, resets included."""
        self.total, self.length = self.total + reward, self.length + 1
        metrics = {"episode_return": self.total, "episode_length": self.length}
        metrics = {name: np.where(self.over, value, np.nan).astype(np.float32) for name, value in metrics.items()}
        self.total, self.length = np.where(self.over, 0, self.total), np.where(self.over, 0, self.length)
        return Step(self.show(), None, reward, terminated, truncated, metrics)

    def close(self):
        pass


def changed(change=lambda step: step, says_limit=None, **options):
    env = Host(**options)
    reset, step = env.reset, env.step
    env.reset, env.step = lambda seed: change(reset(seed)), lambda action: change(step(action))
    env.time_limit = says_limit or env.time_limit
    return env


def with_metric(name, function):
    return lambda step: step._replace(metrics={**step.metrics, name: function(step.metrics[name])})


def clipped(step):
    return step._replace(reward=np.sign(step.reward))


def unmarked(step):
    return step._replace(truncated=np.zeros(3, bool))


def ended(step):
    return ~np.isnan(step.metrics["episode_return"])


def silent_where_cut(step):
    cut = ended(step) & ~step.terminated
    metrics = {name: np.where(cut, np.nan, value) for name, value in step.metrics.items()}
    return step._replace(metrics=metrics)


class Shared(Host):
    shared_at = staticmethod(lambda progress: progress)


BREAKS_ON_THE_HOST = {
    "resets that take a step, passed on": (
        Host(raw=True, time_limit=100),
        "the step after an end ignores its action and begins a new episode; expected truncated there: "
        "qlax.Episodes does this bookkeeping",
    ),
    "the same, begun at random": (
        Host(raw=True, time_limit=100, random_starts=True, pay=lambda count: count),
        "the step after an end ignores its action and begins a new episode; expected truncated there",
    ),
    "a cut that is not marked": (
        changed(unmarked, time_limit=2),
        "the step after an episode was cut begins a new one; expected truncated there: qlax.Episodes",
    ),
    "length": (
        changed(with_metric("episode_length", lambda x: x + 1)),
        "episode_length is 4 after 3 steps, not counting resets",
    ),
    "return": (
        changed(with_metric("episode_return", lambda x: x * 2)),
        "episode_return is 6, but the rewards (raw_reward, if reported) add up to 3: qlax.Episodes does",
    ),
    "clipped, and not said so": (
        changed(clipped, pay=lambda count: 2.0),
        "but the rewards (raw_reward, if reported) add up to",
    ),
    "one account only": (
        changed(with_metric("episode_length", lambda x: x * np.nan)),
        "episode_return and episode_length are nan at different steps; expected numbers where an episode ended, nan",
    ),
    "a cut without accounts": (
        changed(silent_where_cut),
        "truncated is set where no episode ended, neither in this step nor in the one before, by metrics['episode_",
    ),
    "goes on after its limit": (
        changed(time_limit=9, says_limit=3),
        "an episode goes on after 3 steps, but time_limit is 3",
    ),
    "a cut is a termination": (
        changed(lambda step: step._replace(terminated=step.terminated | ended(step)), time_limit=3),
        "terminated is set at the time limit of 3 steps; expected truncated",
    ),
    "a reward each": (
        changed(lambda step: step._replace(reward={"a": step.reward})),
        "reward of reset has shape None; expected (3,), one per environment",
    ),
    "words for obs": (
        changed(lambda step: step._replace(obs=np.array(["a"] * 3))),
        "obs of reset holds <U1; expected numbers or bool",
    ),
    "names that have no order": (
        changed(lambda step: step._replace(obs={1: step.obs, "a": step.obs})),
        "obs of reset is not a tree of arrays: ",
    ),
    "nothing to see": (
        changed(lambda step: step._replace(obs=())),
        "obs of reset holds no array: (); expected an array",
    ),
    "a name of the log": (
        changed(lambda step: step._replace(metrics={**step.metrics, "loss": step.reward})),
        "metrics of reset have 'loss', which is one of qlax's own names; expected another name",
    ),
    "what only JAX has": (Shared(), "it has 'shared_at', which only an environment in JAX may have"),
}


@pytest.mark.parametrize(("env", "message"), BREAKS_ON_THE_HOST.values(), ids=BREAKS_ON_THE_HOST)
def test_what_a_host_env_does_wrong_is_named(env, message):
    with pytest.raises(UserError, match=f"^environment {type(env).__name__}: .*{re.escape(message)}"):
        check_env(env)


def raw_reward_too(step):
    return clipped(step._replace(metrics={**step.metrics, "raw_reward": step.reward}))


def lives(step):
    """Mark every second step as terminated, as if a life was lost there."""
    return step._replace(terminated=step.terminated | (~step.truncated & ~ended(step) & (step.obs[:, 1] == 2)))


GOOD_ON_THE_HOST = {
    "resets that take a step": Host(),
    "resets at once": Host(reset_takes_a_step=False, random_starts=True),
    "rewards that are sparse": Host(pay=lambda count: float(count == 3)),
    "the first step pays nothing": Host(reset_takes_a_step=False, pay=lambda count: count - 1.0),
    "lives": changed(lives),
    "clipped": changed(raw_reward_too, pay=lambda count: 2.0),
}


@pytest.mark.parametrize("env", GOOD_ON_THE_HOST.values(), ids=GOOD_ON_THE_HOST)
def test_a_good_host_env_passes_without_a_word(env):
    with no_warning_but_of_clocks():
        check_env(env)
        check_host_env(env)  # as at the beginning of every training


def test_advice_for_a_host_env():
    whole = changed(lambda step: step._replace(obs=step.obs.astype(int)))
    with pytest.warns(UserWarning, match=r"^environment Host: obs is int64\[2\], which no network of qlax accepts"):
        check_env(whole)
    with pytest.warns(UserWarning, match="^environment Host: episodes are cut after 2 steps, but time_limit is 7"):
        check_env(changed(time_limit=2, says_limit=7))


class Clock(Counting):
    """Observation of a random number, and of the time since the episode began, converted by `shown`."""

    def __init__(self, shown, time_limit=4):
        super().__init__(time_limit=time_limit)
        self.shown = shown

    def step(self, key, state, action):
        state, step = super().step(key, state, action * 0)
        return state, step._replace(obs=step.obs.at[0].set(jax.random.uniform(key)))

    def _show(self, state, reward, terminated, count):
        step = super()._show(state, reward, terminated, count)
        drawn = step.obs[:1].astype(jnp.float32)
        return step._replace(obs=jnp.concatenate([drawn, self.shown(state["count"]).reshape(-1).astype(jnp.float32)]))


@pytest.mark.parametrize(
    ("env", "is_clock"),
    [
        (Clock(lambda count: count), True),
        (Clock(lambda count: jnp.arange(5) == count), True),
        (Clock(lambda count: count % 2), False),  # the end is observed like the beginning, which is trained
        (Clock(lambda count: count == 2), False),
        (Clock(lambda count: count, time_limit=40), False),  # too few episodes for a verdict
        (Host(), True),
        (Host(time_limit=2), True),
        (Host(time_limit=2, reset_takes_a_step=False), False),  # its final observations are never returned
    ],
)
def test_a_clock_that_is_unique_at_the_time_limit_is_advised_against(env, is_clock):
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        check_env(env)
    limit = f"obs tells the time since the episode began, and episodes are cut after {env.time_limit} steps: values "
    assert [str(each.message).startswith(f"environment {type(env).__name__}: {limit}") for each in warned] == [
        True
    ] * is_clock
