"""Set-up of all tests: their programs run only for a moment, so each is compiled once, and without optimisations."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

# XLA's newer code for fused operations takes twice as long to compile as the older code.
OLDER_CODE = "--xla_cpu_use_fusion_emitters=false"
MUCH_MEMORY = 1.3e9  # bytes; the tests of a single file add up to 1 GB


def pytest_configure(config):
    settings = {"jax_persistent_cache_min_compile_time_secs": 0.1, "jax_disable_most_optimizations": True}
    if config.pluginmanager.has_plugin("cacheprovider"):
        settings["jax_compilation_cache_dir"] = str(config.cache.mkdir("jax"))
    for name, value in settings.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)  # for processes that tests start
    # Slow tests hold presets to the scores that users get, so they compile as users do.
    if config.option.markexpr == "not slow" and not hasattr(config, "workerinput"):
        _use_older_code()


def _use_older_code():
    """Use XLA's older code here and in child processes, if XLA knows the flag: an unknown flag ends a process."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} {OLDER_CODE}".strip()
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
