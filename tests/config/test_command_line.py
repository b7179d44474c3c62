"""Settings as the words of a command, and back."""

import dataclasses

import pytest

from qlax.config.command_line import as_words
from qlax.config.configure import configure

ENV = "gymnax/CartPole-v1"


@pytest.mark.parametrize(
    "settings",
    [
        {"seeds": 2, "lam": (0, 0.5), "env_options": {"length": 3, "name": "5", "on": True, "x": -1e-05}},
        {"reward_scale": (-1.0, 2.5e-7), "learning_rate": 1 / 3, "hidden": (8, 4), "dueling": True},
        {"learning_rate": "log-uniform:1e-5:1e-2", "draws": 4, "reward_scale": -1e-05, "init": "-x y"},
        {"total_steps": 10**9 + 1, "wrappers": ("frame_stack=4", "a:B"), "time_limit_is_terminal": True},
        {"env_options": {"desc": ["SF", "FG"], "name": None, "sizes": {"a": [1, 2.5]}, "text": "[1", "null": "null"}},
        {"wrappers": ("a:B=[84,84]", 'a:B={"x":[1,{"y":2}],"z":"],"}', "a:B=text", 'a:B="\\",["')},
    ],
)
@pytest.mark.parametrize("target", [ENV, "cartpole", "memory-chain"])
def test_a_configuration_is_said_in_words_that_ask_for_it(target, settings):
    from qlax.cli import flags, main

    config = configure(target, **settings)
    options = main.parser().parse_args(["train", *as_words(config)])
    again = configure(options.target, **flags.given(options))
    assert again == config
    assert as_words(configure(target)) == [target]


def test_what_a_preset_says_and_no_flag_takes_back_is_said_anew():
    config = dataclasses.replace(configure("cartpole-fast"), hidden=None)
    assert as_words(config)[0] == ENV
    assert "--hidden" not in as_words(config)
    assert as_words(dataclasses.replace(configure("memory-chain"), env_options={}))[0] != "memory-chain"
    assert as_words(dataclasses.replace(config, preset="a/<b"))[0] == ENV
