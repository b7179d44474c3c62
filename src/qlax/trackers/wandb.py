"""Weights & Biases: a run of its own for every agent, online or in files."""

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
    """A W&B run a run, in a group that is named as the directory; its files are under `wandb/` there.

    The project is `qlax`, unless WANDB_PROJECT says otherwise. Without an API key, or where the server cannot be
    reached, all is written to files for `wandb sync`: every line, so that they take the place of what was sent before.
    """

    def __init__(self, tracked: Tracked):
        folder = tracked.directory / "wandb"
        folder.mkdir(exist_ok=True)
        identifier = _identifier(folder / "id")
        for earlier in folder.glob(f"offline-run-*-{identifier}-*"):
            shutil.rmtree(earlier)
        mode, why = _wandb_mode()
        self._runs = [_begun(tracked, index, f"{identifier}-{index}", mode) for index in range(len(tracked.runs))]
        if mode == "offline":
            tracked.say(f"wandb writes to files{why}; send them with: wandb sync {folder / 'offline-run-*'}")

    def log(self, line: dict[str, Any]) -> None:
        """Every value under its name; W&B's step is the steps of the environment."""
        for index, run in enumerate(self._runs):
            if line["steps"] >= run.starting_step:  # else it was sent before
                run.log(own_values(line, index), step=line["steps"], commit=True)

    def finish(self, summary: dict[str, Any] | None, video: bytes | None) -> None:
        """What is known in the end as W&B's summary, and the film."""
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
        for thread in threads:  # side by side: each waits for the server
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]


def _wandb_mode() -> tuple[str, str]:
    """Online, offline or disabled, as settings of wandb say, and why; offline without an API key: nobody is asked."""
    mode = wandb.setup(settings=wandb.Settings(silent=True)).settings.mode
    if mode == "online" and wandb.run is None:  # somebody who has one is logged in
        try:
            if not wandb.login(prompt=False, verify=True):  # some seconds, where a run would wait much longer
                return "offline", ", as it has no API key (wandb login)"
        except Exception as error:
            return "offline", f" ({described(error)})"
    return mode, ""


def _begun(tracked: Tracked, index: int, identifier: str, mode: str) -> Any:
    """A W&B run."""
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
            x_disable_stats=index > 0,  # of the machine: the same for all
        ),
    )


def _own_summary(summary: dict[str, Any], index: int) -> dict[str, Any]:
    """What a summary says of one run, or of all together."""
    found = {name: x["per_run"][index] if isinstance(x, dict) and "per_run" in x else x for name, x in summary.items()}
    found |= {"diverged": summary["diverged"][index], "eval_cut": summary["eval_cut"][index]}
    return {name: x for name, x in found.items() if name not in ("seeds", "settings", "final_settings", "preset")}


def _identifier(path: Path) -> str:
    """Of these runs at W&B, the same whenever they go on."""
    found = path.read_text(errors="replace") if path.exists() else ""
    if not (len(found) == 8 and found.isalnum()):
        found = uuid.uuid4().hex[:8]
        path.write_text(found)
    return found
