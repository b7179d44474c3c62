"""What a run says about its settings before it begins."""

import pytest
from runs import CARTPOLE, SMALL

import qlax
from qlax.config import presets
from qlax.training.plan import make

AWARE = ("gymnasium.wrappers:TimeLimit=7", "gymnasium.wrappers:TimeAwareObservation")


@pytest.mark.parametrize(
    ("env", "settings", "message"),
    [
        (CARTPOLE, {"memory": "mingru"}, "the network has a memory, and episodes are cut after 500 steps: "),
        ("gymnasium/CartPole-v1", {"wrappers": AWARE}, "observations show the time, and episodes are cut after 7 step"),
        (CARTPOLE, {"memory": "mingru", "time_limit_is_terminal": True}, None),
        (CARTPOLE, {}, None),
        ("probes:Recall", {"memory": "mingru"}, None),  # without a time limit
    ],
)
def test_an_agent_that_knows_the_time_is_advised_on_the_time_limit(env, settings, message):
    advice = make(qlax.Config(env=env, **SMALL, **settings), {}).advice
    assert len(advice) == (message is not None)
    if message:
        assert advice[0].startswith(message)
        assert advice[0].endswith("; --time-limit-is-terminal avoids this")


@pytest.mark.parametrize("preset", presets.names())
def test_presets_with_a_memory_treat_the_time_limit_as_terminal(preset):
    settings = presets.settings(preset.replace(presets.ANY, "3m"))
    assert settings.get("time_limit_is_terminal", False) == ("memory" in settings)
