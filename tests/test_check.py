import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counting import Counting

from qlax.check import check_contract, check_env
from qlax.errors import UserError


def unchanged(state, step):
    return state, step


def world(reset=unchanged, step=unchanged, env=None, **attributes):
    """A counting environment (or `env`), what it returns from reset and step changed, with further attributes."""
    env = env or Counting(lengths=(3, 5), time_limit=4)
    env.reset, env.step = reset and then(env.reset, reset), step and then(env.step, step)
    for name, value in attributes.items():
        setattr(env, name, value)
    return env


def then(function, change):
    return lambda *arguments: change(*function(*arguments))


def both(**fields):
    """The same change of a `Step` in reset and step: `field=function`."""

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
        "step(key, state, action) returns tuple second; expected a qlax.Step",
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
        "obs of reset has shape (1,); expected the team of (2,) first",
    ),
    "metrics not a dict": (both(metrics=lambda _: ()), "metrics of reset are (); expected a dict of scalars"),
    "metrics per member": (both(metrics=lambda _: {"count": jnp.zeros(2)}), "metrics"),
    "other state": (
        {"step": with_state(lambda state: state | {"count": jnp.float32(0)})},
        "state differs between reset and step: {'count': 'int32[]', 'start': 'int32[]'} against "
        "{'count': 'float32[]', 'start': 'int32[]'}",
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
    "nothing shared": ({"shared_at": lambda progress: progress}, "it has shared_at but nothing shared"),
    "other shared": (
        {"shared": jnp.int32(1), "shared_at": lambda progress: 1 - progress},
        "shared_at gives float32[], but shared is int32[]",
    ),
    "if on a tracer": ({"step": if_on_a_tracer}, "step(key, state, action) cannot be traced by JAX: Attempted boolean"),
    "error in reset": ({"reset": lambda state, step: 1 / 0}, "reset(key) cannot be traced by JAX: division by zero"),
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


def noise_of_numpy(state, step):
    return state, step._replace(reward=step.reward + np.random.random())


def nan_raw_reward_at_count_2(state, step):
    return state, step._replace(metrics={"raw_reward": jnp.where(state["count"] == 2, jnp.nan, step.reward)})


BREAKS_WHILE_RUNNING = {
    "raw reward": (
        {"reset": nan_raw_reward_at_count_2, "step": nan_raw_reward_at_count_2},
        "raw_reward is not finite after 2 steps",
    ),
    "contract": (both(terminated=jnp.int32), "terminated of reset is int32; expected bool"),
    "NumPy's randomness in step": (
        {"step": noise_of_numpy},
        "gave two outcomes for the same input; expected a pure function",
    ),
    "NumPy's randomness in reset": (
        {"reset": with_state(lambda state: state | {"start": np.random.randint(1 << 20) + state["start"]})},
        "expected a pure function",
    ),
    "running return": (
        both(metrics=lambda _: {"episode_return": jnp.float32(0)}),
        "episode_return is to be nan exactly where no episode ended",
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
        "reset shows an end or a reward; expected a first step without",
    ),
    "reset truncated": ({"reset": both(truncated=jnp.logical_not)["reset"]}, "reset shows an end or a reward"),
    "reset with a reward": ({"reset": both(reward=lambda x: x + 1)["reset"]}, "reset shows an end or a reward"),
}


@pytest.mark.parametrize(("changes", "message"), BREAKS_WHILE_RUNNING.values(), ids=BREAKS_WHILE_RUNNING)
def test_check_env_says_what_is_wrong_and_what_was_expected(changes, message):
    env = world(**changes)
    with pytest.raises(UserError, match=f"^environment {type(env).__name__}: .*{re.escape(message)}"):
        check_env(env, num_steps=20)


def test_good_environments_pass():
    check_env(Counting(lengths=(2, 3), time_limit=2))
    check_env(Team())
    check_env(world(**both(reward=jnp.int32, legal=lambda _: jnp.array([True, False, False]))), num_steps=20)
    check_env(world(num_actions=np.int64(3)), num_steps=5)


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
