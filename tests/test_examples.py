"""The scripts of examples/paper/ and the notebook, at the smallest sizes that still run all of their code."""

import json
import os
import re
import runpy
import sys

import nbformat
import pytest
from nbclient import NotebookClient
from pages import ROOT
from PIL import Image

import qlax

sys.path.insert(0, str(ROOT / "benchmarks"))
import first_minutes

PAPER = ROOT / "examples" / "paper"
NOTEBOOK = ROOT / "examples" / "pqn_minatar.ipynb"
TINY = {"num_minibatches": 2, "num_epochs": 1, "log_interval": 1, "eval_interval": 1, "eval_episodes": 3}
train = qlax.train


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(PAPER), *sys.path])  # as when Python starts a script
    monkeypatch.setattr(qlax, "train", lambda target, **settings: train(target, **settings | TINY))


def measured(script, *words, **constants):
    """Run a script with other constants, and return its measurements."""
    main = runpy.run_path(str(PAPER / script))["main"]
    assert constants.keys() <= main.__globals__.keys()
    main.__globals__.update(constants)
    return main([str(word) for word in words])


def test_baird_diverges_without_a_norm_only(tmp_path):
    results = measured("baird.py", "--updates", 5000, "--seeds", 2, L2=(0.0, 0.1))["results"]
    diverged = {(each["function"], each["l2"]): each["diverged"] for each in results}
    assert diverged["linear", 0.0] == 2
    assert diverged["network", 0.0] > 0
    assert diverged["network with LayerNorm", 0.0] == diverged["network with LayerNorm", 0.1] == 0
    is_drawn(tmp_path / "baird.png")


@pytest.mark.slow
def test_deepsea_is_drawn(tmp_path):
    bonus = {"with a bonus": {"network": "deepsea:Counting"}}
    results = measured("deepsea.py", "--depths", 4, "--seeds", 1, "--total-steps", 256, METHODS=bonus)["results"]
    assert [(each["depth"], len(each["eval_return"])) for each in results] == [(4, 1)]
    is_drawn(tmp_path / "deepsea.png")


@pytest.mark.slow
def test_ablations_are_drawn(tmp_path):
    sizes = ("--seeds", 1, "--total-steps", 4096)
    found = measured("lambda_and_norm.py", *sizes, LAMBDAS=(0.95,), NORMS=("layer",))["eval_return"]
    assert {name: [*values] for name, values in found.items()} == {"lam": ["0.95"], "norm": ["layer"]}
    for name in ("lam", "norm"):
        is_drawn(tmp_path / f"ablation-{name}.png")


@pytest.mark.slow
def test_parallel_environments_are_drawn(tmp_path):
    results = measured("parallel.py", "--num-envs", 32, "--seeds", 1, "--total-steps", 4096)["results"]
    assert [each["num_envs"] for each in results] == [32]
    for name in ("steps", "seconds"):
        is_drawn(tmp_path / f"parallel-{name}.png")


@pytest.mark.slow  # CI lacks Optuna
def test_a_trial_of_optuna_is_a_run(monkeypatch):
    optuna = pytest.importorskip("optuna")
    monkeypatch.setattr(qlax, "train", train)
    names = runpy.run_path(str(ROOT / "examples" / "optuna_search.py"))
    names["objective"].__globals__["STEPS"] = 5000
    trial = optuna.trial.FixedTrial({"num_envs": 16, "learning_rate": 1e-3, "lam": 0.5})
    assert names["objective"](trial) > 0


def is_drawn(path):
    with Image.open(path) as image:
        assert len(image.convert("RGB").getcolors(2**24)) > 3


def small_notebook():
    """Return the notebook with the smallest sizes, for which both trainings share one compiled program."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (parameters,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    sizes = {
        "TOTAL_STEPS, SEEDS": "4_096, 2",
        "SWEEP_STEPS, SWEEP_SEEDS": "4_096, 1",
        "LAMBDAS": "[0.0, 0.65]",
        "OFTEN": '{"log_interval": 1, "eval_interval": 1, "eval_episodes": 3}',
        "FILM_STEPS": "5",
    }
    for names, values in sizes.items():
        parameters.source, found = re.subn(f"(?m)^{names} = [^#\\n]+", f"{names} = {values}  ", parameters.source)
        assert found == 1
    return notebook


def execute(notebook, tmp_path, **options):
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}, **options).execute()
    kinds = [kind for cell in notebook.cells for output in cell.get("outputs", []) for kind in output.get("data", {})]
    assert kinds.count("image/png") == 2
    assert kinds.count("image/gif") == 1


@pytest.mark.slow  # blocks of the README run similar code in CI
def test_the_notebook_runs(monkeypatch, tmp_path, pytestconfig):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(pytestconfig.cache.mkdir("jax")))
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    execute(small_notebook(), tmp_path)


@pytest.mark.slow
def test_its_first_cell_installs_a_wheel_into_an_empty_environment(monkeypatch, tmp_path):
    wheel = first_minutes.built(tmp_path / "dist")
    environment = first_minutes.installed("ipykernel", tmp_path)
    python = tmp_path / "venv" / first_minutes.BIN / "python"
    kernel = tmp_path / "jupyter" / "kernels" / "empty" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    argv = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel.write_text(json.dumps({"argv": argv, "display_name": "empty", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(kernel.parents[2]))
    for name in set(os.environ) - {*environment, "JUPYTER_PATH"}:
        monkeypatch.delenv(name)
    notebook = small_notebook()
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    first.source, found = re.subn('^WHEEL = "qlax"', f"WHEEL = {str(wheel)!r}", first.source)
    assert found == 1
    execute(notebook, tmp_path, kernel_name="empty")
    assert list((tmp_path / "venv").rglob("site-packages/qlax/pqn.py"))


def test_the_notebook_is_kept_small_and_whole():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert os.path.getsize(NOTEBOOK) < 1_500_000
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not any(output.output_type == "error" for cell in code for output in cell.outputs)
