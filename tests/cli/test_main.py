import importlib
import subprocess
import sys

import pytest
from pages import ROOT

from qlax.cli.main import SUCCESSORS, main

BROKEN = """
import jax.numpy as jnp
import qlax

def explode():
    return 1 / 0

class Silent:
    num_actions = 2
    def reset(self, key):
        return 0, None
    def step(self, key, state, action):
        return 0, None
"""


@pytest.fixture(autouse=True)
def in_an_empty_directory(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train", "expected one of: a preset"),
        ("train cartpol", "did you mean 'cartpole'"),
        ("train gymnax/CartPole", "gymnax has no environment 'CartPole'; did you mean 'CartPole-v1'"),
        ("train gymnas/CartPole-v1", "unknown suite 'gymnas'; did you mean 'gymnax'"),
        ("train gymnax/Pendulum-v1", "has continuous actions of 1 dimension; bins=3 divides"),
        ("train cartpole --lamm 0.5", "unknown flag '--lamm'; did you mean '--lam'"),
        ("train cartpole --gama 0.5", "unknown flag '--gama'; did you mean '--gamma'"),
        ("train cartpole extra", "unknown argument 'extra'"),
        ("train cartpole --gamma 1.5", "gamma=1.5: expected a number from 0 to 1"),
        ("train cartpole --lam 0 -0.1", "expected a number from 0 to 1"),
        ("train cartpole --epsilon-end 2", "epsilon_end=2"),
        ("train cartpole --num-envs 0", "num_envs=0: expected a whole number from 1"),
        ("train cartpole --seeds few", "seeds=few: expected a whole number from 1"),
        ("train cartpole --num-minibatches 30", "does not divide the 32 environments x 64 steps; use 16 or 32"),
        ("train cartpole --env-options gravitas=1", "no option 'gravitas'; did you mean 'gravity'"),
        ("train cartpole --env-options gravity", "env_options=gravity: expected name=value"),
        ("train cartpole --env-options gravity=high", "gravity='high'"),
        ("train cartpole --out used", "used exists and is not empty"),
        ("train cartpole --norm leyer", "did you mean 'layer'"),
        ("train --config damaged.json", "damaged.json is not JSON"),
        ("train --config foreign.json", "unknown setting 'lr' in foreign.json"),
        ("train --config missing.json", "missing.json cannot be read"),
        ("train nowhere:Env", "cannot import 'nowhere'"),
        ("train broken_world:Silent2", "has no 'Silent2'; did you mean 'Silent'"),
        ("train broken_world:Silent", "environment Silent: reset(key) returns NoneType as its second result"),
        ("train cartpole --encoder cnn", "encoder=cnn: expected an observation with three axes"),
        ("train cartpole --env-options max_steps_in_episode=Infinity", "max_steps_in_episode=inf: expected a number"),
        ("train cartpole --out /dev/null/run", "cannot make /dev/null/run: Not a directory"),
        ("train minatr/breakout", "did you mean 'minatar/breakout'"),
        ("train broken_world:explode", "broken_world:explode cannot be made: ZeroDivisionError: division by zero"),
        ("train cartpole --network broken_world:Silent --hidden 8", "hidden is for qlax's own network"),
        ("train cartpole --network broken_world:Silent", "broken_world:Silent"),
        ("resume nowhere", "nowhere holds no run"),
        ("presets cartpol", "did you mean 'cartpole'"),
        ("envs gymnas", "did you mean 'gymnax'"),
        ("trane", "unknown command 'trane'; did you mean 'train'?"),
        *(
            (f"sweep minatar {old} 4", f"there is no flag {old} any more; {said}")
            if old.startswith("--")
            else (f"{old} minatar", f"there is no command {old!r} any more; {said}")
            for old, said in SUCCESSORS.items()
        ),
        ("train cartpole --seed -5", "seed=-5: expected a whole number from 0"),
        ("train cartpole -5", "unknown argument '-5'"),
        ("train cartpole --out=run extra", "unknown argument 'extra'"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(words, message, capsys, monkeypatch, tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").write_text("mine")
    (tmp_path / "damaged.json").write_text('{"env": ')
    (tmp_path / "foreign.json").write_text('{"env": "gymnax/CartPole-v1", "lr": 1}')
    (tmp_path / "broken_world.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as stopped:
        main(words.split())
    said = capsys.readouterr()
    assert stopped.value.code == 2
    assert message in said.err
    lines = [line for line in said.err.splitlines() if not line.startswith("qlax: presets for")]
    assert len(lines) == 1
    assert said.out == ""
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("words", "said"), [("train --help", "--learning-rate"), ("plot nothing", "holds no run")])
def test_help_and_figures_do_not_wait_for_jax(words, said):
    code = f"""
import sys, qlax.cli.main
try:
    qlax.cli.main.main({words.split()})
except SystemExit:
    sys.exit('jax' in sys.modules)
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said in shown.stdout + shown.stderr


def test_the_package_is_the_command(tmp_path):
    shown = subprocess.run([sys.executable, "-m", "qlax", "presets", "cartpol"], capture_output=True, text=True)
    assert shown.returncode == 2
    assert shown.stderr.startswith("qlax: unknown preset 'cartpol'; did you mean 'cartpole'?")


def test_what_multiprocessing_holds_is_freed(tmp_path, monkeypatch):
    """A process still runs and semaphores are still in use, as when Ctrl-C interrupts the closing of environments."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    code = """
import multiprocessing, sys, time
context = multiprocessing.get_context("forkserver")
queue, process = context.Queue(), context.Process(target=time.sleep, args=(60,), daemon=True)
process.start()
sys.argv = ["qlax", "presets", "cartpol"]
from qlax.cli.main import entry
entry()
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert shown.returncode == 2
    assert shown.stderr.startswith("qlax: unknown preset")
    assert len(shown.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_the_changelog_names_what_succeeds_what_is_gone():
    page = (ROOT / "CHANGELOG.md").read_text()
    assert not [word for word in SUCCESSORS if f"{word}`" not in page]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("import no_such_module", "install the package that has the module 'no_such_module', as with pip"),
        ("raise OSError('libGL.so.1: cannot open shared object file')", "the operating system that has libGL.so.1"),
        ("raise RuntimeError('compiled for NumPy 1')", "RuntimeError: compiled for NumPy 1"),
    ],
)
def test_a_package_that_cannot_be_imported_when_it_is_needed_is_one_line(
    content, message, monkeypatch, capsys, tmp_path
):
    (tmp_path / "drawing_package.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("qlax.plot", lambda *arguments, **options: importlib.import_module("drawing_package"))
    assert main(["plot", "run"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("qlax: a package that is needed cannot be imported: ")
    assert message in line


def test_a_mistake_of_qlax_itself_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr("qlax.plot", lambda *arguments, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["plot", "run"])
