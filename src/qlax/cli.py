"""The `qlax` command."""

import argparse
import os
import re
import signal
import sys
import warnings
from typing import Any, NoReturn

import qlax
from qlax.config import FIELDS, configure, environment_presets, from_file, parse, preset_text, presets
from qlax.errors import RunError, UserError, nearest
from qlax.fields import LONGEST_NAME, Sweep, shown

_SAID_OTHERWISE = ("eval_return", "eval_episodes", "eval_cut", "eval_seconds")
LONGEST_ERROR = 500  # characters of what argparse says
NOT_FLAGS = ("env", "preset", "derived")  # the target says the first two, qlax the last


class _Parser(argparse.ArgumentParser):
    """Errors are one line, and flags are spelt out."""

    def __init__(self, **options: Any):
        super().__init__(allow_abbrev=False, **options)
        self._negative_number_matcher = re.compile(r"-\.?\d")  # -1e-3 as well

    def error(self, message: str) -> NoReturn:
        _fail(shown(" ".join(message.split()), LONGEST_ERROR))


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code: 2 for what a user can mend, 1 where training failed."""
    options, unknown = _parser().parse_known_args(arguments)
    if unknown:
        flags = [word for word in unknown if word.startswith("-")]
        known = [flag for action in options.parser._actions for flag in action.option_strings]
        hint = nearest(flags[0][:LONGEST_NAME], known) if flags else ""
        _fail(f"unknown {'flag' if flags else 'argument'} {shown(repr((flags or unknown)[0]))}{hint}")

    from qlax.session import Stopped  # after the flags: JAX takes a while to import

    try:
        options.command(options)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read the list has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except UserError as error:
        _fail(str(error))
    except RunError as error:
        print(f"qlax: {error}", file=sys.stderr)
        return 1
    except Stopped as stopped:
        print(f"qlax: {stopped}", file=sys.stderr)
        return 0 if stopped.signal_number == signal.SIGTERM else 130  # machines that are taken back send SIGTERM
    except KeyboardInterrupt:
        print("qlax: stopped at once", file=sys.stderr)
        return 130
    return 0


def _fail(message: str) -> NoReturn:
    print("qlax:", " ".join(message.split()), file=sys.stderr)
    sys.exit(2)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="qlax", description="Deep Q-learning without replay or target network (PQN), in JAX.")
    parser.add_argument("--version", action="version", version=f"qlax {qlax.__version__}")
    commands = parser.add_subparsers(required=True, metavar="command", parser_class=_Parser)

    def command(name: str, function: Any, help: str) -> argparse.ArgumentParser:
        subparser = commands.add_parser(name, help=help, description=help)
        subparser.set_defaults(command=function, parser=subparser)
        return subparser

    train = command("train", _train, "train agents")
    train.epilog = "Several values of a number, as in --lam 0 0.65 0.95, train every combination."
    train.add_argument("target", nargs="?", help="a preset, or an environment as suite/name or module:Name")
    train.add_argument("--config", metavar="FILE", help="settings of an earlier run, its config.json")
    train.add_argument("--out", metavar="DIR", help="directory of the run; a new one under runs/, unless given")
    _add_cache_flag(train)
    _add_setting_flags(train)

    suite = command("suite", _suite, "train the games of a suite, a process each, or go on with them; makes a table")
    suite.epilog = "The same command again goes on where it was interrupted. Settings hold for every game."
    suite.add_argument("suite", help="atari57 or minatar")
    suite.add_argument("--games", metavar="GAMES", help="some of them, as Pong,Breakout (default all)")
    suite.add_argument("--jobs", metavar="JOBS", type=int, default=1, help="processes at a time (default 1)")
    suite.add_argument("--out", metavar="DIR", help="directory of all runs (default runs/ and the suite's name)")
    _add_cache_flag(suite)
    _add_setting_flags(suite)

    resume = command("resume", _resume, "go on with an interrupted run")
    resume.add_argument("run", help="its directory")
    _add_cache_flag(resume)

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
    listed = command("envs", _envs, "list the environments, with numbers of actions, observations and time limits")
    listed.add_argument("suite", nargs="?", help="of this suite alone, or one environment as suite/name or module:Name")
    listed.add_argument("--check", action="store_true", help="run each: does it keep its contract, and how fast")
    command("presets", _presets, "list the presets").add_argument("preset", nargs="?", help="show this one")
    return parser


def _add_setting_flags(parser: argparse.ArgumentParser) -> None:
    for name, field in FIELDS.items():
        if name in NOT_FLAGS:
            continue
        kind = field.metadata["kind"]
        default = f"{field.default:,}" if type(field.default) in (int, float) else field.default
        help = field.metadata["help"] + (f" (default {default})" if isinstance(default, str) else "")
        if isinstance(field.default, bool):
            parser.add_argument(_flag(name), action=argparse.BooleanOptionalAction, help=help)
        else:
            several = "+" if field.type == Sweep or name == "env_options" else None
            metavar = "|".join(kind.choices) if kind.choices else name.split("_")[-1].upper()
            parser.add_argument(_flag(name), nargs=several, metavar=metavar, help=help)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _add_cache_flag(parser: argparse.ArgumentParser) -> None:
    help = "whether to keep compiled programs for the next time"
    parser.add_argument("--compilation-cache", action=argparse.BooleanOptionalAction, default=True, help=help)


def _train(options: argparse.Namespace) -> None:
    overrides = {name: _value(name, value) for name, value in _given(options).items()}
    if (options.target is None) == (options.config is None):
        raise UserError("name one thing to train: a preset (see 'qlax presets'), an environment, or --config FILE")
    config = from_file(options.config, **overrides) if options.config else configure(options.target, **overrides)
    if config.preset is None and (known := environment_presets(config.env)):
        print(f"qlax: presets with settings made for {config.env}: {', '.join(known)}", file=sys.stderr)
    _report(qlax.train(config, out=options.out, compilation_cache=options.compilation_cache))


def _suite(options: argparse.Namespace) -> None:
    from qlax import suite  # not before it is asked for, as in main

    given = _given(options)
    flags = [word for name, value in given.items() for word in _as_words(_flag(name), value)]
    overrides = {name: _value(name, value) for name, value in given.items()}
    suite.run(
        options.suite,
        games=options.games,
        jobs=options.jobs,
        out=options.out,
        overrides=overrides,
        flags=flags,
        compilation_cache=options.compilation_cache,
    )


def _given(options: argparse.Namespace) -> dict[str, Any]:
    """The settings among the flags."""
    return {name: value for name, value in vars(options).items() if name in FIELDS and value is not None}


def _as_words(flag: str, given: Any) -> list[str]:
    """A flag as it was given, for another command line."""
    if isinstance(given, bool):
        return [flag if given else flag.replace("--", "--no-", 1)]
    if isinstance(given, list) and len(given) > 1:
        return [flag, *given]
    return [f"{flag}={given[0] if isinstance(given, list) else given}"]  # one word, as the value may begin with a dash


def _value(name: str, given: Any) -> Any:
    """What a flag says: a list of words, one word, or true or false."""
    if isinstance(given, bool):
        return given
    if not isinstance(given, list):
        return parse(name, given)
    values = [parse(name, word) for word in given]
    return {k: v for value in values for k, v in value.items()} if name == "env_options" else values


def _resume(options: argparse.Namespace) -> None:
    _report(qlax.resume(options.run, compilation_cache=options.compilation_cache))


def _extend(options: argparse.Namespace) -> None:
    total_steps = parse("total_steps", options.total_steps)
    _report(qlax.extend(options.run, total_steps, compilation_cache=options.compilation_cache))


def _report(result: "qlax.Result") -> None:
    """Greedy return of every run, speed, and where things are."""
    summary = result.summary
    cut = " (some episodes cut)" if any(summary["eval_cut"]) else ""
    print(f"greedy return over {summary['eval_episodes']} episodes{cut}:")
    # The environment's score and own metrics, but not what it groups under a slash: that may be dozens.
    own = [name for name in summary if name.startswith("eval_") and "/" not in name and name not in _SAID_OTHERWISE]
    for index, run in enumerate(result.config.all_runs()):
        which = ", ".join([f"seed {run['seed']}", *(f"{name} {run[name]:g}" for name in result.config.swept)])
        if diverged := summary["diverged"][index]:
            print(f"  run {index} ({which}): diverged after {diverged['steps']:,} steps, {diverged['what']} not finite")
            continue
        measured = [f"{summary['eval_return']['per_run'][index]:.2f}"]
        values = {name.removeprefix("eval_"): summary[name]["per_run"][index] for name in own}
        measured += [f"{name} {value:.4g}" for name, value in values.items() if value is not None]
        print(f"  run {index} ({which}): {', '.join(measured)}")
    steps, runs = summary["total_steps"], len(result.agents)
    print(f"network: {', '.join(_written(name, value) for name, value in summary['network'].items())}")
    speed = f"{summary['steps_per_second']:,.0f} steps/s on {summary['device']}"
    print(f"{runs} x {steps:,} steps: {speed}, after {summary['compile_seconds']:.1f} s of compilation")
    print(f"run directory {result.directory}, learning curve {result.directory / 'curve.png'}")


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
        for name in presets():
            print(f"{name:24} {preset_text(name).splitlines()[0].lstrip('# ')}")
    else:
        print(preset_text(options.preset), end="")


def entry() -> NoReturn:
    """The command as a process of its own, which ends when it is done, whatever other threads still compute."""
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    entry()
