"""What is wrong with an environment: its shapes and dtypes, or what it does."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qlax.errors import UserError, described
from qlax.types import Step


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
    ratio: Any = getattr(env, "reset_ratio", 1)
    valid = bool(isinstance(ratio, int) and ratio >= 1)
    expect(valid, f"reset_ratio is {ratio!r}; expected a whole number of copies that share a fresh episode")

    def traced(what: str, function: Any, *arguments: Any) -> Any:
        try:
            return jax.eval_shape(lambda *a: function(*a), *arguments)
        except Exception as error:
            first_line = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(f"environment {name}: {what} cannot be traced by JAX: {first_line}") from error

    if hasattr(env, "shared_at"):
        expect(bool(shared), "it has shared_at but nothing shared; declare what all copies share at first")
        later = traced("shared_at(progress)", env.shared_at, jax.ShapeDtypeStruct((), jnp.float32))
        specified = [
            str(jax.tree.map(lambda x: f"{jnp.result_type(x)}{list(jnp.shape(x))}", tree))
            for tree in (env.shared, later)
        ]
        expect(specified[0] == specified[1], f"shared_at gives {specified[1]}, but shared is {specified[0]}")

    def run(what: str, function: Any, *arguments: Any) -> Any:
        result = traced(what, function, *arguments)
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
        before, after = _specified(before), _specified(after)
        expect(before == after, f"{what} differs between reset and step: {before} against {after}")


def check_host_env(env: Any, num_steps: int = 1, seed: int = 0) -> Step:
    """Reset a `HostEnv`, take random legal actions, and say what breaks its contract.

    Args:
      env: N environments.
      num_steps: to take, after a reset.
      seed: of the actions and of the environments.

    Returns:
      The first steps, of the reset.

    Raises:
      UserError: what is wrong, and what was expected.
    """
    name, random = type(env).__name__, np.random.default_rng(seed)

    def expect(condition: Any, problem: str) -> None:
        if not condition:
            raise UserError(f"environment {name}: {problem}")

    for method in ("reset", "step", "close"):
        expect(callable(getattr(env, method, None)), f"it has no method {method!r}; see qlax.HostEnv")
    for attribute in ("num_actions", "num_envs"):
        value: Any = getattr(env, attribute, None)
        valid = isinstance(value, int | np.integer) and value >= 1
        expect(valid, f"{attribute} is {value!r}; expected a whole number, at least 1")
    team = (env.num_agents,) if hasattr(env, "num_agents") else ()
    legal = np.ones((env.num_envs, *team, env.num_actions), bool)
    first: Any = None
    ends, reported = False, False
    for index in range(num_steps + 1):
        what = "step" if index else "reset"
        action = np.where(legal, random.random(legal.shape), -1.0).argmax(-1).astype(np.int32)
        try:
            step = env.step(action) if index else env.reset(seed)
        except Exception as error:
            raise UserError(f"environment {name}: {what} failed: {described(error)}") from error
        _check_host_step(step, what, legal.shape, expect)
        legal = legal if step.legal is None else step.legal
        first = step if first is None else first
        for part in ("obs", "legal", "metrics"):
            before, now = (_specified(getattr(x, part)) for x in (first, step))
            expect(before == now, f"{part} differs between reset and step: {before} against {now}")
        if not index:
            quiet = not (step.terminated | step.truncated).any() and not step.reward.any()
            expect(quiet, "reset shows an end or a reward; expected first steps without")
            nothing = all(np.isnan(step.metrics[metric]).all() for metric in ("episode_return", "episode_length"))
            expect(nothing, "episode_return and episode_length of reset are not nan; they are numbers but at an end")
        ends = ends or bool(step.truncated.any())
        reported = reported or not np.isnan(step.metrics["episode_return"]).all()
    expect(reported or not ends, "episodes ended, but metrics['episode_return'] was nan all the time")
    return first


def _check_host_step(step: Any, what: str, shape: tuple[int, ...], expect: Any) -> None:
    """Whether one step has the shapes, dtypes and finite numbers that a `HostEnv` promises; `shape` is `[N, M, A]`."""
    rows, members = shape[:1], shape[:-1]
    expect(isinstance(step, Step), f"{what} returns {type(step).__name__}; expected a qlax.Step")
    arrays = {"reward": step.reward, "terminated": step.terminated, "truncated": step.truncated, "obs": step.obs}
    arrays |= {"metrics": step.metrics, "legal": step.legal}
    for field, tree in arrays.items():
        odd = [type(leaf).__name__ for leaf in jax.tree.leaves(tree) if not hasattr(leaf, "dtype")]
        expect(not odd, f"{field} of {what} holds {', '.join(odd[:3])}; expected NumPy arrays")
    for field in ("reward", "terminated", "truncated"):
        found = getattr(step, field)
        expect(found.shape == rows, f"{field} of {what} has shape {found.shape}; expected {rows}, one an environment")
        right = field == "reward" or found.dtype == np.bool_
        expect(right, f"{field} of {what} is {found.dtype}; expected bool")
    for leaf in jax.tree.leaves(step.obs):
        fits = leaf.shape[: len(members)] == members
        expect(fits, f"obs of {what} has shape {leaf.shape}; expected {members} first")
    if step.legal is not None:
        found, wanted = f"{step.legal.dtype}{list(step.legal.shape)}", f"bool{list(shape)}"
        expect(found == wanted, f"legal of {what} is {found}; expected {wanted}")
        expect(step.legal.any(-1).all(), f"no legal action after a {what}; expected at least one per member")
    metrics = step.metrics if isinstance(step.metrics, dict) else {}
    for metric in ("episode_return", "episode_length"):
        expect(metric in metrics, f"{what} has no metrics[{metric!r}], nan but where an episode ended")
    shapes = {metric: value.shape for metric, value in metrics.items()}
    expect(set(shapes.values()) == {rows}, f"metrics of {what} have shapes {shapes}; expected {rows} each")
    for field, tree in (("reward", step.reward), ("obs", step.obs), ("raw_reward", metrics.get("raw_reward", 0.0))):
        finite = all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))
        expect(finite, f"{field} of {what} is not finite")


def _specified(tree: Any) -> str:
    return str(jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", tree))


def check_env(env: Any, num_steps: int = 100, seed: int = 0) -> None:
    """Run an `Env` or a `HostEnv` with random legal actions, and say what breaks its contract.

    Args:
      env: one environment, or several on the host.
      num_steps: random actions to take; an episode that ends is begun anew.
      seed: of the actions and of the environment.

    Raises:
      UserError: what is wrong, and what was expected.
    """
    if hasattr(env, "num_envs"):
        check_host_env(env, num_steps, seed)
        return
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
        for field, x in (
            ("reward", step.reward),
            ("obs", step.obs),
            ("raw_reward", step.metrics.get("raw_reward", 0.0)),
        ):
            if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(x)):
                raise UserError(f"environment {name}: {field} is not finite after {index + 1} steps")


def _comparable(x: Any) -> np.ndarray:
    is_key = jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(x) if is_key else x)
