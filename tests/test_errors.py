"""Exceptions in the user's own code: one line names the place, and the whole traceback is shown on request."""

import re
import sys

import jax
import pytest
from runs import CARTPOLE, SMALL, flags

import qlax
from qlax import errors
from qlax.cli.main import main
from qlax.training import contracts

CODE = """
import jax, jax.numpy as jnp, numpy as np
import flax.linen as nn
import qlax

def stumble():
    return [][3]  # STUMBLE

class Fine:
    num_actions = 2
    time_limit = 9
    def reset(self, key):
        return jnp.int32(0), self.show(0)
    def step(self, key, state, action):
        return state + 1, self.show(state + 1)
    def show(self, state):
        false = jnp.bool_(False)
        return qlax.Step(jnp.ones(3) * state, None, jnp.float32(0), false, jnp.asarray(state >= 9), {})

class InReset(Fine):
    def reset(self, key):
        return stumble()

class InStep(Fine):
    def step(self, key, state, action):
        return stumble()

class Traced(Fine):
    def step(self, key, state, action):
        if action > 0:  # TRACED
            state = state + 1
        return state, self.show(state)

class InScore(Fine):
    def score(self, value):
        return stumble() if value == 0.0 and self.armed else 1.0
    armed = False

class InConstructor(Fine):
    def __init__(self):
        stumble()

class OnHost:
    num_actions, calls = 2, 0
    def __init__(self, num_envs):
        self.num_envs, self.episodes = num_envs, qlax.Episodes(num_envs)
    def reset(self, seed):
        return self.episodes.begin(np.ones((self.num_envs, 3), np.float32))
    def step(self, action):
        OnHost.calls += 1
        if OnHost.calls > 100:
            stumble()
        zeros = np.zeros(self.num_envs, bool)
        return self.episodes.step(np.ones((self.num_envs, 3), np.float32), zeros * 1.0, zeros, zeros)
    def close(self):
        pass

class Wrap(qlax.Wrapper):
    def step(self, *arguments):
        return stumble()

class Net(nn.Module):
    num_actions: int
    recurrent = False
    def initial_memory(self, batch):
        return ()
    @nn.compact
    def __call__(self, memory, obs, first, train):
        return stumble()

class Narrow(Net):
    @nn.compact
    def __call__(self, memory, obs, first, train):
        return nn.Dense(3)(obs.astype(jnp.float32)), memory

class Tracker:
    def __init__(self, tracked):
        pass
    def log(self, line):
        stumble()
    def finish(self, summary, video):
        pass
"""
LINE = next(number for number, line in enumerate(CODE.splitlines(), 1) if "STUMBLE" in line)
TRACED = next(number for number, line in enumerate(CODE.splitlines(), 1) if "TRACED" in line)
PLACE = f"IndexError: list index out of range (mine.py:{LINE}, in stumble)"


@pytest.fixture(autouse=True)
def _beside_the_code(monkeypatch, tmp_path):
    (tmp_path / "mine.py").write_text(CODE)
    (tmp_path / "unimportable.py").write_text("import mine\nmine.stumble()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in ("mine", "unimportable"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("mine:InReset", "reset(key) cannot be traced by JAX: list index out of range (mine.py:"),
        ("mine:InStep", f"list index out of range (mine.py:{LINE}, in stumble)"),
        ("mine:Traced", f"(mine.py:{TRACED}, in step); use jnp.where"),
        ("mine:InConstructor", PLACE),
        ("unimportable:Env", PLACE),
        ("mine:OnHost", f"mine:OnHost crashed: {PLACE}"),
        (f"{CARTPOLE} --wrappers mine:Wrap", f"(mine.py:{LINE}, in stumble)"),
        (f"{CARTPOLE} --network mine:Net", f"network 'mine:Net' breaks its contract: {PLACE}"),
        (f"{CARTPOLE} --network mine:Narrow", "network 'mine:Narrow' returns q of shape (1, 4, 3) and dtype float32; "),
    ],
)
def test_a_line_names_the_place_in_the_code_of_the_user(words, expected, capsys):
    settings = {name: value for name, value in SMALL.items() if name != "hidden" or "--network" not in words}
    try:
        code = main(["train", *words.split(), "--out", "run", *flags(settings)])
    except SystemExit as ended:
        code = ended.code
    said = capsys.readouterr().err.strip().splitlines()
    assert code == (1 if "OnHost" in words else 2)
    assert expected in said[-1]
    assert said[-1].endswith("--traceback shows all of it") == ("Narrow" not in words)


@pytest.mark.parametrize("how", ["flag", "variable"])
def test_the_whole_traceback_is_shown_if_asked_for(how, capsys, monkeypatch):
    monkeypatch.setenv("QLAX_TRACEBACK", "1" if how == "variable" else "0")
    with pytest.raises(SystemExit) as ended:
        main(["train", "mine:InStep", "--out", "run", *["--traceback"] * (how == "flag")])
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert re.search(rf'File ".*mine.py", line {LINE}, in stumble\n +return \[\]\[3\]', said)
    assert said.strip().splitlines()[-1].startswith("qlax: ")
    assert "--traceback" not in said


def test_a_score_that_fails_at_the_end_loses_nothing():
    import mine

    mine.InScore.armed = False
    qlax.check_env(mine.InScore())

    def arm(line):
        mine.InScore.armed = True

    with pytest.raises(qlax.RunError, match=r"score of mine:InScore failed: IndexError.*mine\.py.*qlax resume run"):
        qlax.train("mine:InScore", out="run", callback=arm, **SMALL)
    mine.InScore.armed = False
    assert qlax.resume("run").summary["eval_score"]["mean"] == 1.0


def test_a_tracker_that_fails_is_named_with_its_place(capsys):
    qlax.train(CARTPOLE, out="run", trackers=("mine:Tracker",), **SMALL)
    assert f"the tracker mine:Tracker failed and is told no more: {PLACE}" in capsys.readouterr().err


def test_parts_of_the_algorithm_are_named():
    import mine

    with pytest.raises(qlax.UserError, match=r"plugin loss breaks its contract: IndexError.*mine\.py"):
        qlax.train(CARTPOLE, out="run", loss=lambda error: mine.stumble(), **SMALL)
    with pytest.raises(qlax.UserError, match=r"loss returns float32\[\]; expected float32\[4,1,2\]"):
        qlax.train(CARTPOLE, out="run", loss=lambda error: (error**2).mean(), **SMALL)
    with pytest.raises(qlax.UserError, match=r"explore returns float32\[4,1\]; expected int32\[4,1\]"):
        qlax.train(CARTPOLE, out="run", explore=lambda key, q, legal, epsilon: q.max(-1), **SMALL)
    with pytest.raises(qlax.UserError, match="optimizer returns float; expected an optax"):
        qlax.train(CARTPOLE, out="run", optimizer=lambda hyper, steps: 0.1, **SMALL)


def test_users_are_not_blamed_for_a_bug_of_qlax(monkeypatch):
    from qlax.training import plan

    def buggy(*arguments):
        return jax.numpy.ones(3) @ jax.numpy.ones(4)

    buggy.__code__ = buggy.__code__.replace(co_filename=contracts.__file__)
    monkeypatch.setattr(plan, "_sums", buggy)
    with pytest.raises(TypeError, match="dot"):
        qlax.train(CARTPOLE, out="run", loss=lambda error: error**2, **SMALL)


def test_the_innermost_place_of_the_user_is_the_one():
    try:
        try:
            qlax.q_lambda("not an array", 1, 2, 3, 4, 5)
        except Exception as error:
            raise qlax.UserError("it failed") from error
    except qlax.UserError as error:
        place = errors.place_of(error.__cause__)
    assert (place.name, place.filename) == ("test_the_innermost_place_of_the_user_is_the_one", __file__)
    assert errors.place_of(None) is None
