"""What the files in `benchmarks/results/` say of how they came about."""

import datetime
import importlib.metadata
import importlib.util
import os
import platform
from pathlib import Path

PACKAGES = (
    *("qlax", "jax", "flax", "optax", "gymnax", "pgx", "jumanji", "navix", "xminigrid", "craftax", "jaxmarl"),
    *("gymnasium", "ale_py", "envpool", "onnx", "onnxruntime"),
)
RESULTS = Path(__file__).parent / "results"


def circumstances(command: str) -> dict:
    """What a record says of how it came about."""
    return {
        "command": command,
        "date": datetime.date.today().isoformat(),
        "machine": f"{processor()}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}",
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES if importlib.util.find_spec(name)},
    }


def processor() -> str:
    """The name of the processor, as the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    named = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor()


def compilation_cache(folder: str) -> dict[str, str]:
    """Environment variables that keep what qlax would keep in its own cache in this folder instead."""
    return {"JAX_COMPILATION_CACHE_DIR": folder, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2"}
