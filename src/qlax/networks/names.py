"""Names and sizes of the parts of a network and of optimisers, for code that does not import JAX."""

from typing import Any, Literal, NamedTuple, get_args

Head = Literal["scalar", "hl_gauss", "ensemble"]
Transform = Literal["none", "symlog"]
Algorithm = Literal["pqn", "pqn-continuous"]
Optimizer = Literal["radam", "adam", "adamw", "muon"]
Encoder = Literal["mlp", "cnn", "product", "nature", "impala", "hadamax"]
Memory = Literal["none", "lstm", "gru", "mingru", "lru"]
Norm = Literal["layer", "batch", "batch_renorm", "none"]
InputNorm = Literal["layer", "batch", "batch_renorm", "none", "running"]
Dtype = Literal["float32", "bfloat16"]
NORMS: tuple[Norm, ...] = get_args(Norm)
INPUT_NORMS: tuple[InputNorm, ...] = get_args(InputNorm)
ALGORITHMS: tuple[Algorithm, ...] = get_args(Algorithm)  # modules of qlax
DTYPES: tuple[Dtype, ...] = get_args(Dtype)
TRANSFORMS: tuple[Transform, ...] = get_args(Transform)
OPTIMIZERS: tuple[Optimizer, ...] = get_args(Optimizer)  # functions of `qlax.learning.gradients`
HEADS: dict[Head, tuple[str, ...]] = {  # names of the arguments of `qlax.heads`, which are settings `head_<name>`
    "scalar": (),
    "hl_gauss": ("low", "high", "bins", "sigma", "transform"),
    "ensemble": ("members",),
}
REACH = 4  # standard deviations of the head hl_gauss, for which it has bins beyond the ends of its support
SMALLEST_VARIANCE = 1e-8  # added to running variances of observations and returns
FARTHEST = 10.0  # standard deviations at which observations are clipped
EPSILONS: dict[Norm, float] = {"layer": 1e-6, "batch": 1e-5, "batch_renorm": 1e-3}  # added to variances


class Sizes(NamedTuple):
    """Sizes of an encoder.

    Attributes:
      hidden: Default widths of the dense layers.
      smallest: Smallest number of rows and of columns that an image needs for the convolutions; None for an encoder
        without convolutions.
    """

    hidden: tuple[int, ...]
    smallest: int | None


ENCODERS: dict[Encoder, Sizes] = {
    "mlp": Sizes((256, 256), None),
    "cnn": Sizes((128,), 3),
    "product": Sizes((256,), 3),
    "nature": Sizes((512,), 36),
    "impala": Sizes((256,), 1),
    "hadamax": Sizes((512,), 1),
}
MEMORIES: dict[Memory, int] = {"none": 0, "lstm": 2, "gru": 1, "mingru": 1, "lru": 2}  # number of arrays `[B, F]`


def algorithm_of(description: dict[str, Any]) -> Algorithm:
    """Return the algorithm whose network an agent's description describes."""
    return "pqn-continuous" if "critics" in description else "pqn"


def is_image(dtype: Any, shape: tuple[int, ...]) -> bool:
    """Return True if an array of one member's observation is an image, which networks divide by 255.

    Args:
      dtype: NumPy dtype of the array.
      shape: Shape of the array, without the axes of environments and members.
    """
    return dtype == "uint8" and len(shape) == 3


def is_screen(dtype: Any, shape: tuple[int, ...]) -> bool:
    """Return True if an array of one member's observation is an image large enough for the encoder "nature"."""
    return is_image(dtype, shape) and is_convolved("nature", shape)


def is_convolved(encoder: Encoder, shape: tuple[int, ...]) -> bool:
    """Return True if an encoder has convolutions and an array of this shape is large enough for them."""
    smallest = ENCODERS[encoder].smallest
    return smallest is not None and len(shape) == 3 and min(shape[:2]) >= smallest
