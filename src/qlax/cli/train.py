"""Commands that train: train, sweep, resume and extend, and the report they print at the end."""

import argparse
import math
import sys
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import qlax
from qlax.cli import flags
from qlax.cli.flags import Command, argument, command
from qlax.config import environments, presets
from qlax.config.configure import configure
from qlax.config.settings import SWEEPABLE, Config
from qlax.errors import UserError, matching
from qlax.storage.formats import config_of_file
from qlax.util.text import repetition_in_words

_SAID_OTHERWISE = ("eval_return", "eval_episodes", "eval_cut", "eval_distinct", "eval_seconds")
MOST_LINES = 16  # agents in a report; of more, only the best are listed


def _train(options: argparse.Namespace) -> list[str]:
    config = configured(options)(**flags.given(options))
    if config.preset is None and (known := presets.made_for(config.env)):
        print(f"qlax: presets for {config.env}: {', '.join(known)}", file=sys.stderr)
    _join(options)
    return report(qlax.train(config, out=options.out, **_how(options)))


def _sweep(options: argparse.Namespace) -> list[str]:
    from qlax.jobs import sweep
    from qlax.jobs.ray import Place

    overrides, several = {}, {}
    for name, values in flags.given(options).items():
        if name in SWEEPABLE or name == "env_options":
            overrides[name] = values
        elif len(values := list(dict.fromkeys(values))) == 1:
            overrides[name] = values[0]
        else:
            several[name] = values
    options.target = [_spelled(word, sweep.lists()) for word in options.target]
    makers = targets(options)
    path = sweep.run(
        " ".join(options.target or makers),
        {name: partial(make, **overrides) for name, make in makers.items()},
        several,
        place=Place(on=options.on, jobs=options.jobs, cpus=options.cpus_per_job, gpus=options.gpus_per_job),
        out=options.out,
        compilation_cache=options.compilation_cache,
    )
    return [command("report", path), command("plot", path)]


def configured(options: argparse.Namespace) -> Callable[..., Config]:
    """Return a function that makes the settings of the target or of the file, with some of them replaced.

    Raises:
      UserError: There is neither a target nor a file, or both.
    """
    if (not options.target) == (options.config is None):
        raise UserError(
            "expected one of: a preset (see 'qlax presets'), an environment (see 'qlax envs'), or --config FILE"
        )
    return partial(config_of_file, options.config) if options.config else partial(configure, options.target)


def targets(options: argparse.Namespace) -> dict[str, Callable[..., Config]]:
    """Return, for every target of a sweep, a function that makes its settings.

    Raises:
      UserError: There is neither a target nor a file, or both.
    """
    from qlax.jobs import sweep

    make, lists = configured(options), sweep.lists()
    if options.config:
        config = make()
        return {config.preset or config.env: make}
    names = dict.fromkeys(name for word in options.target for name in lists.get(word, [word]))
    return {name: partial(configure, name) for name in names}


def _spelled(target: str, lists: Iterable[str]) -> str:
    """Return a target of a sweep in its own spelling, whatever case it is given in: it names jobs and directories."""
    return matching(target, lists) or presets.spelled(target) or environments.spelled(target)


def _resume(options: argparse.Namespace) -> list[str]:
    settings = flags.given(options)
    _join(options)
    return report(qlax.resume(options.run, **settings, **_how(options)))


def _extend(options: argparse.Namespace) -> list[str]:
    settings = flags.given(options)
    _join(options)
    return report(qlax.extend(options.run, **settings, **_how(options)))


def _how(options: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments that `qlax.train`, `qlax.resume` and `qlax.extend` share."""
    return {"compilation_cache": options.compilation_cache, **({"progress": "live"} if options.live else {})}


def _join(options: argparse.Namespace) -> None:
    from qlax.training import processes

    processes.join(options.coordinator, options.num_processes, options.process_id)


def report(result: "qlax.Result") -> list[str]:
    """Print the greedy return of every agent, the speed, and the files that the run has left.

    Returns:
      Commands that are useful next.
    """
    from qlax.reports import results
    from qlax.training import processes

    if not processes.is_first():
        return []
    summary = result.summary
    cut = " (some episodes cut)" if any(summary["eval_cut"]) else ""
    epsilon = result.config.eval_epsilon
    kind = f"return with epsilon {epsilon:g}" if epsilon else "greedy return"
    print(f"{kind} over {summary['eval_episodes']} episodes{cut}:")
    fields = result.config.compared
    ranked = results.ranking(results.rows(result.config, summary), fields) if fields else []
    if ranked and len(result.agents) > MOST_LINES:
        for each in ranked[: results.BEST]:
            print(f"  {each.shown(fields)}")
    else:
        _report_agents(result)
    if repetition := repetition_in_words(summary["eval_distinct"], summary["eval_episodes"]):
        print(repetition)
    steps, agents = summary["total_steps"], len(result.agents)
    print(f"network: {results.described(summary['network'])}")
    times = f"{summary['num_devices']} x " if summary["num_devices"] > 1 else ""
    speed = f"{summary['steps_per_second']:,.0f} steps/s on {times}{summary['device']}"
    print(f"{agents} x {steps:,} steps: {speed}, after {summary['compile_seconds']:.1f} s of compilation")
    print(f"run directory {result.directory}, learning curve {result.directory / 'curve.png'}")
    if name := summary["stopped_by"]:
        planned = result.config.num_updates * result.config.steps_per_update
        reason = "a callback" if name == "callback" else f"--{name} {getattr(result.config, name):g}"
        print(f"{reason} ended training before the planned {planned:,} steps; continue: qlax resume {result.directory}")
    if ranked:
        print(results.best_setting_in_words(result.config, ranked, fields))
        print(f"all agents: {result.directory / 'sweep.csv'}, {result.directory / 'sweep.png'}")
    if "replaced" in summary:
        returns = [-math.inf if found is None else found for found in summary["eval_return"]["per_run"]]
        best = result.directory / "agents" / f"{returns.index(max(returns))}.safetensors"
        drawn = result.directory / "population.png"
        print(
            f"population: {summary['replaced']} times an agent continued as a copy of a better one, see {drawn}; "
            f"the best agent is {best}"
        )
    return [command("play", result.directory), command("report", result.directory)]


def _report_agents(result: "qlax.Result") -> None:
    """Print a line per agent; of a large population only the best agents."""
    from qlax.reports.results import BEST

    summary, agents = result.summary, list(enumerate(result.config.members))
    if len(agents) > MOST_LINES and result.config.swept:
        returns = [-math.inf if found is None else found for found in summary["eval_return"]["per_run"]]
        agents = sorted(agents, key=lambda agent: returns[agent[0]], reverse=True)[:BEST]
    # Metrics of the environment whose names have a slash are left out, as there may be dozens of them.
    own = [name for name in summary if name.startswith("eval_") and "/" not in name and name not in _SAID_OTHERWISE]
    final = summary.get("final_settings", {})
    for index, member in agents:
        settings = [f"{name} {member[name]:g}" for name in result.config.swept]
        settings = [f"{name} {member[name]:g}, finally {final[name][index]:g}" for name in final] or settings
        said = ", ".join([f"seed {member['seed']}", *settings])
        which = f"  agent {index} ({said}):"
        if diverged := summary["diverged"][index]:
            print(f"{which} diverged after {diverged['steps']:,} steps: {diverged['what']} was not finite")
            continue
        measured = [f"{summary['eval_return']['per_run'][index]:.2f}"]
        values = {name.removeprefix("eval_"): summary[name]["per_run"][index] for name in own}
        measured += [f"{name} {value:.4g}" for name, value in values.items() if value is not None]
        print(f"{which} {', '.join(measured)}")


LIMITS = [*flags.setting("until"), *flags.setting("minutes")]
COMMANDS = (
    Command(
        "train",
        _train,
        "train agents",
        [
            *flags.target("a preset, or an environment as suite/name or module:Name", nargs="?"),
            argument("--out", metavar="DIR", help="run directory, new or empty (default: a new one under runs/)"),
            flags.LIVE,
            flags.CACHE,
            *flags.PROCESSES,
            *flags.settings(),
        ],
        epilog="Several values, as in --lam 0 0.65 0.95, train every combination side by side in one program; "
        "--learning-rate log-uniform:1e-5:1e-2 --draws 64 draws values. Settings that take only one value here can be "
        "varied with qlax sweep.",
    ),
    Command(
        "sweep",
        _sweep,
        "train every combination of targets and settings, each in a job of its own",
        [
            *flags.target("presets or environments; atari57 and minatar stand for all their games", nargs="*"),
            argument("--out", metavar="DIR", help="directory of the sweep (default: a new one under runs/)"),
            *flags.PLACE,
            flags.CACHE,
            *flags.settings(several=True),
        ],
        epilog="Every setting takes several values, as in --num-envs 16 32 --hidden 64,64 128,128. To continue an "
        "interrupted sweep, repeat the command with --out DIR.",
    ),
    Command(
        "resume",
        _resume,
        "continue an interrupted run",
        [argument("run", metavar="RUN", help="run directory"), *LIMITS, flags.LIVE, flags.CACHE, *flags.PROCESSES],
        description="Continue an interrupted run, or one that --until or --minutes ended, to its planned length. The "
        "setting that ended it no longer holds, unless it is given again.",
    ),
    Command(
        "extend",
        _extend,
        "train a run longer than it was planned",
        [
            argument("run", metavar="RUN", help="run directory"),
            argument(
                "--total-steps",
                metavar="STEPS",
                required=True,
                help="environment steps per agent, including those already done",
            ),
            *LIMITS,
            flags.LIVE,
            flags.CACHE,
            *flags.PROCESSES,
        ],
        description="Train a run longer than it was planned. Schedules continue as those of a run of STEPS steps: "
        "the learning rate and epsilon are again what they would be at this point of such a run.",
    ),
)
