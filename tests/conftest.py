"""Set-up of all tests: programs run only for a moment, so they are cached and compiled without optimisations."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

# XLA's newer code for fused operations takes twice as long to compile as the older code, and many small parts of a
# program take longer than the whole where another test needs the other core.
QUICK_TO_COMPILE = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
MUCH_MEMORY = 1.3e9  # bytes; the tests of a single file add up to 1 GB


def pytest_configure(config):
    settings = {"jax_persistent_cache_min_compile_time_secs": 0.1, "jax_disable_most_optimizations": True}
    if config.pluginmanager.has_plugin("cacheprovider"):
        settings["jax_compilation_cache_dir"] = str(config.cache.mkdir("jax"))
    for name, value in settings.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)  # for processes that tests start
    # Slow tests check the scores of presets, so they compile with the optimisations that users have.
    if config.option.markexpr == "not slow" and not hasattr(config, "workerinput"):
        _compile_quickly()
    # Tracing makes many long-lived objects; the garbage collector spent a tenth of the time on searching them.
    gc.set_threshold(100_000, 20, 50)


def _compile_quickly():
    """Set XLA's flags here and in child processes, if XLA knows them: an unknown flag ends a process."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} {QUICK_TO_COMPILE}".strip()
    command = [sys.executable, "-c", "import jax; jax.devices()"]
    tried = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    if subprocess.run(command, env=tried, capture_output=True, check=False).returncode == 0:
        os.environ["XLA_FLAGS"] = flags


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item, nextitem):
    """Drop compiled programs after a file's last test if they take much memory: all would take 3.4 GB per worker."""
    if (nextitem is None or nextitem.path != item.path) and _resident_memory() > MUCH_MEMORY:
        jax.clear_caches()
        gc.collect()


def _resident_memory():
    """Return the resident memory of this process in bytes, or an impossibly large number if it is unknown."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return sys.maxsize


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Send all tests of a file to the same worker, because they share fixtures and compiled programs."""
    from xdist.scheduler import LoadFileScheduling

    return LoadFileScheduling(config, log)
