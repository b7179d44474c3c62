"""PQN: online Q(lambda) in many environments at once, without replay and without a target network.

One `update` acts for T steps in N environments (`rollout`), computes Q(lambda) targets of the transitions,
and fits Q to the targets with a few epochs of minibatch gradient descent (`learn`).

Axes, always in this order: T steps, N environments, M team members (1 for a single agent), A actions; G learners, each
with a target of its own: 1 for a team, M if members learn by themselves. D dimensions of an action are like D members.
The network is trained on segments of L consecutive steps: L = T if it has memory, else L = 1.

Source: Gallici et al., "Simplifying deep temporal difference learning", 2024, arXiv:2407.04811.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from qlax.learning.gradients import norm, radam
from qlax.learning.heads import half_squared, head_of
from qlax.learning.mixing import VDN, Mixing, only_legal
from qlax.learning.returns import q_lambda
from qlax.learning.updates import acting_keys, begun, check_sizes, passes, roll, scheduled, spread, total
from qlax.switches import usual_switches
from qlax.types import Network, PyTree, Step


class Hyper(NamedTuple):
    """Hyper-parameters that may be traced: use `jax.vmap` over them, or change them in training."""

    learning_rate: float | jax.Array = 5e-4  # initial learning rate
    learning_rate_end: float | jax.Array = 0.0  # final learning rate as a fraction of learning_rate; 1 is constant
    gamma: float | jax.Array = 0.99  # discount factor
    lam: float | jax.Array = 0.65  # initial lambda of Q(lambda)
    lam_end: float | jax.Array = 0.65  # final lambda
    lam_fraction: float | jax.Array = 0.0  # fraction of all updates until lambda reaches lam_end; 0: lam throughout
    epsilon_start: float | jax.Array = 1.0  # initial probability of a random action
    epsilon_end: float | jax.Array = 0.05  # final probability of a random action
    epsilon_fraction: float | jax.Array = 0.1  # fraction of all updates until epsilon reaches epsilon_end; may be 0
    epsilon_spread: float | jax.Array = 1.0  # largest epsilon of an environment, as a multiple of their geometric mean
    max_grad_norm: float | jax.Array = 10.0  # global norm to which gradients are clipped
    reward_scale: float | jax.Array = 1.0  # factor of rewards in targets; metrics report unscaled rewards


class Shape(NamedTuple):
    """Sizes that are fixed when the algorithm is compiled."""

    num_envs: int = 128  # number of environments, N
    num_steps: int = 32  # steps of a rollout, T
    num_minibatches: int = 32  # minibatches per epoch
    num_epochs: int = 2  # epochs per update
    num_updates: int = 1000  # updates of the whole run, for the schedules of learning rate and epsilon


class Transition(NamedTuple):
    """One step of N environments, as stored for learning; `[T, N, ...]` once stacked."""

    first: jax.Array  # [N] bool, True where `obs` begins an episode
    obs: PyTree  # [N, M, ...]
    legal: jax.Array | None  # [N, M, A] bool
    action: jax.Array  # [N, M] int32
    value: jax.Array  # [N, G]: max over legal a of Q(s_t, a)
    reward: jax.Array  # [N] float32
    terminated: jax.Array  # [N] bool, see `Step`
    truncated: jax.Array  # [N] bool, see `Step`
    metrics: dict[str, jax.Array]  # each [N] float32, nan where there is nothing to report


class Rollout(NamedTuple):
    """T steps in N environments, and the memory of the network before the first one."""

    memory: PyTree  # [N, M, ...]; () without memory
    transitions: Transition  # [T, N, ...]


class Decision(NamedTuple):
    """Result of `act`: the environments need the key and the action, `observe` the rest."""

    key: jax.Array  # random key for the step of the environments
    action: jax.Array  # [N, M] int32
    first: jax.Array  # [N] bool, as in `Transition`
    value: jax.Array  # [N, G]


class Mean(NamedTuple):
    """Metric as a sum with its weight: add both over time and devices, then divide; a mean of means would be wrong."""

    total: jax.Array  # weighted sum
    weight: jax.Array  # sum of the weights


class TrainState(NamedTuple):
    """Everything that changes in training."""

    params: PyTree  # parameters of the network
    stats: PyTree  # other variables of the network (statistics of its normalisation)
    opt_state: PyTree  # state of the optimiser
    env: PyTree  # state of the environments; () if they are on the host
    step: Step  # latest step of the environments
    memory: PyTree  # memory of the network, [N, M, ...]; () without memory
    hyper: Any  # the `Hyper` of the algorithm, float32 scalars
    key: jax.Array  # random key
    updates: jax.Array  # int32, updates so far; environment steps, updates * T * N, are counted in Python


class PQN(NamedTuple):
    """Algorithm as pure functions; all except `rollout` and `update` also work for environments on the host."""

    init: Callable[..., TrainState]  # key, hyper, step, env=(), variables=None (of the network) -> TrainState
    act: Callable[..., tuple[TrainState, Decision]]  # state, number of the first environment=0 -> choose actions
    observe: Callable[[TrainState, Decision, PyTree, Step], tuple[TrainState, Transition]]  # store a step
    rollout: Callable[[TrainState], tuple[TrainState, Rollout]]  # act for T steps
    learn: Callable[[TrainState, Rollout], tuple[TrainState, dict[str, Mean]]]  # fit Q to the targets
    update: Callable[[TrainState], tuple[TrainState, dict[str, Mean]]]  # a rollout, then learning from it


def epsilon_greedy(key: jax.Array, q: jax.Array, legal: jax.Array | None, epsilon: jax.Array) -> jax.Array:
    """Choose the best legal action, or with probability `epsilon` one drawn by `key`: `q [..., A]` to int32 `[...]`."""
    key_explore, key_action = jax.random.split(key)
    greedy = only_legal(q, legal).argmax(-1).astype(jnp.int32)
    if legal is None:
        uniform = jax.random.randint(key_action, greedy.shape, 0, q.shape[-1])
    else:
        uniform = jax.random.categorical(key_action, only_legal(jnp.zeros_like(q), legal)).astype(jnp.int32)
    return jnp.where(jax.random.bernoulli(key_explore, epsilon, greedy.shape), uniform, greedy)


def observe(state: TrainState, decision: Decision, env: PyTree, step: Step) -> tuple[TrainState, Transition]:
    """Store what followed a decision; return the new state and the transition, see `PQN`.

    Args:
      state: State in which the decision was made.
      decision: The decision.
      env: New state of the environments.
      step: The step that followed.
    """
    seen = Transition(decision.first, state.step.obs, state.step.legal, decision.action, decision.value, *step[2:])
    return state._replace(env=env, step=step), seen


def averaged(metrics: dict[str, jax.Array], names: tuple[str, ...], measured: jax.Array) -> dict[str, Mean]:
    """Return means of the `metrics` of episodes, `[T, N]` each, and, by `names`, of sums and weights `measured`."""
    found = {k: Mean(jnp.nansum(x), (~jnp.isnan(x)).sum(dtype=jnp.float32)) for k, x in metrics.items()}
    return found | {k: Mean(*x) for k, x in zip(names, measured.sum((0, 1)), strict=True)}


def make(
    env: Any,
    network: Network,
    shape: Shape,
    *,
    optimizer: Callable[[Hyper, int], optax.GradientTransformation] = radam,
    explore: Callable[[jax.Array, jax.Array, jax.Array | None, jax.Array], jax.Array] = epsilon_greedy,
    loss: Callable[[jax.Array], jax.Array] = half_squared,
    returns: Callable[..., jax.Array] = q_lambda,
    mixing: Mixing = VDN,
    axis_name: str | None = None,
) -> PQN:
    """Make the algorithm PQN for environments and a network.

    Args:
      env: A `Vec`, or any object with the same `step`; None if the environments are on the host.
      network: See `qlax.Network`; its `head` says what its outputs mean.
      shape: Static sizes; N is the number of environments per device.
      optimizer: `(hyper, num_gradient_steps)` -> optax transformation; called in `learn`, so scalars may be traced.
      explore: `(key, q [N, M, A], legal, epsilon [N, 1])` -> action `[N, M]` int32; greedy where epsilon is 0.
      loss: Function from errors to costs, elementwise.
      returns: Function with the arguments and the result of `q_lambda`; segments rely on the last entry, `G_T = v_T`.
      mixing: Combination of the members' Q-values into those of a team.
      axis_name: Mapped axis of devices that share an agent's environments; `shard_map` needs `check_vma=False`.

    Raises:
      UserError: `num_minibatches` does not divide the number of segments, or `env` does not have N environments.

    Example:
      ```python
      env = qlax.Vec(qlax.make("gymnax/CartPole-v1"), num_envs=128)
      algorithm = qlax.pqn.make(env, qlax.QNetwork(num_actions=env.num_actions), qlax.pqn.Shape(num_envs=128))
      ```
    """
    T, N, S, head = shape.num_steps, shape.num_envs, shape.num_minibatches, head_of(network)
    L, segments = (T, N) if network.recurrent else (1, T * N)
    check_sizes(env, N, T, S, segments)
    num_gradient_steps = shape.num_updates * shape.num_epochs * S
    mixing = head.mixed(mixing)

    def apply(params: PyTree, stats: PyTree, memory: PyTree, obs: PyTree, first: jax.Array, train: bool = False) -> Any:
        """Apply the network; members are rows: `obs [L, B, M, ...]` -> `[L, B, M * D, K * A]`, memory, stats."""
        l, b, m = jax.tree.leaves(obs)[0].shape[:3]
        obs, first = jax.tree.map(lambda x: x.reshape(l, b * m, *x.shape[3:]), obs), jnp.repeat(first, m, 1)
        memory = jax.tree.map(lambda x: x.reshape(b * m, *x.shape[2:]), memory)
        variables, mutable = {"params": params, **stats}, list(stats) if train else []
        (outputs, memory), stats = network.apply(variables, memory, obs, first, train, mutable=mutable)
        memory = jax.tree.map(lambda x: x.reshape(b, m, *x.shape[1:]), memory)
        return outputs.reshape(l, b, -1, outputs.shape[-1]), memory, stats

    def look(state: TrainState) -> tuple[jax.Array, PyTree, jax.Array]:
        """Return outputs of the latest observation, `[N, M, K * A]`, the memory after it, and where episodes begin."""
        first = state.step.terminated | state.step.truncated
        obs = jax.tree.map(lambda x: x[None], state.step.obs)
        outputs, memory, _ = apply(state.params, state.stats, state.memory, obs, first[None])
        return outputs[0], memory, first

    def epsilons(state: TrainState, begin: int | jax.Array = 0) -> jax.Array:
        """Return epsilon of every environment, `[n, 1]`, of which the first on this device has the number `begin`."""
        h, done = state.hyper, state.updates
        factor = spread(h.epsilon_spread, begin, len(state.step.reward), N, axis_name)[:, None]
        mean = scheduled(done, shape.num_updates, h.epsilon_start, h.epsilon_end, h.epsilon_fraction)
        return jnp.minimum(mean * factor, 1.0)

    def init(key: jax.Array, hyper: Hyper, step: Step, env: PyTree = (), variables: PyTree | None = None) -> TrainState:
        def first(hyper: Hyper, params: PyTree) -> PyTree:
            return optimizer(hyper, num_gradient_steps).init(params)

        return TrainState(*begun(network, first, key, hyper, step, env, variables))

    def act(state: TrainState, begin: int | jax.Array = 0) -> tuple[TrainState, Decision]:
        key, key_explore, key_env = acting_keys(state.key, axis_name)
        outputs, memory, first = look(state)
        action = explore(key_explore, head.q(outputs), state.step.legal, epsilons(state, begin))
        decision = Decision(key_env, action, first, mixing.value(outputs, state.step.legal))
        return state._replace(memory=memory, key=key), decision

    def rollout(state: TrainState) -> tuple[TrainState, Rollout]:
        after, transitions = roll(act, observe, env, T, state)
        return after, Rollout(state.memory, transitions)

    def learn(state: TrainState, rollout: Rollout) -> tuple[TrainState, dict[str, Mean]]:
        h, steps = state.hyper, rollout.transitions
        lam_end = jnp.where(h.lam_fraction > 0, h.lam_end, h.lam)
        lam = scheduled(state.updates, shape.num_updates, h.lam, lam_end, h.lam_fraction)
        reward = h.reward_scale * steps.reward[..., None]  # [T, N, 1]: the same for all G
        terminated, truncated = steps.terminated[..., None], steps.truncated[..., None]
        value = jnp.concatenate([steps.value, mixing.value(look(state)[0], state.step.legal)[None]])
        g = returns(reward, terminated, truncated, value, h.gamma, lam)
        tail = (1 - lam) * value[1:] + lam * g[1:]  # value from which the target of step t bootstraps
        weight = 1.0 - (truncated & ~terminated).astype(jnp.float32)

        def split(x: jax.Array) -> jax.Array:  # [T, N, ...] -> [L, segments, ...], as L is 1 or T
            return x.reshape(L, segments, *x.shape[2:])

        data = (steps.obs, steps.first, steps.legal, steps.action, reward, terminated, truncated, weight)
        data, tail = jax.tree.map(split, data), split(tail)[-1]
        tx = optimizer(h, num_gradient_steps)

        def minibatch(carry: PyTree, index: jax.Array) -> tuple[PyTree, jax.Array]:
            params, stats, opt_state = carry
            obs, first, legal, action, reward, terminated, truncated, weight = jax.tree.map(lambda x: x[:, index], data)
            memory, end = jax.tree.map(lambda x: x[index], (rollout.memory, tail))
            total_weight = jnp.maximum(total(weight.sum(), axis_name), 1.0)

            def objective(params: PyTree) -> tuple[jax.Array, PyTree]:
                outputs, _, new_stats = apply(params, stats, memory, obs, first, train=True)
                # Targets use the newest Q within the segment, and the values of the rollout after its end.
                value = jnp.concatenate([mixing.value(jax.lax.stop_gradient(outputs), legal), end[None]])
                target = jnp.where(weight > 0, returns(reward, terminated, truncated, value, h.gamma, lam)[:-1], 0.0)
                error = jnp.where(weight > 0, target - mixing.q(outputs, action), 0.0)
                cost = (weight * head.cost(loss, error, target, outputs, action)).mean(-1).sum()
                return cost / total_weight, (new_stats, cost, jnp.abs(error).mean(-1).sum())

            grads, (stats, cost, error) = jax.grad(objective, has_aux=True)(params)
            grads = total(grads, axis_name)  # for which `shard_map` needs `check_vma=False`
            updates, opt_state = tx.update(grads, opt_state, params)
            measured = jnp.array([[cost, weight.sum()], [error, weight.sum()], [norm(grads), 1.0]])
            return (optax.apply_updates(params, updates), stats, opt_state), measured

        key, key_now = jax.random.split(state.key)
        (params, stats, opt), measured = passes(minibatch, state[:3], key_now, shape.num_epochs, segments, S)
        metrics = averaged(steps.metrics, ("loss", "td_error", "grad_norm"), measured)
        metrics |= {k: Mean(*x) for k, x in head.measures(g[:-1], weight).items()}
        least = (each := epsilons(state))[0, 0]  # subtracted, so that the mean of equal ones is exact
        means = {"value": steps.value.mean(), "epsilon": least + (each - least).mean()}
        metrics |= {k: Mean(x, jnp.float32(1)) for k, x in means.items()}
        state = state._replace(params=params, stats=stats, opt_state=opt, key=key, updates=state.updates + 1)
        return state, total(metrics, axis_name)

    def update(state: TrainState) -> tuple[TrainState, dict[str, Mean]]:
        return learn(*rollout(state))

    usual: Any = usual_switches(returns_nan=True)
    return PQN(*map(usual, (init, act, observe, rollout, learn, update)))
