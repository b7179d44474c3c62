"""Versions, devices and options on which the last bits of a run depend."""

from importlib import metadata
from types import SimpleNamespace

import pytest

from qlax.envs import SUITES
from qlax.training.compare import made_with


@pytest.mark.parametrize("suite", SUITES)
def test_the_version_of_the_suite_s_package_is_recorded(suite):
    distribution = SUITES[suite].distribution
    try:
        version = metadata.version(distribution)
    except metadata.PackageNotFoundError:
        pytest.skip(f"{distribution} is not installed")
    plan = SimpleNamespace(config=SimpleNamespace(env=f"{suite}/Name"), placement=SimpleNamespace(num_devices=1))
    assert made_with(plan)[distribution] == version
