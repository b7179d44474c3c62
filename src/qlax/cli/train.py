"""The commands that train: train, sweep, resume and extend, and what they print in the end."""

import argparse
import math
import sys
from collections.abc import Callable
from functools import partial

import qlax
from qlax.cli import flags
from qlax.cli.flags import Command, argument
from qlax.config import presets
from qlax.config.configure import configure
from qlax.config.settings import SWEEPABLE, Config
from qlax.errors import UserError
from qlax.storage.formats import config_of_file

_SAID_OTHERWISE = ("eval_return", "eval_episodes", "eval_cut", "eval_seconds")
MOST_LINES = 16  # of agents in a report, where settings are compared


def _train(options: argparse.Namespace) -> None:
    config = configured(options)(**flags.given(options))
    if config.preset is None and (known := presets.made_for(config.env)):
        print(f"qlax: presets with settings made for {config.env}: {', '.join(known)}", file=sys.stderr)
    _join(options)
    report(qlax.train(config, out=options.out, compilation_cache=options.compilation_cache))


def _sweep(options: argparse.Namespace) -> None:
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
    makers = targets(options)
    sweep.run(
        " ".join(options.target or makers),
        {name: partial(make, **overrides) for name, make in makers.items()},
        several,
        place=Place(on=options.on, jobs=options.jobs, cpus=options.cpus_per_job, gpus=options.gpus_per_job),
        out=options.out,
        compilation_cache=options.compilation_cache,
    )


def configured(options: argparse.Namespace) -> Callable[..., Config]:
    """Return what makes a configuration of the target, or of the file, and of settings in place of its own.

    Raises:
      UserError: there is neither, or both.
    """
    if (not options.target) == (options.config is None):
        raise UserError("name one thing to train: a preset (see 'qlax presets'), an environment, or --config FILE")
    return partial(config_of_file, options.config) if options.config else partial(configure, options.target)


def targets(options: argparse.Namespace) -> dict[str, Callable[..., Config]]:
    """Return what makes a configuration of every target of a sweep.

    Raises:
      UserError: there is neither a target nor a file, or both.
    """
    from qlax.jobs import sweep

    make, lists = configured(options), sweep.lists()
    if options.config:
        config = make()
        return {config.preset or config.env: make}
    names = dict.fromkeys(name for word in options.target for name in lists.get(word, [word]))
    return {name: partial(configure, name) for name in names}


def _resume(options: argparse.Namespace) -> None:
    settings = flags.given(options)
    _join(options)
    report(qlax.resume(options.run, **settings, compilation_cache=options.compilation_cache))


def _extend(options: argparse.Namespace) -> None:
    settings = flags.given(options)
    _join(options)
    report(qlax.extend(options.run, **settings, compilation_cache=options.compilation_cache))


def _join(options: argparse.Namespace) -> None:
    from qlax.training import processes

    processes.join(options.coordinator, options.num_processes, options.process_id)


def report(result: "qlax.Result") -> None:
    """Print every agent's greedy return, the speed, and where things are."""
    from qlax.reports import results
    from qlax.training import processes

    if not processes.is_first():
        return
    summary = result.summary
    cut = " (some episodes cut)" if any(summary["eval_cut"]) else ""
    print(f"greedy return over {summary['eval_episodes']} episodes{cut}:")
    fields = result.config.compared
    ranked = results.ranking(results.rows(result.config, summary), fields) if fields else []
    if ranked and len(result.agents) > MOST_LINES:
        for each in ranked[: results.BEST]:
            print(f"  {each.shown(fields)}")
    else:
        _report_agents(result)
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
            f"population: members went on as better ones {summary['replaced']} times, see {drawn}; the best is {best}"
        )


def _report_agents(result: "qlax.Result") -> None:
    """Print a line an agent; of a large population the best alone."""
    from qlax.reports.results import BEST

    summary, agents = result.summary, list(enumerate(result.config.members))
    if len(agents) > MOST_LINES and result.config.swept:
        returns = [-math.inf if found is None else found for found in summary["eval_return"]["per_run"]]
        agents = sorted(agents, key=lambda agent: returns[agent[0]], reverse=True)[:BEST]
    # The environment's score and own metrics, but not what it groups under a slash: that may be dozens.
    own = [name for name in summary if name.startswith("eval_") and "/" not in name and name not in _SAID_OTHERWISE]
    final = summary.get("final_settings", {})
    for index, member in agents:
        settings = [f"{name} {member[name]:g}" for name in result.config.swept]
        settings = [f"{name} {member[name]:g}, in the end {final[name][index]:g}" for name in final] or settings
        said = ", ".join([f"seed {member['seed']}", *settings])
        which = f"  agent {index} ({said}):"
        if diverged := summary["diverged"][index]:
            print(f"{which} diverged after {diverged['steps']:,} steps, {diverged['what']} not finite")
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
            argument("--out", metavar="DIR", help="directory of the run (default a new one under runs/)"),
            flags.CACHE,
            *flags.PROCESSES,
            *flags.settings(),
        ],
        epilog="Several values of a number that a program is not compiled for, as in --lam 0 0.65 0.95, train every "
        "combination; --learning-rate log-uniform:1e-5:1e-2 --draws 64 draws them. Of other settings: qlax sweep.",
    ),
    Command(
        "sweep",
        _sweep,
        "train every combination of targets and settings, a job each",
        [
            *flags.target("presets or environments; atari57 and minatar stand for all games of each", nargs="*"),
            argument("--out", metavar="DIR", help="directory of the sweep (default a new one under runs/)"),
            *flags.PLACE,
            flags.CACHE,
            *flags.settings(several=True),
        ],
        epilog="Every flag of a setting takes several values, a word each, as in --num-envs 16 32 --hidden 64,64 "
        "128,128. The same command again, with --out, goes on where it was interrupted.",
    ),
    Command(
        "resume",
        _resume,
        "go on with an interrupted run",
        [argument("run", metavar="RUN", help="directory of the run"), *LIMITS, flags.CACHE, *flags.PROCESSES],
        description="Continue an interrupted run, or one that --until or --minutes ended, to its planned length. The "
        "setting that ended it no longer holds, unless it is given again.",
    ),
    Command(
        "extend",
        _extend,
        "train a run longer than it was meant to be",
        [
            argument("run", metavar="RUN", help="directory of the run"),
            argument(
                "--total-steps", metavar="STEPS", required=True, help="environment steps an agent, from the beginning"
            ),
            *LIMITS,
            flags.CACHE,
            *flags.PROCESSES,
        ],
        description="Train a run longer than it was meant to be. Schedules go on as those of a run of STEPS: learning "
        "rate and epsilon are again what they would be at this point of it.",
    ),
)
