"""Imports: packages stand in one order, and a module imports its own package and those above it."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pages import ROOT

import qlax

SOURCE = Path(qlax.__file__).parent
MODULES = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in SOURCE.rglob("*.py")
}

# docs/architecture.md shows the same list. `__init__` names what is public, each imported when it is first used.
ORDER = [
    *("_version", "errors", "types", "switches", "learning", "pqn", "pqn_continuous"),
    *("util", "networks", "config", "storage", "trackers", "agents", "envs", "playing", "reports", "training", "jobs"),
    *("__init__", "cli", "__main__"),
]
MOST_ENTRIES = 24  # entries of src/qlax; helpers belong into a package
ONLY_IN = {  # third-party package: the modules that may import it
    **{name: {f"envs.suites.{name}"} for name in ("craftax", "envpool", "jaxmarl", "jumanji", "navix")},
    "gymnax": {"envs.suites.gymnax", "envs.suites.seaquest"},
    **{name: {f"envs.suites.{name}"} for name in ("pgx", "xminigrid")},
    "brax": {"envs.suites.brax"},
    "mujoco_playground": {"envs.suites.playground"},
    "ale_py": {"envs.suites.ale"},
    "gymnasium": {
        *("envs.suites.gymnasium", "envs.suites.masks", "envs.suites.spaces"),
        *("cli.templates.gymnasium", "cli.templates.gymnasium.test_my_task"),
    },
    "matplotlib": {"reports", "envs.suites.jumanji", "envs.suites.pgx"},
    "resvg_py": {"envs.suites.pgx"},
    "ray": {"jobs.ray"},
    "av": {"playing.film"},
    "onnx": {"agents.export"},
    "jinja2": {"reports.html"},
    "scipy": set(),
    "rich": {"training.curves", "training.display", "playing.terminal"},
    "tensorboardX": {"trackers.tensorboard"},
    "wandb": {"trackers.wandb"},
}


def imported(path):
    """Yield the dotted names of all imports of a file, also within functions: `a.b` for `from a import b`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import escapes this test"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def home_of(name):
    """Return the entry of `ORDER` to which an imported name `qlax`, `qlax.part...` or `qlax.PublicName` belongs."""
    part = name.removeprefix("qlax").strip(".").partition(".")[0]
    return part if part in ORDER else "__init__"


def own_imports(module):
    """Yield the modules of qlax that a module imports: `a.b` of `from qlax.a import b` if it is a module, else `a`."""
    for name in imported(MODULES[module]):
        parts = name.split(".")
        if parts[0] == "qlax":
            while ".".join(parts[1:]) not in MODULES and len(parts) > 1:
                parts.pop()
            yield ".".join(parts[1:]) or "__init__"


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_its_own_package_and_those_above(module):
    home = module.partition(".")[0]
    assert home in ORDER, f"{module} is in no package of the list"
    within = {home_of(name) for name in imported(MODULES[module]) if f"{name}.".startswith("qlax.")}
    if home != "__init__":
        assert not {name for name in within if ORDER.index(name) > ORDER.index(home)}


def test_no_module_imports_itself_by_way_of_others():
    imports = {module: set(own_imports(module)) - {module, "__init__"} for module in MODULES}
    done = set()

    def visit(module, path):
        assert module not in path, " -> ".join([*path, module])
        if module not in done:
            for other in sorted(imports[module]):
                visit(other, [*path, module])
            done.add(module)

    for module in MODULES:
        visit(module, [])


@pytest.mark.parametrize("module", MODULES)
def test_no_argument_or_variable_hides_a_module_that_its_file_imports(module):
    tree = ast.parse(MODULES[module].read_text())
    modules = {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if f"{node.module}.{alias.name}".removeprefix("qlax.") in MODULES
    }
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.Lambda)]
    within = [node for function in functions for node in ast.walk(function)]
    arguments = {node.arg for node in within if isinstance(node, ast.arg)}
    variables = {node.id for node in within if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    assert not modules & (arguments | variables)


def test_packages_are_few_and_modules_short():
    entries = {
        path.name for path in SOURCE.iterdir() if path.suffix in (".py", ".typed") or (path / "__init__.py").exists()
    }
    assert len(entries) <= MOST_ENTRIES, sorted(entries)
    assert {path.name for path in SOURCE.iterdir() if path.suffix == ".py"} <= {f"{name}.py" for name in ORDER}
    long = {module: lines for module, path in MODULES.items() if (lines := len(path.read_text().splitlines())) > 450}
    assert not long, "two subjects?"


def test_the_page_on_the_architecture_shows_the_same_order():
    rows = re.findall(r"^\| (`.+?`) \|", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE)
    shown = [name for row in rows for name in re.findall("`(.+?)`", row)]
    assert [name for name in shown if name in ORDER] == [name for name in ORDER if not name.startswith("__")]
    drawn = re.findall(r'"bold".*?>([a-z_, ]+)<', (ROOT / "docs/figures/architecture.svg").read_text())
    drawn = [name for text in drawn for name in text.split(", ") if name in ORDER]
    assert drawn == [name for name in ORDER if not name.startswith("_")]


@pytest.mark.parametrize("module", MODULES)
def test_third_party_packages_stay_where_they_belong(module):
    for package in {name.partition(".")[0] for name in imported(MODULES[module])}:
        homes = ONLY_IN.get(package, {module})
        assert {module, module.partition(".")[0]} & homes, f"{module} imports {package}"


def test_the_list_of_third_party_packages_is_not_stale():
    uses = {module: {name.partition(".")[0] for name in imported(path)} for module, path in MODULES.items()}
    for package, homes in ONLY_IN.items():
        for home in homes:
            assert any(package in used for module, used in uses.items() if f"{module}.".startswith(f"{home}.")), (
                f"{home} does not import {package}"
            )


def fresh_python(code):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu"}
    return subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)


def test_importing_qlax_imports_nothing_heavy():
    loaded = fresh_python("import sys, qlax; print(*sys.modules)").stdout.split()
    assert not {"jax", "numpy", "flax", "gymnax", "matplotlib"} & set(loaded)


def test_a_public_module_resolves_before_anything_else_is_used():
    assert fresh_python("import qlax; print(qlax.heads.hl_gauss.__name__)").stdout.strip() == "hl_gauss"


def test_looking_at_directories_needs_no_jax():
    loaded = fresh_python("import sys, qlax.storage.directory; print(*sys.modules)").stdout.split()
    assert "qlax.storage.directory" in loaded
    assert not [name for name in loaded if name.partition(".")[0] in ("jax", "jaxlib", "flax")]


def test_importing_the_registry_imports_no_suite():
    loaded = fresh_python("import sys, qlax.envs; print(*sys.modules)").stdout.split()
    assert "jax" in loaded
    assert not {"gymnax", "qlax.envs.suites.gymnax"} & set(loaded)


@pytest.mark.parametrize("name", qlax.__all__)
def test_every_public_name_resolves(name):
    assert getattr(qlax, name) is not None
    assert name in dir(qlax)


def test_other_names_do_not():
    with pytest.raises(AttributeError, match="qlax attribute nonsense"):
        _ = qlax.nonsense
