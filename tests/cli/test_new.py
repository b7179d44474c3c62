"""`qlax new`: what it writes keeps the contract, passes its own tests and trains; bad names are refused."""

import ast
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import qlax
from qlax.cli.main import main
from qlax.cli.new import TARGETS, TEMPLATES

KINDS = {"jax": [], "gymnasium": ["--gymnasium"], "team": ["--team"]}
TINY = ["--total-steps", "4096", "--num-envs", "16", "--num-minibatches", "2", "--eval-episodes", "2"]


@pytest.fixture(autouse=True)
def in_an_empty_directory(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def command(*words):
    """Run a command in a process of its own, as a user does, and return what it prints."""
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_project_passes_its_tests_and_trains(kind, tmp_path, capsys):
    assert main(["new", "walk_home", *KINDS[kind]]) == 0
    *written, last = capsys.readouterr().out.splitlines()
    target = TARGETS[kind].replace("my_task:MyTask", "walk_home:WalkHome")
    assert last == f"train it: qlax train --config walk_home/preset.toml, or qlax train {target}"
    names = ["__init__.py", "README.md", "preset.toml", "test_walk_home.py"]
    assert sorted(written) == sorted(str(Path("walk_home", name)) for name in names)
    texts = [(tmp_path / name).read_text() for name in written]
    assert not [text for text in texts if "my_task" in text or "MyTask" in text or "{target}" in text]
    assert len((tmp_path / "walk_home/README.md").read_text().splitlines()) <= 10
    assert " passed" in command("-m", "pytest", "-q", "walk_home", "-p", "no:cacheprovider")
    said = command("-m", "qlax", "train", target, *TINY)
    assert "greedy return" in said
    if kind == "jax":
        said = command("-m", "qlax", "train", "--config", "walk_home/preset.toml", "--total-steps", "4096")
        assert "hidden 64,64" in said


def test_the_reference_of_env_has_the_corridor_that_is_written():
    def code(text):
        """Return the code of the class without its name, docstrings and comments."""
        (found,) = (node for node in ast.parse(text).body if isinstance(node, ast.ClassDef))
        for node in ast.walk(found):
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
                del node.body[0]
        found.name = "Corridor"
        return ast.unparse(found)

    example = qlax.Env.__doc__.partition("```python\n")[2].partition("```")[0]
    assert code(textwrap.dedent(example)) == code((TEMPLATES / "jax" / "__init__.py").read_text())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("numpy", "there is already a module numpy"),
        ("json", "there is already a module json"),
        ("beside", "there is already a module beside"),
        ("qlax", "there is already a module qlax"),
        ("class", "class is a word of Python itself"),
        ("none", "None is a word of Python itself"),
        ("3d", "expected a letter"),
        ("a-b", "expected a letter"),
        ("../away", "expected a letter"),
        ("größe", "expected a letter"),
        ("_x", "expected a letter"),
        ("there", "there exists already"),
        ("task --team --gymnasium", "not both"),
    ],
)
def test_a_bad_name_is_refused_in_one_line_and_nothing_is_written(words, message, tmp_path, capsys):
    (tmp_path / "beside.py").write_text("")
    (tmp_path / "there").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit, match="2"):
        main(["new", *words.split()])
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert sorted(tmp_path.rglob("*")) == before
    assert not (tmp_path.parent / "away").exists()
