"""Files for contributors and for services that read the repository."""

import re
import tomllib

import pytest
import versions
import yaml
from pages import ROOT
from test_imports import ORDER

WORKFLOWS = (".github/workflows/ci.yml", ".github/workflows/release.yml")
YAML = (".pre-commit-config.yaml", *WORKFLOWS, ".github/ISSUE_TEMPLATE/bug.yml", "CITATION.cff")


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


def test_public_ci_has_other_systems_and_the_lowest_and_newest_dependencies():
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    assert jobs["platforms"]["strategy"]["matrix"]["system"] == ["windows-latest", "macos-latest"]
    for name in ("platforms", "versions"):
        program, script, *words = jobs[name]["steps"][-1]["run"].split()
        assert (program, script) == ("python", "tests/versions.py")
        assert versions.parser().parse_args(words).out is None
    assert jobs["versions"]["strategy"] == jobs["test"]["strategy"]


def test_every_test_of_the_versions_is_there():
    for name in versions.SELECTION:
        file, _, function = name.partition("::")
        assert f"def {function}" in (ROOT / file).read_text()


def test_files_that_contributing_names_are_there():
    page = (ROOT / "CONTRIBUTING.md").read_text()
    named = re.findall(r"`((?:src|docs|benchmarks)/[\w/.]*|pyproject\.toml)`|\]\(([\w/.]+)\)", page)
    assert len(named) > 8
    assert not [path for pair in named for path in pair if path and not (ROOT / path).exists()]


def test_decisions_are_one_paragraph_each_and_in_the_order_of_the_packages():
    page = (ROOT / "docs/decisions.md").read_text()
    headings = re.findall(r"^## (.+)$", page, re.MULTILINE)
    packages = [name for heading in headings for name in re.findall(r"`(\w+)`", heading)]
    assert len(packages) > 10
    assert packages == sorted(packages, key=ORDER.index)
    decisions = page.strip().split("\n\n")[2:]
    assert len(decisions) > 100
    for each in decisions:
        assert re.match(r"#+ .+$|\*\*[^*\n]+\*\*( \(`\w+\.py`\)\.)?\n(?!\*\*)", each), each
        assert each.count("\n**") == 0
