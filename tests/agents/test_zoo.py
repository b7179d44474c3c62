"""The zoo: its index is right about every agent, and an agent that is not available is refused in one line."""

import dataclasses
import functools
import hashlib
import http.server
import json
import threading

import numpy as np
import platformdirs
import pytest
from runs import is_refused_in_one_line, random_agent

import qlax
from qlax.agents import zoo
from qlax.cli.main import main
from qlax.config.configure import configure

NAMES = list(zoo.entries())
INSTALLED = [name for name in NAMES if (zoo.FOLDER / f"{name}.safetensors").exists()]
OBS = [["float32", [4]]]


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Make a zoo with the agent a/near, which is installed, and a/far, which is in the folder `place`."""
    package, place = tmp_path / "package", tmp_path / "place"
    index = {}
    for seed, (name, folder) in enumerate({"a/near": package, "a/far": place}.items()):
        (folder / "a").mkdir(parents=True)
        random_agent({}, OBS, 2, seed).save(folder / f"{name}.safetensors")
        data = (folder / f"{name}.safetensors").read_bytes()
        about = {"env": "x/Y", "episode_return": 1.0, "interval": None, "episodes": 1, "seed": seed, "seeds": 1}
        about |= {"steps": 5, "command": "", "date": "", "note": "", "bytes": len(data)}
        index[name] = about | {"sha256": hashlib.sha256(data).hexdigest()}
    (package / "index.json").write_text(json.dumps(index))
    monkeypatch.setattr(zoo, "FOLDER", package)
    monkeypatch.setattr(zoo, "entries", functools.cache(zoo.entries.__wrapped__))
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: tmp_path / "cache")
    monkeypatch.delenv("QLAX_ZOO", raising=False)
    return place


@pytest.fixture
def url(own):
    """Serve the folder `place`, and return its URL."""
    kind = functools.partial(http.server.SimpleHTTPRequestHandler, directory=own)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def acts_as(name, seed):
    obs = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
    return np.array_equal(qlax.load(f"zoo:{name}").q_values(obs), random_agent({}, OBS, 2, seed).q_values(obs))


@pytest.mark.parametrize("name", INSTALLED)
def test_installed_agents_are_those_of_the_index(name):
    entry, path = zoo.entries()[name], zoo.located(f"zoo:{name}")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == entry.sha256
    assert path.stat().st_size == entry.bytes
    info = qlax.load(f"zoo:{name}").info
    assert (info["env"], info["seed"], info["preset"]) == (entry.env, entry.seed, name)
    assert configure(name).env == entry.env


@pytest.mark.parametrize("name", NAMES)
def test_every_agent_has_a_card_with_its_command(name, capsys):
    assert main(["zoo", name]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"# {name}\n")
    words = sorted(zoo.entries()[name].command.split())
    assert words in [sorted(line.split()) for line in said.splitlines()]  # the card has another order


def test_weights_are_few():
    assert sum(path.stat().st_size for path in zoo.FOLDER.rglob("*.safetensors")) < 10e6


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_agents_reach_the_stated_return_with_other_seeds(name, monkeypatch):
    entry = zoo.entries()[name]
    try:
        played = qlax.evaluate(f"zoo:{name}", episodes=entry.episodes, seed=1)
    except qlax.UserError as error:  # the agent or its suite is missing here
        pytest.skip(str(error))
    widths = [high - low for low, high in (entry.interval or (0, 0), played.overall.interval or (0, 0))]
    assert abs(played.overall.mean - entry.episode_return) <= sum(widths) + 0.02 * abs(entry.episode_return)


def test_an_installed_agent_needs_no_place(own):
    assert acts_as("a/near", 0)
    assert not acts_as("a/near", 1)


def test_the_other_agents_come_from_the_folder_that_a_variable_names(own, monkeypatch):
    with pytest.raises(qlax.UserError, match=r"a/far is not installed .*a/near are: set QLAX_ZOO to the folder or URL"):
        qlax.load("zoo:a/far")
    monkeypatch.setenv("QLAX_ZOO", str(own))
    assert acts_as("a/far", 1)
    assert zoo.where(zoo.entries()["a/far"]) == f"at {own}"
    (own / "a" / "far.safetensors").unlink()
    with pytest.raises(qlax.UserError, match=r"does not have a/far: .*No such file"):
        qlax.load("zoo:a/far")
    assert zoo.where(zoo.entries()["a/far"]) == f"not in {own}"


def test_a_downloaded_agent_stays_in_the_cache(own, url, monkeypatch, tmp_path):
    monkeypatch.setenv("QLAX_ZOO", url)
    assert acts_as("a/far", 1)
    monkeypatch.delenv("QLAX_ZOO")
    assert zoo.where(zoo.entries()["a/far"]) == "in the cache"
    assert acts_as("a/far", 1)
    (cached,) = (tmp_path / "cache").rglob("*.safetensors")
    cached.write_bytes(cached.read_bytes()[:-1])
    with pytest.raises(qlax.UserError, match="set QLAX_ZOO"):  # a damaged file counts as missing
        qlax.load("zoo:a/far")
    monkeypatch.setenv("QLAX_ZOO", url)
    assert acts_as("a/far", 1)


def test_a_file_with_another_checksum_is_refused_wherever_it_comes_from(own, url, monkeypatch, tmp_path):
    random_agent({}, OBS, 2, seed=9).save(own / "a" / "far.safetensors")
    for place in (str(own), url):
        monkeypatch.setenv("QLAX_ZOO", place)
        with pytest.raises(qlax.UserError, match="is not the agent a/far of this version of qlax: its SHA-256"):
            qlax.load("zoo:a/far")
    assert not (tmp_path / "cache").exists()


def test_a_place_without_the_agent_and_no_place_at_all(own, url, monkeypatch):
    (own / "a" / "far.safetensors").unlink()
    for place, said in ((url, "404"), ("http://127.0.0.1:1", "refused"), ("file:///nowhere", "nowhere")):
        monkeypatch.setenv("QLAX_ZOO", place)
        with pytest.raises(qlax.UserError, match=f"cannot be downloaded .*{said}.*is QLAX_ZOO right"):
            qlax.load("zoo:a/far")


def test_an_unknown_name_is_refused_with_the_nearest(own, capsys, tmp_path):
    is_refused_in_one_line(["evaluate", "zoo:a/nera"], "did you mean 'a/near'?", capsys, tmp_path)
    is_refused_in_one_line(["play", "a/faar"], "did you mean 'a/far'?", capsys, tmp_path)
    is_refused_in_one_line(["zoo", "b"], "the zoo has no agent 'b'", capsys, tmp_path)


def test_the_list_names_presets_without_an_agent(own, monkeypatch, capsys):
    entry = zoo.entries()["a/near"]
    found = {name: entry._replace(name=name) for name in ("cartpole", "smax/3m")}
    monkeypatch.setattr(zoo, "entries", lambda: found)
    assert main(["zoo"]) == 0
    said = capsys.readouterr().out
    missing = said.splitlines()[-1].removeprefix("presets without an agent: ").split(", ")
    assert "acrobot" in missing
    assert not {"cartpole", "smax/<name>"} & set(missing)


def test_training_begins_with_weights_of_the_zoo(own, tmp_path, monkeypatch):
    """A learning rate of almost zero leaves the initial weights unchanged, so they can be compared."""
    random_agent({}, OBS, 2, 0, env="gymnax/CartPole-v1").save(own.parent / "package" / "a" / "near.safetensors")
    data = (own.parent / "package" / "a" / "near.safetensors").read_bytes()
    entry = zoo.entries()["a/near"]._replace(sha256=hashlib.sha256(data).hexdigest())
    monkeypatch.setattr(zoo, "entries", lambda: {"a/near": entry})
    small = {"num_envs": 2, "num_steps": 2, "num_minibatches": 1, "num_epochs": 1, "total_steps": 4, "hidden": (8,)}
    small |= {"eval_episodes": 1, "eval_max_steps": 1, "learning_rate": 1e-12}
    result = qlax.train("gymnax/CartPole-v1", init="zoo:a/near", out=tmp_path / "run", **small)
    before, after = qlax.load("zoo:a/near"), result.agents[0]
    obs = np.ones((1, 4), np.float32)
    np.testing.assert_allclose(after.q_values(obs), before.q_values(obs), rtol=1e-4)
    assert dataclasses.asdict(result.config)["init"] == str(own.parent / "package" / "a" / "near.safetensors")
