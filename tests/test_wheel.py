"""The wheel is built, checked and installed in an empty environment, and trains without this checkout."""

import subprocess
import sys
import tomllib
import zipfile

import pytest
from pages import ROOT

import qlax

sys.path.insert(0, str(ROOT / "benchmarks"))
import first_minutes

TINY = ["--total-steps", "4096", "--eval-episodes", "2"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return first_minutes.built(tmp_path_factory.mktemp("dist"))


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_package(wheel):
    source = ROOT / "src"
    ours = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    ours = {name for name in ours if "__pycache__" not in name}
    with zipfile.ZipFile(wheel) as opened:
        held = {name for name in opened.namelist() if ".dist-info/" not in name}
    assert {"qlax/config/presets/cartpole.toml", "qlax/cli/templates/preset.toml", "qlax/py.typed"} <= held
    assert held == ours


@pytest.mark.slow
def test_its_metadata_can_be_shown(wheel):
    files = sorted(map(str, wheel.parent.iterdir()))
    assert [file.rpartition(".")[2] for file in files] == ["whl", "gz"]
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *files], check=True)


@pytest.mark.slow
def test_it_trains_in_an_empty_environment_without_make_and_git(wheel, tmp_path):
    place = tmp_path / "ein Ordner für später"
    place.mkdir()
    environment = first_minutes.installed(wheel, place)
    environment["PATH"] = str(place / "venv" / first_minutes.BIN)

    def run(*words):
        return first_minutes.run(words, place, environment)

    assert run("qlax", "--version") == f"qlax {qlax.__version__}\n"
    assert str(place / "venv") in run("python", "-c", "import qlax; print(qlax.__file__)")
    assert "greedy return" in run("qlax", "train", "cartpole-fast", *TINY)
    assert "train it" in run("qlax", "new", "corridor")
    assert "greedy return" in run("qlax", "train", "corridor:Corridor", *TINY)


def test_the_version_stands_in_one_place():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["hatch"]["version"] == {"path": "src/qlax/_version.py"}
    assert qlax.__version__ in (ROOT / "src/qlax/_version.py").read_text(encoding="utf-8")
