"""docs/own-environment.md: its code and commands run in the order of the page, and its files are the examples."""

import ast
import re
import runpy
import sys
from collections import defaultdict
from types import SimpleNamespace

import gymnasium
import pytest
from pages import ROOT, blocks, shortened

import qlax
from qlax.cli import flags, main
from qlax.config.configure import configure
from qlax.envs.check.env import FIXES
from qlax.training.plan import make

PAGE = "docs/own-environment.md"
FILES = {block.file: block.text for block in blocks(PAGE) if block.file}
LEARNED = {"lighthouse.py": 14.5, "gymnasium_environment.py": 90, "cooperative_environment.py": 14}


@pytest.fixture(autouse=True)
def _beside_the_files(monkeypatch, tmp_path):
    """Work in a directory with the files of the page, which can be imported until the test ends."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    yield
    for name in FILES:
        sys.modules.pop(name.removesuffix(".py"), None)
    gymnasium.registry.pop("Greenhouse-v0", None)


def planned(target, **overrides):
    """Stand-in for `qlax.train` that makes the plan of a run and compiles nothing."""
    make(configure(target, **overrides), {})
    return SimpleNamespace(summary=defaultdict(lambda: "to be seen"))


def settings(words):
    options = main.parser().parse_args(words)
    given = flags.given(options)
    return {"target": options.target, **given}


@pytest.mark.parametrize("literally", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_page_runs_in_its_order(literally, capsys):
    names = {}
    for block in blocks(PAGE):
        if block.language == "python" and not block.file:
            exec(compile(block.text, PAGE, "exec"), names)
        for _, *words in block.commands:
            if literally or "--out" in words:  # later blocks use this run
                assert main.main(words if literally else shortened(" ".join(words)).split()) == 0
            elif words[0] == "train":
                planned(**settings(words))
            else:
                main.parser().parse_args(words)
    assert re.search(r"^\d+\.0$", capsys.readouterr().out, re.MULTILINE)  # saved ships


def test_the_files_are_the_examples():
    assert {name: (ROOT / "examples" / name).read_text() for name in FILES} == FILES


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_wrong_with_the_examples(name, monkeypatch, capsys, recwarn):
    monkeypatch.setattr(qlax, "train", planned)
    runpy.run_path(name, run_name="__main__")
    assert capsys.readouterr().out == "to be seen to be seen\n"
    assert not [each for each in recwarn if str(each.message).startswith("environment ")]


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_the_examples_learn(name):
    result = runpy.run_path(name, run_name="__main__")["result"]
    assert result.summary["eval_return"]["mean"] > LEARNED[name]


def test_mistakes_are_named_as_the_page_has_them():
    modules = [ROOT / f"src/qlax/envs/check/{name}.py" for name in ("common", "env", "host")]
    said = {message for module in modules for message in messages(ast.parse(module.read_text()))}
    assert "... cannot be traced by JAX: ..." in said
    said |= {f"... cannot be traced by JAX: ...; {fix}" for _, fix in FIXES}
    section = (ROOT / PAGE).read_text().partition("## The usual mistakes")[2].partition("\n## ")[0]
    quoted = re.findall(r"^\| `(.+?)` \|", section, re.MULTILINE)
    assert len(quoted) > 25
    for quote in quoted:  # a quote is a whole message or its beginning
        pattern = re.escape(quote).replace(r"\.\.\.", ".+") + r"(?![\w ])"
        assert any(re.match(pattern, message) for message in said), quote


def messages(tree):
    """Yield every string of a module; "..." stands for inserted values, unless these are strings of the module too."""
    texts = {}  # latest string assigned to each name

    def text(node):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return node.value
        if isinstance(node, ast.JoinedStr):
            return re.sub(r"(\.{3})+", "...", "".join(map(text, node.values)))
        if isinstance(node, ast.FormattedValue):
            return texts.get(node.value.id, "...") if isinstance(node.value, ast.Name) else "..."
        return "..."

    def visit(node):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            texts[node.targets[0].id] = text(node.value)
        if isinstance(node, ast.Constant | ast.JoinedStr):
            yield text(node).removeprefix("environment ...: ")
        else:
            for child in ast.iter_child_nodes(node):
                yield from visit(child)

    return visit(tree)
