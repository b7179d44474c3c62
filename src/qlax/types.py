"""The contracts between world, network and learner.

Axes, always in this order: T steps, N environments, M team members (1 for a single agent), then
features; A actions; L steps of a segment; B = N * M rows of a batch.
"""

from __future__ import annotations  # a trained agent acts without JAX, where it is not installed

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    import jax

PyTree = Any
Array = Any  # jax.Array, or numpy.ndarray from environments on the host

# Parts of the algorithm that a user may replace; `qlax.pqn.make` says what they are given.
Optimizer = Callable[[Any, int], Any]  # hyper, num_gradient_steps -> optax.GradientTransformation
Explore = Callable[[Array, Array, Any, Array], Array]  # key, q [N, M, A], legal, epsilon -> action [N, M]
Loss = Callable[[Array], Array]  # error -> cost, elementwise
Returns = Callable[..., Array]  # the arguments of `qlax.q_lambda` -> targets [T, N, G]


class Step(NamedTuple):
    """What the environments show after a reset or an action."""

    obs: PyTree  # [N, M, ...] what the next action is for, in the suite's own dtype
    legal: Array | None  # [N, M, A] bool, at least one True per member; None: all legal, always
    reward: Array  # [N] float32 of the team, for the action before this observation
    terminated: Array  # [N] bool, nothing follows that action
    truncated: Array  # [N] bool, this observation does not follow that action
    metrics: dict[str, Array]  # name -> [N] float32, nan where there is nothing to report


class Env(Protocol):
    """One environment: pure functions, which never reset themselves.

    Its steps have no axis N; those of a single agent (without `num_agents`) have no axis M either,
    and its action is a scalar. In `step`, `truncated` means: the episode is cut after this observation.
    `metrics` may hold anything measured at the end of an episode, and is nan before; `episode_return` and
    `episode_length` come from `Vec`, unless the environment knows better and reports them itself. Where `reward` is
    not what is to be reported, as it was shaped or clipped, `metrics["raw_reward"]` holds what is, at every step:
    `Vec` adds it up instead, and passes it no further.

    Optional attributes: `render(state)` (a picture of one state, on the host and not compiled: uint8
    `[height, width, 3]`, of leaves that are JAX's or NumPy's), `fps` (steps a second that suit watching),
    `action_names` (a tuple of words, one for each action); `num_agents` (size of the team M), `time_limit` (steps),
    `score(return)` (the suite's normalised version of an episode's return), `reset_ratio` (see `Vec`; where a reset
    is dear),
    `shared` (arrays all copies have in common and no reset wipes: given to `step` as its last argument) and with it
    `shared_at(progress)` (what it is to be at an update, when the fraction `progress` of training is done);
    `with_network(network)` (the same environment, once the learner's network is known, as for playing against it),
    whose result may have `shared_after(shared, progress, variables)` in place of `shared_at`, with the variables of
    that network, and `evaluated` (the environment to evaluate in).
    """

    num_actions: int

    def reset(self, key: jax.Array) -> tuple[PyTree, Step]:
        """A new episode: state and first step (reward 0, neither terminated nor truncated)."""

    def step(self, key: jax.Array, state: PyTree, action: jax.Array) -> tuple[PyTree, Step]:
        """The transition of `action`, int32 of shape `[M]` (scalar for a single agent)."""


class HostEnv(Protocol):
    """N environments that live on the host: stateful, in NumPy, stepped together, and reset by themselves.

    Every array has the axis N first; those of a single agent (without `num_agents`) have no axis M, and its actions
    are `[N]`. What a step shows where an episode ended is written at `Step`; `qlax.Episodes` turns what most
    back ends return into it. `metrics` has `episode_return` and `episode_length` (of raw rewards and whole games), nan
    but where an episode ended; where `reward` was shaped or clipped, also `raw_reward`, at every step.

    Arrays are copied before the next step begins: an environment may use its memory again. Steps of two instances run
    at the same time, in threads.

    Optional attributes: `num_agents` (size of the team M), `time_limit` (steps), `score(return)` (the suite's
    normalised version of an episode's return), `kill()` (end its processes at once, where it hangs or crashed),
    `render()` (a picture of each, uint8 `[N, height, width, 3]`), `fps` and `action_names` as of `Env`. Suites some of
    whose environments draw only if they are made for it say so, see `qlax.envs.options_to_draw`.
    """

    num_actions: int
    num_envs: int

    def reset(self, seed: int) -> Step:
        """N new episodes: first steps (reward 0, neither terminated nor truncated)."""

    def step(self, action: Any) -> Step:
        """The transitions of `action`, int32 of shape `[N, M]` (`[N]` for single agents)."""

    def close(self) -> None:
        """Give back what it holds: processes, threads."""


class Network(Protocol):
    """What maps observations to Q-values; a Flax module with these members satisfies it.

    `init(key, memory, obs, first, train)` and `apply(variables, memory, obs, first, train, mutable=[...])`
    follow Flax, with `obs [L, B, ...]`, `first [L, B]` bool (an episode begins here, so the memory is reset before it)
    and `q [L, B, A]`. Whatever collections it has beside `params` are kept as its statistics.
    """

    @property
    def recurrent(self) -> bool:
        """Whether `memory` tells what was seen before."""

    def initial_memory(self, batch: int, /) -> PyTree:
        """Memory of `batch` rows, each leaf `[batch, ...]`; `()` without memory."""

    def init(self, *arguments: Any, **options: Any) -> Any:
        """Variables: a dict of collections, `"params"` among them."""

    def apply(self, *arguments: Any, **options: Any) -> Any:
        """`(q, memory), changed collections`, the latter for those named in `mutable`."""


def is_key(x: Any) -> bool:
    """Whether an array, or its shape and dtype, is of random keys."""
    import jax

    return jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def strong(tree: PyTree) -> PyTree:
    """The same arrays without weak types, which would make everything compile twice."""
    import jax

    def strip(x):
        x = jax.numpy.asarray(x)
        return x if is_key(x) else jax.lax.convert_element_type(x, x.dtype)

    return jax.tree.map(strip, tree)
