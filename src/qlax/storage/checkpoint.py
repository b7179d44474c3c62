"""Trees of arrays in files: a name for every leaf, safetensors, and a checksum of it all."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialize

from qlax.errors import UserError
from qlax.types import PyTree, is_key
from qlax.util.files import write_whole
from qlax.util.imports import imported_when_used
from qlax.util.text import shown

with imported_when_used("jax"):  # a file is read without
    import jax

SUFFIX = ".safetensors"
ENTRY = "qlax"  # of the metadata


class DamagedError(UserError):
    """A file is not what was once written; the message names it."""


def save(path: Path, tree: PyTree, info: dict[str, Any], sync: bool = True) -> None:
    """Write `tree` and `info` (JSON) to `path`; a reader finds the whole file or none.

    Args:
      path: where; its folder exists.
      tree: of arrays, random keys included.
      info: what else belongs to it.
      sync: as in `write_whole`.

    Raises:
      OSError: it cannot be written; an old file is left as it was.
    """
    named, text = _named(tree), json.dumps(info)
    # One entry: the order of several is not always the same, and equal trees are to be equal files.
    metadata = {ENTRY: f"{_checksum(text, sorted(named.items()))} {text}"}
    write_whole(path, serialize(named, metadata=metadata), sync)


def read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The `info` saved at `path`, and every leaf by its name, in which `/` separates the levels of the tree.

    Memory is taken for no more than the file holds: sizes are compared with its length first.

    Raises:
      UserError: missing or not to be read.
      DamagedError: damaged, or not one of ours.
    """
    with _opened(path) as file:
        info, text, checksum = _info(path, file)
        named = dict(_tensors(path, file))
    if _checksum(text, named.items()) != checksum:
        raise _damaged(path, "its checksum differs")
    return info, named


def about(path: Path) -> dict[str, Any]:
    """The `info` saved at `path`, without the arrays, which may be large, and so unchecked.

    Raises:
      UserError: missing or not to be read.
      DamagedError: damaged, or not one of ours.
    """
    with _opened(path) as file:
        return _info(path, file)[0]


def restore(path: Path, like: PyTree, absent: Mapping[str, float] = {}) -> tuple[dict[str, Any], PyTree]:
    """The `info` and the tree saved at `path`.

    Args:
      path: a file that `save` wrote.
      like: a tree of arrays, or of their shapes and dtypes, as they are expected; compared before arrays are read.
      absent: names of leaves that the file may lack, with the number they are then filled with.

    Raises:
      UserError: missing, or its leaves are not those expected.
      DamagedError: damaged, or not one of ours.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    wanted = {_name(where): leaf for where, leaf in leaves}
    with _opened(path) as file:
        filled = {name: absent[name] for name in wanted.keys() & absent.keys() - set(file.keys())}
        if odd := _odd_leaf(file, {name: leaf for name, leaf in wanted.items() if name not in filled}):
            _, text, checksum = _info(path, file)
            if _checksum(text, _tensors(path, file)) != checksum:
                raise _damaged(path, "its checksum differs")
            raise UserError(f"{path} belongs to another configuration: {odd}")
    info, named = read(path)
    named |= {name: np.full(wanted[name].shape, value, wanted[name].dtype) for name, value in filled.items()}
    arrays = [from_numbers(named[name], leaf) for name, leaf in wanted.items()]
    return info, jax.tree.unflatten(structure, arrays)


def _odd_leaf(file: Any, wanted: dict[str, Any]) -> str:
    """What of an open file is not as it is wanted; nothing if all is."""
    for odd in sorted(set(file.keys()) ^ wanted.keys()):
        return f"it {'lacks' if odd in wanted else 'holds the unexpected'} {odd}"
    for name, leaf in wanted.items():
        found = file.get_slice(name)
        expected = jax.eval_shape(jax.random.key_data, leaf) if is_key(leaf) else leaf
        shape, dtype = tuple(found.get_shape()), _DTYPES.get(found.get_dtype(), found.get_dtype())
        if (shape, dtype) != (expected.shape, expected.dtype.name):
            return f"{name} is {dtype}{list(shape)}, expected {expected.dtype.name}{list(expected.shape)}"
    return ""


_DTYPES = {  # by the names that safetensors has for them
    "BOOL": "bool",
    "BF16": "bfloat16",
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
}


def _tensors(path: Path, file: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Every array of an open file, one after the other."""
    try:
        for name in sorted(file.keys()):
            yield name, file.get_tensor(name)
    except Exception as error:  # whatever safetensors and NumPy think of what is no array
        raise _damaged(path, error) from error


def _opened(path: Path) -> Any:
    try:
        if not path.is_file() and path.exists():  # a pipe would keep who opens it waiting
            raise _damaged(path, "it is no file")
        path.open("rb").close()  # for the system's own words about what cannot be read
        return safe_open(path, framework="numpy")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except SafetensorError as error:
        raise _damaged(path, error) from error


def _info(path: Path, file: Any) -> tuple[dict[str, Any], str, str]:
    """What was saved with the tree: decoded, as it stands there, and the checksum."""
    try:
        checksum, _, text = file.metadata()[ENTRY].partition(" ")
        info = json.loads(text)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise _damaged(path, error) from error
    if not isinstance(info, dict):
        raise _damaged(path, "what describes it is no object")
    return info, text, checksum


def _damaged(path: Path, why: Any) -> DamagedError:
    return DamagedError(f"{path} is damaged, or no file of weights of qlax: {shown(str(why), 200)}")


def _checksum(text: str, named: Iterable[tuple[str, np.ndarray]]) -> str:
    """Of everything that a file says; `named` in the order of the names."""
    digest = hashlib.sha256(text.encode())
    for name, array in named:
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _named(tree: PyTree) -> dict[str, np.ndarray]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {_name(where): np.asarray(as_numbers(x), order="C") for where, x in leaves}


def _name(where: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(where, simple=True, separator="/")


def as_numbers(x: Any) -> np.ndarray:
    """An array, of random keys the numbers that they are."""
    return np.asarray(jax.random.key_data(x) if is_key(x) else x)


def from_numbers(x: np.ndarray, like: Any) -> Any:
    """Random keys of these numbers, if `like` is of random keys; else the array itself."""
    return jax.random.wrap_key_data(jax.numpy.asarray(x)) if is_key(like) else x
