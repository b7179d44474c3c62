"""Commands that list environments and presets."""

import argparse
import sys
import warnings

from qlax.cli.flags import Command, argument
from qlax.config import presets
from qlax.errors import UserError


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
        except UserError as error:  # its actions do not suit PQN, or a package is not installed
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
        if is_one:  # advice is for authors: users cannot change the environments of a suite
            print("".join(f"qlax: {each.message}\n" for each in advice), end="", file=sys.stderr)
    if wrong:
        print(
            f"qlax: {len(wrong)} of {len(env_ids)} environments break their contract: {', '.join(wrong)}",
            file=sys.stderr,
        )
        sys.exit(1)


def _presets(options: argparse.Namespace) -> None:
    if options.preset is None:
        for name in presets.names():
            print(f"{name:24} {presets.text(name).splitlines()[0].lstrip('# ')}")
    else:
        print(presets.text(options.preset), end="")


COMMANDS = (
    Command(
        "envs",
        _envs,
        "list environments with their actions, agents, time limits and observations",
        [
            argument("suite", nargs="?", metavar="SUITE", help="list only this suite, or this environment"),
            argument(
                "--check",
                action="store_true",
                help="also play in each environment: check its contract and measure its speed",
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
