import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qlax.errors import UserError
from qlax.pqn import Hyper
from qlax.storage import checkpoint

TREE = {
    "key": jax.random.split(jax.random.key(3), 2),
    "hyper": Hyper(),
    "scalar": jnp.int32(7),
    "nothing": (),
    "mask": jnp.array([True, False]),
    "matrix": jnp.asarray(np.random.default_rng(0).normal(size=(2, 3)), jnp.float32).T,
}
TREE["hyper"] = jax.tree.map(jnp.float32, TREE["hyper"])


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "0001.safetensors"
    checkpoint.save(path, TREE, {"updates": 1})
    return path


def test_a_tree_comes_back_bit_for_bit(saved):
    info, restored = checkpoint.restore(saved, jax.eval_shape(lambda: TREE))
    assert jax.tree.structure(restored) == jax.tree.structure(TREE)
    assert jax.random.key_data(restored.pop("key")).tolist() == jax.random.key_data(TREE["key"]).tolist()
    for name, expected in TREE.items():
        if name != "key":
            jax.tree.map(np.testing.assert_array_equal, restored[name], expected)
    assert info == checkpoint.read(saved)[0] == {"updates": 1}
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"more": jnp.zeros(1)}, "it lacks more"),
        ({"scalar": jnp.zeros(2)}, r"scalar is int32\[\], expected float32\[2\]"),
        ({"hyper": ()}, "has the unexpected entry hyper/"),
    ],
)
def test_a_file_of_another_configuration_is_named(saved, change, message):
    with pytest.raises(UserError, match=rf"0001.safetensors belongs to another configuration: .*{message}"):
        checkpoint.restore(saved, {**TREE, **change})


def flipped(data, index):
    return data[:index] + bytes([data[index] ^ 4]) + data[index + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-5],
        lambda data: b"x" * 100,
        lambda data: data.replace(b"matrix", b"matrlx"),
        lambda data: data.replace(b"updates", b"upbates"),
        *(lambda data, at=at: flipped(data, -at) for at in (1, 20, 60)),
    ],
)
def test_a_damaged_file_is_named(saved, damage):
    saved.write_bytes(damage(saved.read_bytes()))
    with pytest.raises(checkpoint.DamagedError, match=r"0001.safetensors is damaged"):
        checkpoint.restore(saved, TREE)


def test_a_missing_file_is_none_that_is_damaged(tmp_path):
    with pytest.raises(UserError, match="cannot be read: No such file") as error:
        checkpoint.restore(tmp_path / "none.safetensors", TREE)
    assert not isinstance(error.value, checkpoint.DamagedError)


def test_equal_trees_make_equal_files(saved):
    again = saved.with_name("0002.safetensors")
    checkpoint.save(again, TREE, {"updates": 1})
    assert again.read_bytes() == saved.read_bytes()


def test_a_write_that_fails_leaves_the_old_file(saved, monkeypatch):
    before = saved.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(saved, {"other": jnp.zeros(3)}, {})
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]
