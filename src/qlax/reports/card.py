"""Model card of one agent of a finished run, in Markdown."""

import math
from pathlib import Path
from typing import Any

from qlax._version import __version__
from qlax.config.settings import FIELDS, Config
from qlax.playing.evaluate import EvaluationResult
from qlax.reports import html
from qlax.reports.results import described, of_run, rows
from qlax.storage import checkpoint
from qlax.storage.history import derive, read
from qlax.util.text import ends_in_words, four_digits, markdown, repetition_in_words, setting_in_words


def card(name: str, run: Path, agent: int, file: Path, played: EvaluationResult, note: str = "") -> str:
    """Return the model card of an agent: its result, how to use it, and how it was trained.

    Args:
      name: Name of the agent in the zoo.
      run: Directory of the finished run.
      agent: Index of the agent in the run.
      file: File of the agent.
      played: Evaluation of this agent alone.
      note: Anything else that a user has to know; else empty.

    Raises:
      UserError: The directory holds no run, or a damaged one.
    """
    found = derive(read(run), of_run)
    config, summary = found.config, found.summary
    _, arrays = checkpoint.read(file)
    numbers = sum(math.prod(array.shape) for array in arrays.values())
    suite = config.env.partition("/")[0]
    every = rows(config, summary)
    machine = html.machine(found)
    seeds = [[str(row["seed"]), four_digits(row["eval_return"])] for row in every]
    sections = [
        f"# {name}",
        f"A PQN agent for `{config.env}`, of the suite {suite}, trained by qlax {__version__}.",
        note,
        markdown(
            ["greedy return", "95 % interval", "lowest", "highest", "mean length", "episodes"],
            [
                [
                    four_digits(played.each[0].mean),
                    ends_in_words(played.each[0].interval),
                    four_digits(float(played.returns.min())),
                    four_digits(float(played.returns.max())),
                    four_digits(float(played.lengths.mean())),
                    f"{played.settings['episodes']:,}",
                ]
            ],
        ),
        repetition_in_words(played.distinct, played.settings["episodes"]),
        "## Use",
        f"```sh\nqlax play {name}\nqlax evaluate zoo:{name}\n```",
        f'```python\nagent = qlax.load("zoo:{name}")\n```',
        "## Training",
        f"```sh\n{html.settings(found)['command']}\n```",
        f"{summary['total_steps']:,} environment steps of each seed; {machine['seconds']['training']:,.0f} s for "
        f"all of them, on {summary['device']}.",
        f"This agent has the seed {every[agent]['seed']}: the median of {len(every)} by greedy return at the end of "
        "training, not the best."
        if len(every) > 1
        else f"There is one seed, {every[agent]['seed']}.",
        markdown(["seed", "greedy return"], seeds),
        "Settings that differ from qlax's defaults:",
        markdown(["setting", "value"], _changed(config)),
        "## Network",
        f"{described(summary['network'])}; {numbers:,} numbers in {file.stat().st_size:,} bytes.",
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def _changed(config: Config) -> list[list[str]]:
    """Return the settings of the algorithm that differ from the defaults, and their values."""
    apart = ("env", "preset", "derived", "seed", "seeds", "hidden", "encoder")
    groups = ("learning", "exploration", "network", "environment", "run")

    def is_shown(name: str, value: Any) -> bool:
        field = FIELDS[name]
        return name not in apart and field.metadata["group"] in groups and value != field.default

    shown = {name: value for name in FIELDS if is_shown(name, value := getattr(config, name))}
    return [[name, setting_in_words(value)] for name, value in shown.items() if value or value == 0]
