"""Names of environments and presets: their case does not matter, and no suite is imported to find them."""

import re

import pytest
from runs import SMALL, stand_in_suite

import qlax
from qlax import envs
from qlax.config import environments, presets
from qlax.config.configure import configure
from qlax.errors import UserError, matching, nearest
from qlax.training import plan


@pytest.mark.parametrize(
    ("given", "spelled"),
    [
        ("gymnax/cartpole-V1", "gymnax/CartPole-v1"),
        ("GYMNAX/CartPole-v1", "gymnax/CartPole-v1"),
        ("ale/mspacman", "ale/MsPacman"),
        ("PGX/Go_9x9", "pgx/go_9x9"),
        ("JaxMARL/SMAX/3M", "jaxmarl/smax/3m"),
        ("gymnasium/PHYS2D/cartpole-v1", "gymnasium/phys2d/CartPole-v1"),
        ("gymnax/pendulum-v1", "gymnax/Pendulum-v1"),  # refused later, under its proper name
        ("Gymnasium/my_package:MyEnv-v0", "gymnasium/my_package:MyEnv-v0"),
        ("gymnax/Unheard-of", "gymnax/Unheard-of"),
        ("My_Module:gymnax", "My_Module:gymnax"),
        ("Gymnax:CartPole", "Gymnax:CartPole"),
        ("nowhere/CartPole-v1", "nowhere/CartPole-v1"),
        ("gymnax", "gymnax"),
    ],
)
def test_names_of_environments_have_the_spelling_of_their_suite(given, spelled):
    assert environments.spelled(given) == spelled
    assert qlax.Config(env=given).env == spelled


def test_of_two_names_that_differ_in_case_alone_the_exact_one_is_meant(monkeypatch):
    assert environments.spelled("envpool/exit-v0") == "envpool/exit-v0"
    assert environments.spelled("envpool/Exit-v0") == "envpool/Exit-v0"
    assert environments.spelled("envpool/EXIT-v0") == "envpool/EXIT-v0"
    assert matching("pong", ["Pong", "PONG"]) is None
    assert matching("PONG", ["Pong", "PONG"]) == "PONG"
    assert nearest("pong", ["Pong", "PONG"]) == "; 'Pong' and 'PONG' differ only in case: write one of them exactly"
    monkeypatch.setattr(environments, "recorded", lambda suite: environments.Recorded(None, [], {}))
    monkeypatch.setattr(envs.suite("craftax"), "NAMES", ("Craftax", "CRAFTAX"))
    with pytest.raises(UserError, match="'Craftax' and 'CRAFTAX' differ only in case: write one of them exactly"):
        qlax.make("craftax/craftax")


@pytest.mark.parametrize(
    ("given", "preset", "env"),
    [
        ("CartPole", "cartpole", "gymnax/CartPole-v1"),
        ("MinAtar/Breakout", "minatar/breakout", "gymnax/Breakout-MinAtar"),
        ("atari/pong", "atari/Pong", "ale/Pong"),
        ("Atari-Fast/mspacman", "atari-fast/MsPacman", "ale/MsPacman"),
        ("SMAX/3M", "smax/3m", "jaxmarl/smax/3m"),
    ],
)
def test_names_of_presets_have_their_own_spelling(given, preset, env):
    config = configure(given)
    assert (config.preset, config.env) == (preset, env)
    assert presets.text(given) == presets.text(preset)


def test_the_environment_of_a_preset_may_be_given_again_in_another_case():
    assert configure("cartpole", env="GYMNAX/CARTPOLE-V1").preset == "cartpole"
    assert configure("cartpole", env="gymnax/Catch-bsuite").preset is None


def test_names_that_were_not_recorded_are_asked_of_the_suite(monkeypatch):
    """The plan has the right spelling, and all files of a run take their settings from it."""
    stand_in_suite(monkeypatch, ["Pong"])
    config = configure("FLAKY/pong", **SMALL)
    assert config.env == "flaky/pong"
    made = plan.make(config, {})
    assert made.config.env == "flaky/Pong"


def test_a_name_that_was_recorded_imports_no_suite(monkeypatch):
    monkeypatch.setattr(envs, "suite", lambda name: pytest.fail("imported"))
    for given, spelled in (
        ("gymnax/CartPole-v1", "gymnax/CartPole-v1"),
        ("gymnax/cartpole-v1", "gymnax/CartPole-v1"),
        ("gymnasium/ant-v2", "gymnasium/Ant-v2"),
    ):
        assert envs.spelled(given) == spelled


def test_presets_do_not_differ_in_case_alone():
    names = [name.casefold() for name in presets.names()]
    assert len(names) == len({*names})


def test_the_file_lists_every_suite_once_and_every_name_once():
    for suite in environments.SUITES:
        version, names, others = environments.recorded(suite)
        assert re.fullmatch(r"\d+(\.\d+)+", version)
        every = [*names, *(name for of in others.values() for name in of)]
        assert len(every) == len({*every}) > 0
