"""From an environment's name to the environments of training and evaluation."""

import jax
import pytest
from pages import TESTS

from qlax import envs
from qlax.config.configure import configure
from qlax.envs import build
from qlax.errors import UserError

SIZES = {"num_envs": 4, "num_steps": 8, "num_minibatches": 2}


@pytest.fixture
def imports(monkeypatch):
    """Record the import paths that are imported, in order."""
    found = []
    original = envs.import_object
    monkeypatch.syspath_prepend(TESTS)
    monkeypatch.setattr(envs, "import_object", lambda path: found.append(path) or original(path))
    return found


@pytest.mark.parametrize("env", ["hosts:Walk", "hosts:HostWalk"])
def test_a_module_of_your_own_is_imported_once(env, imports):
    built = build.build(configure(env, **SIZES))
    assert imports == [env]
    assert (built.make_envs is not None) == (env == "hosts:HostWalk")
    assert (built.copies(2) is None) == (built.make_envs is not None)
    assert {leaf.shape[:2] for leaf in jax.tree.leaves(built.step.obs)} == {(4, 1)}
    assert built.config.reset_ratio == (None if built.make_envs else 1)
    if built.make_envs:
        assert built.make_envs(3).num_envs == 3
        assert imports == [env]


@pytest.mark.parametrize(
    ("env", "settings", "message"),
    [
        ("hosts:Walk", {"overlap": True}, "overlap is for environments on the host; hosts:Walk runs in JAX"),
        ("hosts:HostWalk", {"reset_ratio": 2}, "reset_ratio is for environments in JAX"),
        ("hosts:HostWalk", {"wrappers": ("time_limit=5",)}, "wrapper time_limit=5 is for environments in JAX"),
        ("nonsense:Walk", {}, "cannot import 'nonsense'"),
    ],
)
@pytest.mark.usefixtures("imports")
def test_settings_for_the_other_kind_of_environment_are_refused(env, settings, message):
    with pytest.raises(UserError, match=message):
        build.build(configure(env, **SIZES, **settings))
