"""Who may import whom: the table of the design, walked over the sources."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import qlax

SOURCE = Path(qlax.__file__).parent
MODULES = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in SOURCE.rglob("*.py")
}

# Packages count as one: "envs" is envs/__init__.py and every adapter. None: may import whatever it needs.
ALLOWED = {
    "__init__": None,  # lazily, and for type checkers
    "errors": set(),
    "imports": {"errors"},
    "returns": set(),
    "types": set(),
    "expectations": {"errors", "fields", "types"},
    "check_host": {"errors", "expectations", "fields", "types"},
    "check": {"check_host", "errors", "expectations", "fields", "types"},
    "fields": {"errors"},
    "mixing": set(),
    "pqn": {"errors", "mixing", "types", "returns"},
    "layers": set(),
    "encoders": {"layers"},
    "memories": {"layers", "types"},
    "networks": {"encoders", "errors", "imports", "layers", "memories", "types"},
    "envs": {"agent", "check", "errors", "expectations", "imports", "mixing", "networks", "types", "envs"},
    "host": {"check_host", "errors", "record", "types", "pqn"},
    "evaluation": {"errors", "types", "pqn"},
    "playing": None,
    "video": None,
    "history": {"config", "errors", "log"},
    "statistics": set(),
    "figures": {"config", "errors", "files", "history", "pictures", "scores", "statistics"},
    "page": None,
    "portable": {"agent", "errors", "files", "networks", "plain_network"},
    "plain_network": {"errors"},
    "trackers": {"config", "errors", "imports", "video"},
    "files": {"errors"},
    "checkpoint": {"errors", "fields", "files", "imports", "types"},
    "log": {"files"},
    "directory": {"checkpoint", "config", "errors", "fields", "files", "history", "log", "types"},
    "health": {"pqn", "types"},
    "record": {"health", "pqn", "types"},
    "placement": {"errors", "processes", "types"},
    "processes": {"errors"},
    "population": {"config", "pqn", "record"},
    "runs": {"types", "pqn", "host", "placement", "population", "processes", "program", "record"},
    "capacity": {"config", "errors", "placement", "pqn", "program", "types"},
    "summary": {"__init__", "config", "fields", "pqn", "program"},
    "pictures": set(),
    "jobs": {"config", "directory", "errors", "scores", "session", "cluster"},
    "cluster": {"errors", "jobs"},
    "trials": {"errors", "jobs"},
    "sweep": {"config", "directory", "errors", "fields", "files", "jobs", "pictures", "trials"},
    "config": {"errors", "fields"},
    "agent": {"errors", "types", "imports", "networks", "checkpoint", "plain_network"},
    "program": {
        *("errors", "types", "mixing", "pqn", "networks", "config", "envs", "evaluation", "host", "placement"),
        *("population", "record"),
    },
    "session": None,
    "trainer": None,
    "scores": {"statistics"},
    "suite": {"scores", "errors", "config", "envs", "files", "jobs"},
    "cli": None,
    "commands": None,
    "__main__": None,
}
ONLY_IN = {  # third-party package: the modules that may import it
    **{name: set() for name in ("brax", "envpool", "gymnasium", "jaxmarl", "jumanji", "navix", "pgx", "xminigrid")},
    **{path.stem: {f"envs.{path.stem}"} for path in (SOURCE / "envs").glob("*.py")},
    "ale_py": {"envs.ale"},
    "gymnasium": {"envs.gymnasium", "envs.spaces"},
    "matplotlib": {"pictures", "figures", "page", "envs.jumanji", "envs.pgx"},
    "resvg_py": {"envs.pgx"},
    "optuna": {"trials"},
    "ray": {"cluster"},
    "av": {"video"},
    "onnx": {"portable"},
    "jinja2": {"page"},
    "scipy": {"statistics"},
    "rich": {"log", "cli"},
    "tensorboardX": {"trackers"},
    "wandb": {"trackers"},
}


def imported(path):
    """Dotted names of everything a file imports, those within functions included: `a.b` for `from a import b`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import escapes this test"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_the_table_allows(module):
    home = module.partition(".")[0]
    assert home in ALLOWED, f"{module} is not in the table of tests/test_imports.py"
    names = {name for name in imported(MODULES[module]) if f"{name}.".startswith("qlax.")}
    parts = {name.split(".")[1] if "." in name else "__init__" for name in names}
    within = {qlax._HOME.get(part, part).partition(".")[0] for part in parts}  # `from qlax import Vec` is one of envs
    if ALLOWED[home] is not None:
        assert within <= ALLOWED[home]


@pytest.mark.parametrize("module", MODULES)
def test_third_party_packages_stay_where_they_belong(module):
    for package in {name.partition(".")[0] for name in imported(MODULES[module])}:
        assert module in ONLY_IN.get(package, {module}), f"{module} imports {package}"


def fresh_python(code):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu"}
    return subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)


def test_importing_qlax_imports_nothing_heavy():
    loaded = fresh_python("import sys, qlax; print(*sys.modules)").stdout.split()
    assert not {"jax", "numpy", "flax", "gymnax", "matplotlib"} & set(loaded)


def test_importing_the_registry_imports_no_suite():
    loaded = fresh_python("import sys, qlax.envs; print(*sys.modules)").stdout.split()
    assert "jax" in loaded
    assert not {"gymnax", "qlax.envs.gymnax"} & set(loaded)


@pytest.mark.parametrize("name", qlax.__all__)
def test_every_public_name_resolves(name):
    assert getattr(qlax, name) is not None
    assert name in dir(qlax)


def test_other_names_do_not():
    with pytest.raises(AttributeError, match="module 'qlax' has no attribute 'nonsense'"):
        _ = qlax.nonsense
