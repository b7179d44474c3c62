"""The `qlax` command."""

import argparse
import math
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

import qlax
from qlax._version import __version__
from qlax.cli import look
from qlax.config import presets
from qlax.config.command_line import flag, parse
from qlax.config.configure import configure
from qlax.config.kinds import GROUPS, LONGEST_NAME, Sweep
from qlax.config.settings import FIELDS, SWEEPABLE, Config, fields_where
from qlax.errors import LostError, RunError, Stopped, UserError, nearest
from qlax.storage.formats import config_of_file
from qlax.util.text import shown

_SAID_OTHERWISE = ("eval_return", "eval_episodes", "eval_cut", "eval_seconds")
LONGEST_ERROR = 500  # characters of what argparse says
MOST_LINES = 16  # of runs in a report, where settings are compared


class _Parser(argparse.ArgumentParser):
    """Errors are one line, and flags are spelt out."""

    def __init__(self, **options: Any):
        super().__init__(allow_abbrev=False, **options)
        self._negative_number_matcher = re.compile(r"-\.?\d")  # -1e-3 as well

    def error(self, message: str) -> NoReturn:
        if "invalid choice: 'suite'" in message:
            message = "there is no command 'suite' any more; several targets are a sweep, as in: qlax sweep atari57"
        _fail(shown(" ".join(message.split()), LONGEST_ERROR))


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code: 2 for what a user can mend, 1 where training failed."""
    options, unknown = _parser().parse_known_args(arguments)
    if unknown:
        _check_several(options, sys.argv[1:] if arguments is None else arguments, unknown[0])
        flags = [word for word in unknown if word.startswith("-")]
        known = [flag for action in options.parser._actions for flag in action.option_strings]
        hint = nearest(flags[0][:LONGEST_NAME], known) if flags else ""
        _fail(f"unknown {'flag' if flags else 'argument'} {shown(repr((flags or unknown)[0]))}{hint}")

    try:
        options.command(options)
        sys.stdout.flush()
        _leave(in_harmony=True)
    except BrokenPipeError:  # whoever read the list has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except UserError as error:
        _say(str(error))
        _leave(in_harmony=False)
        sys.exit(2)
    except RunError as error:
        _say(str(error))
        if not isinstance(error, LostError):  # whose last line says how to go on
            _leave(in_harmony=False)
        return 1
    except Stopped as stopped:
        _say(str(stopped))
        _leave(in_harmony=True)
        return 0 if stopped.signal_number == signal.SIGTERM else 130  # machines that are taken back send SIGTERM
    except KeyboardInterrupt:
        _say("stopped at once")
        _leave(in_harmony=False)
        return 130
    return 0


def _leave(in_harmony: bool) -> None:
    """End what is done together with other processes, if the command began anything."""
    if "qlax.training.processes" in sys.modules:  # it imports JAX, which takes a while
        from qlax.training import processes

        processes.leave(in_harmony)


def _say(message: str) -> None:
    print("qlax:", " ".join(message.split()), file=sys.stderr)


def _fail(message: str) -> NoReturn:
    _say(message)
    sys.exit(2)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="qlax", description="Deep Q-learning without replay or target network (PQN), in JAX.")
    parser.add_argument("--version", action="version", version=f"qlax {__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="command", parser_class=_Parser)

    def command(name: str, function: Any, help: str) -> argparse.ArgumentParser:
        subparser = subparsers.add_parser(name, help=help, description=help)
        subparser.set_defaults(command=function, parser=subparser)
        return subparser

    train = command("train", _train, "train agents")
    train.epilog = (
        "Several values of a number that a program is not compiled for, as in --lam 0 0.65 0.95, train every "
        "combination; --learning-rate log-uniform:1e-5:1e-2 --draws 64 draws them. Of other settings: qlax sweep."
    )
    _add_target(train, "a preset, or an environment as suite/name or module:Name", nargs="?")
    train.add_argument("--out", metavar="DIR", help="directory of the run; a new one under runs/, unless given")
    _add_cache_flag(train)
    _add_process_flags(train)
    _add_setting_flags(train)

    sweep = command("sweep", _sweep, "train every combination of targets and settings, a job each")
    sweep.epilog = (
        "Every flag of a setting takes several values, a word each, as in --num-envs 16 32 --hidden 64,64 128,128. The "
        "same command again, with --out, goes on where it was interrupted."
    )
    _add_target(sweep, "presets or environments; atari57 and minatar stand for all games of each", nargs="*")
    sweep.add_argument("--out", metavar="DIR", help="directory of the sweep; a new one under runs/, unless given")
    _add_place_flags(sweep)
    _add_cache_flag(sweep)
    _add_setting_flags(sweep, several=True)

    resume = command("resume", _resume, "go on with an interrupted run")
    resume.add_argument("run", help="its directory")
    _add_cache_flag(resume)
    _add_process_flags(resume)

    extend = command("extend", _extend, "train a run longer than it was meant to be")
    extend.description = (
        "Train a run longer than it was meant to be. Schedules go on as those of a run of STEPS: learning rate and "
        "epsilon are again what they would be at this point of it."
    )
    extend.add_argument("run", help="its directory")
    extend.add_argument(
        "--total-steps", metavar="STEPS", required=True, help="environment steps a run, from the beginning"
    )
    _add_cache_flag(extend)
    _add_process_flags(extend)

    look.add(command)

    listed = command("envs", _envs, "list the environments, with numbers of actions, observations and time limits")
    listed.add_argument("suite", nargs="?", help="of this suite alone, or one environment as suite/name or module:Name")
    listed.add_argument("--check", action="store_true", help="run each: does it keep its contract, and how fast")
    command("presets", _presets, "list the presets").add_argument("preset", nargs="?", help="show this one")
    return parser


def _add_target(parser: argparse.ArgumentParser, help: str, nargs: str) -> None:
    parser.add_argument("target", nargs=nargs, metavar="TARGET", help=help)
    parser.add_argument("--config", metavar="FILE", help="settings of an earlier run, its config.json")


def _add_place_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--jobs", metavar="JOBS", type=int, help="at a time (default 1; on Ray as many as there is room for)")
    add("--on", choices=("ray",), help="where there is room: the Ray cluster that runs, or a new one on this machine")
    add("--cpus-per-job", metavar="CPUS", type=float, help="on Ray (default 1 beside a GPU, or else an equal share)")
    add("--gpus-per-job", metavar="GPUS", type=float, help="on Ray, may be 0.5 (default 1 if there is any)")


def _add_setting_flags(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """Add a flag for every setting; with `several` values of each, or only of those that are swept in one program."""
    groups = {group: parser.add_argument_group(f"{group} settings") for group in GROUPS}
    for name in fields_where(flag=True):
        field = FIELDS[name]
        kind, add = field.metadata["kind"], groups[field.metadata["group"]].add_argument
        default = f"{field.default:,}" if type(field.default) in (int, float) else field.default
        help = field.metadata["help"] + (f" (default {default})" if isinstance(default, str) else "")
        if isinstance(field.default, bool) and several:
            add(flag(name), nargs="*", metavar="true|false", help=help)
            add(flag(f"no_{name}"), dest=name, action="store_const", const=["false"])
        elif isinstance(field.default, bool):
            add(flag(name), action=argparse.BooleanOptionalAction, help=help)
        else:
            nargs = "+" if several or field.type == Sweep or name == "env_options" else None
            metavar = "|".join(kind.choices) if kind.choices else name.split("_")[-1].upper()
            add(flag(name), nargs=nargs, metavar=metavar, help=help)


def _add_cache_flag(parser: argparse.ArgumentParser) -> None:
    help = "whether to keep compiled programs for the next time"
    parser.add_argument("--compilation-cache", action=argparse.BooleanOptionalAction, default=True, help=help)


def _add_process_flags(parser: argparse.ArgumentParser) -> None:
    several = parser.add_argument_group("several processes", "Found out under Slurm, Open MPI and Kubernetes.")
    several.add_argument("--coordinator", metavar="HOST:PORT", help="of the first process, which listens there")
    several.add_argument("--num-processes", metavar="PROCESSES", type=int, help="that train together; 1: alone")
    several.add_argument("--process-id", metavar="ID", type=int, help="which of them this is, from 0")


def _join(options: argparse.Namespace) -> None:
    from qlax.training import processes

    processes.join(options.coordinator, options.num_processes, options.process_id)


def _check_several(options: argparse.Namespace, words: list[str], unknown: str) -> None:
    """Whether a word that has no place is a further value of a flag that takes one."""
    before = [word for word in words[: words.index(unknown)] if word.startswith("--")] if unknown in words else []
    flags = [flag(name) for name, field in FIELDS.items() if name not in SWEEPABLE and type(field.default) is not bool]
    if options.command is _train and not unknown.startswith("--") and before and before[-1] in flags:
        _fail(f"{before[-1]} takes one value, not {shown(repr(unknown))} as well; several values are for 'qlax sweep'")


def _train(options: argparse.Namespace) -> None:
    overrides = {name: _value(name, value) for name, value in _given(options).items()}
    config = _configured(options)(**overrides)
    if config.preset is None and (known := presets.made_for(config.env)):
        print(f"qlax: presets with settings made for {config.env}: {', '.join(known)}", file=sys.stderr)
    _join(options)
    _report(qlax.train(config, out=options.out, compilation_cache=options.compilation_cache))


def _configured(options: argparse.Namespace) -> Callable[..., Config]:
    """What makes a configuration of the target, or of the file, and of settings in place of its own."""
    if (not options.target) == (options.config is None):
        raise UserError("name one thing to train: a preset (see 'qlax presets'), an environment, or --config FILE")
    return partial(config_of_file, options.config) if options.config else partial(configure, options.target)


def _sweep(options: argparse.Namespace) -> None:
    from qlax.jobs import sweep

    overrides, several = {}, {}
    for name, words in _given(options).items():
        values = _value(name, words or ["true"])
        if name in SWEEPABLE or name == "env_options":
            overrides[name] = values
        elif len(values := list(dict.fromkeys(values))) == 1:
            overrides[name] = values[0]
        else:
            several[name] = values
    targets = _targets(options)
    sweep.run(
        " ".join(options.target or targets),
        {name: partial(make, **overrides) for name, make in targets.items()},
        several,
        place=_place(options),
        out=options.out,
        compilation_cache=options.compilation_cache,
    )


def _targets(options: argparse.Namespace) -> dict[str, Callable[..., Config]]:
    """What makes the configurations of every target of a sweep."""
    from qlax.jobs import sweep

    make, lists = _configured(options), sweep.lists()
    if options.config:
        config = make()
        return {config.preset or config.env: make}
    names = dict.fromkeys(name for word in options.target for name in lists.get(word, [word]))
    return {name: partial(configure, name) for name in names}


def _place(options: argparse.Namespace) -> Any:
    from qlax.jobs.place import Place

    return Place(on=options.on, jobs=options.jobs, cpus=options.cpus_per_job, gpus=options.gpus_per_job)


def _given(options: argparse.Namespace) -> dict[str, Any]:
    """The settings among the flags."""
    return {name: value for name, value in vars(options).items() if name in FIELDS and value is not None}


def _value(name: str, given: Any) -> Any:
    """What a flag says: a list of words, one word, or true or false."""
    if isinstance(given, bool):
        return given
    if not isinstance(given, list):
        return parse(name, given)
    values = [parse(name, word) for word in given]
    if name != "env_options":
        return values
    options = [option for value in values for option in value]
    if twice := [option for option in options if options.count(option) > 1]:
        raise UserError(f"env_options: {twice[0]} is given twice; its values are no sweep")
    return {option: each for value in values for option, each in value.items()}


def _resume(options: argparse.Namespace) -> None:
    _join(options)
    _report(qlax.resume(options.run, compilation_cache=options.compilation_cache))


def _extend(options: argparse.Namespace) -> None:
    total_steps = parse("total_steps", options.total_steps)
    _join(options)
    _report(qlax.extend(options.run, total_steps, compilation_cache=options.compilation_cache))


def _report(result: "qlax.Result") -> None:
    """Greedy return of every run, speed, and where things are."""
    from qlax.training import processes

    if not processes.is_first():
        return
    summary = result.summary
    cut = " (some episodes cut)" if any(summary["eval_cut"]) else ""
    print(f"greedy return over {summary['eval_episodes']} episodes{cut}:")
    from qlax.reports import ranking

    fields = result.config.compared
    ranked = ranking.ranking(ranking.rows(result.config, summary), fields) if fields else []
    if ranked and len(result.agents) > MOST_LINES:
        for each in ranked[: ranking.BEST]:
            print(f"  {each.shown(fields)}")
    else:
        _report_runs(result)
    steps, runs = summary["total_steps"], len(result.agents)
    print(f"network: {', '.join(_written(name, value) for name, value in summary['network'].items())}")
    times = f"{summary['num_devices']} x " if summary["num_devices"] > 1 else ""
    speed = f"{summary['steps_per_second']:,.0f} steps/s on {times}{summary['device']}"
    print(f"{runs} x {steps:,} steps: {speed}, after {summary['compile_seconds']:.1f} s of compilation")
    print(f"run directory {result.directory}, learning curve {result.directory / 'curve.png'}")
    if ranked:
        print(ranking.best_setting_in_words(result.config, ranked, fields))
        print(f"all agents: {result.directory / 'sweep.csv'}, {result.directory / 'sweep.png'}")
    if "replaced" in summary:
        returns = [-math.inf if found is None else found for found in summary["eval_return"]["per_run"]]
        best = result.directory / "agents" / f"{returns.index(max(returns))}.safetensors"
        drawn = result.directory / "population.png"
        print(
            f"population: members went on as better ones {summary['replaced']} times, see {drawn}; the best is {best}"
        )


def _report_runs(result: "qlax.Result") -> None:
    """A line a run; of a large population the best alone."""
    from qlax.reports.ranking import BEST

    summary, runs = result.summary, list(enumerate(result.config.members))
    if len(runs) > MOST_LINES and result.config.swept:
        returns = [-math.inf if found is None else found for found in summary["eval_return"]["per_run"]]
        runs = sorted(runs, key=lambda run: returns[run[0]], reverse=True)[:BEST]
    # The environment's score and own metrics, but not what it groups under a slash: that may be dozens.
    own = [name for name in summary if name.startswith("eval_") and "/" not in name and name not in _SAID_OTHERWISE]
    final = summary.get("final_settings", {})
    for index, run in runs:
        settings = [f"{name} {run[name]:g}" for name in result.config.swept]
        settings = [f"{name} {run[name]:g}, in the end {final[name][index]:g}" for name in final] or settings
        which = ", ".join([f"seed {run['seed']}", *settings])
        if diverged := summary["diverged"][index]:
            print(f"  run {index} ({which}): diverged after {diverged['steps']:,} steps, {diverged['what']} not finite")
            continue
        measured = [f"{summary['eval_return']['per_run'][index]:.2f}"]
        values = {name.removeprefix("eval_"): summary[name]["per_run"][index] for name in own}
        measured += [f"{name} {value:.4g}" for name, value in values.items() if value is not None]
        print(f"  run {index} ({which}): {', '.join(measured)}")


def _written(name: str, value: Any) -> str:
    return f"{name} {','.join(map(str, value)) if isinstance(value, list) else value}"


def _envs(options: argparse.Namespace) -> None:
    from qlax.envs import SUITES, suite, survey

    env_ids: list[str] = []
    is_one = options.suite is not None and ("/" in options.suite or ":" in options.suite)
    for name in [options.suite] if options.suite else SUITES:
        try:
            env_ids += [name] if is_one else [f"{name}/{env}" for env in suite(name).names()]
        except UserError as error:
            if options.suite:
                raise
            print(f"qlax: {error}", file=sys.stderr)
    width = max(len(env_id) for env_id in env_ids)
    checked = f"{'steps/s':>10}  " if options.check else ""
    print(f"{'environment':{width}}  {checked}{'actions':>7}  {'agents':>6}  {'limit':>6}  observation")
    wrong = []
    for env_id in env_ids:
        try:
            found = survey.sizes(env_id)
        except UserError as error:  # not for PQN, or lacks something that is not installed
            if is_one:
                raise
            print(f"{env_id:{width}}  {error}", flush=True)
            continue
        try:
            with warnings.catch_warnings(record=True) as advice:
                checked = f"{survey.check(env_id):>10,.0f}  " if options.check else ""
        except UserError as error:
            wrong.append(env_id)
            print(f"{env_id:{width}}  {error}", flush=True)
            continue
        agents, limit = (str(number or "") for number in (found.num_agents, found.time_limit))
        line = f"{checked}{found.num_actions:>7}  {agents:>6}  {limit:>6}  {found.observation}"
        print(f"{env_id:{width}}  {line}", flush=True)
        if is_one:  # of a suite's own environments nobody can mend it
            print("".join(f"qlax: {each.message}\n" for each in advice), end="", file=sys.stderr)
    if wrong:
        print(f"qlax: {len(wrong)} of {len(env_ids)} break their contract: {', '.join(wrong)}", file=sys.stderr)
        sys.exit(1)


def _presets(options: argparse.Namespace) -> None:
    if options.preset is None:
        for name in presets.names():
            print(f"{name:24} {presets.text(name).splitlines()[0].lstrip('# ')}")
    else:
        print(presets.text(options.preset), end="")


def entry() -> NoReturn:
    """The command as a process of its own, which ends when it is done, whatever other threads still compute."""
    try:
        code: Any = main()
    except SystemExit as ended:
        code = ended.code
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
