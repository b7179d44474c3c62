"""Circumstances of measurements, which the files in `benchmarks/results/` record."""

import datetime
import importlib.metadata
import importlib.util
import os
import platform
from pathlib import Path

PACKAGES = (
    *("qlax", "jax", "flax", "optax", "gymnax", "pgx", "jumanji", "navix", "xminigrid", "craftax", "jaxmarl"),
    *("gymnasium", "ale_py", "envpool", "brax", "mujoco", "onnx", "onnxruntime"),
)
RESULTS = Path(__file__).parent / "results"


def circumstances(command: str) -> dict:
    """Return the command, the date, the machine and the versions of packages for a record."""
    return {
        "command": command,
        "date": datetime.date.today().isoformat(),
        "machine": f"{processor()}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}",
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES if importlib.util.find_spec(name)},
    }


def processor() -> str:
    """Return the name of the processor, as the system reports it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    named = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor()


def compilation_cache(folder: str) -> dict[str, str]:
    """Return environment variables that make qlax keep its compiled programs in this folder."""
    return {"JAX_COMPILATION_CACHE_DIR": folder, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2"}
