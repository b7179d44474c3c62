"""Weights & Biases tracker: one W&B run per agent, online or in files."""

import io
import os
import shutil
import threading
import uuid
from pathlib import Path
from typing import Any

import wandb

from qlax.errors import described
from qlax.trackers.base import FINISH_SECONDS, Tracked, best_run, own_values


class WeightsAndBiases:
    """Tracker that logs one W&B run per agent, in a group named after the run's directory.

    Files are written under `wandb/` in that directory. The project is `qlax`, unless WANDB_PROJECT names another.
    Without an API key, or if the server cannot be reached, all lines are written to files for `wandb sync`; they
    replace what was sent before.
    """

    def __init__(self, tracked: Tracked):
        folder = tracked.directory / "wandb"
        folder.mkdir(exist_ok=True)
        identifier = _identifier(folder / "id")
        for earlier in folder.glob(f"offline-run-*-{identifier}-*"):
            shutil.rmtree(earlier)
        mode, why = _wandb_mode()
        self._runs = [_start_run(tracked, index, f"{identifier}-{index}", mode) for index in range(len(tracked.runs))]
        if mode == "offline":
            tracked.say(f"wandb writes to files{why}; send them with: wandb sync {folder / 'offline-run-*'}")

    def log(self, line: dict[str, Any]) -> None:
        """Log every value under its key; W&B's step is the number of environment steps."""
        for index, run in enumerate(self._runs):
            if line["steps"] >= run.starting_step:  # earlier lines were sent before the run was resumed
                run.log(own_values(line, index), step=line["steps"], commit=True)

    def finish(self, summary: dict[str, Any] | None, video: bytes | None) -> None:
        """Write the results to W&B's summary, and log the video."""
        if summary is not None:
            for index, run in enumerate(self._runs):
                run.summary.update(_own_summary(summary, index))
            if video:
                run = self._runs[best_run(summary)]
                run.log({"video": wandb.Video(io.BytesIO(video), format="gif")}, commit=True)
        failures = []

        def end(run: Any) -> None:
            try:
                run.finish(exit_code=int(summary is None))
            except Exception as error:
                failures.append(error)

        threads = [threading.Thread(target=end, args=[run], daemon=True) for run in self._runs]
        for thread in threads:  # in parallel, because each waits for the server
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]


def _wandb_mode() -> tuple[str, str]:
    """Return the mode (online, offline or disabled) that wandb's settings ask for, and the reason for a change.

    Without an API key the mode is offline; wandb must not prompt for one.
    """
    mode = wandb.setup(settings=wandb.Settings(silent=True)).settings.mode
    if mode == "online" and wandb.run is None:  # an active W&B run means that the user is logged in
        try:
            if not wandb.login(prompt=False, verify=True):  # takes seconds; starting a run would wait much longer
                return "offline", ", because there is no API key (wandb login)"
        except Exception as error:
            return "offline", f" ({described(error)})"
    return mode, ""


def _start_run(tracked: Tracked, index: int, identifier: str, mode: str) -> Any:
    """Start or resume the W&B run of one agent."""
    name = tracked.directory.resolve().name
    return wandb.init(
        project=os.environ.get("WANDB_PROJECT", "qlax"),
        group=name,
        name=f"{name} {tracked.names[index]}",
        id=identifier,
        dir=tracked.directory,
        config=tracked.settings(index),
        mode=mode,  # type: ignore[arg-type]
        reinit="create_new",
        resume="allow" if mode == "online" else None,
        settings=wandb.Settings(
            silent=True,
            console="off",
            init_timeout=FINISH_SECONDS,
            finish_timeout=FINISH_SECONDS,
            x_disable_stats=index > 0,  # statistics of the machine are the same for all agents
        ),
    )


def _own_summary(summary: dict[str, Any], index: int) -> dict[str, Any]:
    """Return the results of one agent, and those that all agents share, from the summary."""
    found = {name: x["per_run"][index] if isinstance(x, dict) and "per_run" in x else x for name, x in summary.items()}
    found |= {name: summary[name][index] for name in ("diverged", "eval_cut", "eval_distinct")}
    return {name: x for name, x in found.items() if name not in ("seeds", "settings", "final_settings", "preset")}


def _identifier(path: Path) -> str:
    """Return the identifier of this run at W&B, which is stored in a file so that resuming reuses it."""
    found = path.read_text(errors="replace") if path.exists() else ""
    if not (len(found) == 8 and found.isalnum()):
        found = uuid.uuid4().hex[:8]
        path.write_text(found)
    return found
