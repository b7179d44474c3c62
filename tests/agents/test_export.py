"""Exported agents, read by processes that have no qlax."""

import json
import os
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
from runs import is_refused_in_one_line, random_agent

import qlax

WITHOUT = """
import sys
class Refused:
    @staticmethod
    def find_spec(name, *rest):
        if name.partition(".")[0] in sys.argv[2:]:
            raise ImportError(name)
sys.meta_path.insert(0, Refused)
"""
READ = """
import jax, jax.export, numpy as np
folder = sys.argv[1]
with open(f"{folder}/agent.stablehlo", "rb") as file:
    agent = jax.export.deserialize(bytearray(file.read()))
np.save(f"{folder}/q.npy", agent.call(np.load(f"{folder}/obs.npy")))
"""
ACT = """
import numpy as np, qlax
folder = sys.argv[1]
agent = qlax.load(folder, numpy_only=True)
np.save(f"{folder}/q.npy", agent.q_values(np.load(f"{folder}/obs.npy")))
qlax.export(folder, format="onnx")
print(*sys.modules)
"""


def read_without(packages, code, folder):
    """Return what code prints in a process that cannot import these packages."""
    command = [sys.executable, "-c", WITHOUT + code, str(folder), *packages]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def run(tmp_path):
    """Make a folder with an agent and a file of observations for it."""
    (tmp_path / "agents").mkdir()
    random_agent({}, [["float32", [4]]], 3, seed=7).save(tmp_path / "agents" / "0.safetensors")
    np.save(tmp_path / "obs.npy", np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32))
    return tmp_path


def q_of(run):
    return qlax.load(run).q_values(np.load(run / "obs.npy"))


def test_jax_alone_reads_stablehlo(run):
    assert qlax.export(run) == run / "agent.stablehlo"
    read_without(["qlax", "flax", "optax"], READ, run)
    np.testing.assert_allclose(np.load(run / "q.npy"), q_of(run), rtol=1e-5)
    description = json.loads((run / "agent.stablehlo.json").read_text())
    assert description["inputs"] == [{"name": "obs", "dtype": "float32", "shape": ["batch", 4]}]
    assert description["outputs"] == [{"name": "q", "dtype": "float32", "shape": ["batch", 3]}]
    assert description["seed"] == 7
    import jax

    exported = jax.export.deserialize(bytearray((run / "agent.stablehlo").read_bytes()))
    assert exported.platforms == ("cpu", "cuda", "tpu")


def test_acting_and_onnx_need_no_jax(run):
    loaded = read_without(["jax", "jaxlib", "flax"], ACT, run).split()
    assert not {"jax", "optax", "matplotlib", "rich", "scipy"} & set(loaded)
    np.testing.assert_allclose(np.load(run / "q.npy"), q_of(run), rtol=1e-5)
    found = onnxruntime.InferenceSession(run / "agent.onnx").run(None, {"obs": np.load(run / "obs.npy")})
    np.testing.assert_allclose(found[0], q_of(run), rtol=1e-5)
    (entry,) = onnx.load(run / "agent.onnx").metadata_props
    assert json.loads(entry.value)["seed"] == 7


def test_nothing_is_overwritten(run):
    first, second = (qlax.export(run, format="onnx") for _ in range(2))
    assert (first.name, second.name) == ("agent.onnx", "agent-2.onnx")
    beside = qlax.export(run / "agents" / "0.safetensors", format="onnx")
    assert beside == run / "agents" / "agent.onnx"
    (run / "mine.stablehlo.json").touch()
    with pytest.raises(qlax.UserError, match=r"mine.stablehlo.json exists already"):
        qlax.export(run, run / "mine.stablehlo")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--index", "one"], "index=one: expected a whole number from 0"),
        (["--index", "7"], "agents there: 0"),
        (["--out", "no/agent.stablehlo"], "there is no folder no"),
        (["--format", "onnx", "--out", "x" * 300], "cannot be written: File name too long"),
        (["--out", "agent.onnx"], "agent.onnx has the ending of onnx, but the format is stablehlo"),
        (["--format", "onx"], "invalid choice: 'onx'"),
    ],
)
def test_what_cannot_be_exported_is_refused_in_one_line(words, message, run, capsys, monkeypatch):
    monkeypatch.chdir(run)
    is_refused_in_one_line(["export", ".", *words], message, capsys, run)


def test_a_format_has_a_name(run):
    with pytest.raises(qlax.UserError, match="format='onxx': expected stablehlo or onnx; did you mean 'onnx'"):
        qlax.export(run, format="onxx")


def test_what_needs_onnx_says_so(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(qlax.UserError, match=r"pip install 'qlax\[onnx\]'"):
        qlax.export(run, format="onnx")
    assert "agent.onnx" not in os.listdir(run)
