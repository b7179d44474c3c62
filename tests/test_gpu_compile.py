"""Operations for a GPU, counted by compiling for a described GPU without having one: `pytest -m gpu_compile`.

It needs 1.4 GB of packages, which `benchmarks/gpu_compile.py` names. The counts are those of one version of XLA.
"""

import importlib.util
import json
import subprocess
import sys

import jax
import pytest
from pages import ROOT

JAX = "0.10.2"  # the version whose counts are the bounds below
PACKAGES = ("jax_plugins.xla_cuda13", "nvidia.cu13")
MOST = {  # operations per step, minibatch and update, and launches by the host per update: about 5 % above the counts
    "cartpole:1": (35, 37, 4700, 150),
    "cartpole:10": (37, 37, 4850, 150),
    "cartpole:128": (37, 46, 5450, 150),
    "minatar/breakout:1": (52, 41, 4400, 110),
    "minatar/breakout:10": (52, 40, 4300, 110),
    "cartpole:1,cuda_graph=true": (35, 37, 4700, 0),
}


def is_there(package):
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # the parent package is missing
        return False


pytestmark = [
    pytest.mark.gpu_compile,
    pytest.mark.slow,
    pytest.mark.skipif(not all(map(is_there, PACKAGES)), reason="needs the CUDA compiler, see the script's docstring"),
    pytest.mark.skipif(jax.__version__ != JAX, reason=f"the bounds are those of JAX {JAX}"),
]


@pytest.fixture(scope="module")
def counts(tmp_path_factory):
    out = tmp_path_factory.mktemp("counts") / "counts.json"
    command = [sys.executable, "benchmarks/gpu_compile.py", *MOST, "--out", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return json.loads(out.read_text())["states"]["today"]


@pytest.mark.parametrize("case", MOST)
def test_operations_are_no_more_than_they_were(counts, case):
    found = [counts[case][name] for name in ("step", "minibatch", "update", "host_launches")]
    assert all(count <= most for count, most in zip(found, MOST[case], strict=True)), found
    assert counts[case]["update"] > 0


@pytest.mark.parametrize(
    ("one", "more"), [("cartpole:1", "cartpole:128"), ("minatar/breakout:1", "minatar/breakout:10")]
)
def test_more_agents_mean_hardly_more_operations(counts, one, more):
    assert counts[more]["update"] <= 1.2 * counts[one]["update"]


@pytest.mark.parametrize("case", MOST)
def test_no_chunk_calls_the_host(counts, case):
    assert counts[case]["host_waits"] == 0
