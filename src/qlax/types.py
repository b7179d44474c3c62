"""Contracts between environment, network and learner.

Axes, always in this order: T steps, N environments, M team members (1 for a single agent), then
features; A actions; L steps of a segment; B = N * M rows of a batch.
"""

from __future__ import annotations  # annotations name JAX, which is not needed to act with a trained agent

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    import jax

PyTree = Any
Array = Any  # jax.Array, or numpy.ndarray from environments on the host

# Parts of the algorithm that users may replace; `qlax.pqn.make` describes their arguments.
Optimizer = Callable[[Any, int], Any]  # hyper, num_gradient_steps -> optax.GradientTransformation
Explore = Callable[[Array, Array, Any, Array], Array]  # key, q [N, M, A], legal, epsilon -> action [N, M]
Loss = Callable[[Array], Array]  # error -> cost, elementwise
Returns = Callable[..., Array]  # the arguments of `qlax.q_lambda` -> targets [T, N, G]


class Step(NamedTuple):
    """Result of a reset or of a step in N environments."""

    obs: PyTree  # [N, M, ...] observation for the next action, in the suite's own dtype
    legal: Array | None  # [N, M, A] bool, at least one True per member; None if all actions are always legal
    reward: Array  # [N] float32, the team's reward for the previous action
    terminated: Array  # [N] bool, True where the previous action led to a terminal state
    truncated: Array  # [N] bool, True where `obs` is of a new episode, after one that was cut and not terminated
    metrics: dict[str, Array]  # name -> [N] float32, nan where there is nothing to report


class Env(Protocol):
    """One environment in JAX: pure functions that never reset themselves.

    Steps have no axis N. A single agent (without `num_agents`) has no axis M either, and its action is a scalar. In
    `step`, `truncated` means that the episode is cut after this observation.

    `metrics` may hold anything that is measured at the end of an episode, and are nan before. `Vec` adds
    `episode_return` and `episode_length`, unless the environment reports them itself. If `reward` is shaped or clipped,
    `metrics["raw_reward"]` holds the reward to report, at every step; `Vec` sums it for `episode_return` and drops it
    from `metrics`.

    Optional attributes:

    - `num_agents`: Size of the team, M.
    - `action_dimensions`: Number of dimensions of an action, D, each of which is one of A values; `step` then takes
      int32 `[D]` (`[M, D]` in a team), and `legal` is `[D, A]` (`[M, D, A]`).
    - `action_bounds`: Pair `(low, high)` of the lowest and the highest action, each float32 `[D]` of NumPy, in an
      environment of continuous actions. It has no `num_actions`, its `legal` is None, and its `step` takes float32
      `[D]` (`[M, D]`) within the bounds. The setting `bins` divides each dimension into A values.
    - `time_limit`: Largest number of steps in an episode.
    - `score(return)`: The suite's normalised score for an episode's return.
    - `reset_ratio`: See `Vec`; for environments whose reset is expensive.
    - `render(state)`: Picture of one state, uint8 `[height, width, 3]`; it runs on the host and is not compiled, and
      the leaves of the state are arrays of JAX or NumPy.
    - `fps`: Steps per second at which a video is pleasant to watch.
    - `action_names`: Tuple with the name of each action.
    - `shared`: Arrays common to all copies and kept by resets; `step` gets them as its last argument.
    - `shared_at(progress)`: Value of `shared` before an update, when the fraction `progress` of training is done.
    - `with_network(network)`: Environment that uses the learner's network, as for self-play. It may have
      `shared_after(shared, progress, variables)` in place of `shared_at`, with the variables of that network, and
      `evaluated`, the environment in which agents are evaluated.

    Example:
      ```python
      class Corridor:  # walk right to the end of a corridor of ten cells within 100 steps
          num_actions = 2
          time_limit = 100

          def reset(self, key):
              state = jnp.int32(0), jnp.int32(0)  # position, time
              return state, self.show(*state)

          def step(self, key, state, action):
              state = jnp.maximum(state[0] + 2 * action - 1, 0), state[1] + 1
              return state, self.show(*state)

          def show(self, position, time):
              obs, at_end, late = jax.nn.one_hot(position, 10), position == 9, time >= self.time_limit
              return qlax.Step(
                  obs=obs, legal=None, reward=jnp.float32(at_end), terminated=at_end, truncated=late, metrics={}
              )

      qlax.check_env(Corridor())
      ```
    """

    num_actions: int  # number of actions, A

    def reset(self, key: jax.Array, /) -> tuple[PyTree, Step]:
        """Begin an episode; return the state and the first step (reward 0, neither terminated nor truncated).

        Args:
          key: Random key, from which everything random is drawn.
        """

    def step(
        self, key: jax.Array, state: PyTree, action: jax.Array, /, *shared: Any, **options: Any
    ) -> tuple[PyTree, Step]:
        """Take an action; return the next state and the step.

        Args:
          key: Random key, from which everything random is drawn.
          state: State that `reset` or the last step returned.
          action: int32 `[M]`; a scalar for a single agent. `action_dimensions` and `action_bounds` change it.
          *shared: Value of the attribute `shared`; nothing if the environment has no such attribute.
          **options: qlax passes none; for type checkers, which so accept a `step` with or without `shared`.
        """


class HostEnv(Protocol):
    """N environments on the host: stateful, in NumPy, stepped together, and reset automatically.

    Every array has the axis N first. A single agent (without `num_agents`) has no axis M, and its actions are `[N]`.
    `Step` defines `terminated` and `truncated` at the end of an episode; `qlax.Episodes` makes such steps from those of
    most back ends. `metrics` has `episode_return` and `episode_length`, of raw rewards and whole games, which are nan
    except where an episode ended; if `reward` is shaped or clipped, `metrics` also has `raw_reward`, at every step.

    Arrays are copied before the next step begins, so an environment may reuse its memory. Two instances are stepped at
    the same time, in threads.

    Optional attributes:

    - `num_agents`, `action_dimensions`, `action_bounds`, `time_limit`, `score(return)`, `fps` and `action_names`: See
      `Env`; actions have the axis N first.
    - `render()`: Picture of every environment, uint8 `[N, height, width, 3]`. Some suites need an option for it when
      the environment is made, such as `render_mode` of Gymnasium.
    - `kill()`: End the environment's processes at once, if it hangs or crashed.
    """

    num_actions: int  # number of actions, A
    num_envs: int  # number of environments, N

    def reset(self, seed: int, /) -> Step:
        """Begin N episodes; return the first steps (reward 0, neither terminated nor truncated).

        Args:
          seed: Random seed of all N environments.
        """

    def step(self, action: Any, /) -> Step:
        """Take actions; return the steps.

        Args:
          action: int32 `[N, M]`; `[N]` for single agents. `action_dimensions` and `action_bounds` change it.
        """

    def close(self) -> None:
        """Release resources such as processes and threads."""


class Network(Protocol):
    """Network from observations to Q-values, such as a module of `flax.linen`.

    The setting `network="my_module:Name"` calls `Name(num_actions)`; modules in the working directory are found. The
    settings of qlax's own network, such as `encoder` and `hidden`, then have no effect: those of a preset are left out,
    and others are refused. A network with another encoder is a network of one's own.

    A module of `flax.linen` has to define `recurrent`, `initial_memory` and `__call__(memory, obs, first, train)`,
    which returns `(q, memory)`; Flax adds `init` and `apply`. The arguments are `obs [L, B, ...]`, in the dtype of the
    environment, for L consecutive steps of B rows (members of teams are rows, too); `first [L, B]`, bool, True where an
    episode begins and the memory has to be reset before the step; and `train`, bool, True while learning. `q` is
    `[L, B, A]`. Collections of variables other than `params` are kept as the network's statistics. A network whose
    outputs are not Q-values has an attribute `head`, a `qlax.Head` with K outputs of an action, and returns
    `[L, B, K * A]`, with all actions of an output side by side. If the environment's actions have D dimensions, the
    network is made by `Name(num_actions, dimensions)`, and returns `[L, B, D, K * A]`.

    Example:
      ```python
      import flax.linen as nn

      class Sine(nn.Module):  # in a file my_networks.py, for qlax.train(..., network="my_networks:Sine")
          num_actions: int
          recurrent = False

          def initial_memory(self, batch):
              return ()

          @nn.compact
          def __call__(self, memory, obs, first, train):
              x = jnp.sin(nn.LayerNorm()(nn.Dense(64)(obs.astype(jnp.float32))))
              return nn.Dense(self.num_actions)(x), memory
      ```
    """

    @property
    def recurrent(self) -> bool:
        """True if the network has a memory of earlier observations."""

    def initial_memory(self, batch: int, /) -> PyTree:
        """Return the memory of `batch` rows where episodes begin, each leaf `[batch, ...]`; `()` without memory."""

    def init(self, *arguments: Any, **options: Any) -> Any:
        """Return new variables: a dict of collections, one of which is `"params"`.

        Args:
          *arguments: `key, memory, obs, first, train`, in this order.
          **options: qlax passes none.
        """

    def apply(self, *arguments: Any, **options: Any) -> Any:
        """Return `(q, memory), collections`, where the latter are the changed collections named in `mutable`.

        Args:
          *arguments: `variables, memory, obs, first, train`, in this order.
          **options: `train`, unless it is given above; and `mutable`, names of collections that may change. Without
            `mutable`, only `(q, memory)` is returned.
        """


def is_key(x: Any) -> bool:
    """Return True if an array, or a `jax.ShapeDtypeStruct`, holds random keys."""
    import jax

    return jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key)


def strong(tree: PyTree) -> PyTree:
    """Return the arrays without weak types, which would make programs compile twice."""
    import jax

    def strip(x: Array) -> Array:
        x = jax.numpy.asarray(x)
        return x if is_key(x) else jax.lax.convert_element_type(x, x.dtype)

    return jax.tree.map(strip, tree)
