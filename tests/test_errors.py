"""Exceptions in the user's own code: one line names the place, and the whole traceback is shown on request."""

import os
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

class InEvaluation(Net):
    @nn.compact
    def __call__(self, memory, obs, first, train):
        if obs.shape[1] == 3:  # eval_episodes
            stumble()
        return nn.Dense(2)(obs.astype(jnp.float32)), memory

class Armed(Net):
    armed = ""
    @nn.compact
    def __call__(self, memory, obs, first, train):
        if Armed.armed == "network":
            stumble()
        return nn.Dense(2)(obs.astype(jnp.float32)), memory

class Shown(Fine):
    def render(self, state):
        return stumble() if Armed.armed == "render" else np.zeros((16, 16, 3), np.uint8)
    def score(self, value):
        return stumble() if Armed.armed == "score" and value == 0.25 else 1.0
    def show(self, state):
        return super().show(state)._replace(reward=jnp.where(state == 9, 0.25, 0.0))

class InCallback(Fine):
    def step(self, key, state, action):
        state, step = super().step(key, state, action)
        shape = jax.ShapeDtypeStruct((), jnp.float32)
        return state, step._replace(reward=jax.pure_callback(self.look, shape, state, vmap_method="sequential"))
    def look(self, state):
        return np.float32(stumble() if state == 9 else 0)

class InProperty(Fine):
    @property
    def evaluated(self):
        return stumble()

class InOpponent(Fine):
    def with_network(self, network):
        return stumble()

class NoParams(Net):
    def __call__(self, memory, obs, first, train):
        return jnp.zeros((*obs.shape[:2], 2)), memory

class NoRows(Net):
    def initial_memory(self, batch):
        return jnp.zeros(5)

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


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("mine:InProperty", f"environment InProperty: evaluated cannot be read: {PLACE}; expected an attribute"),
        ("mine:InOpponent", f"environment 'mine:InOpponent' breaks its contract: {PLACE}"),
        (f"{CARTPOLE} --network mine:InEvaluation", f"network 'mine:InEvaluation' breaks its contract: {PLACE}"),
        (f"{CARTPOLE} --network mine:NoParams", "network 'mine:NoParams' has no parameters; expected init"),
        (f"{CARTPOLE} --network mine:NoRows", "an initial_memory of float32[5] for a batch of 4; expected [B, ...]"),
    ],
)
def test_code_that_runs_only_later_is_named_too(words, expected, capsys):
    settings = {name: value for name, value in SMALL.items() if name != "hidden" or "--network" not in words}
    with pytest.raises(SystemExit) as ended:
        main(["train", *words.split(), "--out", "run", *flags(settings)])
    assert ended.value.code == 2
    assert expected in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_python_callback_that_fails_is_named_with_its_place(capsys):
    assert main(["train", "mine:InCallback", "--out", "run", *flags(SMALL)]) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert (
        said == f"qlax: a Python callback of mine:InCallback failed: {PLACE}; fix it, then go on with: qlax resume run"
    )


def test_playing_names_the_place(monkeypatch):
    import mine

    own = {name: value for name, value in SMALL.items() if name != "hidden"}
    qlax.train("mine:Shown", out="run", network="mine:Armed", **own)
    place = re.escape(PLACE)
    monkeypatch.setattr(mine.Armed, "armed", "network")
    for play in (lambda: qlax.evaluate("run", episodes=2), lambda: qlax.render("run", "a.gif", max_steps=2)):
        with pytest.raises(qlax.UserError, match=rf"network 'mine:Armed' breaks its contract: {place}"):
            play()
    with pytest.raises(qlax.UserError, match=rf"'mine:Armed' cannot be exported: {place}"):
        qlax.export("run", out="a.stablehlo")
    monkeypatch.setattr(mine.Armed, "armed", "render")
    with pytest.raises(qlax.UserError, match=rf"mine:Shown cannot be rendered: {place}"):
        qlax.render("run", "b.gif", max_steps=2)
    monkeypatch.setattr(mine.Armed, "armed", "score")
    with pytest.raises(qlax.UserError, match=rf"the method score of mine:Shown failed: {place}"):
        qlax.evaluate("run", episodes=2)


def test_a_module_that_the_user_names_is_theirs_where_it_is_installed(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "site-packages"
    folder.mkdir()
    (folder / "installed.py").write_text(CODE)
    monkeypatch.syspath_prepend(folder)
    with pytest.raises(SystemExit):
        main(["train", CARTPOLE, "--network", "installed:Net", "--out", "run"])
    sys.modules.pop("installed")
    expected = f"list index out of range ({os.path.join('site-packages', 'installed.py')}:{LINE}, in stumble)"
    assert expected in capsys.readouterr().err


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
    assert os.environ["QLAX_TRACEBACK"] == "1"  # so that the jobs of a sweep inherit it


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
    assert f"the tracker mine:Tracker failed and receives no more lines: {PLACE}" in capsys.readouterr().err


def test_parts_of_the_algorithm_are_named():
    import mine

    with pytest.raises(qlax.UserError, match=r"argument loss breaks its contract: IndexError.*mine\.py"):
        qlax.train(CARTPOLE, out="run", loss=lambda error: mine.stumble(), **SMALL)
    with pytest.raises(qlax.UserError, match=r"loss returns float32\[\]; expected float32\[4,1,2\]"):
        qlax.train(CARTPOLE, out="run", loss=lambda error: (error**2).mean(), **SMALL)
    with pytest.raises(qlax.UserError, match=r"explore returns float32\[4,1\]; expected int32\[4,1\]"):
        qlax.train(CARTPOLE, out="run", explore=lambda key, q, legal, epsilon: q.max(-1), **SMALL)
    with pytest.raises(qlax.UserError, match=r"returns returns float32\[7,4,1\]; expected float32\[9,4,1\]"):
        qlax.train(CARTPOLE, out="run", returns=lambda *arguments: arguments[3][:-2], **SMALL)
    scalar = qlax.Mixing(lambda q, legal: q.max(), lambda q, action: q.max())
    with pytest.raises(qlax.UserError, match=r"mixing.value returns float32\[\]; expected float32\[4,1\]"):
        qlax.train(CARTPOLE, out="run", mixing=scalar, **SMALL)
    with pytest.raises(qlax.UserError, match="optimizer returns float; expected an optax"):
        qlax.train(CARTPOLE, out="run", optimizer=lambda hyper, steps: 0.1, **SMALL)


BUGS = """
import jax

def shapes(*arguments):
    return jax.numpy.ones(3) @ jax.numpy.ones(4)

def gradient(*arguments):
    double = jax.custom_vjp(lambda x: 2 * x)
    double.defvjp(lambda x: (2 * x, None), lambda _, g: (jax.numpy.ones(7),))
    return jax.grad(lambda x: double(x).sum())(jax.numpy.ones(3))
"""


@pytest.mark.parametrize("filtering", ["quiet_remove_frames", "remove_frames", "off"])
@pytest.mark.parametrize(("bug", "kind", "said"), [("shapes", TypeError, "dot"), ("gradient", ValueError, "VJP")])
def test_users_are_not_blamed_for_a_bug_of_qlax(bug, kind, said, filtering, monkeypatch):
    from qlax.training import plan

    bugs = {}
    exec(compile(BUGS, contracts.__file__, "exec"), bugs)
    monkeypatch.setattr(plan, "_sums", bugs[bug])

    def program():
        try:
            raise KeyError("the program trains while it handles an exception of its own")
        except KeyError:
            qlax.train(CARTPOLE, out="run", loss=lambda error: error**2, **SMALL)

    with jax._src.config.traceback_filtering(filtering), pytest.raises(kind, match=said) as caught:
        program()
    assert not isinstance(caught.value, qlax.UserError)


def test_the_innermost_place_of_the_user_is_the_one():
    try:
        try:
            qlax.q_lambda("not an array", 1, 2, 3, 4, 5)
        except Exception as error:
            raise qlax.UserError("it failed") from error
    except qlax.UserError as error:
        place = errors.place_of(error.__cause__)
    assert (place.name, place.filename) == ("test_the_innermost_place_of_the_user_is_the_one", __file__)
