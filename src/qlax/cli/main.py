"""The `qlax` command: parser, exit codes and entry point."""

import argparse
import contextlib
import os
import re
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

from qlax._version import __version__
from qlax.cli import look, new, show, train, watch
from qlax.cli.flags import Command, as_typed, protected
from qlax.config.kinds import LONGEST_NAME
from qlax.config.settings import SWEEPABLE
from qlax.errors import (
    LostError,
    RunError,
    Stopped,
    UserError,
    described,
    is_failed_import,
    nearest,
    place_of,
    remedy,
)
from qlax.util.text import shown

COMMANDS: tuple[Command, ...] = (
    *train.COMMANDS,
    *watch.COMMANDS,
    *look.COMMANDS,
    *show.COMMANDS,
    *new.COMMANDS,
)
SUCCESSORS = {  # commands and flags of earlier versions; CHANGELOG.md has them too
    "suite": "qlax sweep takes several targets, as in: qlax sweep atari57",
    "--games": "name the games as targets, as in: qlax sweep atari/Pong atari/Breakout",
    "--runs": "use --draws",
    "--trials": "examples/optuna_search.py shows how Optuna chooses settings",
}
LONGEST_ERROR = 500  # characters of a message of argparse


class _Parser(argparse.ArgumentParser):
    """Parser with errors in one line, without abbreviated flags, and with -1e-3 as a number."""

    def __init__(self, **options: Any):
        super().__init__(allow_abbrev=False, **options)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """See `argparse.ArgumentParser`."""
        words = sys.argv[1:] if args is None else args
        return super().parse_known_args([protected(word) for word in words], namespace)

    def error(self, message: str) -> NoReturn:
        if found := re.search("argument command: invalid choice: '([^']*)'", message):
            name, known = found[1], [command.name for command in COMMANDS]
            hint = nearest(name[:LONGEST_NAME], known) or f"; commands: {', '.join(known)}"
            message = f"unknown command {name!r}{hint}"
            if name in SUCCESSORS:
                message = f"there is no command {name!r} any more; {SUCCESSORS[name]}"
        _fail(shown(" ".join(message.split()), LONGEST_ERROR))


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; its result has the `Command` as `command`."""
    top = _Parser(prog="qlax", description="Deep Q-learning without a replay buffer or a target network (PQN), in JAX.")
    top.add_argument("--version", action="version", version=f"qlax {__version__}")
    subparsers = top.add_subparsers(required=True, metavar="command", parser_class=_Parser)
    for command in COMMANDS:
        said = command.description or command.help
        usage = command.usage if command.has_settings else None  # argparse would list a hundred flags
        own = subparsers.add_parser(
            command.name, usage=usage, help=command.help, description=said, epilog=command.epilog
        )
        own.set_defaults(command=command)
        groups: dict[str | None, Any] = {None: own}
        own.add_argument(
            "--traceback",
            action="store_true",
            help="print the full traceback of an error, as the environment variable QLAX_TRACEBACK=1 does",
        )
        for names, options, group in command.arguments:
            if group not in groups:
                groups[group] = own.add_argument_group(group)
            groups[group].add_argument(*names, **options)
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return the exit code: 0 on success, 2 for mistakes in the command, 1 if training failed."""
    words = sys.argv[1:] if arguments is None else arguments
    options, unknown = parser().parse_known_args(words)
    command: Command = options.command
    if unknown:
        _fail(_not_understood(command, words, [as_typed(word) for word in unknown]))

    if options.traceback:
        os.environ["QLAX_TRACEBACK"] = "1"  # also for the jobs of a sweep
    try:
        following = command.run(options)
        sys.stdout.flush()
        if following and sys.stderr.isatty():  # for people alone, not for programs and logs
            print(f"next: {', or '.join(following)}", file=sys.stderr)
        _leave(in_harmony=True)
    except BrokenPipeError:  # the reader of the output, such as head, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except UserError as error:
        _say_error(error)
        _leave(in_harmony=False)
        sys.exit(2)
    except RunError as error:
        _say_error(error)
        if not isinstance(error, LostError):  # a process beside this one prints how to go on
            _leave(in_harmony=False)
        return 1
    except Stopped as stopped:
        _say(str(stopped))
        _leave(in_harmony=True)
        return 0 if stopped.signal_number == signal.SIGTERM else 130  # preemptible machines send SIGTERM
    except KeyboardInterrupt:
        _say("stopped at once")
        _leave(in_harmony=False)
        return 130
    except Exception as error:
        if not is_failed_import(error):
            raise
        # Packages import some of their modules only when these are first used, which may be anywhere.
        _say_error(UserError(f"a package that is needed cannot be imported: {described(error)}{remedy(error)}"))
        _leave(in_harmony=False)
        return 1
    return 0


def _leave(in_harmony: bool) -> None:
    """Leave the processes that train together, if the command joined any."""
    if "qlax.training.processes" in sys.modules:  # the module imports JAX, which is slow
        from qlax.training import processes

        processes.leave(in_harmony)


def _say(message: str) -> None:
    print("qlax:", " ".join(message.split()), file=sys.stderr)


def _say_error(error: Exception) -> None:
    """Print an error in one line, after its traceback if a user asked for it."""
    is_asked = os.environ.get("QLAX_TRACEBACK", "") not in ("", "0")
    if is_asked:
        traceback.print_exception(error)
    is_of_user = place_of(error) is not None
    _say(f"{error}; --traceback shows all of it" if is_of_user and not is_asked else str(error))


def _fail(message: str) -> NoReturn:
    _say(message)
    sys.exit(2)


def _not_understood(command: Command, words: list[str], unknown: list[str]) -> str:
    """Return the message for words that no argument of the command takes."""
    first, flags = unknown[0], [word for word in unknown if word.startswith("--")]
    before = [word for word in words[: words.index(first)] if word.startswith("--")] if first in words else []
    if command.name == "train" and not first.startswith("--") and before and _takes_one(command, before[-1]):
        return f"{before[-1]} takes one value, not also {shown(repr(first))}; use qlax sweep for several values"
    if gone := [flag for flag in flags if flag in SUCCESSORS]:
        return f"there is no flag {gone[0]} any more; {SUCCESSORS[gone[0]]}"
    known = [flag for argument in command.arguments for flag in argument.flags]
    hint = nearest(flags[0][:LONGEST_NAME], known) if flags else ""
    return f"unknown {'flag' if flags else 'argument'} {shown(repr((flags or unknown)[0]))}{hint}"


def _takes_one(command: Command, flag: str) -> bool:
    """Return whether a flag takes one value of a setting that `qlax sweep` varies."""
    single = [each for each in command.arguments if each.setting not in (None, *SWEEPABLE)]
    return any(flag in each.flags for each in single if "action" not in each.options)


def entry() -> NoReturn:
    """Run the command as a process that ends when the command does, without waiting for other threads."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # for paths that it cannot spell
    try:
        code: Any = main()
    except SystemExit as ended:
        code = ended.code
    sys.stdout.flush()
    sys.stderr.flush()
    if "multiprocessing.util" in sys.modules:
        # As at any other exit of Python: end the processes of environments, free semaphores, remove temporary files.
        with contextlib.suppress(KeyboardInterrupt):
            sys.modules["multiprocessing.util"]._exit_function()
    os._exit(code)
