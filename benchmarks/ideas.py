"""Run the scripts of examples/paper/ anew and keep their results: `python benchmarks/ideas.py [name...]`.

Figures go to `docs/figures/`, where docs/ideas.md shows them, and measurements go to
`benchmarks/results/ideas-<name>.json`.
"""

import contextlib
import json
import runpy
import shutil
import sys
import tempfile
import time
from pathlib import Path

from records import RESULTS, circumstances

ROOT = Path(__file__).parent.parent
EXAMPLES, FIGURES = ROOT / "examples" / "paper", ROOT / "docs" / "figures"
COMMANDS = {
    "baird": "baird.py",
    "deepsea": "deepsea.py",
    "cartpole": "lambda_and_norm.py --out cartpole.png",
    "breakout": "lambda_and_norm.py --env minatar/breakout --seeds 2 --eval-interval 7 --out breakout.png",
    "parallel": "parallel.py",
}


def main(names: list[str]) -> None:
    """Run the named scripts one after the other, or all of them."""
    sys.path.insert(0, str(EXAMPLES))  # a script imports modules of its own folder, as if it were started directly
    for name in names or COMMANDS:
        script, *words = COMMANDS[name].split()
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            begun = time.perf_counter()
            measured = runpy.run_path(str(EXAMPLES / script))["main"](words)
            seconds = time.perf_counter() - begun
            for figure in Path(folder).glob("*.png"):
                shutil.copy(figure, FIGURES / figure.name)
        kept = circumstances(f"python examples/paper/{COMMANDS[name]}") | {"seconds": round(seconds), **measured}
        (RESULTS / f"ideas-{name}.json").write_text(json.dumps(kept, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
