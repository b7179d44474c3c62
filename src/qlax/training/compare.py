"""Comparison on resume: settings that must be unchanged, and differences that may change the results' last bits."""

import contextlib
import dataclasses
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from qlax._version import __version__
from qlax.config.environments import SUITES
from qlax.config.settings import FIELDS
from qlax.errors import UserError
from qlax.training.plan import Plan


def on_resume(path: Path, plan: Plan, info: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Refuse to resume a run with other settings, and find differences that may change the results' last bits.

    Args:
      path: Directory of the run.
      plan: Plan of the training to resume.
      info: Description of the checkpoint.

    Returns:
      Differences from an uninterrupted run, one text per interruption; and messages to the user.

    Raises:
      UserError: The run began with other settings or other parts of the algorithm, or has more steps than planned.
    """
    config, saved = plan.config, info["config"]
    if info["plugins"] != plan.plugins:
        parts = [", ".join(f"{name}={part}" for name, part in each.items()) for each in (info["plugins"], plan.plugins)]
        begun, given = (each or "qlax's own algorithm" for each in parts)
        raise UserError(f"{path} was begun with {begun}, not with {given}; resume it with the same arguments")
    for name, value in dataclasses.asdict(config).items():
        if saved[name] != value and not FIELDS[name].metadata["changeable"]:
            raise UserError(
                f"{path} was begun with {name}={saved[name]}, but its config.json says {value}; "
                f"restore the old value, or begin a new run: qlax train --config {path / 'config.json'}"
            )
    steps = info["updates"] * config.steps_per_update
    if info["updates"] > config.num_updates:
        raise UserError(
            f"{path} has {steps:,} steps already, but its config.json says total_steps={config.total_steps}; "
            f"expected at least {steps}"
        )
    inexact, notices = list(info.get("inexact", [])), []
    now = made_with(plan)
    differences = [
        f"{name} {now.get(name)} instead of {before}"
        for name, before in info.get("made_with", {}).items()
        if now.get(name) != before
    ]
    if plan.make_envs is not None:
        differences.append("new episodes in all environments, because environments on the host cannot be saved")
    if jax.default_backend() == "gpu" and not config.deterministic:
        differences.append("nondeterministic GPU operations, because --deterministic is off")
    if differences:
        inexact.append(f"after {steps:,} steps: {', '.join(differences)}")
        notices.append(f"resuming {inexact[-1]}: results will not be bit-identical to those of an uninterrupted run")
    if saved.get("total_steps") != config.total_steps:
        notices.append(
            f"extended from {saved.get('total_steps'):,} to {config.total_steps:,} steps: the schedules of learning "
            f"rate and epsilon continue at {100 * info['updates'] / config.num_updates:.0f} % of the new length"
        )
    return inexact, notices


def made_with(plan: Plan) -> dict[str, Any]:
    """Return the versions and the device on which the last bits of a run depend."""
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
    """Return the name of the CPU, or its architecture if the system does not report the name."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
