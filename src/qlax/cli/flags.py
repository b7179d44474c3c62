"""Commands and their arguments as data, from which the parser and the tables of the documentation are made."""

import argparse
import shlex
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from qlax.config.command_line import flag, parse
from qlax.config.kinds import Sweep
from qlax.config.settings import FIELDS, fields_where
from qlax.errors import UserError
from qlax.util.text import setting_in_words

VALUES = {  # what the help calls the value of a setting, unless it is the last word of the setting's name
    "env_options": "NAME=VALUE",
    "seeds": "NUMBER",
    "draws": "NUMBER",
    "until": "RETURN",
    "learning_rate_end": "FRACTION",
    "lam": "LAMBDA",
    "lam_end": "LAMBDA",
    "epsilon_start": "EPSILON",
    "epsilon_end": "EPSILON",
    "epsilon_spread": "FACTOR",
    "reward_scale": "FACTOR",
    "network": "MODULE:NAME",
    "hidden": "WIDTHS",
    "head_low": "Q",
    "head_high": "Q",
    "head_sigma": "BINS",
    "wrappers": "NAMES",
    "reset_ratio": "ENVS",
    "host_timeout": "SECONDS",
    "log_interval": "UPDATES",
    "eval_interval": "UPDATES",
    "checkpoint_interval": "UPDATES",
    "keep": "NUMBER",
    "trackers": "NAMES",
    "init": "PATH",
    "devices": "NUMBER",
}


class Argument(NamedTuple):
    """Positional argument or flag of a command.

    Attributes:
      names: Forms of the flag, or the name of the positional argument.
      options: Keyword arguments of `argparse.ArgumentParser.add_argument`.
      group: Heading in the help; None for argparse's own heading.
    """

    names: tuple[str, ...]
    options: dict[str, Any]
    group: str | None = None

    @property
    def flags(self) -> list[str]:
        """All forms of the flag, such as `--video` and `--no-video`; empty for a positional argument."""
        flags = [name for name in self.names if name.startswith("-")]
        is_switch = self.options.get("action") is argparse.BooleanOptionalAction
        return flags + [name.replace("--", "--no-", 1) for name in flags if is_switch]

    @property
    def word(self) -> str:
        """The positional argument as the usage shows it."""
        return str(self.options.get("metavar", self.names[0]))

    @property
    def setting(self) -> str | None:
        """Field of `Config` that the argument sets; None if it sets none."""
        name = self.options.get("dest") or self.names[0].removeprefix("--").replace("-", "_")
        return name if name in FIELDS else None


class Command(NamedTuple):
    """Command of `qlax`.

    Attributes:
      name: Name that a user types.
      run: Function that is called with the parsed options. It returns up to two commands that a user may want next,
        see `command`; None if there are none.
      help: Summary in one line.
      arguments: Arguments in the order of the help.
      description: Longer summary; None if `help` is enough.
      epilog: Text below the help; None if there is none.
    """

    name: str
    run: Callable[[argparse.Namespace], Sequence[str] | None]
    help: str
    arguments: Sequence[Argument]
    description: str | None = None
    epilog: str | None = None

    @property
    def has_settings(self) -> bool:
        """True if the command has a flag for every setting, and not only for a few."""
        return sum(argument.setting is not None for argument in self.arguments) > len(FIELDS) / 2

    @property
    def usage(self) -> str:
        """The command with its positional arguments, and with words that stand for all settings and other flags."""
        own = [each for each in self.arguments if not (self.has_settings and each.setting)]
        places = [each for each in own if not each.flags]
        words = [f"{each.word}{'...' * (each.options.get('nargs') in ('+', '*'))}" for each in places]
        more = ["[SETTINGS]"] * self.has_settings + ["[FLAGS]"] * (len(own) > len(places))
        return " ".join(["qlax", self.name, *words, *more])


def argument(*names: str, group: str | None = None, **options: Any) -> Argument:
    """Describe an argument; `options` are those of `argparse.ArgumentParser.add_argument`."""
    if "action" not in options:
        options.setdefault("type", as_typed)
    return Argument(names, options, group)


def command(*words: Any) -> str:
    """Return a command of qlax as a user types it."""
    return shlex.join(["qlax", *map(str, words)])


def protected(word: str) -> str:
    """Hide a negative number such as -1e-3 from argparse, which would take it for a flag."""
    return f" {word}" if word[:1] == "-" and word[1:].removeprefix(".")[:1].isdecimal() else word


def as_typed(word: str) -> str:
    """Return the word that `protected` hid."""
    return word[1:] if word.startswith(" -") else word


def target(help: str, nargs: str) -> list[Argument]:
    """Describe the arguments that name what to train."""
    config = argument(
        "--config",
        metavar="FILE",
        help="settings to start from instead of a TARGET: config.json of a run or your own preset (.toml); other flags "
        "override them",
    )
    return [argument("target", nargs=nargs, metavar="TARGET", help=help), config]


CACHE = argument(
    "--compilation-cache",
    action=argparse.BooleanOptionalAction,
    default=True,
    help="keep compiled programs in the user's cache directory, so that later runs start faster (default: on)",
)
LIVE = argument("--live", action="store_true", help="draw the learning curves on the terminal, above the progress bar")
PROCESSES = [
    argument(
        "--coordinator",
        group="several processes",
        metavar="HOST:PORT",
        help="address on which the first process listens (default of all three: from Slurm, Open MPI or Kubernetes)",
    ),
    argument(
        "--num-processes",
        group="several processes",
        metavar="PROCESSES",
        type=int,
        help="number of processes that train together; 1 trains alone, even under a launcher such as Slurm",
    ),
    argument(
        "--process-id",
        group="several processes",
        metavar="INDEX",
        type=int,
        help="index of this process, counted from 0",
    ),
]
PLACE = [
    argument(
        "--jobs",
        metavar="NUMBER",
        type=int,
        help="number of jobs to run at a time (default: 1; on Ray, as many as its resources allow)",
    ),
    argument(
        "--on",
        choices=("ray",),
        help="run the jobs on a Ray cluster: one that is running, or else a new one on this machine (default: no Ray)",
    ),
    argument(
        "--cpus-per-job",
        metavar="CPUS",
        type=float,
        help="number of CPUs per job on Ray (default: 1 for a job with a GPU, otherwise an equal share of all CPUs)",
    ),
    argument(
        "--gpus-per-job",
        metavar="GPUS",
        type=float,
        help="number of GPUs per job on Ray, possibly a fraction such as 0.5 (default: 1 if the cluster has GPUs)",
    ),
]


def settings(several: bool = False) -> list[Argument]:
    """Describe a flag for every setting.

    Args:
      several: If True, every flag takes several values; else only flags of settings that may differ within one run.
    """
    return [each for name in fields_where(flag=True) for each in setting(name, several)]


def setting(name: str, several: bool = False) -> list[Argument]:
    """Describe the flags of one setting; see `settings`."""
    field = FIELDS[name]
    kind, group = field.metadata["kind"], f"{field.metadata['group']} settings"
    default = f"{field.default:,}" if type(field.default) in (int, float) else field.default
    if isinstance(field.default, bool):
        default = str(field.default).lower() if several else setting_in_words(field.default)
    is_shown = isinstance(default, str) and default != "default"
    help = field.metadata["help"] + (f" (default: {default})" if is_shown else "")
    help += "" if "(default: " in help else " (default: none)"
    if not isinstance(field.default, bool):
        nargs = "+" if several or field.type == Sweep or name == "env_options" else None
        metavar = "|".join(kind.choices) if kind.choices else VALUES.get(name, name.split("_")[-1].upper())
        return [argument(flag(name), group=group, nargs=nargs, metavar=metavar, help=help)]
    if not several:
        return [argument(flag(name), group=group, action=argparse.BooleanOptionalAction, help=help)]
    negated = {"dest": name, "action": "store_const", "const": ["false"], "help": f"the same as {flag(name)} false"}
    values = argument(flag(name), group=group, nargs="*", metavar="true|false", help=help)
    return [values, argument(flag(f"no_{name}"), group=group, **negated)]


def given(options: argparse.Namespace) -> dict[str, Any]:
    """Return the settings among the options, by name: one value each, or a list if the flag takes several.

    Raises:
      UserError: A word is not a valid value of its setting.
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
        raise UserError(f"env_options: {twice[0]} is given twice; options of the environment cannot be swept")
    return {option: each for value in values for option, each in value.items()}
