import json

import numpy as np
import pytest

from qlax import pqn, pqn_continuous
from qlax.config.intervals import with_intervals
from qlax.config.kinds import GROUPS
from qlax.config.settings import FIELDS, SWEEPABLE, Config, fields_where
from qlax.errors import UserError
from qlax.pqn import Hyper, Shape
from qlax.storage.formats import to_json

ENV = "gymnax/CartPole-v1"


def test_every_traced_hyperparameter_can_be_swept():
    assert set(SWEEPABLE) == {*Hyper._fields, *pqn_continuous.Hyper._fields}
    assert tuple(name for name in SWEEPABLE if name in Hyper._fields) == Hyper._fields  # the order of agents


@pytest.mark.parametrize("page", [pqn, pqn_continuous])
def test_hyper_parameters_have_the_same_defaults_as_settings(page):
    assert page.Hyper()._asdict() == {name: FIELDS[name].default for name in page.Hyper._fields}


def test_runs_are_ordered_by_setting_then_seed():
    config = Config(env=ENV, seed=7, seeds=2, lam=[0, 0.5], gamma=(0.9, 1))
    runs = [(run["gamma"], run["lam"], run["seed"]) for run in config.members]
    assert runs == [(g, lam, seed) for g in (0.9, 1.0) for lam in (0.0, 0.5) for seed in (7, 8)]
    assert config.swept == ["gamma", "lam"]


def test_draws_are_joint_and_crossed_with_lists_and_trained_with_every_seed():
    asked = {"env": ENV, "learning_rate": "log-uniform:1e-5:1e-2", "gamma": "uniform:0.9:0.99", "lam": (0, 0.5)}
    config = Config(**asked, seeds=3, draws=8)
    assert (config.num_members, len(config.members), config.swept) == (48, 48, ["learning_rate", "gamma", "lam"])
    settings = config.settings()
    assert [run["seed"] for run in config.members] == [0, 1, 2] * 16
    assert [setting["lam"] for setting in settings] == [0, 0.5] * 8
    assert settings[0] | {"lam": 0.5} == settings[1]
    drawn = [(setting["learning_rate"], setting["gamma"]) for setting in settings[::2]]
    assert len({rate for rate, _ in drawn}) == len({gamma for _, gamma in drawn}) == 8
    assert all(type(value) is float for setting in settings for value in setting.values())
    # More draws begin with the same settings as fewer draws, whatever the other settings; another seed gives others.
    assert Config(**asked, seeds=3, draws=16).settings()[:16] == settings
    alone = Config(env=ENV, learning_rate=asked["learning_rate"], draws=8, num_envs=64)
    assert [setting["learning_rate"] for setting in alone.settings()] == [rate for rate, _ in drawn]
    other = Config(**asked, seeds=3, draws=8, seed=1)
    assert not {rate for rate, _ in drawn} & {setting["learning_rate"] for setting in other.settings()}


def test_distributions_are_spread_as_they_say():
    config = Config(env=ENV, learning_rate="log-uniform:1e-5:1e-1", gamma=["uniform:0.9:1"], draws=4000)
    rates, gammas = ([setting[name] for setting in config.settings()] for name in ("learning_rate", "gamma"))
    for shares, low in ((np.log10(rates) / 4 + 1.25, 1e-5), (10 * (np.array(gammas) - 0.9), 0.9)):
        assert np.histogram(shares, 4, (0, 1))[0] == pytest.approx([1000] * 4, abs=120)
        assert min(rates if low < 0.1 else gammas) >= low
    assert max(rates) <= 0.1
    assert max(gammas) <= 1
    assert all(float(f"{value:g}") == value for value in rates + gammas)  # the shown digits are all digits of the value
    narrow = Config(env=ENV, gamma="uniform:0.9999999:0.99999995", draws=9).settings()
    assert all(0.9999999 <= setting["gamma"] <= 0.99999995 for setting in narrow)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gamma": 1.5}, r"gamma=1.5: expected a number from 0 to 1"),
        ({"lam": [0.5, -1]}, r"lam=\[0.5, -1\]: expected a number from 0 to 1"),
        ({"epsilon_end": 2}, r"epsilon_end=2: expected a number from 0 to 1"),
        ({"learning_rate": float("nan")}, r"learning_rate=nan: expected a number from 0"),
        ({"num_envs": 0}, r"num_envs=0: expected a whole number from 1"),
        ({"num_steps": 2.5}, r"num_steps=2.5: expected a whole number"),
        ({"seeds": True}, r"seeds=True: expected a whole number"),
        ({"num_envs": [8, 16]}, r"num_envs=\[8, 16\]: expected a whole number from 1.*; only .*lam.* take several"),
        ({"epsilon_spread": 0.5}, r"epsilon_spread=0.5: expected a number from 1"),
        ({"head": "hl-gauss"}, r"head='hl-gauss': expected one of scalar, .*did you mean 'hl_gauss'"),
        ({"head_low": 3, "head_high": 3}, r"head_low=3 and head_high=3: expected the first to be lower$"),
        ({"optimizer": "adam2"}, r"optimizer='adam2': expected one of radam, .*did you mean 'adam'"),
        ({"norm": "leyer"}, r"norm='leyer': expected one of layer, .*did you mean 'layer'"),
        ({"dueling": 1}, r"dueling=1: expected true or false"),
        ({"hidden": []}, r"hidden=\[\]: expected whole numbers from 1"),
        ({"hidden": [0]}, r"hidden=\[0\]: expected whole numbers from 1"),
        ({"env_options": [1]}, r"env_options=\[1\]: expected name=value"),
        ({"lam": []}, r"lam=\[\]: expected a number"),
        ({"num_minibatches": 30}, r"num_minibatches=30 does not divide the 128 environments x 32 steps; use 16|30|32"),
        ({"num_minibatches": 96, "memory": "gru"}, r"does not divide the 128 environments \(whole .*; use 64 or 128"),
        ({"reset_ratio": 3}, r"reset_ratio=3 does not divide num_envs=128; use 2 or 4"),
        ({"log_interval": 3, "eval_interval": 7}, r"eval_interval=7 is not a multiple of log_interval=3; use 9"),
        ({"env": ""}, r"env is missing"),
        ({"lam": "uniform:0:2"}, r"lam='uniform:0:2': expected a number from 0 to 1, or uniform:LOW:HIGH or log-unif"),
        ({"lam": "log-uniform:0:1"}, r"with two such numbers, LOW < HIGH, and 0 < LOW for log-uniform$"),
        ({"lam": "uniform:1:0"}, r"lam='uniform:1:0': expected"),
        ({"lam": "uniform:0:nan"}, r"lam='uniform:0:nan': expected"),
        ({"lam": "uniform:0"}, r"lam='uniform:0': expected"),
        ({"lam": "normal:0:1"}, r"lam='normal:0:1': expected"),
        ({"lam": ["uniform:0:1", 0.5], "draws": 2}, r"lam=\['uniform:0:1', 0.5\]: expected"),
        (
            {"lam": "uniform:0:1"},
            r"lam=uniform:0:1 is a distribution: give the number of settings to draw from it, as in draws=16$",
        ),
        (
            {"lam": (0, 1), "draws": 3},
            r"draws=3: no setting has a distribution; leave draws out, or give one, as in learning_",
        ),
        (
            {"lam": "uniform:0:1", "gamma": (0, 1), "draws": 32_769},
            r"draws=32769 x seeds=1 x 2 values of gamma: the agents would be 65,538; expected at most 65,536",
        ),
        ({"num_steps": 10**5000}, r"num_steps=something of type int: expected a whole number from 1"),
        ({"num_steps": 10**400}, r"num_steps=10{79}\.\.\.: expected a whole number from 1"),
        ({"learning_rate": 1e39}, r"learning_rate=1e\+39: expected a number from 0 to 3.402823466e\+38"),
        (
            {"reward_scale": -1e308},
            r"reward_scale=-1e\+308: expected a number from -3.402823466e\+38 to 3.402823466e\+38",
        ),
        ({"hidden": (8,) * 65}, r"expected whole numbers from 1 to 1,048,576, as 256,256, at most 64 of them"),
        (
            {"wrappers": ["a\nb"]},
            r"wrappers=\['a\\nb'\]: expected names, as a,b: at most 64 of at most 200 printable characters$",
        ),
        ({"network": "x" * 10**7}, r"network='x{79}\.\.\.: expected at most 200 printable characters"),
        ({"env_options": {1: 2}}, r"env_options=\{1: 2\}: expected name=value"),
        ({"env_options": {"seed": 2**64}}, r"expected name=value"),
        ({"env_options": {"seeds": [1, [2**64]]}}, r"expected name=value, the value as JSON of at most 10,000 char"),
        ({"env_options": {"desc": ["x" * 9_999]}}, r"expected name=value, the value as JSON"),
        ({"env_options": {"sizes": {1: 2}}}, r"env_options=.*sizes.*: expected name=value"),
        ({"env_options": {"sizes": {1, 2}}}, r"env_options=.*sizes.*: expected name=value"),
        ({"wrappers": ["a:B=[1", "c:D"]}, r"expected names, as a,b"),
        ({"wrappers": ["a,b"]}, r"expected names, as a,b"),
        (
            {"num_envs": 2**20, "num_steps": 2**11},
            r"num_envs=1048576 x num_steps=2048 would be 2,147,483,648; expected at",
        ),
        # 2^31 gradient steps: 2^25 updates of 4096 steps, each twice in 32 minibatches
        ({"total_steps": 2**37}, r"total_steps=\d+: the gradient steps .* would be 2,147,483,648; expected at most"),
        ({"seeds": 257, "lam": np.linspace(0, 1, 256)}, r"seeds=257 x 256 values of lam: the agents would be 65,792;"),
        (
            {"seeds": 2, "seed": 2**31 - 1},
            r"seed=2147483647 and seeds=2: the last seed would be 2,147,483,648; expected",
        ),
        ({"num_envs": 2**31 - 2, "num_steps": 1, "num_minibatches": 4, "total_steps": 1}, r"use 3 or 6"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(settings, message):
    with pytest.raises(UserError, match=message):
        Config(**{"env": ENV, **settings})


def test_steps_are_rounded_up_to_whole_updates():
    config = Config(env=ENV, num_envs=4, num_steps=8, num_minibatches=2, total_steps=33)
    assert (config.num_updates, config.steps_per_update) == (2, 32)


def test_derived_intervals_divide_each_other():
    for steps in (1, 5_000, 10**6, 10**9):
        for given in ({}, {"log_interval": 7}, {"eval_interval": 9}, {"eval_interval": 9, "checkpoint_interval": 6}):
            config = with_intervals(Config(env=ENV, total_steps=steps, seeds=3, **given), 500)
            assert config.eval_interval % config.log_interval == 0
            assert config.checkpoint_interval % config.log_interval == 0
            assert {name: getattr(config, name) for name in given} == given
            assert json.loads(to_json(config))["eval_max_steps"] == 500


def test_fields_are_found_by_what_is_known_of_them():
    assert fields_where(changeable=True) == [
        "total_steps",
        "until",
        "minutes",
        "host_timeout",
        "keep",
        "trackers",
        "cuda_graph",
    ]
    exploration = ["epsilon_start", "epsilon_end", "epsilon_fraction", "epsilon_spread"]
    assert fields_where(group="exploration", flag=True) == exploration
    assert fields_where(origin=True) == ["preset", "derived"]
    assert sorted(name for group in GROUPS for name in fields_where(group=group)) == sorted(FIELDS)


def test_numbers_of_numpy_are_numbers():
    config = Config(env=ENV, lam=np.linspace(0, 1, 3), gamma=np.float32(0.5), seeds=np.int64(3))
    assert (config.lam, config.gamma, config.seeds) == ((0.0, 0.5, 1.0), 0.5, 3)
    assert type(config.seeds) is int


def test_every_field_has_a_help_text():
    assert all(field.metadata["help"] for field in FIELDS.values())


def test_settings_and_algorithm_have_the_same_defaults():
    config = Config(env=ENV)
    assert Hyper()._asdict() == {name: getattr(config, name) for name in Hyper._fields}
    sizes = [name for name in Shape._fields if name != "num_updates"]
    assert [getattr(Shape(), name) for name in sizes] == [getattr(config, name) for name in sizes]
