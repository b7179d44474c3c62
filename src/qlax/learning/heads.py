"""Heads: functions from the outputs of a network to Q-values, and to the cost of targets.

Axes: M team members, or M * D for actions of D dimensions; K outputs of each of A actions, in one axis of size K * A
with all actions of an output side by side; E estimates of Q; G learners, each with a target of its own: those of
`qlax.learning.mixing` for every estimate.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qlax.errors import UserError
from qlax.learning.mixing import Mixing, member_q

Loss = Callable[[jax.Array], jax.Array]
Measures = dict[str, tuple[jax.Array, jax.Array]]  # weighted sums of measurements, and the sums of the weights
REACH = 4.0  # standard deviations of a histogram beyond the ends of its support; 0.003 % of a Gaussian lies outside


def _nothing(target: jax.Array, weight: jax.Array) -> Measures:
    del target, weight
    return {}


class Head(NamedTuple):
    """Functions of the outputs of a network; a network's attribute `head` has this type.

    Attributes:
      outputs: Number of outputs of an action, K.
      estimates: Function from outputs `[..., K * A]` to a tuple of E estimates of the Q-values, `[..., A]` each. Every
        estimate is learned from targets of its own; agents act by the mean of all.
      cost: Function `(loss, error, target, outputs, action)` from the loss of `qlax.pqn.make`, the errors `target - q`
        and the targets, both `[..., G]`, the outputs `[..., M, K * A]` and the actions `[..., M]` to costs `[..., G]`.
      measures: Function from targets `[..., G]` and their weights `[..., 1]` to measurements, each a weighted sum and
        the sum of the weights.
    """

    outputs: int
    estimates: Callable[[jax.Array], tuple[jax.Array, ...]]
    cost: Callable[..., jax.Array]
    measures: Callable[[jax.Array, jax.Array], Measures] = _nothing

    def q(self, outputs: jax.Array) -> jax.Array:
        """Return the Q-values `[..., A]` by which agents act, for outputs `[..., K * A]`."""
        estimates = self.estimates(outputs)
        return functools.reduce(jnp.add, estimates) / len(estimates)

    def mixed(self, mixing: Mixing) -> Mixing:
        """Return the same mixing, with outputs `[..., M, K * A]` in place of Q-values, and G * E learners."""

        def value(outputs: jax.Array, legal: jax.Array | None) -> jax.Array:
            return jnp.concatenate([mixing.value(q, legal) for q in self.estimates(outputs)], -1)

        def q_of(outputs: jax.Array, action: jax.Array) -> jax.Array:
            return jnp.concatenate([mixing.q(q, action) for q in self.estimates(outputs)], -1)

        return Mixing(value, q_of)


def half_squared(error: jax.Array) -> jax.Array:
    """Return half the squared error, elementwise."""
    return 0.5 * jnp.square(error)


def _alone(outputs: jax.Array) -> tuple[jax.Array]:
    return (outputs,)


def _apart(members: int, outputs: jax.Array) -> tuple[jax.Array, ...]:
    return tuple(jnp.split(outputs, members, axis=-1))


def _cost_of_error(loss: Loss, error: jax.Array, *_: Any) -> jax.Array:
    return loss(error)


def scalar() -> Head:
    """Make the head whose only output is the Q-value, as in the paper."""
    return Head(1, _alone, _cost_of_error)


def ensemble(members: int = 10) -> Head:
    """Make a head of several estimates of Q, each learned from targets of its own; agents act by their mean.

    The estimates share all layers but the last and learn from the same steps; they differ by their initial weights.

    Args:
      members: Number of estimates, E.

    Source: Osband et al., "Deep exploration via bootstrapped DQN", 2016, arXiv:1602.04621, with all steps for every
    estimate (p = 1 in appendix B).
    """
    return Head(members, functools.partial(_apart, members), _cost_of_error)


class _Histogram(NamedTuple):
    """Bins of equal width of transformed values, between two ends and as far beyond as a Gaussian needs.

    Attributes:
      edges: Edges of the bins, float64 `[K + 1]`.
      ends: First and last value of the support, transformed.
      deviation: Standard deviation of the Gaussian, in units of the edges.
      is_log: Whether values are transformed by symlog, `sign(x) log(1 + |x|)`.
    """

    edges: np.ndarray
    ends: tuple[float, float]
    deviation: float
    is_log: bool

    @property
    def centers(self) -> np.ndarray:
        """Centres of the bins, float32 `[K]`."""
        return np.asarray((self.edges[:-1] + self.edges[1:]) / 2, np.float32)

    def transformed(self, x: jax.Array) -> jax.Array:
        """Return `symlog(x)` if `is_log`, else `x`."""
        return jnp.sign(x) * jnp.log1p(jnp.abs(x)) if self.is_log else x

    def restored(self, x: jax.Array) -> jax.Array:
        """Undo `transformed`."""
        return jnp.sign(x) * jnp.expm1(jnp.abs(x)) if self.is_log else x

    def weights(self, x: jax.Array) -> jax.Array:
        """Return the share of each bin in a Gaussian around each value: `[...]` to `[..., K]`, whose sum is 1."""
        center = jnp.clip(self.transformed(x), *self.ends)[..., None]
        edges = jnp.asarray(self.edges, jnp.float32).reshape(*(1,) * x.ndim, -1)
        below = jax.scipy.special.erf((edges - center) / (math.sqrt(2) * self.deviation))
        return jnp.diff(below, axis=-1) / (below[..., -1:] - below[..., :1])


def _histogram(low: float, high: float, bins: int, sigma: float, transform: str) -> _Histogram:
    """Make the bins of `hl_gauss`, for the same arguments."""
    is_log = transform == "symlog"
    begin, end = (math.copysign(math.log1p(abs(x)), x) if is_log else float(x) for x in (low, high))
    width, beyond = (end - begin) / bins, math.ceil(REACH * sigma)
    edges = begin + width * np.arange(-beyond, bins + beyond + 1)
    return _Histogram(edges, (begin, end), sigma * width, is_log)


def hl_gauss(
    low: float = -10.0, high: float = 10.0, bins: int = 51, sigma: float = 0.75, transform: str = "none"
) -> Head:
    """Make a head whose outputs are the logits of a histogram, learned by cross-entropy (HL-Gauss).

    The target is the histogram of a Gaussian around the return G of `qlax.q_lambda`; the Q-value is the mean of the
    histogram, `h^-1(sum_k p_k h_k)` for a transform h. Returns outside of the support are clipped to it.

    With a transform, the mean of random returns is that of the transformed ones: for symlog it is below the mean of
    returns of one sign by about `Var(G) / (2 (1 + |G|))`.

    Args:
      low: First value of the support.
      high: Last value of the support.
      bins: Number of bins in the support; beyond each end are `ceil(4 sigma)` more, so that the Gaussian fits and its
        mean is right up to the ends. K is the number of all.
      sigma: Standard deviation of the Gaussian, in bins.
      transform: "symlog" for bins of equal width in `h(x) = sign(x) log(1 + |x|)`, or "none".

    Raises:
      UserError: In training, there is also a `loss` of the user's own, or a team learns by the sum or mean of Q-values.

    Source: Farebrother et al., "Stop regressing: training value functions via classification for scalable deep RL",
    2024, arXiv:2403.03950, section 3.1.
    """
    bars = _histogram(low, high, bins, sigma, transform)
    estimates, cost = functools.partial(_expected, bars), functools.partial(_cross_entropy, bars)
    return Head(len(bars.centers), estimates, cost, functools.partial(_outside, low, high))


def _expected(bars: _Histogram, outputs: jax.Array) -> tuple[jax.Array]:
    logits = _by_output(bars, outputs)
    centers = jnp.asarray(bars.centers).reshape(*(1,) * (logits.ndim - 2), -1, 1)
    return (bars.restored((jax.nn.softmax(logits, -2) * centers).sum(-2)),)


def _cross_entropy(
    bars: _Histogram, loss: Loss, error: jax.Array, target: jax.Array, outputs: jax.Array, action: jax.Array
) -> jax.Array:
    if loss is not half_squared:
        raise UserError("loss and head=hl_gauss cannot be combined, as this head has its own loss; leave one out")
    logits = member_q(_by_output(bars, outputs), action[..., None])  # [..., M, K]
    if logits.shape[:-1] != error.shape:
        raise UserError(
            "head=hl_gauss learns a distribution for every member of a team, or dimension of an action, and their "
            "sum or mean has none; expected mixing=none or head=scalar"
        )
    return -(bars.weights(target) * jax.nn.log_softmax(logits)).sum(-1)


def _by_output(bars: _Histogram, outputs: jax.Array) -> jax.Array:
    return outputs.reshape(*outputs.shape[:-1], len(bars.centers), -1)  # [..., K, A]


def _outside(low: float, high: float, target: jax.Array, weight: jax.Array) -> Measures:
    outside = (target < low) | (target > high)
    return {"target_outside": ((weight * outside).mean(-1).sum(), weight.sum())}


def head_of(network: Any) -> Head:
    """Return the head of a network; `scalar()` if it names none."""
    head = getattr(network, "head", None)
    return head if isinstance(head, Head) else scalar()


def q_values(network: Any, outputs: jax.Array) -> jax.Array:
    """Return the Q-values `[..., A]` by which agents act, for all outputs `[..., K * A]` of a network."""
    return head_of(network).q(outputs)
