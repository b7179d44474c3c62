"""Checkpoint files: trees of arrays in safetensors, with one name per leaf and a checksum of everything."""

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

with imported_when_used("jax"):  # reading a file does not need JAX, which takes long to import
    import jax

SUFFIX = ".safetensors"
ENTRY = "qlax"  # key of qlax's entry in the metadata of safetensors


class DamagedError(UserError):
    """A file differs from what was written to it; the message names the file."""


class OtherLeavesError(UserError):
    """The leaves of a file are not the expected ones.

    Args:
      path: The file.
      leaf: Name of the first leaf that differs.
      difference: What differs, in words.
    """

    def __init__(self, path: Path, leaf: str, difference: str):
        super().__init__(f"{path} belongs to another configuration: {difference}")
        self.leaf, self.difference = leaf, difference


def save(path: Path, tree: PyTree, info: dict[str, Any], sync: bool = True) -> None:
    """Write a tree of arrays and its description to a file, atomically.

    Args:
      path: File to write, in an existing folder.
      tree: Tree of arrays, which may include random keys.
      info: Description of the tree, which JSON can hold.
      sync: Make the file's name durable at once, see `write_whole`.

    Raises:
      OSError: The file cannot be written; an existing file is unchanged.
    """
    named, text = _named(tree), json.dumps(info)
    # A single entry, because the order of several entries varies, and equal trees must give equal files.
    metadata = {ENTRY: f"{_checksum(text, sorted(named.items()))} {text}"}
    write_whole(path, serialize(named, metadata=metadata), sync)


def read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read the description and all leaves of a file; `/` in a leaf's name separates the levels of the tree.

    Array sizes are compared with the file's length before memory is allocated for them.

    Raises:
      UserError: The file is missing or unreadable.
      DamagedError: The file is damaged or was not written by qlax.
    """
    with _opened(path) as file:
        info, text, checksum = _info(path, file)
        named = dict(_tensors(path, file))
    if _checksum(text, named.items()) != checksum:
        raise _damaged(path, "its checksum differs")
    return info, named


def about(path: Path) -> dict[str, Any]:
    """Read only the description of a file, not its arrays, which may be large; the checksum is not verified.

    Raises:
      UserError: The file is missing or unreadable.
      DamagedError: The file is damaged or was not written by qlax.
    """
    with _opened(path) as file:
        return _info(path, file)[0]


def restore(path: Path, like: PyTree, absent: Mapping[str, float] = {}) -> tuple[dict[str, Any], PyTree]:
    """Read the description and the tree that `save` wrote to a file.

    Args:
      path: The file.
      like: Tree of the expected arrays, or of their shapes and dtypes, which are checked before arrays are read.
      absent: Leaves that the file may lack: for the name of each, the number with which it is filled.

    Raises:
      UserError: The file is missing.
      OtherLeavesError: The leaves of the file are not the expected ones.
      DamagedError: The file is damaged or was not written by qlax.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    wanted = {_name(where): leaf for where, leaf in leaves}
    with _opened(path) as file:
        filled = {name: absent[name] for name in wanted.keys() & absent.keys() - set(file.keys())}
        if odd := _odd_leaf(file, {name: leaf for name, leaf in wanted.items() if name not in filled}):
            _, text, checksum = _info(path, file)
            if _checksum(text, _tensors(path, file)) != checksum:
                raise _damaged(path, "its checksum differs")
            raise OtherLeavesError(path, *odd)
    info, named = read(path)
    named |= {name: np.full(wanted[name].shape, value, wanted[name].dtype) for name, value in filled.items()}
    arrays = [from_numbers(named[name], leaf) for name, leaf in wanted.items()]
    return info, jax.tree.unflatten(structure, arrays)


def _odd_leaf(file: Any, wanted: dict[str, Any]) -> tuple[str, str] | None:
    """Return the first leaf of an open file that is not as expected, and what differs; None if all are as expected."""
    for odd in sorted(set(file.keys()) ^ wanted.keys()):
        return odd, f"it {'lacks' if odd in wanted else 'has the unexpected entry'} {odd}"
    for name, leaf in wanted.items():
        found = file.get_slice(name)
        expected = jax.eval_shape(jax.random.key_data, leaf) if is_key(leaf) else leaf
        shape, dtype = tuple(found.get_shape()), _DTYPES.get(found.get_dtype(), found.get_dtype())
        if (shape, dtype) != (expected.shape, expected.dtype.name):
            return name, f"{name} is {dtype}{list(shape)}, expected {expected.dtype.name}{list(expected.shape)}"
    return None


_DTYPES = {  # NumPy's dtype names, by the names that safetensors uses
    "BOOL": "bool",
    "BF16": "bfloat16",
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
}


def _tensors(path: Path, file: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the name and array of every leaf of an open file."""
    try:
        for name in sorted(file.keys()):
            yield name, file.get_tensor(name)
    except Exception as error:  # safetensors and NumPy raise many kinds of exceptions for malformed arrays
        raise _damaged(path, error) from error


def _opened(path: Path) -> Any:
    try:
        if not path.is_file() and path.exists():  # opening a named pipe would block
            raise _damaged(path, "it is not a regular file")
        path.open("rb").close()  # raises the system's own message if the file is unreadable
        return safe_open(path, framework="numpy")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except SafetensorError as error:
        raise _damaged(path, error) from error


def _info(path: Path, file: Any) -> tuple[dict[str, Any], str, str]:
    """Return the description saved with the tree, its JSON text, and the checksum."""
    try:
        checksum, _, text = file.metadata()[ENTRY].partition(" ")
        info = json.loads(text)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise _damaged(path, error) from error
    if not isinstance(info, dict):
        raise _damaged(path, "its description is not a JSON object")
    return info, text, checksum


def _damaged(path: Path, why: Any) -> DamagedError:
    return DamagedError(f"{path} is damaged, or is not a weights file of qlax: {shown(str(why), 200)}")


def _checksum(text: str, named: Iterable[tuple[str, np.ndarray]]) -> str:
    """Return the SHA-256 of a file's description and arrays; `named` must be sorted by name."""
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
    """Convert to a NumPy array; random keys become the integers that represent them."""
    return np.asarray(jax.random.key_data(x) if is_key(x) else x)


def from_numbers(x: np.ndarray, like: Any) -> Any:
    """Undo `as_numbers`: return random keys if `like` holds random keys, else the array itself."""
    return jax.random.wrap_key_data(jax.numpy.asarray(x)) if is_key(like) else x
