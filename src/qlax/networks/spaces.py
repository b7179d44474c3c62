"""Spaces of Gymnasium as plain JSON: what networks are shown of an observation, and which action a number stands for.

Adapters describe the spaces of an environment, and agents keep the descriptions, so that both convert alike. Gymnasium
is not imported here. A description is a dict with the name of the class as `type`, and:

- Box, MultiBinary: `shape` and `dtype`; of actions in a Box also `low` and `high`, flattened, and `bins`, the number of
  values of each dimension, if the agent's actions are discrete;
- Discrete: `n`, `start` and `dtype`;
- MultiDiscrete: `nvec` and `start`, nested lists, and `dtype`;
- Dict: `spaces`, descriptions by name, in the order of the space;
- Tuple: `spaces`, a list of descriptions.
"""

import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from qlax.errors import UserError
from qlax.networks.names import is_image
from qlax.types import PyTree
from qlax.util.text import shown

Space = dict[str, Any]  # description of a space
MAX_JOINT_ACTIONS = 256  # largest number of combinations of several simultaneous choices as one action


class Observation(Protocol):
    """Conversion of a space's observations to the arrays given to networks.

    Attributes:
      words: Human-readable description of the conversion.
      axes: Number of axes of the array that it returns, besides leading ones; 0 if it returns a dict of arrays.
      holds_image: True if the observation is an image or has one among its parts.
    """

    words: str
    axes: int
    holds_image: bool

    def __call__(self, x: Any, /) -> PyTree:
        """Return the converted arrays; leading axes of `x`, such as that of the environments, are kept.

        Raises:
          UserError: The observation does not belong to the space.
        """


def observation(space: Space, what: str) -> Observation:
    """Return the conversion of a space's observations.

    Args:
      space: Description of the space.
      what: What is converted, for messages, such as "observation".
    """
    kinds: dict[str, Callable[[Space, str], Observation]]
    kinds = {"Box": _Box, "MultiBinary": _Bits, "Discrete": _OneHot, "MultiDiscrete": _OneHot}
    return kinds.get(space["type"], _Parts)(space, what)


class Action(Protocol):
    """Conversion of an agent's choices to the actions of a space.

    Attributes:
      num_actions: Number of actions, A.
      words: Human-readable description of the conversion.
    """

    num_actions: int
    words: str

    @property
    def dimensions(self) -> int | None:
        """Number of dimensions of an action, D, each of which is one of A values; None if a choice is one number."""

    @property
    def exists(self) -> np.ndarray | None:
        """Bool `[D, A]`, True for the values that a dimension has; None if every dimension has all A."""

    def __call__(self, choice: np.ndarray, /) -> np.ndarray:
        """Return the actions in the dtype of the space; one choice is a scalar of NumPy, which can be a key of a dict.

        Args:
          choice: Numbers from 0, with any leading axes, which come first in the result, and an axis D if an action has
            dimensions.
        """


def action(space: Space) -> Action:
    """Return the conversion of choices to a space's actions.

    Several simultaneous choices are one joint action if there are at most `MAX_JOINT_ACTIONS` of these, and else the
    dimensions of an action.

    Args:
      space: Description of a Discrete, MultiDiscrete or MultiBinary space, or of a Box with `bins`.
    """
    if space["type"] == "Box":
        return _Bins(space) if "bins" in space else _Numbers(space)
    sizes, _ = _choices(space)
    return _Joint(space) if not sizes.shape or math.prod(sizes.ravel().tolist()) <= MAX_JOINT_ACTIONS else _Each(space)


class _Joint:
    """Numbers of joint actions, of which the last choice changes fastest."""

    dimensions, exists = None, None

    def __init__(self, space: Space):
        sizes, self._start = _choices(space)
        self._sizes, self._dtype = tuple(sizes.ravel().tolist()), np.dtype(space["dtype"])
        self.num_actions = math.prod(self._sizes)
        joint = f"numpy.unravel_index(i, {self._sizes})" if sizes.shape else "i"
        shape = f", of shape {sizes.shape}" if len(sizes.shape) > 1 else ""
        self.words = f"entry i of q belongs to the action {joint}{_offset('+', self._start)}{shape}"

    def __call__(self, number: np.ndarray) -> np.ndarray:
        choices = np.stack(np.unravel_index(number, self._sizes), axis=-1)
        action = choices.reshape((*np.shape(number), *self._start.shape)) + self._start
        return action.astype(self._dtype)


class _Each:
    """A choice for each dimension of a space of several choices."""

    def __init__(self, space: Space):
        sizes, self._start = _choices(space)
        self._dtype = np.dtype(space["dtype"])
        self.num_actions, self.dimensions = int(sizes.max()), sizes.size
        exists = np.arange(self.num_actions) < sizes.reshape(-1, 1)
        self.exists = None if exists.all() else exists
        shape = f", of shape {sizes.shape}" if len(sizes.shape) > 1 else ""
        self.words = f"q[d, i] belongs to the value i{_offset('+', self._start)} of choice d{shape}"

    def __call__(self, choice: np.ndarray) -> np.ndarray:
        each = np.reshape(choice, (*np.shape(choice)[:-1], *self._start.shape)) + self._start
        return each.astype(self._dtype)


class _Bins:
    """A bin for each dimension of a Box, whose values are equally spaced between its bounds."""

    exists = None

    def __init__(self, space: Space):
        self._shape, self._dtype = tuple(space["shape"]), np.dtype(space["dtype"])
        self._low, high = (np.asarray(space[end], np.float32) for end in ("low", "high"))
        self.num_actions, self.dimensions = int(space["bins"]), len(high)
        self._width = (high - self._low) / np.float32(self.num_actions - 1)
        ends = f"low {self._low.tolist()} and high {high.tolist()}"
        self.words = (
            f"q[d, i] belongs to the value low + i (high - low) / {self.num_actions - 1} of dimension d, with {ends}"
        )

    def __call__(self, choice: np.ndarray) -> np.ndarray:
        values = self._low + np.asarray(choice) * self._width
        values = np.rint(values) if self._dtype.kind in "iu" else values
        return values.astype(self._dtype).reshape(*values.shape[:-1], *self._shape)


class _Numbers:
    """Numbers of a Box, chosen by an actor between its bounds."""

    num_actions, dimensions, exists = 0, None, None

    def __init__(self, space: Space):
        self._shape, self._dtype = tuple(space["shape"]), np.dtype(space["dtype"])
        self.words = f"the action, flattened, of shape {self._shape}"

    def __call__(self, choice: np.ndarray) -> np.ndarray:
        values = np.rint(choice) if self._dtype.kind in "iu" else np.asarray(choice)
        return values.astype(self._dtype).reshape(*values.shape[:-1], *self._shape)


def without(name: str, parts: dict[str, Any]) -> Any:
    """Return the other entries of a dict; if there is only one, its value."""
    rest = {other: part for other, part in parts.items() if other != name}
    return next(iter(rest.values())) if len(rest) == 1 else rest


def in_words(space: Space) -> str:
    """Return a space in one line, much as Gymnasium writes it."""
    kind = space["type"]
    if kind == "Dict":
        return f"Dict({', '.join(f'{name}: {in_words(part)}' for name, part in space['spaces'].items())})"
    if kind == "Tuple":
        return f"Tuple({', '.join(map(in_words, space['spaces']))})"
    if kind == "Box":
        return f"Box({tuple(space['shape'])}, {space['dtype']})"
    if kind == "MultiBinary":
        return f"MultiBinary({space['shape']})"
    start = f", start={space['start']}" if np.any(space["start"]) else ""
    return f"{kind}({space['n'] if kind == 'Discrete' else space['nvec']}{start})"


def cast(x: np.ndarray, dtype: np.dtype, what: str) -> np.ndarray:
    """Return an array in another dtype, itself if it has that dtype; refuse values that the dtype cannot hold.

    Args:
      x: The array.
      dtype: The dtype, which may be less precise.
      what: What the array is, for messages.

    Raises:
      UserError: The dtype cannot hold all values.
    """
    if np.can_cast(x.dtype, dtype, "safe" if dtype.kind in "iu" else "same_kind"):
        return x.astype(dtype, copy=False)
    if x.dtype.kind in "biuf":
        with np.errstate(invalid="ignore"):  # nan and values out of range are found by the comparison below
            converted = x.astype(dtype)
        if np.array_equal(converted, x):
            return converted
    raise UserError(f"{what} is {x.dtype}; expected {dtype}, which cannot hold all of its values")


class _Box:
    """Conversion of numbers: bytes are divided by 255, except images, whose channels become the last axis."""

    def __init__(self, space: Space, what: str):
        self._shape, self._dtype, self._what = tuple(space["shape"]), np.dtype(space["dtype"]), what
        self.axes = len(self._shape)
        self.holds_image = is_image(self._dtype, self._shape)
        # A short first axis is frames or colours.
        self._turned = self.holds_image and self._shape[0] <= min(16, min(self._shape[1:]) - 1)
        self._is_bytes = self._dtype == np.uint8
        if self.holds_image:
            self.words = f"uint8{', with the first axis moved to the end' if self._turned else ', as it is'}"
        else:
            self.words = f"float32{', divided by 255' if self._is_bytes else ''}"

    def __call__(self, x: Any) -> np.ndarray:
        x = _checked(x, self._shape, self._dtype, self._what)
        if self.holds_image:
            return np.moveaxis(x, -3, -1) if self._turned else x
        numbers = x.astype(np.float32)
        return numbers * np.float32(1 / 255) if self._is_bytes else numbers


class _Bits:
    """Conversion of choices between 0 and 1 to bool."""

    words, holds_image = "bool", False

    def __init__(self, space: Space, what: str):
        self._shape, self._dtype, self._what = tuple(space["shape"]), np.dtype(space["dtype"]), what
        self._space = in_words(space)
        self.axes = len(self._shape)

    def __call__(self, x: Any) -> np.ndarray:
        x = _checked(x, self._shape, self._dtype, self._what)
        _refuse(x, (x != 0) & (x != 1), self._what, self._space)
        return x.astype(bool)


class _OneHot:
    """Conversion of categories to one-hot vectors, which are concatenated."""

    axes, holds_image = 1, False

    def __init__(self, space: Space, what: str):
        sizes, start = _choices(space)
        self._shape, self._dtype, self._what = sizes.shape, np.dtype(space["dtype"]), what
        self._space, self._sizes, self._start = in_words(space), sizes.ravel(), start.ravel()
        self._places = np.concatenate([np.arange(size) for size in self._sizes])
        one_hot = f"one-hot, bool [{len(self._places)}]"
        if self._shape:
            each = f"for each of the {self._start.size} values, concatenated"
            self.words = f"{one_hot}, of x{_offset('-', self._start)} {each}"
        else:
            self.words = f"{one_hot}, of x{_offset('-', start)}"

    def __call__(self, x: Any) -> np.ndarray:
        if getattr(x, "dtype", None) == np.bool_:  # else an observation that is one-hot already would pass as many
            raise UserError(f"{self._what} is bool; expected values of {shown(self._space)}, which are not yet one-hot")
        x = _checked(x, self._shape, self._dtype, self._what)
        leading = x.shape[: x.ndim - len(self._shape)]
        place = x.astype(np.int64).reshape(*leading, self._sizes.size) - self._start
        _refuse(place + self._start, (place < 0) | (place >= self._sizes), self._what, self._space)
        return place.repeat(self._sizes, axis=-1) == self._places


class _Parts:
    """Conversion of a dict or tuple to one float32 vector; or to a dict of its parts, if one of them is an image."""

    def __init__(self, space: Space, what: str):
        parts = space["spaces"] if space["type"] == "Dict" else dict(enumerate(space["spaces"]))
        self._is_tuple, self._what = space["type"] == "Tuple", what
        self._parts = {str(name): observation(part, f"{what}[{name!r}]") for name, part in parts.items()}
        self.holds_image = any(part.holds_image for part in self._parts.values())
        self.axes = 0 if self.holds_image else 1
        words = "; ".join(f"{name}: {part.words}" for name, part in self._parts.items())
        self.words = f"({words})"
        if not self.holds_image:
            self.words += ", each flattened, as float32, and concatenated in this order"

    def __call__(self, x: Any) -> PyTree:
        if self._is_tuple and isinstance(x, tuple | list):
            x = dict(enumerate(x))
        given = {str(name): part for name, part in x.items()} if isinstance(x, dict) else None
        if given is None or self._parts.keys() - given.keys():
            found = type(x).__name__ if given is None else f"parts {', '.join(given)}"
            expected = f"expected {'a tuple' if self._is_tuple else 'a dict'} of {', '.join(self._parts)}"
            raise UserError(f"{self._what} is {shown(found)}; {expected}")
        arrays = {name: part(given[name]) for name, part in self._parts.items()}
        if self.holds_image:
            return arrays
        leading = {name: arrays[name].shape[: arrays[name].ndim - part.axes] for name, part in self._parts.items()}
        if len(set(leading.values())) > 1:
            found = f"the leading axes of {self._what} are {shown(leading)}"
            raise UserError(f"{found}; expected the same for all parts")
        rows = [
            x.reshape(*leading[name], math.prod(x.shape[len(leading[name]) :])).astype(np.float32)
            for name, x in arrays.items()
        ]
        return np.concatenate(rows, axis=-1)


def _choices(space: Space) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of values of every choice, and their smallest values, in the shape of the space."""
    if space["type"] == "MultiBinary":
        return np.full(space["shape"], 2), np.zeros(space["shape"], int)
    return np.array(space["n"] if space["type"] == "Discrete" else space["nvec"]), np.array(space["start"])


def _checked(x: Any, shape: tuple[int, ...], dtype: np.dtype, what: str) -> np.ndarray:
    """Return an observation as an array of this dtype, whose last axes have this shape."""
    try:
        x = np.asarray(x)
    except ValueError as error:  # raised for rows of different lengths
        raise UserError(f"{what} is not an array: {shown(str(error))}; expected {dtype}{list(shape)}") from None
    if x.shape[max(x.ndim - len(shape), 0) :] != shape:
        raise UserError(f"{what} has shape {x.shape}; expected {shape}, after any leading axes")
    return cast(x, dtype, what)


def _refuse(values: np.ndarray, odd: np.ndarray, what: str, space: str) -> None:
    """Raise an error about the first of the values that are `odd`, if there is one."""
    if odd.any():
        raise UserError(f"{what} holds {values[odd][0]}; expected values of {shown(space)}")


def _offset(sign: str, start: np.ndarray) -> str:
    """Return text such as " + 3", to follow "x" in a description; empty if `start` is zero."""
    return f" {sign} {start.tolist()}" if start.any() else ""
