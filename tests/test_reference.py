"""The API reference: every public name is on it, with shapes, units, errors and examples."""

import re
import sys
import textwrap

import griffe
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pages import ROOT, shortened
from runs import CARTPOLE, SMALL

import qlax

sys.path.insert(0, str(ROOT / "docs"))
import hooks

sys.path.remove(str(ROOT / "docs"))

PACKAGE = griffe.load(
    "qlax",
    search_paths=[ROOT / "src"],
    docstring_parser="google",
    extensions=griffe.load_extensions(str(ROOT / "docs" / "griffe_comments.py")),
)
NAMES = hooks.public_names()
PQN = {
    name: f"qlax.pqn.{name}" for name in vars(qlax.pqn) if getattr(vars(qlax.pqn)[name], "__module__", "") == "qlax.pqn"
}
EXAMPLES = (
    *("train", "read", "plot", "load", "evaluate", "render", "export", "make", "wrap", "check_env", "q_lambda"),
    *("Vec", "Episodes", "FrameStack", "Tracker"),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder with a small run in runs/a, as examples name it."""
    folder = tmp_path_factory.mktemp("reference")
    qlax.train(CARTPOLE, out=folder / "runs" / "a", **SMALL)
    return folder


def documented(path):
    return PACKAGE[path.removeprefix("qlax.")]


def sections(each):
    return {section.kind.value: section.value for section in each.docstring.parse("google", warnings=False)}


def test_every_public_name_is_on_the_page_once():
    assert sorted(name for names in hooks.REFERENCE.values() for name in names) == sorted(NAMES)


@pytest.mark.parametrize(("name", "path"), {**NAMES, **PQN}.items())
def test_a_public_name_is_documented(name, path):
    each = documented(path)
    assert each.docstring, "no docstring"
    assert re.match(r"[A-Z].*[.:]$", each.docstring.value.splitlines()[0])
    found = sections(each)
    described = {item.name.strip("*") for kind in ("parameters", "attributes") for item in found.get(kind, [])}
    if (each.is_function and name in (*NAMES, "make")) or (
        each.is_class and "__init__" in each.members and not name.endswith(("Error", "Stopped"))
    ):
        parameters = each.parameters if each.is_function else each.members["__init__"].parameters
        wanted = {parameter.name.strip("*") for parameter in parameters} - {"self"}
        fields = {member.name for member in each.members.values() if member.is_attribute and member.docstring}
        assert not wanted - described - fields, "parameters that are not described"
    members = [member for member in each.members.values() if each.is_class and not member.name.startswith("_")]
    assert not [member.name for member in members if not member.docstring and member.name not in described]


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs(name, run, monkeypatch):
    monkeypatch.chdir(run)
    monkeypatch.syspath_prepend(run)
    (code,) = re.findall(r"```python\n(.*?)```", documented(NAMES[name]).docstring.value, re.DOTALL)
    code = textwrap.dedent(code)
    if name == "Tracker":
        (run / "printer.py").write_text(code.partition("\n\n\n")[0])
    exec(compile(shortened(code), name, "exec"), {"qlax": qlax, "jax": jax, "jnp": jnp, "np": np})
