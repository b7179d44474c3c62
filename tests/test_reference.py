"""The API reference: every public name is on it, with shapes, units, errors and examples."""

import re
import sys
import textwrap

import griffe
import jax
import jax.numpy as jnp
import nbformat
import numpy as np
import pytest
from pages import ROOT, blocks, shortened
from runs import CARTPOLE, SMALL

import qlax
from qlax.training import contracts

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
MEMBERS = {  # of public modules
    f"{module.__name__.removeprefix('qlax.')}.{name}": f"{module.__name__}.{name}"
    for module in (qlax.pqn, qlax.pqn_continuous, qlax.heads)
    for name, each in vars(module).items()
    if getattr(each, "__module__", "") == module.__name__ and not name.startswith("_")
}


def documented(path):
    return PACKAGE[path.removeprefix("qlax.")]


PATHS = {**NAMES, **MEMBERS}
EXAMPLES = [name for name, path in PATHS.items() if "```python" in documented(path).docstring.value]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder with small runs, as examples name them: runs/a is finished, runs/b ended early."""
    folder = tmp_path_factory.mktemp("reference")
    qlax.train(CARTPOLE, out=folder / "runs" / "a", **SMALL)
    qlax.train(CARTPOLE, out=folder / "runs" / "b", callback=lambda line: True, **SMALL)
    return folder


def sections(each):
    parsed = each.docstring.parse("google", warnings=False) if each.docstring else []
    return {section.kind.value: section.value for section in parsed}


def named(found):
    """Return the names of the parameters and attributes that sections describe."""
    return {item.name.strip("*") for kind in ("parameters", "attributes") for item in found.get(kind, [])}


def parameters(function):
    return {parameter.name.strip("*") for parameter in function.parameters} - {"self"}


def test_every_public_name_is_on_the_page_once():
    assert sorted(name for names in hooks.REFERENCE.values() for name in names) == sorted(NAMES)


@pytest.mark.parametrize(("name", "path"), PATHS.items())
def test_a_public_name_is_documented(name, path):
    each = documented(path)
    assert each.docstring, "no docstring"
    assert re.match(r"[A-Z].*[.:]$", each.docstring.value.splitlines()[0])
    found = sections(each)
    if each.is_function:
        check_function(each, is_short=name in MEMBERS and name != "pqn.make")
    if not each.is_class:
        return
    members = [member for member in each.members.values() if not member.name.startswith("_")]
    assert not [member.name for member in members if not member.docstring and member.name not in named(found)]
    if "__init__" in each.members and not name.endswith(("Error", "Stopped")):
        inherited = each.inherited_members.values()
        fields = {member.name for member in [*members, *inherited] if member.is_attribute and member.docstring}
        assert not parameters(each.members["__init__"]) - named(found) - fields, "parameters that are not described"
        assert "raise UserError" not in each.members["__init__"].source or "raises" in found
    for member in members:
        if member.is_function and not member.docstring.value.startswith("See "):
            check_function(member, is_short=True)


def test_pages_examples_and_templates_use_public_names_only():
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    texts = [
        block.text for page in pages for block in blocks(page.relative_to(ROOT)) if block.language.startswith("py")
    ]
    texts += [
        path.read_text() for folder in ("examples", "src/qlax/cli/templates") for path in ROOT.glob(f"{folder}/**/*.py")
    ]
    notebook = nbformat.read(ROOT / "examples" / "pqn_minatar.ipynb", as_version=4)
    texts += [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    used = {name for text in texts for name in re.findall(r"\bqlax\.(\w+)", text)}
    assert len(used) > 12
    assert used <= NAMES.keys()
    assert not [text for text in texts if re.search(r"from qlax[. ]|import qlax\.", text)]


def check_function(function, is_short):
    """Check that parameters, result and errors are described; a short one may name all parameters in its summary."""
    found, summary = sections(function), function.docstring.value.splitlines()[0]
    words = set(re.findall(r"\w+", summary)) if is_short and "parameters" not in found else set()
    assert not parameters(function) - named(found) - words, "parameters that are not described"
    assert "raise UserError" not in function.source or "raises" in found
    says_result = re.match(r"Return|Load|Read|Make|Choose", summary) or "; return " in summary
    assert str(function.returns or None) == "None" or "returns" in found or says_result, "result is not described"


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs(name, run, monkeypatch):
    monkeypatch.chdir(run)
    monkeypatch.syspath_prepend(run)
    (code,) = re.findall(r"```python\n(.*?)```", documented(PATHS[name]).docstring.value, re.DOTALL)
    code = textwrap.dedent(code)
    if name == "Tracker":
        (run / "printer.py").write_text(code.partition("\n\n\n")[0])
    names = {"qlax": qlax, "jax": jax, "jnp": jnp, "np": np}
    exec(compile(shortened(code), name, "exec"), names)
    if name == "Network":
        step = jax.eval_shape(qlax.Vec(qlax.make(CARTPOLE), 4).reset, jax.random.key(0))[1]
        contracts.check_network("my_networks:Sine", names["Sine"](2), step, 2)
