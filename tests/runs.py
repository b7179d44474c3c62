"""Small training runs that use every feature, and tools for the tests of everything around the algorithm."""

import os
import sys
import warnings
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counting import Counting

from qlax import Agent
from qlax.cli.main import main
from qlax.config.configure import configure
from qlax.config.environments import SUITES, Suite
from qlax.jobs.runner import Job
from qlax.networks import qnetwork
from qlax.storage.formats import to_json
from qlax.storage.history import config_of
from qlax.storage.metrics import MetricsFile
from qlax.training.display import ProgressDisplay

SMALL = {
    "num_envs": 4,
    "num_steps": 8,
    "num_minibatches": 2,
    "num_epochs": 1,
    "hidden": (8,),
    "total_steps": 12 * 32,
    "log_interval": 2,
    "eval_interval": 4,
    "checkpoint_interval": 4,
    "eval_episodes": 3,
    "eval_max_steps": 20,
}
CARTPOLE = "gymnax/CartPole-v1"


def flags(settings):
    """Return settings as words of the command line."""

    def written(value):
        return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)

    words = []
    for name, value in settings.items():
        words += ["--" + name.replace("_", "-"), *map(written, value if isinstance(value, list) else [value])]
    return words


def without_times(line):
    """Return a line of metrics without the entries that may differ between equal runs."""
    return {name: value for name, value in line.items() if name not in ("seconds", "steps_per_second")}


def begun(directory, preset="minatar/breakout", **settings):
    """Make a directory as an interrupted run leaves it."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(to_json(configure(preset, **settings).derive(log_interval=4)))


def lines_of(directory):
    """Return the lines of metrics of a run, without times."""
    directory = Path(directory)
    return [
        without_times(line) for line in MetricsFile(directory / "metrics.jsonl").read(config_of(directory).num_members)
    ]


def same_weights(one, other):
    """Return whether two results hold the same agents, bit for bit."""
    trees = ([agent.variables for agent in result.agents] for result in (one, other))
    return jax.tree.all(jax.tree.map(np.array_equal, *trees))


def interrupt_at(monkeypatch, updates, number):
    """Send this process a signal once it has reported `updates` updates."""
    show = ProgressDisplay.show

    def show_and_stop(display, done, *rest):
        show(display, done, *rest)
        if done == updates * 32:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(ProgressDisplay, "show", show_and_stop)


def stand_in_for_training(monkeypatch, code, *words):
    """Let jobs run this code instead of training, with their directory, their configuration and these words."""

    def command(job):
        return [sys.executable, "-S", "-c", code, str(job.directory), to_json(job.config), *words]

    monkeypatch.setattr(Job, "command", command)


def random_agent(network, obs, num_actions, seed=0, **info):
    """Return an untrained agent whose numbers are all random, even those that begin as constants.

    Args:
      network: Description of the network, see `qlax.networks.qnetwork.build`.
      obs: Dtypes and shapes of an observation's arrays, which are called a, b, c if there are several.
      num_actions: Number of actions, A.
      seed: Seed of the numbers.
      info: Further entries of the agent's description.
    """
    network = {"encoder": "mlp", "hidden": [8], **network}
    built = qnetwork.build(network, num_actions, info.get("action_dimensions"))
    random = np.random.default_rng(seed)
    like = [jnp.zeros((1, 1, *shape), dtype) for dtype, shape in obs]
    first = jnp.ones((1, 1), bool)
    variables = jax.eval_shape(lambda: built.init(jax.random.key(0), built.initial_memory(1), like, first, False))

    def filled(path, x):
        wide = np.prod(x.shape[:-1], dtype=int) ** -0.5 if len(x.shape) > 1 else 0.3
        values = wide * random.normal(size=x.shape) + ("scale" in jax.tree_util.keystr(path))
        return (np.abs(values) if "var" in jax.tree_util.keystr(path) else values).astype(x.dtype)

    paths = [""] if len(obs) == 1 else [f"['{name}']" for name in "abc"[: len(obs)]]
    info = {"env": "test", "env_options": {}, "wrappers": [], "seed": seed, **info}
    info |= {"network": network, "num_actions": num_actions, "obs": obs, "obs_paths": paths}
    return Agent(jax.tree_util.tree_map_with_path(filled, variables), info)


def is_refused_in_one_line(words, message, capsys, folder):
    """Check that a command prints only this one-line error, ends with exit code 2 and leaves the folder unchanged."""
    before = sorted(folder.rglob("*"))
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(words)
    said = capsys.readouterr()
    assert stopped.value.code == 2, said
    assert message in said.err, said
    assert len(said.err.splitlines()) == 1, said
    assert said.out == "", said
    assert sorted(folder.rglob("*")) == before


def stand_in_suite(monkeypatch, names, *, making=(), resetting=(), rendering=(), noisy=False):
    """A suite called flaky, of a package that imports more of itself when it is first used, and warns if it is noisy.

    `making`, `resetting` and `rendering` are exceptions by the names of the environments whose `make`, `reset` or
    `render` raises them.
    """

    class Flaky(Counting):
        def __init__(self, name):
            super().__init__()
            self._name = name

        def reset(self, key):
            if self._name in resetting:
                raise resetting[self._name]
            return super().reset(key)

        def render(self, state):
            raise rendering[self._name]

    def make(name, **options):
        if noisy:
            warnings.warn("flaky is deprecated", stacklevel=1)
            print("welcome to flaky")
        if name in making:
            raise making[name]
        return Flaky(name)

    monkeypatch.setattr("qlax.errors._is_of_user", lambda frame: False)  # although this file is not installed
    adapter = ModuleType("qlax.envs.suites.flaky")
    adapter.make, adapter.names = make, lambda: list(names)
    monkeypatch.setitem(sys.modules, adapter.__name__, adapter)
    monkeypatch.setitem(SUITES, "flaky", Suite("numpy", extra="flaky"))
