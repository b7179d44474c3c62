"""The contracts between world, network and learner.

Axes, always in this order: T steps, N environments, M team members (1 for a single agent), then
features; A actions; L steps of a segment; B = N * M rows of a batch.
"""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from qlax.errors import UserError

PyTree = Any


class Step(NamedTuple):
    """What the environments show after a reset or an action."""

    obs: PyTree  # [N, M, ...] what the next action is for, in the suite's own dtype
    legal: jax.Array | None  # [N, M, A] bool, at least one True per member; None: all legal, always
    reward: jax.Array  # [N] float32 of the team, for the action before this observation
    terminated: jax.Array  # [N] bool, nothing follows that action
    truncated: jax.Array  # [N] bool, this observation does not follow that action
    metrics: dict[str, jax.Array]  # name -> [N] float32, nan where there is nothing to report


class Env(Protocol):
    """One environment: pure functions, which never reset themselves.

    Its steps have no axis N; those of a single agent (without `num_agents`) have no axis M either,
    and its action is a scalar. In `step`, `truncated` means: the episode is cut after this observation.
    `metrics` may hold anything measured at the end of an episode, and is nan before; `episode_return` and
    `episode_length` come from `Vec`, unless the environment knows better and reports them itself.

    Optional attributes: `num_agents` (size of the team M), `time_limit` (steps), `score(return)`
    (the suite's normalised version of an episode's return), `shared` (arrays all copies have in
    common and no reset wipes: given to `step` as its last argument).
    """

    num_actions: int

    def reset(self, key: jax.Array) -> tuple[PyTree, Step]:
        """A new episode: state and first step (reward 0, neither terminated nor truncated)."""
        ...

    def step(self, key: jax.Array, state: PyTree, action: jax.Array) -> tuple[PyTree, Step]:
        """The transition of `action`, int32 of shape `[M]` (scalar for a single agent)."""
        ...


class Network(Protocol):
    """What maps observations to Q-values; a Flax module with these members satisfies it.

    `init(key, memory, obs, first, train)` and `apply(variables, memory, obs, first, train, mutable=[...])`
    follow Flax, with `obs [L, B, ...]`, `first [L, B]` bool (an episode begins here, so the memory is reset before it)
    and `q [L, B, A]`. Whatever collections it has beside `params` are kept as its statistics.
    """

    recurrent: bool

    def initial_memory(self, batch: int) -> PyTree:
        """Memory of `batch` rows, each leaf `[batch, ...]`; `()` without memory."""
        ...

    def init(self, *arguments: Any) -> Any:
        """Variables: a dict of collections, `"params"` among them."""
        ...

    def apply(self, *arguments: Any, **options: Any) -> Any:
        """`(q, memory), changed collections`, the latter for those named in `mutable`."""
        ...


def strong(tree: PyTree) -> PyTree:
    """The same arrays without weak types, which would make everything compile twice."""

    def strip(x):
        x = jnp.asarray(x)
        return x if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else jax.lax.convert_element_type(x, x.dtype)

    return jax.tree.map(strip, tree)


def check_contract(env: Any) -> None:
    """Whether shapes and dtypes of an `Env` are those its contract promises; nothing is compiled.

    Raises:
      UserError: what is wrong, and what was expected.
    """
    name = type(env).__name__

    def expect(condition: bool, problem: str) -> None:
        if not condition:
            raise UserError(f"environment {name}: {problem}")

    for method in ("reset", "step"):
        expect(callable(getattr(env, method, None)), f"it has no method {method!r}; see qlax.Env")
    actions: Any = getattr(env, "num_actions", None)
    valid = bool(isinstance(actions, int | np.integer) and actions >= 1)
    expect(valid, f"num_actions is {actions!r}; expected a whole number of discrete actions, at least 1")
    team = (env.num_agents,) if hasattr(env, "num_agents") else ()
    shared = (env.shared,) if hasattr(env, "shared") else ()

    def run(what: str, function: Any, *arguments: Any) -> Any:
        try:
            result = jax.eval_shape(lambda *a: function(*a), *arguments)
        except Exception as error:
            first_line = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(f"environment {name}: {what} cannot be traced by JAX: {first_line}") from error
        expect(
            isinstance(result, tuple) and len(result) == 2,
            f"{what} returns {type(result).__name__}; expected (state, Step)",
        )
        expect(isinstance(result[1], Step), f"{what} returns {type(result[1]).__name__} second; expected a qlax.Step")
        return result

    key = jax.random.key(0)
    state, first = run("reset(key)", env.reset, key)
    action = jax.ShapeDtypeStruct(team, jnp.int32)
    next_state, step = run("step(key, state, action)", env.step, key, state, action, *shared)
    for what, x in (("reset", first), ("step", step)):
        for field in ("reward", "terminated", "truncated"):
            shape = getattr(getattr(x, field), "shape", None)
            expect(
                shape == (),
                f"{field} of {what} has shape {shape}; expected a scalar (one reward and one end for the whole team)",
            )
        for field in ("terminated", "truncated"):
            dtype = getattr(x, field).dtype
            expect(dtype == jnp.bool_, f"{field} of {what} is {dtype}; expected bool")
        expect(
            jnp.issubdtype(x.reward.dtype, jnp.number),
            f"reward of {what} is {x.reward.dtype}; expected float32",
        )
        if x.legal is not None:
            found, wanted = f"{x.legal.dtype}{list(x.legal.shape)}", f"bool{[*team, actions]}"
            expect(found == wanted, f"legal of {what} is {found}; expected {wanted}")
        for leaf in jax.tree.leaves(x.obs):
            expect(
                leaf.shape[: len(team)] == team,
                f"obs of {what} has shape {leaf.shape}; expected the team of {team} first",
            )
        shapes = (
            {metric: leaf.shape for metric, leaf in x.metrics.items()} if isinstance(x.metrics, dict) else x.metrics
        )
        scalars = isinstance(shapes, dict) and not any(shapes.values())
        expect(scalars, f"metrics of {what} are {shapes}; expected a dict of scalars")

    for what, before, after in (
        ("state", state, next_state),
        ("obs", first.obs, step.obs),
        ("legal", first.legal, step.legal),
        ("metrics", first.metrics, step.metrics),
    ):
        before, after = (str(jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", tree)) for tree in (before, after))
        expect(before == after, f"{what} differs between reset and step: {before} against {after}")


def check_env(env: Any, num_steps: int = 100, seed: int = 0) -> None:
    """Run an `Env` with random legal actions, and say what breaks its contract.

    Args:
      env: one environment.
      num_steps: random actions to take; an episode that ends is begun anew.
      seed: of the actions and of the environment.

    Raises:
      UserError: what is wrong, and what was expected.
    """
    check_contract(env)
    name = type(env).__name__
    team = (env.num_agents,) if hasattr(env, "num_agents") else ()
    shared = (env.shared,) if hasattr(env, "shared") else ()
    # Traced apart, so that NumPy's or the clock's numbers in them would differ.
    resets = [jax.jit(lambda *a: env.reset(*a)) for _ in range(2)]
    steps = [jax.jit(lambda *a: env.step(*a)) for _ in range(2)]

    def run_twice(what: str, functions: list, *arguments: Any) -> Any:
        outcome, again = (function(*arguments) for function in functions)
        same = jax.tree.map(lambda a, b: np.array_equal(_comparable(a), _comparable(b), equal_nan=True), outcome, again)
        if not all(jax.tree.leaves(same)):
            raise UserError(
                f"environment {name}: {what} gave two outcomes for the same input; expected a pure function"
            )
        return outcome

    random = np.random.default_rng(seed)
    key, state, step = jax.random.key(seed), None, None
    for index in range(num_steps):
        key, key_reset, key_step = jax.random.split(key, 3)
        if step is None or step.terminated or step.truncated:
            state, step = run_twice("reset", resets, key_reset)
            if step.terminated or step.truncated or step.reward != 0:
                raise UserError(f"environment {name}: reset shows an end or a reward; expected a first step without")
        legal = np.ones((*team, env.num_actions), bool) if step.legal is None else np.asarray(step.legal)
        if not legal.any(-1).all():
            raise UserError(
                f"environment {name}: no legal action after {index} steps; expected at least one per member"
            )
        action = np.where(legal, random.random(legal.shape), -1.0).argmax(-1).astype(np.int32)
        state, step = run_twice("step", steps, key_step, state, action, *shared)
        ended = bool(step.terminated | step.truncated)
        for metric in ("episode_return", "episode_length"):
            if metric in step.metrics and bool(np.isnan(step.metrics[metric])) == ended:
                raise UserError(f"environment {name}: {metric} is to be nan exactly where no episode ended")
        for field, x in (("reward", step.reward), ("obs", step.obs)):
            if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(x)):
                raise UserError(f"environment {name}: {field} is not finite after {index + 1} steps")


def _comparable(x: Any) -> np.ndarray:
    is_key = jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(x) if is_key else x)
