import random

import damage
import pytest


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return damage.make_sources(tmp_path_factory.mktemp("sources"))


@pytest.mark.parametrize(
    "number",
    [0, 8, 9, 14, 35, 42, 54, 59, 84, 139, *(pytest.param(number, marks=pytest.mark.slow) for number in (2, 81))],
)
def test_a_damaged_directory_is_left_as_it_is_or_gone_on_with_exactly(sources, number, tmp_path):
    """Some of the examples of `python tests/damage.py`, chosen to have different outcomes."""
    damage.examine(sources, random.Random(f"0/{number}"), tmp_path)
