"""Run directories: only one process at a time writes to one; damaged files are reported, moved aside and kept.

lock              exists while a process writes
config.json       all settings
metrics.jsonl     one line per logging interval
checkpoints/      newest training states, named by their number of updates
best/ agents/     weights of the best evaluation, and the final weights
sweep.csv         one row per agent, where settings are compared; sweep.png shows them
summary.json      results, written last
tensorboard/ wandb/  files of these trackers, if they are used
"""

import contextlib
import dataclasses
import json
import math
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout

from qlax.config.configure import from_dict
from qlax.config.settings import Config
from qlax.errors import RunError, UserError
from qlax.storage import checkpoint
from qlax.storage.formats import ENTRY, absent, stamped, to_json, upgraded
from qlax.storage.history import config_of, summary_of
from qlax.storage.metrics import MetricsFile
from qlax.storage.paths import LOCK, check_free, fresh
from qlax.types import PyTree
from qlax.util.files import PARTIAL, free_name, given_path, sync_folder, write_whole
from qlax.util.text import shown

AT_THE_END = ("summary.json", "curve.png", "sweep.csv", "sweep.png", "population.png")
FILES = ("config.json", "metrics.jsonl", *AT_THE_END)
MOST_QUEUED = 2  # tasks waiting for the writer thread, whose weights take memory
FOLDERS = ("checkpoints", "best", "agents", "earlier", "tensorboard", "wandb")


class RunDirectory:
    """Directory of a run, locked until it is closed.

    Args:
      path: Path of the directory, which exists.

    Attributes:
      metrics: Its file `metrics.jsonl`.
      damage: Messages about files that were damaged and moved aside, one line each.

    Raises:
      UserError: Another process has locked the directory, or it contains a link, or a folder instead of a file.
    """

    def __init__(self, path: Path):
        self.path = path
        self.metrics = MetricsFile(path / "metrics.jsonl")
        self.damage: list[str] = []
        self._lock = FileLock(path / LOCK, thread_local=False)
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            raise UserError(f"{path} is in use: another process is training in it; wait for it, or stop it") from None
        except OSError as error:
            raise UserError(f"{error.filename or path} cannot be written: {error.strerror or error}") from error
        self._writer = ThreadPoolExecutor(1)
        self._queued: deque[Future] = deque()  # tasks of the writer thread, oldest first
        self._checkpoint: Future | None = None
        try:
            self._check_kinds()
        except UserError:
            self.close()
            raise
        with contextlib.suppress(OSError):
            for pattern in (*(f"{name}*" for name in FILES), "checkpoints/*", "best/*", "agents/*"):
                for left in path.glob(f"{pattern}{PARTIAL}"):  # left by a process that was killed
                    left.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait for the writer thread, and release the lock."""
        self._writer.shutdown()
        self._lock.release()

    def discard_failed_start(self, kind: type[BaseException] | None, error: BaseException | None, _: Any) -> None:
        """Remove the directory if a new run failed before its first line of metrics, so that its path is free again.

        It stays after an interruption or a `RunError`, which say how to resume.

        Args:
          kind: Type of the exception that ended the run; None if none did.
          error: The exception.
        """
        if isinstance(error, Exception) and not isinstance(error, RunError) and not self.metrics.content():
            self._writer.shutdown()
            shutil.rmtree(self.path, ignore_errors=True)

    @property
    def config(self) -> Config:
        """Configuration of the run.

        Raises:
          UserError: The directory holds no run, or its configuration is damaged.
        """
        return config_of(self.path)

    @property
    def stopped_by(self) -> str:
        """Name of the callback that ended training before its planned length; empty if none did."""
        found = (summary_of(self.path) or {}).get("stopped_by")
        return found if isinstance(found, str) else ""

    def is_finished(self, config: Config) -> bool:
        """Tell whether the run has reached its planned length."""
        updates = (summary_of(self.path) or {}).get("updates")
        return isinstance(updates, int) and updates >= config.num_updates

    def newest(self, like: PyTree) -> tuple[dict[str, Any], PyTree] | None:
        """Read the newest intact checkpoint, and move damaged ones aside.

        Args:
          like: Tree of the expected shapes and dtypes.

        Returns:
          Description and tree of the checkpoint; None if there is no intact checkpoint.

        Raises:
          UserError: The checkpoint belongs to another configuration, or to another version of the environment.
        """
        for path in sorted((self.path / "checkpoints").glob(f"*{checkpoint.SUFFIX}"), reverse=True):
            try:
                info, tree = checkpoint.restore(path, like, absent(checkpoint.about(path), str(path)))
                _check_info(path, info)
            except checkpoint.DamagedError as error:
                self._move_aside(path, error)
                continue
            except checkpoint.OtherLeavesError as error:
                if not error.leaf.startswith("state/env/"):
                    raise
                made_with = checkpoint.about(path).get("made_with", {})
                versions = (f"{name} {version}" for name, version in made_with.items() if "device" not in name)
                raise UserError(
                    f"{self.path} cannot be resumed: the state of its environments has another form now "
                    f"({error.difference}), because the run was begun with another version of the environment, or its "
                    f"config.json was changed since; resume it as it was begun, with {', '.join(versions)}, or begin a "
                    "new run with its weights: --init and a file in its agents/ or best/"
                ) from error
            settings = upgraded(info["config"] | {ENTRY: info.get(ENTRY, 0)}, str(path))
            return info | {"config": dataclasses.asdict(from_dict(settings, str(path)))}, tree
        return None

    def begin_metrics(self, info: dict[str, Any], config: Config) -> bytes:
        """Restore the metrics to the lines they had when a checkpoint was written, or clear them.

        A damaged file is moved aside first, as is one of a run that has lost its checkpoints.

        Args:
          info: Description of the checkpoint; empty if training starts from the beginning.
          config: Configuration of the run.

        Returns:
          Content of the file that is left.
        """
        interval = config.checkpoint_interval
        assert interval is not None
        with self.writing():
            if info:
                lost = [self.metrics.cut(info["metrics_checksums"])]
            else:
                lost = [self.metrics.clear(moved_aside_from=interval, num_members=config.num_members)]
                if any(lost) or self.damage:
                    lost += [self._move_best_aside(), "no intact checkpoint is left: training starts over"]
        self.damage += filter(None, lost)
        return self.metrics.content()

    def append(self, line: dict[str, Any]) -> None:
        """Append a line to the metrics."""
        with self.writing():
            self.metrics.append(line)

    def write(self, name: str, content: Any) -> None:
        """Write a JSON file."""
        with self.writing():
            write_whole(self.path / name, (json.dumps(content, indent=2) + "\n").encode())

    def write_config(self, config: Config) -> None:
        """Write `config.json`."""
        self.write("config.json", stamped(dataclasses.asdict(config)))

    def save(self, updates: int, tree: PyTree, info: dict[str, Any], keep: int) -> None:
        """Write a checkpoint in the background.

        Args:
          updates: Number of updates done.
          tree: Tree of arrays, whose memory must not be reused.
          info: Description of the tree; checksums of the metrics are added.
          keep: Number of newest checkpoints to keep.

        Raises:
          RunError: An earlier file could not be written.
        """
        info = stamped({**info, "metrics_checksums": self.metrics.checksums()})

        def write():
            self.metrics.sync()  # first, because a checkpoint holds checksums of the metrics
            folder = self.path / "checkpoints"
            folder.mkdir(exist_ok=True)
            checkpoint.save(folder / _checkpoint_name(updates), tree, info)
            files = [path for path in sorted(folder.glob(f"*{checkpoint.SUFFIX}")) if path.is_file()]
            for old in files[:-keep]:
                old.unlink()

        if self._checkpoint is not None:  # wait: a second tree would take more memory of the device
            with self.writing():
                self._checkpoint.result()
        self._checkpoint = self._in_background(write)

    def save_agents(self, folder: str, agents: Mapping[int, tuple[PyTree, dict[str, Any]]]) -> None:
        """Write weights to `agents/` or `best/` in the background.

        Args:
          folder: "agents" or "best".
          agents: Variables and description of each agent, by the agent's index.

        Raises:
          RunError: An earlier file could not be written.
        """

        def write():
            path = self.path / folder
            path.mkdir(exist_ok=True)
            for index, (variables, info) in agents.items():
                checkpoint.save(path / f"{index}{checkpoint.SUFFIX}", variables, info, sync=False)
            sync_folder(path)

        if agents:
            self._in_background(write)

    def best(self, index: int, own: dict[str, Any], before: float) -> float:
        """Read the return of the best evaluation whose weights are in `best/`; -inf if there are none.

        Args:
          index: Index of the agent.
          own: Settings of the agent that differ between agents.
          before: Best return when the checkpoint was written; lower stored returns are reported in `damage`.
        """
        path = self.path / "best" / f"{index}{checkpoint.SUFFIX}"
        best = -math.inf
        try:
            if path.exists():
                info, _ = checkpoint.read(path)
                if {name: info.get(name) for name in own} != own or type(info.get("eval_return")) is not float:
                    raise checkpoint.DamagedError(f"{path} does not hold best weights of this run")
                best = info["eval_return"]
        except checkpoint.DamagedError as error:
            self._move_aside(path, error)
        if best < before:
            self.damage.append(f"{path}: the weights of the best evaluation (return {before:g}) are lost")
        return best

    def wait(self) -> None:
        """Wait until all files are written.

        Raises:
          RunError: A file could not be written.
        """
        self._wait_for(0)

    def move_earlier_end_aside(self) -> None:
        """Move the files of an earlier end of training to `earlier/`, because the next end writes the same names."""
        left = [name for name in (*AT_THE_END, "agents") if (self.path / name).exists()]
        if not left:
            return
        config, updates = self.config, (summary_of(self.path) or {}).get("updates")
        steps = (updates if isinstance(updates, int) else config.num_updates) * config.steps_per_update
        folder = free_name(self.path / "earlier" / f"{steps}")
        with self.writing():
            folder.mkdir(parents=True)
            shutil.copy2(self.path / "config.json", folder)
            for name in left:
                (self.path / name).rename(folder / name)

    def _move_aside(self, path: Path, error: checkpoint.DamagedError) -> None:
        aside = free_name(path.with_name(f"{path.name}.damaged"))
        with self.writing():
            path.rename(aside)
        self.damage.append(f"{' '.join(str(error).split())}; moved aside as {aside.name}")

    def _move_best_aside(self) -> str:
        best = self.path / "best"
        if not best.exists():
            return ""
        return f"{best} moved aside as {best.rename(free_name(self.path / 'best.damaged')).name}"

    def _in_background(self, write: Callable[[], None]) -> Future | None:
        """Queue a task for the writer thread; after a failure later tasks are skipped and the next call raises."""
        self._wait_for(MOST_QUEUED - 1)
        before = self._queued[-1] if self._queued else None

        def write_next() -> None:
            if before is not None:
                before.result()
            write()

        self._queued.append(self._writer.submit(write_next))
        return self._queued[-1]

    def _wait_for(self, most: int) -> None:
        """Wait until at most `most` tasks are queued; raise the error of a task that has failed."""
        with self.writing():
            while self._queued and (len(self._queued) > most or self._queued[0].done()):
                self._queued.popleft().result()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Turn system errors within the context into a one-line `RunError` that says how to resume."""
        try:
            yield
        except OSError as error:
            where = error.filename or self.path
            resume = f"once that is fixed, go on with: qlax resume {self.path}"
            raise RunError(f"{where} cannot be written: {error.strerror or error}; {resume}") from error

    def _check_kinds(self) -> None:
        """Check that files are files, folders are folders, and none is a link that might lead out of the directory."""
        for name in (*FILES, *FOLDERS):
            found = self.path / name
            if found.is_symlink():
                raise UserError(f"{found} is a link to {shown(os.readlink(found))}; links are not followed")
            if found.exists() and not (found.is_dir() if name in FOLDERS else found.is_file()):
                raise UserError(f"{found} is not a {'folder' if name in FOLDERS else 'file'}; move it away")
        for folder in ("best", "agents"):
            for found in (self.path / folder).glob(f"*{checkpoint.SUFFIX}"):
                if not found.is_file():
                    raise UserError(f"{found} is not a file; move it away")


class NonWritingRunDirectory(RunDirectory):
    """Run directory of a non-writing process; its writes go to a temporary folder.

    Args:
      path: Path of the run's directory, which this process need not be able to reach.
    """

    def __init__(self, path: Path):
        self._temporary = tempfile.TemporaryDirectory()
        super().__init__(Path(self._temporary.name))
        self.path = path

    def close(self) -> None:
        """Remove the temporary folder."""
        super().close()
        self._temporary.cleanup()

    def write(self, name: str, content: Any) -> None:
        """Do nothing, because another process writes."""

    def best(self, index: int, own: dict[str, Any], before: float) -> float:
        """Return `before`, the best return when the checkpoint was written."""
        return before

    def _in_background(self, write: Callable[[], None]) -> None:
        """Do nothing, because another process writes."""


_INFO = {"updates": int, "line": int, "metrics_checksums": str, "plugins": dict, "config": dict, "best": list}


def _check_info(path: Path, info: dict[str, Any]) -> None:
    """Check that a checkpoint's description is complete and matches its file name."""
    for name, kind in _INFO.items():
        if type(info.get(name)) is not kind or (kind is int and info[name] < 0):
            raise checkpoint.DamagedError(
                f"{path} is not a checkpoint of this version of qlax: {name} is {info.get(name)!r:.40}"
            )
    if path.name != _checkpoint_name(info["updates"]):
        raise checkpoint.DamagedError(f"{path} holds the checkpoint of {_checkpoint_name(info['updates'])}")


def _checkpoint_name(updates: int) -> str:
    return f"{updates:010d}{checkpoint.SUFFIX}"


def claim(out: Path | str | None, config: Config) -> RunDirectory:
    """Make and lock the directory of a new run, and write its `config.json`.

    Args:
      out: Path of an empty directory, or one that does not exist yet; None for a new directory under `runs/`.
      config: Configuration of the run.

    Raises:
      UserError: The directory is not empty, is in use, or cannot be made.
    """
    try:
        if out is None:
            path = fresh(config.preset or config.env)
        else:
            path = given_path(out)
            check_free(path)
            path.mkdir(parents=True, exist_ok=True)
        directory = RunDirectory(path)
        try:
            check_free(path)  # another process may have begun a run there before the lock was taken
        except UserError:
            directory.close()
            raise
        write_whole(directory.path / "config.json", to_json(config).encode())
    except OSError as error:
        raise UserError(f"cannot make {error.filename or out}: {error.strerror or error}") from error
    return directory


def existing(path: Path | str) -> RunDirectory:
    """Open the directory of a run that has begun.

    Raises:
      UserError: The directory holds no run, or another process has locked it.
    """
    path = given_path(path)
    if not (path / "config.json").exists():
        raise UserError(f"{path} holds no run: there is no {'config.json' if path.is_dir() else 'such directory'}")
    return RunDirectory(path)
