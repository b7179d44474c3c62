"""Comparison on resume: what has to be as it was when a run began, and what may change its last bits."""

import contextlib
import dataclasses
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from qlax._version import __version__
from qlax.config.settings import FIELDS
from qlax.envs import SUITES
from qlax.errors import UserError
from qlax.training.plan import Plan


def on_resume(path: Path, plan: Plan, info: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Refuse to go on otherwise than a run began, and find what may change the last bits.

    Args:
      path: of the run's directory.
      plan: of what is to be trained.
      info: of the checkpoint.

    Returns:
      In what the run is not what an undisturbed one would have been; and notices for the user.

    Raises:
      UserError: the run began with other settings or plug-ins, or is longer already.
    """
    config, there = plan.config, info["config"]
    if info["plugins"] != plan.plugins:
        raise UserError(f"{path} was begun with the plugins {info['plugins']}, not {plan.plugins}")
    for name, value in dataclasses.asdict(config).items():
        if there[name] != value and not FIELDS[name].metadata["changeable"]:
            raise UserError(
                f"{path} was begun with {name}={there[name]}, but its config.json says {value}; "
                "put it back, or begin anew with: qlax train --config"
            )
    steps = info["updates"] * config.steps_per_update
    if info["updates"] > config.num_updates:
        raise UserError(
            f"{path} has {steps:,} steps already, but its config.json says total_steps={config.total_steps}; "
            "expected as many at least"
        )
    inexact, notices = list(info.get("inexact", [])), []
    here = made_with(plan)
    news = [
        f"{name} {here.get(name)} instead of {before}"
        for name, before in info.get("made_with", {}).items()
        if here.get(name) != before
    ]
    if plan.make_envs is not None:
        news.append("new episodes in all environments, as those on the host cannot be saved")
    if jax.default_backend() == "gpu" and not config.deterministic:
        news.append("operations of a GPU that are not deterministic, as --deterministic was not asked for")
    if news:
        inexact.append(f"after {steps:,} steps: {', '.join(news)}")
        notices.append(f"going on {inexact[-1]}: not bit for bit what an undisturbed run would have been")
    if there.get("total_steps") != config.total_steps:
        notices.append(
            f"extended from {there.get('total_steps'):,} to {config.total_steps:,} steps: learning rate and epsilon go "
            f"on as {100 * info['updates'] / config.num_updates:.0f} % into a run of that length"
        )
    return inexact, notices


def made_with(plan: Plan) -> dict[str, Any]:
    """What the last bits of a run depend on beside its configuration."""
    device = jax.local_devices()[0]
    found = {
        "qlax": __version__,
        "device": _processor() if device.platform == "cpu" else device.device_kind,
        "num_devices": plan.placement.num_devices,
    }
    suite = SUITES.get(plan.config.env.partition("/")[0])
    for package in ("jax", "jaxlib", "flax", "optax", "numpy", *([suite.distribution] if suite else [])):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def _processor() -> str:
    """The processor for which XLA compiles, where the system tells."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
