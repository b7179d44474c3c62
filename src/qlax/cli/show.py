"""Commands that list environments and presets."""

import argparse
import contextlib
import sys
import warnings

from qlax.cli.flags import Command, argument, command
from qlax.config import environments, presets
from qlax.config.environments import SUITES, is_own
from qlax.errors import UserError
from qlax.util.imports import silently

EXAMPLE = "gymnax/Breakout-MinAtar"
SHOWN = 5  # environments of those that no agent can train in, if all suites are listed
Apart = dict[tuple[str, str], list[str]]  # names of environments no agent can train in, by their suite and the reason


def _envs(options: argparse.Namespace) -> list[str]:
    if options.suite and ("/" in options.suite or is_own(options.suite)):
        from qlax import envs

        name = envs.spelled(options.suite)
        _end_if(_measure([name], options.check, apart=None), 1)
        others = [] if options.check else [command("envs", name, "--check")]
        return [*others, command("train", name)]
    env_ids: list[str] = []
    apart: Apart = {}
    missing: list[str] = []
    for suite in [environments.suite_called(options.suite)] if options.suite else SUITES:
        try:
            names = _names(suite, to_make=options.sizes or options.check)
        except UserError as error:
            if options.suite:
                raise
            missing.append(str(error))
            continue
        env_ids += [f"{suite}/{name}" for name in names]
        apart |= {(suite, reason): [*names] for reason, names in environments.recorded(suite).others.items()}
    num_apart = sum(map(len, apart.values()))
    broken: list[str] = []
    if options.sizes or options.check:
        broken = _measure(env_ids, options.check, apart)
    else:
        print("\n".join(env_ids))
    for (suite, reason), names in apart.items():
        shown = names if options.suite else names[:SHOWN]
        more = f" and {len(names) - len(shown):,} more" if len(shown) < len(names) else ""
        print(f"{suite}, {reason}: {', '.join(shown)}{more}")
    print("".join(f"{message}\n" for message in missing), end="")
    unmade = sum(map(len, apart.values())) - num_apart
    ends = [
        f"{len(env_ids) - unmade:,} environments of {_suites(len({env_id.partition('/')[0] for env_id in env_ids}))}",
        f"{num_apart:,} others for the reasons above" if num_apart else "",
        f"{unmade:,} cannot be made" if unmade else "",
        f"{_suites(len(missing))} missing" if missing else "",
    ]
    print(", ".join(filter(None, ends)))
    _end_if(broken, len(env_ids))
    example = env_ids[0] if options.suite and env_ids else EXAMPLE
    return [command("envs", example, "--check"), command("train", example)]


def _names(suite: str, to_make: bool) -> list[str]:
    """Return the names of a suite's environments; import the suite only if it has to be.

    Raises:
      UserError: The suite is not installed or cannot be imported.
    """
    recorded = environments.recorded(suite)
    is_up_to_date = environments.installed_version(suite) == recorded.version
    if is_up_to_date and not to_make:
        return recorded.names
    from qlax import envs

    what = f"the environments of {suite} cannot be listed"
    with silently(), warnings.catch_warnings(action="ignore"), envs.reported(what):
        adapter = envs.suite(suite)
        return recorded.names if is_up_to_date else adapter.names()


def _suites(number: int) -> str:
    return "1 suite" if number == 1 else f"{number} suites"


def _measure(env_ids: list[str], check: bool, apart: Apart | None) -> list[str]:
    """Print a row for each environment with its sizes.

    Args:
      env_ids: Names of the environments.
      check: If True, also check the contracts and measure the speeds.
      apart: Mapping to which environments that cannot be made are added; None to raise the error for them.

    Returns:
      Names of the environments that break their contract.
    """
    from qlax.envs import survey

    width = max(map(len, [*env_ids, "environment"]))
    speed = f"{'steps/s':>10}  " if check else ""
    header = f"{'environment':{width}}  {speed}{'actions':>7}  {'agents':>6}  {'limit':>6}  observation\n"
    broken = []
    for env_id in env_ids:
        suite, _, name = env_id.partition("/")
        # Other packages print and warn as they like, but a user's own environment may print for its author.
        quietly = contextlib.nullcontext() if is_own(env_id) else silently()
        try:
            with quietly, warnings.catch_warnings(record=True, action="default"):
                found = survey.sizes(env_id)
        except UserError as error:  # its actions do not suit PQN, or something is not installed
            if apart is None:
                raise
            apart.setdefault((suite, str(error).removeprefix(f"{env_id} ")), []).append(name)
            continue
        checked = ""
        quietly = contextlib.nullcontext() if is_own(env_id) else silently()
        try:
            with quietly, warnings.catch_warnings(record=True, action="default") as advice:
                if check:
                    checked = f"{survey.check(env_id):>10,.0f}  "
        except UserError as error:
            broken.append(env_id)
            print(f"{header}{env_id:{width}}  {error}", flush=True)
            header = ""
            continue
        agents, limit = (str(number or "") for number in (found.num_agents, found.time_limit))
        line = f"{checked}{found.actions:>7}  {agents:>6}  {limit:>6}  {found.observation}"
        print(f"{header}{env_id:{width}}  {line}", flush=True)
        header = ""
        if apart is None:  # advice is for authors: users cannot change the environments of a suite
            own = [each.message for each in advice if each.filename == survey.__file__]
            print("".join(f"qlax: {message}\n" for message in own), end="", file=sys.stderr)
    return broken


def _end_if(broken: list[str], number: int) -> None:
    """End the command with exit code 1 if environments break their contract."""
    if broken:
        found = f"{len(broken)} of {number} environments break their contract: {', '.join(broken)}"
        print(f"qlax: {found}", file=sys.stderr)
        sys.exit(1)


def _presets(options: argparse.Namespace) -> list[str]:
    if options.preset is None:
        for name in presets.names():
            print(f"{name:24} {presets.text(name).splitlines()[0].lstrip('# ')}")
        return [command("presets", "cartpole"), command("train", "cartpole-fast")]
    print(presets.text(options.preset), end="")
    trains = options.preset if presets.ANY not in options.preset else presets.settings(options.preset)["env"]
    return [command("train", trains)]


COMMANDS = (
    Command(
        "envs",
        _envs,
        "list environments",
        [
            argument("suite", nargs="?", metavar="SUITE", help="list only this suite, or this environment"),
            argument(
                "--sizes",
                action="store_true",
                help="also make each environment and show its actions, agents, time limit and observations",
            ),
            argument(
                "--check",
                action="store_true",
                help="also play in each environment, to check its contract and measure its speed",
            ),
        ],
    ),
    Command(
        "presets",
        _presets,
        "list presets, or show one",
        [argument("preset", nargs="?", metavar="PRESET", help="show the settings of this preset")],
    ),
)
