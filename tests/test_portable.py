"""Windows and macOS, imitated on Linux: qlax runs without the functions that they lack, and with any paths."""

import json
import os
import subprocess
import sys

import pytest
from pages import ROOT

import qlax
from qlax.cli.main import main

TINY = ["--num-minibatches", "2", "--num-epochs", "1", "--eval-episodes", "2", "--checkpoint-interval", "1"]
STEPS = 4 * 32 * 64  # environment steps of four updates of the preset cartpole
# For the modules of qlax, and for no others, a process is one of Windows: modules, functions and signals of POSIX are
# missing, processes cannot be told to call a function before they begin, and other signals than SIGTERM reach nobody.
AS_ON_WINDOWS = """
import builtins, importlib, os, signal, subprocess, sys

MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
SIGNALS = {"SIGABRT", "SIGFPE", "SIGILL", "SIGINT", "SIGSEGV", "SIGTERM", "SIG_DFL", "SIG_IGN", "Signals"}
OF_SIGNAL = {"alarm", "pause", "pthread_kill", "pthread_sigmask", "setitimer", "siginterrupt", "sigpending", "sigwait"}
OF_OS = {"fork", "forkpty", "getgid", "getloadavg", "getpgid", "getpgrp", "getuid", "geteuid", "killpg", "mkfifo",
         "nice", "posix_spawn", "register_at_fork", "sched_getaffinity", "sched_setaffinity", "setpgid", "setsid",
         "statvfs", "sysconf", "uname", "wait3", "wait4"}
OF_SIGNAL |= {name for name in dir(signal) if name.startswith("SIG")} - SIGNALS
HIDDEN = {"os": OF_OS, "signal": OF_SIGNAL, "sys": set()}
REPLACED = {"os": {"name": "nt"}, "signal": {}, "sys": {"platform": "win32"}}

class Seen:
    def __init__(self, name):
        self.__dict__["_name"], self.__dict__["_module"] = name, importlib.import_module(name)

    def __getattr__(self, name):
        if name in HIDDEN[self._name]:
            raise AttributeError(f"module {self._name!r} has no attribute {name!r} on Windows")
        return REPLACED[self._name].get(name, getattr(self._module, name))

    def __setattr__(self, name, value):
        setattr(self._module, name, value)

SEEN, real = {name: Seen(name) for name in HIDDEN}, builtins.__import__

def pretend(name, globals=None, locals=None, fromlist=(), level=0):
    if globals and str(globals.get("__name__")).partition(".")[0] == "qlax":
        if name in MODULES:
            raise ModuleNotFoundError(f"No module named {name!r} on Windows", name=name)
        if name in SEEN:
            return SEEN[name]
    return real(name, globals, locals, fromlist, level)

builtins.__import__ = pretend
begin, send = subprocess.Popen.__init__, subprocess.Popen.send_signal

def begun(self, *words, preexec_fn=None, **options):
    if preexec_fn is not None:
        raise ValueError("preexec_fn is not supported on Windows platforms")
    begin(self, *words, **options)

def sent(self, number):
    if number != signal.SIGTERM:
        raise ValueError(f"Unsupported signal: {number}")
    send(self, number)

subprocess.Popen.__init__, subprocess.Popen.send_signal = begun, sent
"""


def python(code, folder, *words, **variables):
    """Run code in a process of its own without a terminal, and return what it prints."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), *sys.path]), **variables}
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    said = done.stdout.decode() + done.stderr.decode()
    assert done.returncode == 0, said
    return said


COMMAND = "from qlax.cli.main import entry; entry()"


def weights(run):
    return (run / "agents" / "0.safetensors").read_bytes()


def test_the_pretence_hides_what_windows_lacks():
    """If nothing were hidden, the tests below would prove nothing."""
    tried = """
for hidden in ("import fcntl", "import os; os.fork", "import signal; signal.SIGUSR1", "import signal; signal.SIGKILL"):
    for module, error in (("qlax.some", (ImportError, AttributeError)), ("other", ())):
        try:
            exec(hidden, {"__name__": module})
        except error:
            print("hidden")
"""
    assert python(AS_ON_WINDOWS + tried, ROOT).split() == ["hidden"] * 4


def test_a_run_trains_stops_and_resumes_as_on_windows(tmp_path):
    command = AS_ON_WINDOWS + COMMAND
    for name, more in (("whole", []), ("parts", ["--until", "0"])):
        words = ["train", "cartpole", "--total-steps", str(STEPS), "--eval-interval", "1", *TINY, *more]
        python(command, tmp_path, *words, "--out", name)
    done = json.loads((tmp_path / "parts" / "summary.json").read_text())
    assert done["stopped_by"] == "until"
    assert done["updates"] < 4
    python(command, tmp_path, "resume", "parts")
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")


@pytest.mark.slow
def test_a_sweep_runs_its_jobs_as_on_windows(tmp_path):
    words = ["sweep", "cartpole", "--total-steps", "2048", *TINY, "--num-epochs", "1", "2", "--out", "both"]
    said = python(AS_ON_WINDOWS + COMMAND, tmp_path, *words)
    assert "2 of 2 complete" in said
    assert len((tmp_path / "both" / "sweep.csv").read_text().splitlines()) == 3


@pytest.mark.slow
@pytest.mark.parametrize("system", ["win32", "darwin"])
def test_type_checkers_find_every_name_on_other_systems(system, tmp_path):
    words = ["--platform", system, "--cache-dir", str(tmp_path)]
    done = subprocess.run([sys.executable, "-m", "mypy", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_a_path_may_have_spaces_and_any_letters_and_the_terminal_may_know_none_of_them(tmp_path, monkeypatch):
    folder = tmp_path / "Läufe für später 実験"
    folder.mkdir()
    (folder / "größe.toml").write_text('env = "gymnax/CartPole-v1"\nhidden = [8]\n')
    words = [
        "train",
        "--config",
        "größe.toml",
        "--total-steps",
        "2048",
        "--num-envs",
        "16",
        *TINY,
        "--out",
        "ein Lauf ✓",
    ]
    ascii_only = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    said = python(COMMAND, folder, *words, **ascii_only)
    assert "run directory ein Lauf \\u2713" in said
    monkeypatch.chdir(folder)
    for command in ("evaluate --episodes 2", "plot --out Bild✓.png", "report --no-video", "export"):
        name, *more = command.split()
        assert main([name, "ein Lauf ✓", *more]) == 0
    assert main(["render", "ein Lauf ✓", "--out", "Film ✓.gif", "--max-steps", "3"]) == 0
    assert {"Bild✓.png", "Film ✓.gif", "report.html"} <= {file.name for file in folder.iterdir()}
    agent = qlax.load(folder / "ein Lauf ✓")
    assert agent.act([0.01, 0.02, 0.03, 0.04]) in (0, 1)


@pytest.mark.slow
def test_a_home_that_cannot_be_written_does_no_harm(tmp_path):
    """A file in place of the home directory stands for missing rights, which root always has."""
    (tmp_path / "home").write_text("")
    nowhere = str(tmp_path / "home")
    variables = dict.fromkeys(("HOME", "USERPROFILE", "LOCALAPPDATA", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"), nowhere)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JAX_COMPILATION_CACHE_DIR")}
    code = "import os\nfor name in set(os.environ) - {!r}: del os.environ[name]\n".format(
        {*kept, *variables, "PYTHONPATH"}
    )
    words = ["train", "cartpole", "--total-steps", "2048", *TINY, "--out", "run"]
    said = python(code + COMMAND, tmp_path, *words, **variables)
    assert "greedy return" in said
    assert "UserWarning" not in said  # JAX warns for every program that it cannot cache
    assert "Traceback" not in said
    assert (tmp_path / "run" / "curve.png").exists()
