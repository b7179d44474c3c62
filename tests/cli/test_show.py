import subprocess
import sys

import pytest
from runs import stand_in_suite

from qlax.cli.main import main
from qlax.config import environments

LIBRARY = "libQt5Core.so.5: cannot open shared object file: No such file or directory"


class PanicError(BaseException):
    """Exception that does not inherit from `Exception`, as some packages written in Rust raise."""


def test_lists_of_environments_and_presets(capsys):
    assert main(["envs", "gymnax", "--sizes"]) == 0
    lines = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    assert lines["gymnax/Breakout-MinAtar"] == ["3", "1000", "bool[10,10,4]"]
    assert main(["envs", "jaxmarl/hanabi"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["jaxmarl/hanabi", "21", "2", "float32[660]"]
    assert main(["presets"]) == 0
    assert any(line.startswith("minatar/breakout ") for line in capsys.readouterr().out.splitlines())
    assert main(["presets", "cartpole"]) == 0
    assert "learning_rate" in capsys.readouterr().out


MISTAKEN = """
import warnings
from counting import Counting

class Lone(Counting):
    def __init__(self):
        super().__init__()
        warnings.warn("another package is out of date", stacklevel=1)

    def reset(self, key):
        state, step = super().reset(key)
        return state, step._replace(obs=step.obs[:1])

    def step(self, key, state, action):
        state, step = super().step(key, state, action)
        return state, step._replace(obs=step.obs[:1])

class Env(Counting):
    def step(self, key, state, action):
        state, step = super().step(key, state, action)
        return state, step._replace(reward=step.reward + float("nan"))
"""


def test_environments_are_checked_and_timed(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mistaken.py").write_text(MISTAKEN)
    assert main(["envs", "--check", "gymnax/Catch-bsuite"]) == 0
    name, speed, actions, *_ = capsys.readouterr().out.splitlines()[1].split()
    assert (name, actions) == ("gymnax/Catch-bsuite", "3")
    assert float(speed.replace(",", "")) > 1000
    with pytest.raises(SystemExit, match="1"):
        main(["envs", "--check", "mistaken:Env"])
    said = capsys.readouterr()
    assert "environment Env: reward is not finite" in said.out
    assert "1 of 1 environments break their contract: mistaken:Env" in said.err
    assert main(["envs", "--check", "mistaken:Lone"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("qlax: environment Lone: obs is a single number")


def test_names_are_listed_without_importing_jax_or_a_suite():
    program = "import sys; from qlax.cli.main import main; main(['envs']); print(*sorted(sys.modules))"
    lines = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True).stdout
    *lines, modules = lines.splitlines()
    assert {"gymnax/CartPole-v1", "pgx/go_9x9", "ale/Pong", "jaxmarl/smax/3m", "gymnasium/CartPole-v1"} <= {*lines}
    assert not {"jax", "numpy", "gymnax", "pgx", "ale_py", "gymnasium"} & {*modules.split()}
    assert "jumanji, continuous actions: SearchAndRescue-v0" in "".join(lines)
    assert "jumanji/SearchAndRescue-v0" not in lines


def test_another_version_of_a_suite_is_asked_for_its_names(monkeypatch, capsys):
    recorded = environments.recorded("pgx")
    monkeypatch.setattr(environments, "recorded", lambda suite: recorded._replace(version="1.0", names=["ludo"]))
    assert main(["envs", "pgx"]) == 0
    said = capsys.readouterr().out
    assert "pgx/go_9x9" in said
    assert "ludo" not in said


def test_a_suite_that_is_not_installed_is_one_line_at_the_end(monkeypatch, capsys):
    monkeypatch.setitem(environments.SUITES, "gone", environments.Suite("no-such-package", extra="gone"))
    assert main(["envs"]) == 0
    out, err = capsys.readouterr()
    assert "the suite 'gone' is not installed: pip install 'qlax[gone]'" in out.splitlines()[-3:]
    assert "missing" in out.splitlines()[-1]
    assert not err
    with pytest.raises(SystemExit):
        main(["envs", "gone"])
    assert capsys.readouterr().err == "qlax: the suite 'gone' is not installed: pip install 'qlax[gone]'\n"


def test_what_cannot_be_made_is_grouped_after_the_table(monkeypatch, capsys, recwarn):
    """There is one line for each reason, whatever the exception, and other packages print nothing in between."""
    errors = {
        "Qt": ImportError(LIBRARY),
        "Qt2": ImportError(LIBRARY),
        "Os": OSError("broken\npipe"),
        "Old": RuntimeError("CUDA is too old"),
        "Panic": PanicError("unwrap on None"),
        "Exit": SystemExit(3),
    }
    stand_in_suite(monkeypatch, ["A", *errors, "Z"], making=errors, noisy=True)
    assert main(["envs", "--sizes", "flaky"]) == 0
    out, err = capsys.readouterr()
    _, *rows = out.splitlines()
    assert [row.split()[0] for row in rows[:2]] == ["flaky/A", "flaky/Z"]
    assert rows[2:] == [
        f"flaky, cannot be made: ImportError: {LIBRARY}; install the package of the operating system that has "
        "libQt5Core.so.5: Qt, Qt2",
        "flaky, cannot be made: OSError: broken pipe: Os",
        "flaky, cannot be made: RuntimeError: CUDA is too old: Old",
        "flaky, cannot be made: PanicError: unwrap on None: Panic",
        "flaky, cannot be made: SystemExit: 3: Exit",
        "2 environments of 1 suite, 6 cannot be made",
    ]
    assert not err
    assert not [each for each in recwarn if "flaky" in str(each.message)]


def test_a_suite_that_cannot_be_imported_is_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(environments.SUITES, "torn", environments.Suite("numpy", extra="torn"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("qlax.envs.suites.__path__", [str(tmp_path)])
    (tmp_path / "torn.py").write_text(f"raise OSError({LIBRARY!r})")
    with pytest.raises(SystemExit, match="2"):
        main(["envs", "torn"])
    (line,) = capsys.readouterr().err.splitlines()
    assert "the suite 'torn' does not work here" in line
    assert "install the package of the operating system that has libQt5Core.so.5" in line


@pytest.mark.parametrize("words", [["envs"], ["envs", "--check"], ["train"]])
@pytest.mark.parametrize("when", ["making", "resetting"])
def test_a_package_that_fails_when_it_is_first_used_is_one_line(words, when, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    errors = {"Qt": ImportError(LIBRARY), "Old": RuntimeError("CUDA is too old"), "Panic": PanicError("unwrap on None")}
    stand_in_suite(monkeypatch, list(errors), **{when: errors})
    for name, error in errors.items():
        with pytest.raises(SystemExit, match="2"):
            main([*words, f"flaky/{name}"])
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("qlax: ")
        assert f"{type(error).__name__}: {error}" in line
    assert not [*tmp_path.glob("runs/*")]
