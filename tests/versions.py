"""Test qlax with the lowest and the newest versions of its dependencies: `python tests/versions.py`.

For every combination, uv makes an environment of its own, installs qlax with the lowest versions that `pyproject.toml`
allows, or with the newest ones, and runs some tests of all parts. It needs uv (`pip install uv`) and the Pythons.
`--resolution newest-jax` also ignores the bounds of other packages, such as Gymnax, on the version of JAX.
"""

import argparse
import datetime
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESOLUTIONS = ("lowest-direct", "highest")  # "direct": of what qlax itself names, as others seldom test their bounds
NEWEST_JAX = "newest-jax"
TOOLS = ("hypothesis", "pytest")
SELECTION = (
    "tests/test_pqn.py::test_updates_equal_plain_numpy",
    "tests/storage/test_checkpoint.py",
    "tests/playing/test_film.py::test_a_film_has_every_step_and_the_end",
    "tests/cli/test_new.py",
    "tests/test_portable.py",
)


def main() -> None:
    """Test every combination, write the record, and exit with 1 if one failed."""
    options = parser().parse_args()
    rows = json.loads(options.out.read_text()) if options.out and options.out.exists() else []
    failed = False
    for python in options.python:
        for resolution in options.resolution:
            row = combination(python, resolution, options.tests)
            print(f"Python {python}, {resolution}: {row['tests']}", flush=True)
            same = (row["python"], resolution)
            rows = [each for each in rows if (each["python"], each["resolution"]) != same] + [row]
            failed |= row["exit_code"] != 0
            if options.out:
                options.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    sys.exit(failed)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    found = argparse.ArgumentParser(description="Test qlax with the lowest and the newest dependencies.")
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    found.add_argument("--python", nargs="+", default=[own], help="versions or paths (default the one in use)")
    found.add_argument("--resolution", nargs="+", default=RESOLUTIONS, choices=(*RESOLUTIONS, NEWEST_JAX))
    found.add_argument("--tests", nargs="+", default=SELECTION, help="tests to run, instead of some of all parts")
    found.add_argument("--out", type=Path, help="record to write or to add to, .json (default none)")
    return found


def combination(python: str, resolution: str, tests: list[str]) -> dict:
    """Make an environment, run the tests in it, and return the row of the record."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    pins = [pin for pin in project["dependency-groups"]["test"] if pin.partition("==")[0] in TOOLS]
    direct = [re.match(r"[\w-]+", named)[0] for named in project["project"]["dependencies"]]
    with tempfile.TemporaryDirectory() as folder:
        uv = [sys.executable, "-m", "uv"]
        subprocess.run([*uv, "venv", "--quiet", "--python", python, folder], check=True)
        program = Path(folder) / ("Scripts" if os.name == "nt" else "bin") / "python"
        asked = [program, "-c", "import platform; print(platform.python_version())"]
        version = subprocess.check_output(asked, text=True).strip()
        install = [*uv, "pip", "install", "--quiet", "--python", str(program)]
        if resolution == NEWEST_JAX:
            unbounded = Path(folder) / "unbounded.txt"
            unbounded.write_text("jax\njaxlib\n")
            install += ["--override", str(unbounded)]
        else:
            install += ["--resolution", resolution]
        subprocess.run([*install, str(ROOT), *pins], check=True)
        listed = [*uv, "pip", "list", "--quiet", "--python", str(program), "--format", "json"]
        versions = {each["name"]: each["version"] for each in json.loads(subprocess.check_output(listed))}
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        command = [str(program), "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
        done = subprocess.run(command, cwd=ROOT, env=kept, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        print(done.stdout)
    return {
        "python": version,
        "resolution": resolution,
        "platform": sys.platform,
        "date": datetime.date.today().isoformat(),
        "tests": done.stdout.strip().rpartition("\n")[2].partition(" in ")[0],
        "exit_code": done.returncode,
        "versions": {name: versions.get(name) for name in ["jaxlib", *direct]},
    }


if __name__ == "__main__":
    main()
