"""Damage run directories at random: each is refused in one line and left unchanged, or works as if undamaged.

`python tests/damage.py --directories 500 --seed 0 --out FILE.json` damages 500 directories, prints the outcomes and
writes them to the file; `test_damage.py` damages a few. All directories are copies of a few tiny runs. One to three
files of a copy are damaged before its run is resumed, extended, loaded, used for the initial weights of a new run, or
named as the directory of a new run.
"""

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import numpy as np
import safetensors
import safetensors.numpy
from runs import CARTPOLE, SMALL, without_times

import qlax
from qlax.config.settings import FIELDS, Config
from qlax.errors import RunError, Stopped, UserError, described
from qlax.storage.formats import config_of_file, to_json
from qlax.training.display import ProgressDisplay

SETTINGS = SMALL | {"seeds": 2, "hidden": (4,)}
LONGER = 16 * 32  # steps of an extended run
HANGING = 300  # seconds of wall-clock time, many because a machine may be busy
MOST_SECONDS = 60.0  # processor time
LONGEST_MESSAGE = 600
ACTIONS = ("resume", "extend", "load", "load best", "train into", "init")
TOPS = ("config.json", "metrics.jsonl", "summary.json", "lock", "curve.png", "checkpoints", "agents", "best", "earlier")

# Values in legal JSON that differ from those of the run; most of them are invalid.
CHANGES = {
    "lam": [0.66, 2, None, "x", [0.5, 0.6]],
    "seed": [1, -1, 2**40],
    "seeds": [1, 3, 0, 10**9],
    "hidden": [[8], [], [2**20] * 64, "8", {}],
    "env": ["gymnax/Acrobot-v1", "gymnax/Nope-v1", "", "os:system", None, 5, "a" * 10_000],
    "env_options": [{"max_steps_in_episode": 100}, {"nope": 1}, [], {"max_steps_in_episode": "\n"}],
    "total_steps": [10 * 32, 4 * 32, 14 * 32, 1, 0, -5, 1e300, "many"],
    "num_envs": [8, 0, 2**31, 3.5],
    "memory": ["gru", "nope", 1],
    "keep": [1, 3, 0, 2**40],
    "log_interval": [1, 3, None, 2**60],
    "checkpoint_interval": [2, 3, None],
    "learning_rate": [1e-3, 1e39, float("nan"), "fast"],
    "wrappers": [["last_action"], ["nope:Nope"], "x", [["x"]]],
    "init": ["/nowhere", ".", 7],
    "derived": [[], ["nope"], 3],
    "preset": ["cartpole", "../..", "\n\n"],
    "nope": [1],
}
GARBAGE = [
    *(b"\n", b"{", b"\xff\xfe\x00", b"null\n", b"[]\n", b"{}\n", b"[" * 100_000 + b"\n", b"x" * 10_000, b"\0" * 4096),
    *(b'{"updates": 9}\n', b'{"updates": [1, 2]}\n', b'{"updates": null}\n', b'{"updates": "x"}\n'),
    *(b'{"updates": 4, "loss": [1.0]}\n', b'{"updates": 4, "loss": {}}\n', b'{"updates": 1e400, "loss": NaN}\n'),
]
SUMMARIES = [
    *({}, [], 5, None, {"updates": "x"}, {"updates": 10**400}, {"updates": -1}, {"updates": 11}, {"updates": True}),
    *({"updates": 12, "total_steps": "../../outside"}, {"updates": 12, "total_steps": "/"}, {"updates": 99}),
]


class Sources(NamedTuple):
    """Runs whose copies are damaged, and undisturbed runs to compare with."""

    folder: Path  # holds the runs: finished, interrupted, unsummarised, extended
    cache: dict[Any, Any]  # undisturbed runs, trained when they are first needed


SOURCES = ("finished", "interrupted", "interrupted", "unsummarised", "extended")


class Outcome(NamedTuple):
    """Outcome of one damaged directory."""

    source: str
    damage: tuple[str, ...]
    action: str
    kind: str  # "refused", "exact", "exact, loss named", "loaded" or "failed"
    seconds: float  # wall-clock time
    message: str = ""


def make_sources(folder: Path) -> Sources:
    """Train the runs whose copies are damaged."""

    def crash(display, done, *_):
        if done >= 10 * 2 * 32:
            raise InterruptedError

    qlax.train(CARTPOLE, out=folder / "finished", **QUIET, **SETTINGS)
    with mock.patch.object(ProgressDisplay, "show", crash), contextlib.suppress(InterruptedError, RunError):
        qlax.train(CARTPOLE, out=folder / "interrupted", **QUIET, **SETTINGS)
    shutil.copytree(folder / "finished", folder / "unsummarised")
    shutil.rmtree(folder / "unsummarised" / "agents")
    (folder / "unsummarised" / "summary.json").unlink()
    assert _names(folder / "interrupted" / "checkpoints") == ["0000000004.safetensors", "0000000008.safetensors"]
    assert _lines(folder / "interrupted")[-1]["updates"] == 10
    return Sources(folder, {})


def _source(sources: Sources, name: str) -> Path:
    path = sources.folder / name
    if not path.exists():  # made when it is first needed, because tests seldom draw it
        shutil.copytree(sources.folder / "finished", path)
        with contextlib.redirect_stderr(io.StringIO()):
            qlax.extend(path, LONGER - 64, **QUIET)
    return path


QUIET: dict[str, Any] = {"progress": False, "compilation_cache": False}


def examine(sources: Sources, draw: random.Random, folder: Path) -> Outcome:
    """Damage a copy of a run, use it, and check that nothing is lost without a message.

    Raises:
      AssertionError: Something is lost without a message, or a message is not one clear line.
    """
    source, action = draw.choice(SOURCES), draw.choice((*ACTIONS, "resume", "resume"))
    if action == "resume" and source in ("finished", "extended"):  # refused, unless the summary is damaged
        source = draw.choice(("interrupted", "unsummarised", source))
    run, outside = folder / "run", folder / "outside"
    shutil.copytree(_source(sources, source), run)
    shutil.copytree(_source(sources, source), outside)
    whole = _snapshot(run)
    damage = tuple(_damage(draw, run, outside) for _ in range(draw.choice((1, 1, 2, 3))))
    before, outside_before, intact = _snapshot(run), _snapshot(outside), _intact(run, whole)
    said = io.StringIO()
    begun, processor = time.perf_counter(), time.process_time()
    index = draw.choice((0, 1, 1, 2))

    def outcome(kind, message=""):
        return Outcome(source, damage, action, kind, round(time.perf_counter() - begun, 2), message)

    try:
        with contextlib.redirect_stderr(said):
            result = _act(action, run, folder / "new", index)
    except (UserError, RunError) as error:
        message = str(error).replace(str(folder), "")
        assert 0 < len(message) <= LONGEST_MESSAGE, f"{len(message)} characters: {message[:1000]!r}"
        assert message.isprintable(), f"not one line: {message!r}"
        assert any(name in message for name in ("/run", "gymnax", *FIELDS)), f"names no file or setting: {message!r}"
        _check_kept(before, _snapshot(run), message)
        if action.startswith("load"):
            name = f"{'best' if action == 'load best' else 'agents'}/{index}.safetensors"
            assert before.get(name) != whole.get(name) or name not in whole, (
                f"an undamaged agent is not loaded: {message}"
            )
        return outcome("refused", message)
    finally:
        if (folder / "outside").exists():
            assert _snapshot(outside) == outside_before, "something outside the directory was changed"
    assert time.process_time() - processor < MOST_SECONDS, "using the directory took too long"
    after = _snapshot(run)
    if action.startswith("load"):
        assert after == before, "loading changed the directory"
        _check_loaded(result, whole)
        return outcome("loaded")
    if action == "train into":
        raise AssertionError(f"trained into a directory that held {sorted(before)}")
    if action == "init":
        assert {name: what for name, what in after.items() if name != "lock"} == {
            name: what for name, what in before.items() if name != "lock"
        }, "taking initial weights from a run changed its directory"
        _check_begun(sources, result, run, whole)
        return outcome("exact")
    return outcome(_check_trained(sources, source, action, run, before, after, intact, said.getvalue()))


def _act(action: str, run: Path, new: Path, index: int) -> Any:
    if action == "resume":
        return qlax.resume(run, **QUIET)
    if action == "extend":
        return qlax.extend(run, LONGER, **QUIET)
    if action == "train into":
        return qlax.train(CARTPOLE, out=run, **QUIET, **SETTINGS)
    if action == "init":
        return qlax.train(CARTPOLE, out=new, init=str(run), **QUIET, **SETTINGS | {"keep": 9})
    return qlax.load(run, index, best=action == "load best")


def _check_kept(before: dict[str, Any], after: dict[str, Any], message: str) -> None:
    """Check that a refusal changed nothing, except that it may have moved files aside under other names."""
    for name, what in before.items():
        stem = name.removesuffix(".jsonl")
        aside = [after[other] for other in after if other.startswith(stem) and "damaged" in other]
        inside = name.startswith("best/") and what == after.get(name.replace("best", "best.damaged", 1))
        kept = after.get(name) == what or what in aside or inside or name == "lock"
        assert kept, f"{name} was changed by a refusal: {message}"
    new = [name for name in after if name not in before and name != "lock" and ".damaged" not in name]
    assert not new, f"{new} are new after a refusal: {message}"


def _check_loaded(agent: Any, whole: dict[str, Any]) -> None:
    held = {"/".join(path): leaf for path, leaf in _flat(agent.variables)}
    saved = [
        safetensors.numpy.load(what[1])
        for name, what in whole.items()
        if name.endswith(".safetensors") and not name.startswith("checkpoints")
    ]
    assert any(_equal(held, each) for each in saved), "the agent has weights that were never saved"


def _check_begun(sources: Sources, result: Any, run: Path, whole: dict[str, Any]) -> None:
    """Check that a run began with weights that were all saved before."""
    contents = [path.read_bytes() for path in sorted((run / "agents").glob("*.safetensors"))]
    saved = [what[1] for name, what in whole.items() if what[0] == "file" and name.endswith(".safetensors")]
    assert all(content in saved for content in contents), "the run began with weights that were never saved"
    first = safetensors.numpy.load((result.directory / "checkpoints" / "0000000000.safetensors").read_bytes())
    for index in range(2):
        held = safetensors.numpy.load(contents[index % len(contents)])
        for name, leaf in held.items():
            where = [key for key in first if key.endswith(f"/{name}")]
            assert any(np.array_equal(first[key][index], leaf) for key in where), f"the run did not begin with {name}"


def _check_trained(
    sources: Sources,
    source: str,
    action: str,
    run: Path,
    before: dict[str, Any],
    after: dict[str, Any],
    intact: int,
    said: str,
) -> str:
    """Check that a run ended as an undisturbed run would have, and that every loss is named."""
    config, begun = config_of_file(run / "config.json"), config_of_file(sources.folder / source / "config.json")
    changed = {name for name in vars(config) if getattr(config, name) != getattr(begun, name)}
    assert not intact or changed <= {"total_steps", "keep"}, f"{changed} were changed, and the run continued"
    expected = _reference(sources, source, config, intact)
    for name in sorted(_names(expected / "agents")):
        found, wanted = (safetensors.numpy.load((at / "agents" / name).read_bytes()) for at in (run, expected))
        assert _equal(found, wanted), f"agents/{name} is not what an undisturbed run leaves"
    losses = []
    found, wanted = _lines(run), _lines(expected)
    assert all(line in wanted for line in found), "some lines of metrics are not those of an undisturbed run"
    numbers = [line["updates"] for line in found]
    assert numbers == sorted(set(numbers)), f"lines of metrics out of order: {numbers}"
    if found != wanted:
        losses.append("metrics.jsonl")
        aside = [what for name, what in after.items() if "damaged" in name]
        assert "metrics.jsonl" not in before or before["metrics.jsonl"] in aside, "damaged lines were not kept"
    for name in sorted(_names(expected / "best")):
        paths = [at / "best" / name for at in (run, expected)]
        if not paths[0].exists() or not _equal(*(safetensors.numpy.load(path.read_bytes()) for path in paths)):
            losses.append(f"best/{name}")
    for name, what in before.items():
        is_newer = name.startswith("checkpoints/") and name.endswith(".safetensors") and Path(name).stem.isdigit()
        if is_newer and int(Path(name).stem) > intact:
            aside = [after[other] for other in after if other.startswith(name) and "damaged" in other]
            assert what in aside, f"{name} was skipped and not kept"
            assert Path(name).name in said, f"{name} was skipped without a message: {said!r}"
            losses.append(name)
    for name in losses:
        assert Path(name).name.partition(".")[0] in said, f"no message names the loss in {name}: {said!r}"
    assert all(len(line) < LONGEST_MESSAGE for line in said.splitlines()), f"long lines: {said!r}"
    return "exact, loss named" if losses or "moved aside" in said else "exact"


def _reference(sources: Sources, source: str, config: Config, intact: int) -> Path:
    """Return the directory of an undisturbed run with this configuration, resumed from the checkpoint `intact`."""
    begun = config_of_file(sources.folder / source / "config.json")
    if config == begun and source != "extended":
        return sources.folder / "finished"
    longer = config.total_steps != begun.total_steps
    key = (source if intact else "", to_json(config), intact if longer or source == "extended" else 0)
    if key not in sources.cache:
        path = sources.folder / f"reference-{len(sources.cache)}"
        if not intact:
            qlax.train(config, out=path, **QUIET)
        else:
            shutil.copytree(sources.folder / source, path)
            for checkpoint in (path / "checkpoints").iterdir():
                if int(checkpoint.stem) > intact:
                    checkpoint.unlink()
            (path / "summary.json").unlink(missing_ok=True)
            (path / "config.json").write_text(to_json(config))
            with contextlib.redirect_stderr(io.StringIO()):
                qlax.resume(path, **QUIET)
        sources.cache[key] = path
    return sources.cache[key]


def _intact(run: Path, whole: dict[str, Any]) -> int:
    """Return the number of updates of the newest undamaged checkpoint; 0 if there is none."""
    found = [0]
    for name in _names(run / "checkpoints"):
        path = run / "checkpoints" / name
        original = whole.get(f"checkpoints/{name}")
        if original and path.is_file() and path.read_bytes() == original[1]:
            found.append(int(path.stem))
    return max(found)


def _damage(draw: random.Random, run: Path, outside: Path) -> str:
    """Damage one file or folder of a run; return its name and the kind of damage."""
    tops = sorted(path.name for path in run.iterdir())
    if not tops:
        return "nothing left"
    weights = {"checkpoints": 4, "metrics.jsonl": 3, "config.json": 2, "agents": 2, "best": 2, "summary.json": 2}
    top = draw.choices(tops, [weights.get(name, 1) for name in tops])[0]
    path = run / top
    kinds = FILE_KINDS
    if path.is_dir() and not path.is_symlink():
        files = sorted(file for file in path.rglob("*") if not file.is_dir())
        if draw.random() < 0.15 or not files:
            kinds = FOLDER_KINDS
        else:
            path = draw.choice(files)
    if top == "config.json" and draw.random() < 0.5:
        kinds = ("change a value",)
    elif top == "metrics.jsonl" and draw.random() < 0.5:
        kinds = ("duplicate lines", "swap lines", "append garbage", "append garbage", "drop a line")
    elif top == "summary.json" and draw.random() < 0.3:
        kinds = ("another summary",)
    elif path.suffix == ".safetensors" and draw.random() < 0.2:
        kinds = ("copy over another",)
    kind = draw.choice(kinds)
    if kind in CONTENTS and not path.is_file():
        kind = "delete"
    where = top if top in TOPS else "what was moved aside"
    if kind in CONTENTS:
        content = CONTENTS[kind](draw, path.read_bytes())
        if path.is_symlink():
            path.unlink()
        path.write_bytes(content)
    elif kind == "copy over another":
        weights = sorted(file for file in run.rglob("*.safetensors") if file.is_file())
        names = [*weights, path.with_name("0000000099.safetensors"), path.with_name("backup.safetensors")]
        target = draw.choice(names)
        if path in weights and target != path:
            _remove(target)
            shutil.copyfile(path, target)
    else:
        _remove(path)
        if kind == "folder":
            path.mkdir()
        elif kind == "folder with a file":
            path.mkdir()
            (path / "0.safetensors").write_bytes(b"x")
        elif kind == "link out":
            path.symlink_to(outside / path.relative_to(run))
        elif kind == "link to itself":
            path.symlink_to(path.name)
        elif kind == "link to another":
            path.symlink_to(draw.choice(["config.json", "metrics.jsonl", "checkpoints", "nowhere"]))
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "file":
            path.write_bytes(b"x")
    return f"{where}: {kind}"


def _truncate(draw: random.Random, content: bytes) -> bytes:
    return content[: draw.randrange(len(content) + 1)]


def _flip(draw: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 8)) if content else 0):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _flip_early(draw: random.Random, content: bytes) -> bytes:
    """Flip bits at the beginning, where formats describe the contents that follow."""
    return _flip(draw, content[:64]) + content[64:]


def _zero(draw: random.Random, content: bytes) -> bytes:
    begin = draw.randrange(len(content) + 1)
    length = len(content[begin : begin + draw.choice((1, 16, 512))])
    return content[:begin] + bytes(length) + content[begin + length :]


def _change(draw: random.Random, content: bytes) -> bytes:
    name = draw.choice(sorted(CHANGES))
    try:
        settings = json.loads(content)
        return json.dumps(settings | {name: draw.choice(CHANGES[name])}, indent=2).encode() + b"\n"
    except (ValueError, TypeError, RecursionError):
        return content


def _of_lines(change: Callable[[random.Random, list[bytes]], list[bytes]]) -> Any:
    return lambda draw, content: b"".join(change(draw, content.splitlines(keepends=True)))


def _swap(draw: random.Random, lines: list[bytes]) -> list[bytes]:
    return draw.sample(lines, len(lines))


def _duplicate(draw: random.Random, lines: list[bytes]) -> list[bytes]:
    at, begin = draw.randrange(len(lines) + 1), draw.randrange(len(lines) + 1)
    return lines[:at] + lines[begin : begin + draw.choice((1, 2))] + lines[at:]


def _drop(draw: random.Random, lines: list[bytes]) -> list[bytes]:
    at = draw.randrange(len(lines) + 1)
    return lines[:at] + lines[at + 1 :]


CONTENTS: dict[str, Callable[[random.Random, bytes], bytes]] = {
    "truncate": _truncate,
    "flip bits": _flip,
    "flip bits of the beginning": _flip_early,
    "zero a block": _zero,
    "empty": lambda draw, content: b"",
    "random bytes": lambda draw, content: draw.randbytes(draw.choice((1, 100, len(content)))),
    "append garbage": lambda draw, content: content + draw.choice(GARBAGE),
    "change a value": _change,
    "another summary": lambda draw, content: json.dumps(draw.choice(SUMMARIES)).encode(),
    "swap lines": _of_lines(_swap),
    "duplicate lines": _of_lines(_duplicate),
    "drop a line": _of_lines(_drop),
}
OF_ANY_FILE = ("truncate", "flip bits", "flip bits", "flip bits of the beginning", "zero a block", "empty")
INSTEAD = ("delete", "delete", "folder", "link out", "link to itself", "link to another", "pipe")
FILE_KINDS = (*OF_ANY_FILE, "random bytes", "append garbage", *INSTEAD)
FOLDER_KINDS = (*INSTEAD, "file", "folder with a file")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _snapshot(folder: Path) -> dict[str, tuple[str, bytes]]:
    """Return the kind and the contents of every file and folder in a folder, by path."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            what = ("link", os.readlink(path).encode())
        elif path.is_dir():
            what = ("folder", b"")
        else:
            what = ("file", path.read_bytes()) if path.is_file() else ("other", b"")
        found[path.relative_to(folder).as_posix()] = what
    return found


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.safetensors"))


def _lines(run: Path) -> list[dict[str, Any]]:
    return [without_times(json.loads(line)) for line in (run / "metrics.jsonl").read_bytes().splitlines()]


def _flat(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(tree, dict):
        for name, branch in tree.items():
            yield from _flat(branch, (*path, name))
    else:
        yield path, np.asarray(tree)


def _equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


class _HangError(BaseException):
    pass


@contextlib.contextmanager
def _not_hanging() -> Iterator[None]:
    def stop(*_):
        raise _HangError(f"not done after {HANGING} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(HANGING)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def examine_one(sources: Sources, number: str) -> Outcome:
    """Return the outcome of the example with this number; an unexpected error is an outcome as well."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            with _not_hanging():
                return examine(sources, random.Random(number), Path(folder))
        except (Exception, _HangError, Stopped) as error:
            last = traceback.format_exc(limit=-4)
            return Outcome("", (), "", "failed", 0.0, f"{number}: {described(error)[:2000]}\n{last}")


def main() -> None:
    """Damage directories, print the outcomes and write them to a file."""
    parser = argparse.ArgumentParser(description="Damage run directories at random, and use them.")
    parser.add_argument("--directories", type=int, default=100, help="number of directories (default 100)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the damage (default 0)")
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="time after which no further directory is examined"
    )
    parser.add_argument("--out", type=Path, help="record to write (default none)")
    options = parser.parse_args()
    begun, outcomes = time.perf_counter(), []
    with tempfile.TemporaryDirectory() as folder:
        jax.config.update("jax_compilation_cache_dir", f"{folder}/jax")
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
        sources = make_sources(Path(folder))
        print(f"trained the sources in {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)
        for number in range(options.directories):
            if time.perf_counter() - begun > options.seconds:
                break
            outcome = examine_one(sources, f"{options.seed}/{number}")
            outcomes.append(outcome)
            if outcome.kind == "failed":
                print(outcome.message, file=sys.stderr, flush=True)
            if len(outcomes) % 50 == 0:
                print(len(outcomes), dict(Counter(o.kind for o in outcomes)), file=sys.stderr, flush=True)
    record = summary_of(outcomes)
    print(json.dumps(record, indent=2))
    if options.out:
        sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
        from records import circumstances

        command = f"python tests/damage.py --directories {len(outcomes)} --seed {options.seed}"
        options.out.write_text(json.dumps(circumstances(command) | record, indent=2) + "\n")
    sys.exit(bool(record["failures"]))


def summary_of(outcomes: list[Outcome]) -> dict[str, Any]:
    """Return the numbers of outcomes, in all, by action and by damage, and all failures."""

    def counted(pairs):
        table: dict[str, Counter] = {}
        for name, kind in pairs:
            table.setdefault(name, Counter())[kind] += 1
        return {name: dict(table[name].most_common()) for name in sorted(table)}

    return {
        "directories": len(outcomes),
        "outcomes": dict(Counter(outcome.kind for outcome in outcomes).most_common()),
        "by_action": counted((o.action, o.kind) for o in outcomes if o.action),
        "by_damage": counted((damage, o.kind) for o in outcomes for damage in o.damage),
        "different_refusals": len({o.message for o in outcomes if o.kind == "refused"}),
        "longest_refusal_characters": max((len(o.message) for o in outcomes if o.kind == "refused"), default=0),
        "slowest_seconds": max((o.seconds for o in outcomes), default=0.0),
        "failures": [o.message for o in outcomes if o.kind == "failed"],
    }


if __name__ == "__main__":
    main()
