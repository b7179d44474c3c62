"""Commands for runs and their agents: evaluate, render, plot, report and export.

Each imports JAX or matplotlib only when it is called, as they are slow to import.
"""

import argparse
from pathlib import Path
from typing import Any

import qlax
from qlax.cli.flags import Command, argument, command
from qlax.config.command_line import parse
from qlax.errors import UserError


def _evaluate(options: argparse.Namespace) -> list[str] | None:
    from qlax.training import enable_compilation_cache
    from qlax.util.files import check_is_new, write_result

    file = None if options.json is None else check_is_new(options.json)
    enable_compilation_cache()
    played = qlax.evaluate(options.run, index=options.index, episodes=options.episodes, **playing(options))
    print(played)
    if file is not None:
        write_result(file, played.to_json().encode(), is_named=True)
        print(f"\nall episodes are in {file}")
        return None
    return [command("play", options.run), command("export", options.run)]


def _render(options: argparse.Namespace) -> list[str]:
    from qlax.training import enable_compilation_cache

    enable_compilation_cache()
    own = {"index": options.index, "episodes": options.episodes, "values": options.values, "fps": options.fps}
    film = qlax.render(options.run, options.out, **own, **playing(options))
    print(qlax.Played(film.returns, film.lengths, film.cut, film))
    print(video_in_words(film))
    return [command("evaluate", options.run), command("export", options.run)]


def video_in_words(film: "qlax.Film") -> str:
    """Return a line about a video that was written."""
    return f"{film.path}: {film.frames:,} frames of {film.width} x {film.height}, {film.fps:g} per second"


def playing(options: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments that `qlax.evaluate`, `qlax.render` and `qlax.play` share."""
    words = options.env_options and [parse("env_options", word) for word in options.env_options]
    return {
        "best": options.best,
        "epsilon": options.epsilon,
        "seed": options.seed,
        "env": options.env,
        "env_options": words and {name: value for word in words for name, value in word.items()},
        "wrappers": None if options.wrappers is None else parse("wrappers", options.wrappers),
        "max_steps": options.max_steps,
    }


def _plot(options: argparse.Namespace) -> list[str]:
    choices = {"kind": options.kind, "x": options.x, "y": options.y, "by": options.by, "title": options.title}
    drawn = qlax.plot(options.runs, options.out, **choices)
    print(f"{drawn.text}\n{drawn.path}")
    return [command("report", *options.runs), command("plot", *options.runs, "--kind", "profile")]


def _report(options: argparse.Namespace) -> list[str]:
    print(qlax.report(options.runs, options.out, video=options.video))
    return [command("plot", *options.runs), command("runs", Path(options.runs[0]).parent)]


def _export(options: argparse.Namespace) -> list[str]:
    from qlax.util.text import shown

    try:
        index = int(options.index)
    except ValueError:
        raise UserError(f"index={shown(options.index)}: expected a whole number from 0") from None
    path = qlax.export(options.run, options.out, format=options.format, index=index, best=options.best)
    print(f"{path}: {path.stat().st_size:,} bytes")
    return [command("evaluate", options.run), command("play", options.run)]


RUNS = argument("runs", nargs="+", metavar="RUN", help="run directories, or directories of sweeps")
AGENTS = argument("run", metavar="RUN", help="run directory, a file in its agents/ or best/, or zoo:NAME")
INDEX = argument("--index", metavar="INDEX", default="0", help="index of the agent in the run (default: 0)")
BEST = argument("--best", action="store_true", help="use the weights of the best evaluation instead of the last ones")
PLAY = [
    argument("--epsilon", metavar="EPSILON", default="0", help="probability of a random action (default: 0, greedy)"),
    argument("--seed", metavar="SEED", default="0", help="random seed of the episodes (default: 0)"),
    argument(
        "--env",
        metavar="ENV",
        help="play in another environment with the same observations and actions (default: the run's)",
    ),
    argument(
        "--env-options",
        nargs="+",
        metavar="NAME=VALUE",
        help="options of the environment, which add to those of the run or replace them (default: none)",
    ),
    argument("--wrappers", metavar="NAMES", help="wrappers around the environment (default: those of the run)"),
    argument(
        "--max-steps",
        metavar="STEPS",
        help="number of steps after which an episode is cut (default: as in the run's evaluations)",
    ),
]
COMMANDS = (
    Command(
        "evaluate",
        _evaluate,
        "play whole episodes with trained agents and report their returns",
        [
            AGENTS,
            argument("--index", metavar="INDEX", nargs="+", help="indices of agents in the run (default: all)"),
            BEST,
            *PLAY,
            argument("--episodes", metavar="NUMBER", default="64", help="number of episodes per agent (default: 64)"),
            argument(
                "--json",
                metavar="FILE",
                help="also write the return and length of every episode to this file (default: none)",
            ),
        ],
    ),
    Command(
        "render",
        _render,
        "write a video of a trained agent",
        [
            AGENTS,
            INDEX,
            BEST,
            *PLAY,
            argument(
                "--out", metavar="FILE", help="video to write, .mp4 or .gif (default: video.mp4 in the run directory)"
            ),
            argument(
                "--episodes",
                metavar="NUMBER",
                default="1",
                help="number of episodes to show side by side (default: 1)",
            ),
            argument("--values", action="store_true", help="show Q-values and the return beside the picture"),
            argument(
                "--fps",
                metavar="FRAMES",
                help="frames per second, with one frame for each step (default: the environment's own rate)",
            ),
        ],
    ),
    Command(
        "plot",
        _plot,
        "draw figures of runs for a paper",
        [
            RUNS,
            argument("--out", metavar="FILE", help="figure to write, .png, .svg or .pdf (default: figure.png)"),
            argument(
                "--kind",
                choices=("curve", "profile", "improvement"),
                default="curve",
                help="learning curves, performance profiles (share of runs above each score), or probabilities that "
                "one setting is better than another (default: curve)",
            ),
            argument(
                "--x",
                choices=("steps", "seconds"),
                default="steps",
                help="horizontal axis of learning curves (default: steps)",
            ),
            argument(
                "--y",
                metavar="METRIC",
                default="eval_return",
                help="metric to draw, a key of metrics.jsonl; learning curves show up to four, as in "
                "eval_return,episode_return (default: eval_return)",
            ),
            argument(
                "--by",
                metavar="FIELDS",
                help="settings that form groups, as in lam,norm, or directory (default: the settings that differ)",
            ),
            argument("--title", metavar="TITLE", help="title above the figure (default: none)"),
        ],
    ),
    Command(
        "report",
        _report,
        "write a page of HTML about runs",
        [
            RUNS,
            argument("--out", metavar="FILE", help="page to write, .html (default: report.html)"),
            argument(
                "--video",
                action=argparse.BooleanOptionalAction,
                default=True,
                help="include a video of the best agent (default: on)",
            ),
        ],
    ),
    Command(
        "export",
        _export,
        "write an agent to a file that loads without qlax",
        [
            AGENTS,
            argument(
                "--format",
                choices=("stablehlo", "onnx"),
                default="stablehlo",
                help="StableHLO, which JAX loads, or ONNX (default: stablehlo)",
            ),
            INDEX,
            BEST,
            argument("--out", metavar="FILE", help="file to write (default: agent.FORMAT in the run directory)"),
        ],
    ),
)
