"""The commands that look at what runs left: evaluate, render, plot, report and export.

Each imports what it needs when it is called: JAX and matplotlib take their time.
"""

import argparse
from typing import Any

import qlax
from qlax.cli.flags import Command, argument
from qlax.config.command_line import parse
from qlax.errors import UserError


def _evaluate(options: argparse.Namespace) -> None:
    from qlax.training import enable_compilation_cache
    from qlax.util.files import check_is_new, write_result

    file = None if options.json is None else check_is_new(options.json)
    enable_compilation_cache()
    played = qlax.evaluate(options.run, index=options.index, episodes=options.episodes, **_play(options))
    print(played)
    if file is not None:
        write_result(file, played.to_json().encode(), is_named=True)
        print(f"\nall episodes in {file}")


def _render(options: argparse.Namespace) -> None:
    from qlax.training import enable_compilation_cache

    enable_compilation_cache()
    own = {"index": options.index, "episodes": options.episodes, "values": options.values, "fps": options.fps}
    film = qlax.render(options.run, options.out, **own, **_play(options))
    for number, (episode_return, length, cut) in enumerate(zip(film.returns, film.lengths, film.cut, strict=True)):
        ended = " (cut; see --max-steps)" if cut else ""
        print(f"episode {number}: return {episode_return:g}, {length:,} steps{ended}")
    print(f"{film.path}: {film.frames:,} pictures of {film.width} x {film.height}, {film.fps:g} a second")


def _play(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments that evaluate and render share."""
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


def _plot(options: argparse.Namespace) -> None:
    choices = {"kind": options.kind, "x": options.x, "y": options.y, "by": options.by, "title": options.title}
    drawn = qlax.plot(options.runs, options.out, **choices)
    print(f"{drawn.text}\n{drawn.path}")


def _report(options: argparse.Namespace) -> None:
    print(qlax.report(options.runs, options.out, video=options.video))


def _export(options: argparse.Namespace) -> None:
    from qlax.util.text import shown

    try:
        index = int(options.index)
    except ValueError:
        raise UserError(f"index={shown(options.index)}: expected a whole number from 0") from None
    path = qlax.export(options.run, options.out, format=options.format, index=index, best=options.best)
    print(f"{path}: {path.stat().st_size:,} bytes")


RUNS = argument("runs", nargs="+", metavar="RUN", help="directories of runs or sweeps")
AGENTS = argument("run", metavar="RUN", help="directory of a run, or a file of its agents/ or best/")
INDEX = argument("--index", metavar="INDEX", default="0", help="number of the agent in the run (default 0)")
BEST = argument("--best", action="store_true", help="the weights of the best evaluation, not the last ones")
PLAY = [
    argument("--epsilon", metavar="EPSILON", default="0", help="share of random actions (default 0: greedy)"),
    argument("--seed", metavar="SEED", default="0", help="seed of the episodes (default 0)"),
    argument("--env", metavar="ENV", help="another environment with the same observations and actions"),
    argument("--env-options", nargs="+", metavar="NAME=VALUE", help="options of the environment, besides its own"),
    argument("--wrappers", metavar="NAMES", help="wrappers of the environment, in place of the run's"),
    argument("--max-steps", metavar="STEPS", help="episodes this long are cut (default the run's own limit)"),
]
COMMANDS = (
    Command(
        "evaluate",
        _evaluate,
        "play whole episodes with trained agents",
        [
            AGENTS,
            argument("--index", metavar="INDEX", nargs="+", help="numbers of the agents in the run (default all)"),
            BEST,
            *PLAY,
            argument("--episodes", metavar="EPISODES", default="64", help="episodes of every agent (default 64)"),
            argument("--json", metavar="FILE", help="write every episode's return and length there as well"),
        ],
    ),
    Command(
        "render",
        _render,
        "film episodes of a trained agent",
        [
            AGENTS,
            INDEX,
            BEST,
            *PLAY,
            argument("--out", metavar="FILE", help="film, .mp4 or .gif (default video.mp4 in the run's directory)"),
            argument("--episodes", metavar="EPISODES", default="1", help="episodes side by side (default 1)"),
            argument("--values", action="store_true", help="show Q-values and return beside the picture"),
            argument("--fps", metavar="FRAMES", help="steps a second (default what suits the environment)"),
        ],
    ),
    Command(
        "plot",
        _plot,
        "draw the results of runs as figures for a paper",
        [
            RUNS,
            argument("--out", metavar="FILE", help="figure, .png, .svg or .pdf (default figure.png)"),
            argument(
                "--kind",
                choices=("curve", "profile", "improvement"),
                default="curve",
                help="learning curves, performance profiles, or probabilities of improvement (default curve)",
            ),
            argument("--x", choices=("steps", "seconds"), default="steps", help="axis of curves (default steps)"),
            argument(
                "--y",
                metavar="METRIC",
                default="eval_return",
                help="a name in metrics.jsonl, or for curves several, as eval_return,episode_return "
                "(default eval_return)",
            ),
            argument(
                "--by", metavar="FIELDS", help="what makes a group, as lam,norm or directory (default what differs)"
            ),
            argument("--title", metavar="TITLE", help="title above the figure"),
        ],
    ),
    Command(
        "report",
        _report,
        "write all about runs to one page of HTML",
        [
            RUNS,
            argument("--out", metavar="FILE", help="page, .html (default report.html)"),
            argument("--video", action=argparse.BooleanOptionalAction, default=True, help="film the best agent"),
        ],
    ),
    Command(
        "export",
        _export,
        "write an agent in a form that loads without qlax",
        [
            AGENTS,
            argument(
                "--format",
                choices=("stablehlo", "onnx"),
                default="stablehlo",
                help="StableHLO, which JAX loads, or ONNX (default stablehlo)",
            ),
            INDEX,
            BEST,
            argument("--out", metavar="FILE", help="file (default agent.<format> in the run's directory)"),
        ],
    ),
)
