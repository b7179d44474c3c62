"""Time the first minutes with qlax: `python benchmarks/first_minutes.py`.

A wheel is built from this checkout and installed into an empty environment. The commands run one after the other in an
empty folder, with an empty home directory and so without any program compiled before. This script itself needs only
Python and the package `build`, or a wheel: `--wheel FILE`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Sequence
from pathlib import Path

from records import PACKAGES, RESULTS, circumstances

ROOT = Path(__file__).parent.parent
COMMANDS = (
    "qlax play minatar/breakout --video film.mp4",
    "qlax train cartpole-fast",
    "qlax new corridor",
    "qlax train corridor:Corridor",
)
BIN = "Scripts" if os.name == "nt" else "bin"
FOREIGN = ("JAX_", "XLA_", "PYTHON", "QLAX_", "XDG_")  # variables that an empty environment does not have


def main() -> None:
    """Time the installation and every command, and write the record."""
    parser = argparse.ArgumentParser(description="Time the first minutes with qlax.")
    parser.add_argument("--wheel", type=Path, help="wheel to install (default one that is built from this checkout)")
    parser.add_argument("--out", type=Path, default=RESULTS / "first_minutes.json", help="record to write")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder)
        wheel = options.wheel or built(fresh / "dist")
        begun = time.monotonic()
        environment = installed(wheel.resolve(), fresh)
        seconds = {"install": time.monotonic() - begun}
        (fresh / "work").mkdir()
        for command in COMMANDS:
            begun = time.monotonic()
            said = run(command.split(), fresh / "work", environment)
            if "invalid choice" in said:
                print(f"{command}: this version has no such command")
                continue
            seconds[command] = time.monotonic() - begun
            print(f"{said}{command}: {seconds[command]:.1f} s", flush=True)
        listed = json.loads(run(["python", "-m", "pip", "list", "--format", "json"], fresh, environment))
    versions = {each["name"]: each["version"] for each in listed if each["name"] in PACKAGES}
    together = sum(seconds[command] for command in COMMANDS if command in seconds)
    record = circumstances("python benchmarks/first_minutes.py") | {"versions": versions}
    record |= {"load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None}
    record |= {"seconds": seconds, "together_without_install": together}
    options.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(f"install {seconds['install']:.1f} s, all commands together {together:.1f} s")


def built(folder: Path) -> Path:
    """Build a wheel and an sdist from this checkout into a folder, and return the path of the wheel."""
    subprocess.run([sys.executable, "-m", "build", "--outdir", folder, ROOT], check=True, stdout=subprocess.DEVNULL)
    (wheel,) = folder.glob("*.whl")
    return wheel


def installed(what: Path | str, folder: Path) -> dict[str, str]:
    """Install a wheel or package into an empty environment in a folder, and return the variables of its processes."""
    venv.create(folder / "venv", with_pip=True)
    (folder / "home").mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    environment = kept | {
        "PATH": os.pathsep.join([str(folder / "venv" / BIN), os.environ["PATH"]]),
        "HOME": str(folder / "home"),
        "USERPROFILE": str(folder / "home"),
        "LOCALAPPDATA": str(folder / "home"),
    }
    python = folder / "venv" / BIN / "python"
    cache = run([sys.executable, "-m", "pip", "cache", "dir"], folder, dict(os.environ)).strip()
    run([str(python), "-m", "pip", "install", "--quiet", "--cache-dir", cache, str(what)], folder, environment)
    return environment


def run(words: Sequence[str], folder: Path, environment: dict[str, str]) -> str:
    """Run a program of an environment in a folder, and return what it prints.

    Raises:
      SystemExit: The program failed, for another reason than that qlax has no such command.
    """
    found = Path(environment["PATH"].split(os.pathsep)[0]) / words[0]  # Windows looks programs up in the old PATH
    program = found if found.exists() or found.with_suffix(".exe").exists() else words[0]
    done = subprocess.run(
        [program, *words[1:]], cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode and "invalid choice" not in done.stderr:
        sys.exit(f"{' '.join(words)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout or done.stderr


if __name__ == "__main__":
    main()
