"""Programs of tests run for a moment, but compile slowly on a CPU: each is compiled once, and without best efforts."""

import gc
import os
import subprocess
import sys

import jax
import pytest

# XLA's newer code for fused operations takes twice as long to compile as the older.
OLDER_CODE = "--xla_cpu_use_fusion_emitters=false"


def pytest_configure(config):
    if config.pluginmanager.has_plugin("cacheprovider"):
        jax.config.update("jax_compilation_cache_dir", str(config.cache.mkdir("jax")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_disable_most_optimizations", True)
    # Slow tests hold presets to the scores that users get, so they compile as users do.
    if config.option.markexpr == "not slow" and not hasattr(config, "workerinput"):
        _use_older_code()


def _use_older_code():
    """In this process and in those it starts, if XLA has it: a flag that it does not know ends a process."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} {OLDER_CODE}".strip()
    command = [sys.executable, "-c", "import jax; jax.devices()"]
    tried = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    if subprocess.run(command, env=tried, capture_output=True, check=False).returncode == 0:
        os.environ["XLA_FLAGS"] = flags


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item, nextitem):
    """Drop the compiled programs of a file after its last test: those of all files together take 3.4 GB a worker."""
    if nextitem is None or nextitem.path != item.path:
        jax.clear_caches()
        gc.collect()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A file's tests go to one worker: they share fixtures and what is compiled."""
    from xdist.scheduler import LoadFileScheduling

    return LoadFileScheduling(config, log)
