"""The commands that look at what runs left: evaluate, render, plot, report and export.

Each imports what it needs when it is called: JAX and matplotlib take their time.
"""

import argparse
from collections.abc import Callable
from typing import Any

from qlax.config.command_line import parse
from qlax.errors import UserError

AddCommand = Callable[[str, Any, str], argparse.ArgumentParser]


def add(command: AddCommand) -> None:
    """Add the commands to a parser.

    Args:
      command: makes one of a name, the function that it calls with its options, and what it is for.
    """
    evaluate = command("evaluate", _evaluate, "play whole episodes with trained agents")
    _add_agent_flags(evaluate, several=True)
    evaluate.add_argument("--episodes", metavar="EPISODES", default="64", help="of every agent (default 64)")
    evaluate.add_argument("--json", metavar="FILE", help="write every episode's return and length there as well")

    render = command("render", _render, "film episodes of a trained agent")
    _add_agent_flags(render)
    render.add_argument("--out", metavar="FILE", help="as .mp4 or .gif (default video.mp4 in the run's directory)")
    render.add_argument("--episodes", metavar="EPISODES", default="1", help="side by side (default 1)")
    render.add_argument("--values", action="store_true", help="show Q-values and return beside the picture")
    render.add_argument("--fps", metavar="FRAMES", help="steps a second (default what suits the suite)")

    plot = command("plot", _plot, "draw the results of runs as figures for a paper")
    plot.add_argument("runs", nargs="+", metavar="RUN", help="directories of runs or sweeps")
    plot.add_argument("--out", metavar="FILE", help="as .png, .svg or .pdf (default figure.png)")
    kinds = "learning curves, performance profiles, or probabilities of improvement (default curve)"
    plot.add_argument("--kind", choices=("curve", "profile", "improvement"), default="curve", help=kinds)
    plot.add_argument("--x", choices=("steps", "seconds"), default="steps", help="of curves (default steps)")
    plot.add_argument(
        "--y",
        metavar="METRIC",
        default="eval_return",
        help="a name in metrics.jsonl, or for curves several, as eval_return,episode_return (default eval_return)",
    )
    plot.add_argument(
        "--by", metavar="FIELDS", help="what makes a group, as lam,norm or directory (default what differs)"
    )
    plot.add_argument("--title", metavar="TITLE", help="above the figure")

    report = command("report", _report, "write all about runs to one page of HTML")
    report.add_argument("runs", nargs="+", metavar="RUN", help="directories of runs or sweeps")
    report.add_argument("--out", metavar="FILE", help="as .html (default report.html)")
    report.add_argument("--video", action=argparse.BooleanOptionalAction, default=True, help="film the best agent")

    export = command("export", _export, "write an agent in a form that loads without qlax")
    export.add_argument("run", metavar="RUN", help="directory of a run, or a file of its agents/ or best/")
    export.add_argument(
        "--format",
        choices=("stablehlo", "onnx"),
        default="stablehlo",
        help="StableHLO, which JAX loads, or ONNX (default stablehlo)",
    )
    export.add_argument("--index", metavar="INDEX", default="0", help="of the run among those side by side (default 0)")
    export.add_argument("--best", action="store_true", help="the weights of the best evaluation, not the last ones")
    export.add_argument("--out", metavar="FILE", help="(default agent.<format> in the run's directory)")


def _add_agent_flags(parser: argparse.ArgumentParser, several: bool = False) -> None:
    parser.add_argument("run", metavar="RUN", help="directory of a run, or a file of its agents/ or best/")
    which = f"of the run{'s' * several} among those side by side (default {'all' if several else 0})"
    if several:
        parser.add_argument("--index", metavar="INDEX", nargs="+", help=which)
    else:
        parser.add_argument("--index", metavar="INDEX", default="0", help=which)
    parser.add_argument("--best", action="store_true", help="the weights of the best evaluation, not the last ones")
    parser.add_argument("--epsilon", metavar="EPSILON", default="0", help="share of random actions (default 0: greedy)")
    parser.add_argument("--seed", metavar="SEED", default="0", help="of the episodes (default 0)")
    parser.add_argument("--env", metavar="ENV", help="another environment with the same observations and actions")
    parser.add_argument("--env-options", nargs="+", metavar="NAME=VALUE", help="of the environment, besides its own")
    parser.add_argument("--wrappers", metavar="NAMES", help="around the environment, in place of the run's")
    parser.add_argument("--max-steps", metavar="STEPS", help="episodes this long are cut (default the run's own limit)")


def _evaluate(options: argparse.Namespace) -> None:
    from qlax.play import evaluate as playing
    from qlax.training import enable_compilation_cache
    from qlax.util.files import check_is_new, write_result

    file = None if options.json is None else check_is_new(options.json)
    enable_compilation_cache()
    played = playing.evaluate(options.run, index=options.index, episodes=options.episodes, **_play(options))
    print(played)
    if file is not None:
        write_result(file, played.to_json().encode())
        print(f"\nall episodes in {file}")


def _render(options: argparse.Namespace) -> None:
    from qlax.play import film as video
    from qlax.training import enable_compilation_cache

    enable_compilation_cache()
    own = {"index": options.index, "episodes": options.episodes, "values": options.values, "fps": options.fps}
    film = video.render(options.run, options.out, **own, **_play(options))
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
    from qlax.reports.plot import plot

    choices = {"kind": options.kind, "x": options.x, "y": options.y, "by": options.by, "title": options.title}
    drawn = plot(options.runs, options.out, **choices)
    print(f"{drawn.text}\n{drawn.path}")


def _report(options: argparse.Namespace) -> None:
    from qlax import report

    print(report(options.runs, options.out, video=options.video))


def _export(options: argparse.Namespace) -> None:
    from qlax import export
    from qlax.util.text import shown

    try:
        index = int(options.index)
    except ValueError:
        raise UserError(f"index={shown(options.index)}: expected a whole number from 0") from None
    path = export(options.run, options.out, format=options.format, index=index, best=options.best)
    print(f"{path}: {path.stat().st_size:,} bytes")
