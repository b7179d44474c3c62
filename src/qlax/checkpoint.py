"""Trees of arrays in files: a name for every leaf, safetensors, written aside and renamed."""

import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialize

from qlax.errors import UserError
from qlax.types import PyTree

SUFFIX = ".safetensors"


def save(path: Path, tree: PyTree, info: dict[str, Any]) -> None:
    """Write `tree` and `info` (JSON) to `path`; a reader finds the whole file or none.

    Args:
      path: where; its folder exists.
      tree: of arrays, random keys included.
      info: what else belongs to it.
    """
    aside = path.with_suffix(".partial")
    with open(aside, "wb") as file:
        file.write(serialize(_named(tree), metadata={"info": json.dumps(info)}))
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def read_info(path: Path) -> dict[str, Any]:
    """The `info` saved with a tree.

    Raises:
      UserError: missing, damaged or not one of ours.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            return json.loads(file.metadata()["info"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a file of weights: {error}") from error


def read(path: Path) -> dict[str, np.ndarray]:
    """Every leaf saved at `path` by its name, in which `/` separates the levels of the tree.

    Raises:
      UserError: missing, damaged or not one of ours.
    """
    read_info(path)
    with safe_open(path, framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)


def restore(path: Path, like: PyTree) -> PyTree:
    """The tree saved at `path`.

    Args:
      path: a file that `save` wrote.
      like: a tree of arrays, or of their shapes and dtypes, as they are expected.

    Raises:
      UserError: missing, damaged, or its leaves are not those expected.
    """
    found = read(path)
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    wanted = {_name(where): leaf for where, leaf in leaves}
    for odd in sorted(found.keys() ^ wanted.keys()):
        side = "lacks" if odd in wanted else "holds the unexpected"
        raise UserError(f"{path} belongs to another configuration: it {side} {odd}")
    return jax.tree.unflatten(structure, [_checked(path, name, found[name], leaf) for name, leaf in wanted.items()])


def latest(folder: Path) -> Path | None:
    """The newest file of a folder of checkpoints, which are named by their updates; None if there is none."""
    return max(folder.glob(f"*{SUFFIX}"), default=None)


def _named(tree: PyTree) -> dict[str, np.ndarray]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {_name(where): np.asarray(_data(x), order="C") for where, x in leaves}


def _name(where: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(where, simple=True, separator="/")


def _is_key(x: Any) -> bool:
    return jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def _data(x: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(x) if _is_key(x) else x)


def _checked(path: Path, name: str, found: np.ndarray, like: Any) -> Any:
    expected = jax.eval_shape(jax.random.key_data, like) if _is_key(like) else like
    if (found.shape, found.dtype) != (expected.shape, expected.dtype):
        was = f"{found.dtype}{list(found.shape)}"
        raise UserError(
            f"{path} belongs to another configuration: {name} is {was}, expected {expected.dtype}{list(expected.shape)}"
        )
    return jax.random.wrap_key_data(jnp.asarray(found)) if _is_key(like) else found
