"""How presets, environments and overrides become the settings of a run."""

from collections.abc import Sequence
from typing import get_type_hints

import pytest

from qlax.config import presets
from qlax.config.configure import Overrides, Sweepable, configure
from qlax.config.intervals import with_intervals
from qlax.config.kinds import Sweep
from qlax.config.settings import FIELDS
from qlax.errors import UserError
from qlax.learning.mixing import Mixing
from qlax.storage.formats import config_of_file, to_json

ENV = "gymnax/CartPole-v1"


def test_an_unknown_setting_is_named_with_the_nearest():
    with pytest.raises(UserError, match=r"unknown setting 'lamda'.*did you mean 'lam'"):
        configure(ENV, lamda=0.5)


@pytest.mark.parametrize(
    ("target", "hint"),
    [("cartpol", "cartpole"), ("minatar/brekout", "minatar/breakout"), ("minatr/asterix", "minatar/asterix")],
)
def test_an_unknown_preset_is_named_with_the_nearest(target, hint):
    with pytest.raises(UserError, match=f"unknown preset '{target}'; did you mean '{hint}'"):
        configure(target)


@pytest.mark.parametrize("name", presets.names())
def test_presets_are_valid_and_say_where_they_come_from(name):
    config = configure(name)
    assert config.preset == name
    heading = [line for line in presets.text(name).splitlines() if line.startswith("#")]
    for word in ("Source:", "Expect:", "Hardware:"):
        assert any(word in line for line in heading), f"the heading of {name} lacks {word}"


def test_one_file_of_a_folder_is_the_preset_of_each_of_its_environments():
    config = configure("smax/2s3z")
    assert (config.env, config.preset) == ("jaxmarl/smax/2s3z", "smax/2s3z")
    assert presets.made_for("jaxmarl/smax/2s3z") == ["smax-fast/2s3z", "smax/2s3z"]
    assert presets.made_for("jaxmarl/mpe/simple_spread") == ["mpe/spread"]
    assert presets.made_for("jaxmarl/mpe/simple_reference") == []
    assert configure("craftax/Craftax-Pixels-v1").preset is None  # although there is a preset called craftax
    for name in ("smax", "smax/", "smax/each"):
        with pytest.raises(UserError, match="unknown preset"):
            configure(name)


@pytest.mark.parametrize("target", [5, b"cartpole", "x" * 201, "cartpole\n"])
def test_no_name_is_no_target(target):
    with pytest.raises(UserError, match=r"^env=.*: expected at most 200 printable characters"):
        configure(target)


@pytest.mark.parametrize("name", ["../presets/cartpole", str(presets.FOLDER / "cartpole")])
def test_no_name_of_a_preset_leads_elsewhere(name):
    with pytest.raises(UserError, match="unknown preset"):
        presets.text(name)


def test_what_follows_from_other_settings_follows_anew(tmp_path):
    written = with_intervals(configure(ENV, total_steps=100_000, eval_episodes=5), 500).derive(encoder="mlp")
    assert set(written.derived) == {"log_interval", "eval_interval", "checkpoint_interval", "eval_max_steps", "encoder"}
    (tmp_path / "config.json").write_text(to_json(written))
    longer = config_of_file(tmp_path / "config.json", total_steps=10_000_000)
    expected = configure(ENV, total_steps=10_000_000, eval_episodes=5)
    assert longer == expected
    assert with_intervals(longer, 500).eval_interval > written.eval_interval
    assert configure(written, total_steps=10_000_000) == expected


def test_options_are_added_to_those_of_the_preset():
    config = configure("memory-chain", env_options={"max_steps_in_episode": 50})
    assert config.env_options == {"memory_length": 100, "max_steps_in_episode": 50}
    assert configure("memory-chain", env=ENV, env_options={"gravity": 1.0}).env_options == {"gravity": 1.0}


def test_with_another_environment_the_preset_is_forgotten(tmp_path):
    """Otherwise the wrong preset would name the run directory, and appear in figures and in the summary."""
    acrobot = "gymnax/Acrobot-v1"
    config = configure("cartpole", env=acrobot)
    assert (config.env, config.preset) == (acrobot, None)
    assert config.num_envs == configure("cartpole").num_envs
    assert configure("cartpole", env=ENV).preset == "cartpole"
    assert configure(configure("cartpole"), env=acrobot).preset is None
    (tmp_path / "config.json").write_text(to_json(configure("cartpole")))
    assert config_of_file(tmp_path / "config.json", env=acrobot) == config


def test_type_checkers_know_every_setting_with_the_type_of_its_field():
    hints = get_type_hints(Overrides, None, {"Mixing": Mixing})
    assert hints.keys() == {name for name, field in FIELDS.items() if not field.metadata["origin"]}
    others = {"hidden", "critic_hidden", "init", "mixing", "optimizer"}  # these take further types in Python
    for name in hints.keys() - others:
        field = FIELDS[name].type
        assert hints[name] == {tuple[str, ...]: Sequence[str], Sweep: Sweepable}.get(field, field), name


def test_a_preset_of_ones_own_is_a_toml_file(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('env = "gymnax/CartPole-v1"  # here\nhidden = [64, 32]\nlam = [0.5, 0.9]\ntotal_steps = 300_000\n')
    config = config_of_file(file, lam=0.7)
    assert config == configure("gymnax/CartPole-v1", hidden=(64, 32), lam=0.7, total_steps=300_000)


@pytest.mark.parametrize(
    ("text", "message"),
    [("env = ", "mine.toml is not TOML"), ("lr = 1", "unknown setting 'lr' in .*mine.toml"), ("seed = -1", "seed=-1")],
)
def test_a_mistake_in_a_toml_file_is_named(text, message, tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        config_of_file(file)


def test_a_network_of_ones_own_leaves_out_what_a_preset_sets_for_qlaxs_own():
    config = configure("cartpole-fast", network="mine:Network")
    assert config.hidden is None
    assert config.learning_rate == configure("cartpole-fast").learning_rate
    assert configure("cartpole-fast", network="mine:Network", hidden=(8,)).hidden == (8,)  # refused later
