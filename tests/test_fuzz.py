import tempfile
from pathlib import Path

import pytest
from fuzz import check_refusal, configurations, environments, examine, examine_environment
from hypothesis import HealthCheck, Phase, given, settings
from probes import strict_and_quick

few = settings(
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],  # smaller examples would take longer to find than to understand this one
    suppress_health_check=list(HealthCheck),
)


def outcome(function, *drawn, **options):
    with tempfile.TemporaryDirectory() as folder:
        return function(*drawn, Path(folder, "examined"), **options).kind


@given(configurations())
@settings(few, max_examples=8)
def test_a_configuration_is_refused_in_one_line_or_valid(drawn):
    assert outcome(examine, drawn, with_training=False) in ("refused", "examined")


@given(configurations([{}], max_hostile=0))
@settings(few, max_examples=1)
def test_a_valid_configuration_trains_to_numbers_or_diverges(drawn):
    assert outcome(examine, drawn) in ("trained", "diverged", "examined")


@given(environments())
@settings(few, max_examples=6)
def test_an_environment_is_refused_in_one_line_or_can_be_trained_in(drawn):
    with strict_and_quick():
        assert outcome(examine_environment, *drawn, with_training=False) in ("refused", "examined", "crashed")


@pytest.mark.parametrize(
    ("message", "seconds", "memory", "wrong"),
    [
        ("a\nb", 0, 0, "several lines"),
        ("a" * 701, 0, 0, "701 characters"),
        (" ", 0, 0, "without a message"),
        ("a", 6, 0, "after 6.0 seconds"),
        ("a", 0, 2**31, "2048 MiB"),
    ],
)
def test_a_refusal_can_be_wrong(message, seconds, memory, wrong):
    check_refusal("a", 0, 0)
    with pytest.raises(AssertionError, match=wrong):
        check_refusal(message, seconds, memory)
