"""Files for contributors and for services that read the repository."""

import re
import tomllib

import pytest
import yaml
from pages import ROOT

YAML = (".pre-commit-config.yaml", ".github/workflows/ci.yml", ".github/ISSUE_TEMPLATE/bug.yml", "CITATION.cff")


@pytest.mark.parametrize("name", YAML)
def test_a_file_is_yaml(name):
    assert isinstance(yaml.safe_load((ROOT / name).read_text()), dict)


def test_ruff_before_a_commit_is_that_of_the_tests():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert f"ruff=={hook['rev'].removeprefix('v')}" in project["dependency-groups"]["test"]


def test_public_ci_calls_what_ours_does_on_supported_versions():
    job = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["test"]
    assert job["steps"][-1] == {"run": ".ci/run"}
    oldest = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"].removeprefix(">=")
    assert job["strategy"]["matrix"]["python"][0] == oldest


def test_files_that_contributing_names_are_there():
    page = (ROOT / "CONTRIBUTING.md").read_text()
    named = re.findall(r"`((?:src|docs|benchmarks)/[\w/.]*|pyproject\.toml)`|\]\(([\w/.]+)\)", page)
    assert len(named) > 8
    assert not [path for pair in named for path in pair if path and not (ROOT / path).exists()]
