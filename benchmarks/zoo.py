"""Build the zoo of trained agents from the state folders of scores.py: `python benchmarks/zoo.py --state DIR...`.

Every preset with a finished row in the score sheet gets an agent: of the row's seeds, the one with the median greedy
return (of an even number, the lower of the two in the middle). A row with other settings than its preset does not
count, except for fewer steps, which the agent's note then says. `--out` receives all agents with their model cards and
the index: it is the folder that QLAX_ZOO may name, as it is or uploaded. The index, the cards and the smallest agents
go to `src/qlax/agents/pretrained/` too, which the wheel includes. An agent whose weights are already in
the package is not evaluated again. An agent of an earlier index whose row has no state any more is kept, if `--out` or
the package has its weights.
"""

import argparse
import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

from rows import Row, rows

import qlax
from qlax.agents.zoo import CARD, FOLDER, INDEX
from qlax.config.configure import configure
from qlax.reports.card import card
from qlax.storage.checkpoint import SUFFIX
from qlax.storage.history import config_of

IN_WHEEL = 5_000_000  # bytes of all agents in the wheel
FIRST = "minatar/breakout"  # goes into the wheel before smaller ones, as the documentation plays it


class Source(NamedTuple):
    """Finished row from which an agent is taken."""

    row: Row
    run: Path
    record: dict[str, Any]

    @property
    def preset(self) -> str:
        """Name of the preset, which is that of the agent."""
        return self.record["preset"]

    @property
    def planned(self) -> int:
        """Steps that the preset plans."""
        return configure(self.preset).total_steps


def main(arguments: list[str] | None = None) -> int:
    """Build the zoo; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--state", type=Path, nargs="+", default=[Path("runs/scores")], help="state folders of scores.py"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/zoo"), help="folder of all agents (default: runs/zoo)")
    parser.add_argument("--package", type=Path, default=FOLDER, help="folder of the agents in the wheel")
    options = parser.parse_args(arguments)
    index = {name: built(source, options.out, options.package) for name, source in sources(options.state).items()}
    if not index:
        parser.error(f"no finished row of a preset in {', '.join(map(str, options.state))}")
    index = kept(options.package, options.out, index) | index
    text = json.dumps(dict(sorted(index.items())), indent=1) + "\n"
    (options.out / INDEX).write_text(text, encoding="utf-8")
    shutil.rmtree(options.package, ignore_errors=True)
    room = IN_WHEEL
    for name, entry in sorted(index.items(), key=lambda each: (each[0] != FIRST, each[1]["bytes"], each[0])):
        for suffix in (CARD, *([SUFFIX] if entry["bytes"] <= room else [])):
            target = options.package / f"{name}{suffix}"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(options.out / f"{name}{suffix}", target)
            room -= entry["bytes"] if suffix == SUFFIX else 0
    (options.package / INDEX).write_text(text, encoding="utf-8")
    print(f"{len(index)} agents are in {options.out}; {IN_WHEEL - room:,} bytes of them in {options.package}")
    return 0


def kept(package: Path, out: Path, index: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of an earlier index whose agents are not made anew, and copy these agents to `out`."""
    known = json.loads((package / INDEX).read_text(encoding="utf-8")) if (package / INDEX).exists() else {}
    entries = {}
    for name, entry in known.items():
        file = next((each for folder in (out, package) if (each := folder / f"{name}{SUFFIX}").exists()), None)
        if name in index:
            continue
        if file is None or hashlib.sha256(file.read_bytes()).hexdigest() != entry["sha256"]:
            print(f"{name}: left out, as neither a state folder nor {out} nor {package} has its weights")
            continue
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        for source in {file, package / f"{name}{CARD}"}:
            if source.parent != (out / name).parent:
                shutil.copy(source, out / f"{name}{source.suffix}")
        entries[name] = entry
    return entries


def sources(states: list[Path]) -> dict[str, Source]:
    """Return the row from which each preset's agent is taken: the one with most steps, in the first folder."""
    found: dict[str, Source] = {}
    for state in states:
        for row in rows().values():
            run, record = state / row.name, state / f"{row.name}.json"
            flags = {word for word in row.command.split() if word.startswith("--")}
            if flags - {"--seeds", "--total-steps", "--minutes"} or not record.exists() or not run.is_dir():
                continue
            source = Source(row, run, json.loads(record.read_text()))
            is_of_row = source.record["command"] == row.command and source.record["preset"] is not None
            before = found.get(source.preset)
            if is_of_row and (before is None or source.record["total_steps"] > before.record["total_steps"]):
                found[source.preset] = source
    return found


def median(returns: list[float | None]) -> int:
    """Return the index of the median return; None, of an agent that diverged, is the lowest."""
    order = sorted(range(len(returns)), key=lambda i: (returns[i] is not None, returns[i] or 0.0))
    return order[(len(order) - 1) // 2]


def built(source: Source, out: Path, package: Path) -> dict[str, Any]:
    """Write an agent and its card, unless the package has them; return its entry of the index."""
    record, config = source.record, config_of(source.run)
    agent = median(record["eval_return"]["per_run"])
    weights = qlax.load(source.run, agent)
    # Settings that evaluations otherwise read from the files of a run.
    weights.info |= {"preset": source.preset, "eval_max_steps": config.eval_max_steps}
    file = out / f"{source.preset}{SUFFIX}"
    file.parent.mkdir(parents=True, exist_ok=True)
    weights.save(file)
    data = file.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    known = json.loads((package / INDEX).read_text(encoding="utf-8")) if (package / INDEX).exists() else {}
    if known.get(source.preset, {}).get("sha256") == sha256:
        shutil.copy(package / f"{source.preset}{CARD}", out / f"{source.preset}{CARD}")
        return known[source.preset]
    played = qlax.evaluate(file, episodes=record["eval_episodes"])
    steps, planned = record["total_steps"], source.planned
    note = f"Trained for {steps:,} of the preset's {planned:,} steps." if steps < planned else ""
    text = card(source.preset, source.run, agent, file, played, note)
    (out / f"{source.preset}{CARD}").write_text(text, encoding="utf-8")
    print(f"{source.preset}: seed {weights.info['seed']}, greedy return {played.overall.mean:.4g}", flush=True)
    return {
        "env": config.env,
        "episode_return": round(played.overall.mean, 4),
        "interval": played.overall.interval and [round(end, 4) for end in played.overall.interval],
        "episodes": record["eval_episodes"],
        "seed": weights.info["seed"],
        "seeds": len(record["seeds"]),
        "steps": steps,
        "command": source.row.command,
        "date": record["date"],
        "note": note,
        "bytes": len(data),
        "sha256": sha256,
    }


if __name__ == "__main__":
    sys.exit(main())
