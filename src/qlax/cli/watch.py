"""Commands that show what there is: agents at play, the zoo of trained agents, and the runs below a folder.

Each imports NumPy or JAX only when it is called, as they are slow to import.
"""

import argparse
import time

import qlax
from qlax.cli import look
from qlax.cli.flags import Command, argument, command
from qlax.util.text import four_digits


def _play(options: argparse.Namespace) -> list[str]:
    from qlax.agents import zoo
    from qlax.training import enable_compilation_cache

    enable_compilation_cache()
    own = {"index": options.index, "episodes": options.episodes, "speed": options.speed, "video": options.video}
    played = qlax.play(options.agent, **own, **look.playing(options))
    if played.video is not None:
        print(f"{played}\n{look.video_in_words(played.video)}")
    run = zoo.named(options.agent)
    return [command("evaluate", run), command("export", run)]


def _zoo(options: argparse.Namespace) -> list[str]:
    from qlax.agents import zoo

    if options.agent is not None:
        name = options.agent.removeprefix(zoo.MARK)
        print(zoo.card(name), end="")
        return [command("play", name), command("evaluate", zoo.MARK + name)]
    entries = zoo.entries().values()
    width = max(map(len, [*zoo.entries(), "agent"]))
    print(f"{'agent':{width}}  {'return':>8}  {'steps':>11}  {'bytes':>9}  where")
    for entry in entries:
        numbers = f"{four_digits(entry.episode_return):>8}  {entry.steps:>11,}  {entry.bytes:>9,}"
        note = f" ({entry.note.rstrip('.').lower()})" if entry.note else ""
        print(f"{entry.name:{width}}  {numbers}  {zoo.where(entry)}{note}")
    if missing := zoo.missing():
        print(f"presets without an agent: {', '.join(missing)}")
    here = next((entry.name for entry in entries if zoo.where(entry) == zoo.INSTALLED), None)
    return [command("play", here), command("zoo", here)] if here else []


def _runs(options: argparse.Namespace) -> list[str]:
    from qlax.storage.listing import runs_below

    found = runs_below(options.folder)
    if not found:
        print(f"no runs in {options.folder}")
        return [command("train", "cartpole-fast")]
    rows = [["run", "state", "trains", "steps", "greedy return", "changed"]]
    for run in found:
        steps = "-" if run.steps is None else f"{run.steps:,} of {run.total:,}"
        age = f"{ago(time.time() - run.changed)} ago"
        rows.append([str(run.path), run.state, run.what, steps, four_digits(run.score), age])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row, note in zip(rows, ["", *(run.damage for run in found)], strict=True):
        texts, numbers = map(str.ljust, row[:3], widths[:3]), map(str.rjust, row[3:], widths[3:])
        print("  ".join([*texts, *numbers, note]).rstrip())
    useful = {"complete": "play", "interrupted": "resume", "in progress": "report"}
    newest = {useful[run.state]: run.path for run in reversed(found) if run.state in useful}
    return [command(name, path) for name, path in newest.items()][:2]


def ago(seconds: float) -> str:
    """Format the time since something happened in its largest unit, as in "3 h"."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


COMMANDS = (
    Command(
        "play",
        _play,
        "show a trained agent at play",
        [
            argument(
                "agent", metavar="AGENT", help="an agent of the zoo, a run directory, or a file in its agents/ or best/"
            ),
            look.INDEX,
            look.BEST,
            *look.PLAY,
            argument(
                "--video", metavar="FILE", help="write a video to this new file instead, .mp4 or .gif (default: none)"
            ),
            argument("--episodes", metavar="NUMBER", default="1", help="number of episodes (default: 1)"),
            argument(
                "--speed",
                metavar="FACTOR",
                default="1",
                help="speed as a multiple of the environment's own (default: 1)",
            ),
        ],
        description="Show a trained agent at play on a terminal with colours. Elsewhere, as in a pipe, print returns.",
    ),
    Command(
        "zoo",
        _zoo,
        "list the trained agents that come with qlax, or describe one",
        [argument("agent", nargs="?", metavar="AGENT", help="print the model card of this agent")],
        epilog="The environment variable QLAX_ZOO names the folder or URL of the agents that are not installed.",
    ),
    Command(
        "runs",
        _runs,
        "list the runs below a folder, those that changed last first",
        [argument("folder", nargs="?", metavar="FOLDER", default="runs", help="folder to look in (default: runs)")],
    ),
)
