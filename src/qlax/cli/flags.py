"""Commands and their arguments as data, of which the parser and the documentation's tables are made."""

import argparse
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from qlax.config.command_line import flag, parse
from qlax.config.kinds import Sweep
from qlax.config.settings import FIELDS, fields_where
from qlax.errors import UserError


class Argument(NamedTuple):
    """Word or flag of a command.

    Attributes:
      names: of the flag, or of the word.
      options: of `argparse.ArgumentParser.add_argument`.
      group: heading in the help; None: the usual one.
    """

    names: tuple[str, ...]
    options: dict[str, Any]
    group: str | None = None

    @property
    def flags(self) -> list[str]:
        """Every form of the flag; empty for a word."""
        flags = [name for name in self.names if name.startswith("-")]
        is_switch = self.options.get("action") is argparse.BooleanOptionalAction
        return flags + [name.replace("--", "--no-", 1) for name in flags if is_switch]

    @property
    def setting(self) -> str | None:
        """Field of `Config` that the argument gives."""
        name = self.options.get("dest") or self.names[0].removeprefix("--").replace("-", "_")
        return name if name in FIELDS else None


class Command(NamedTuple):
    """Command of `qlax`.

    Attributes:
      name: what a user types.
      run: called with the options.
      help: what it does, in a line.
      arguments: in the order of the help.
      description: what it does, if a line is not enough.
      epilog: what stands below the help.
    """

    name: str
    run: Callable[[argparse.Namespace], None]
    help: str
    arguments: Sequence[Argument]
    description: str | None = None
    epilog: str | None = None

    @property
    def has_settings(self) -> bool:
        """Whether every setting is a flag, where other commands have some of the same names."""
        return sum(argument.setting is not None for argument in self.arguments) > len(FIELDS) / 2


def argument(*names: str, group: str | None = None, **options: Any) -> Argument:
    """Describe a word or a flag; `options` are those of `argparse.ArgumentParser.add_argument`."""
    if "action" not in options:
        options.setdefault("type", as_typed)
    return Argument(names, options, group)


def protected(word: str) -> str:
    """Hide a negative number, as -1e-3, from argparse, which would take some of them for flags."""
    return f" {word}" if word[:1] == "-" and word[1:].removeprefix(".")[:1].isdecimal() else word


def as_typed(word: str) -> str:
    """Give back the word that `protected` hid."""
    return word[1:] if word.startswith(" -") else word


def target(help: str, nargs: str) -> list[Argument]:
    """Arguments that say what to train."""
    config = argument("--config", metavar="FILE", help="settings of an earlier run, its config.json")
    return [argument("target", nargs=nargs, metavar="TARGET", help=help), config]


CACHE = argument(
    "--compilation-cache",
    action=argparse.BooleanOptionalAction,
    default=True,
    help="keep compiled programs for the next time",
)
PROCESSES = [
    argument(
        "--coordinator",
        group="several processes",
        metavar="HOST:PORT",
        help=("address at which the first process listens; Slurm, Open MPI and Kubernetes tell all three"),
    ),
    argument(
        "--num-processes",
        group="several processes",
        metavar="PROCESSES",
        type=int,
        help=("number of processes that train together; 1: alone, whatever a launcher says"),
    ),
    argument("--process-id", group="several processes", metavar="ID", type=int, help="number of this process, from 0"),
]
PLACE = [
    argument(
        "--jobs",
        metavar="JOBS",
        type=int,
        help=("number of jobs at a time (default 1; on Ray as many as there is room for)"),
    ),
    argument("--on", choices=("ray",), help="run jobs on the Ray cluster that runs, or on a new one of this machine"),
    argument(
        "--cpus-per-job",
        metavar="CPUS",
        type=float,
        help=("CPUs of a job on Ray (default 1 beside a GPU, or else an equal share)"),
    ),
    argument(
        "--gpus-per-job",
        metavar="GPUS",
        type=float,
        help=("GPUs of a job on Ray, may be 0.5 (default 1 if there is any)"),
    ),
]


def settings(several: bool = False) -> list[Argument]:
    """Describe a flag for every setting.

    Args:
      several: whether each takes several values, or only those that are swept in one program.
    """
    return [each for name in fields_where(flag=True) for each in setting(name, several)]


def setting(name: str, several: bool = False) -> list[Argument]:
    """Describe the flags of one setting; arguments as of `settings`."""
    field = FIELDS[name]
    kind, group = field.metadata["kind"], f"{field.metadata['group']} settings"
    default = f"{field.default:,}" if type(field.default) in (int, float) else field.default
    help = field.metadata["help"] + (f" (default {default})" if isinstance(default, str) else "")
    if not isinstance(field.default, bool):
        nargs = "+" if several or field.type == Sweep or name == "env_options" else None
        metavar = "|".join(kind.choices) if kind.choices else name.split("_")[-1].upper()
        return [argument(flag(name), group=group, nargs=nargs, metavar=metavar, help=help)]
    if not several:
        return [argument(flag(name), group=group, action=argparse.BooleanOptionalAction, help=help)]
    negated = {"dest": name, "action": "store_const", "const": ["false"], "help": f"as {flag(name)} false"}
    values = argument(flag(name), group=group, nargs="*", metavar="true|false", help=help)
    return [values, argument(flag(f"no_{name}"), group=group, **negated)]


def given(options: argparse.Namespace) -> dict[str, Any]:
    """Read the settings among the options: a value of each, or a list where its flag takes several.

    Raises:
      UserError: one cannot be read as the field's type.
    """
    return {name: _value(name, words) for name, words in vars(options).items() if name in FIELDS and words is not None}


def _value(name: str, words: Any) -> Any:
    if isinstance(words, bool):
        return words
    if not isinstance(words, list):
        return parse(name, words)
    values = [parse(name, word) for word in words or ["true"]]
    if name != "env_options":
        return values
    options = [option for value in values for option in value]
    if twice := [option for option in options if options.count(option) > 1]:
        raise UserError(f"env_options: {twice[0]} is given twice; its values are no sweep")
    return {option: each for value in values for option, each in value.items()}
