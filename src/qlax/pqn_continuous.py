"""PQN with an actor, for continuous actions: online Q(lambda) of the actor's own actions, without replay.

One `update` acts for T steps in N environments with Gaussian noise (`rollout`), computes Q(lambda) targets of the
transitions, and fits C critics to the targets and the actor to the critics with a few epochs of minibatch gradient
descent (`learn`). States, rollouts and shapes are those of `qlax.pqn`.

Axes, always in this order: T steps, N environments, M team members (1 for a single agent), D dimensions of an action;
C critics; G learners, each with a target of its own: 1 for a team, M if its members learn by themselves.

Source: Gallici, "Parallel Q-Networks for continuous action spaces", 2025, mttga.github.io/posts/pqn_continuous, and
its code. As there: the noise, the mean of the critics, their cost, the penalty, both optimisers and the running
statistics. Not as there: targets are those of `qlax.q_lambda`, which begin with the value of the last state and
bootstrap at time limits; the penalty and the critics' input are in halves of an action's range; statistics are updated
once in a rollout.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from qlax.learning.gradients import norm, radam
from qlax.learning.mixing import VDN, Mixing
from qlax.learning.returns import q_lambda
from qlax.learning.updates import acting_keys, begun, check_sizes, passes, roll, scheduled, spread, total
from qlax.pqn import PQN, Decision, Mean, Rollout, Shape, TrainState, averaged, observe
from qlax.switches import usual_switches
from qlax.types import PyTree, Step


class Hyper(NamedTuple):
    """Hyper-parameters that may be traced: use `jax.vmap` over them, or change them in training."""

    learning_rate: float | jax.Array = 5e-4  # initial learning rate, of the critics and of the actor
    learning_rate_end: float | jax.Array = 0.0  # final learning rate as a fraction of learning_rate; 1 is constant
    gamma: float | jax.Array = 0.99  # discount factor
    lam: float | jax.Array = 0.65  # initial lambda of Q(lambda)
    lam_end: float | jax.Array = 0.65  # final lambda
    lam_fraction: float | jax.Array = 0.0  # fraction of all updates until lambda reaches lam_end; 0: lam throughout
    noise_start: float | jax.Array = 1.0  # initial deviation of the noise, in halves of the range of an action
    noise_end: float | jax.Array = 0.15  # final deviation of the noise
    noise_fraction: float | jax.Array = 1.0  # fraction of all updates until the noise reaches noise_end; may be 0
    noise_spread: float | jax.Array = 1.0  # largest noise of an environment, as a multiple of their geometric mean
    drift_penalty: float | jax.Array = 10.0  # weight of the penalty on actions that leave those of the rollout
    drift_threshold: float | jax.Array = 0.15  # mean distance from which it counts, in halves of the range of an action
    max_grad_norm: float | jax.Array = (
        10.0  # global norm to which gradients are clipped, those of critics and actor each
    )
    reward_scale: float | jax.Array = 1.0  # factor of rewards in targets; metrics report unscaled rewards


def make(
    env: Any,
    network: Any,
    shape: Shape,
    *,
    optimizer: Callable[[Any, int], optax.GradientTransformation] = radam,
    loss: Callable[[jax.Array], jax.Array] = optax.huber_loss,
    returns: Callable[..., jax.Array] = q_lambda,
    mixing: Mixing = VDN,
    greedy_target: bool = False,
    axis_name: str | None = None,
) -> PQN:
    """Make the algorithm for environments with continuous actions and a network of actor and critics.

    Args:
      env: A `Vec`, or any object with the same `step`; None if the environments are on the host.
      network: A `qlax.networks.actor_critic.ActorCritic`, or a module of Flax with its attributes `low`, `high` and
        `reward_norm` and its methods.
      shape: Static sizes; N is the number of environments per device.
      optimizer: See `qlax.pqn.make`; used twice, for the critics and for the actor.
      loss: Function from errors of critics to costs, elementwise.
      returns: Function with the arguments and the result of `q_lambda`.
      mixing: Combination of the members' values into those of a team, see `qlax.pqn.make`.
      greedy_target: If True, targets bootstrap from the value of the actor's action in place of the noisy one.
      axis_name: See `qlax.pqn.make`.

    Raises:
      UserError: `num_minibatches` does not divide the number of transitions, or `env` does not have N environments.
    """
    T, N, S = shape.num_steps, shape.num_envs, shape.num_minibatches
    segments, num_gradient_steps = T * N, shape.num_updates * shape.num_epochs * S
    check_sizes(env, N, T, S, segments)
    low, high = jnp.array(network.low, jnp.float32), jnp.array(network.high, jnp.float32)
    half = ((high - low) / 2)[None, None]  # of the range of an action, [1, 1, D]

    def rows(obs: PyTree) -> PyTree:
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), obs)  # members are rows to the network

    def policy(params: PyTree, stats: PyTree, obs: PyTree) -> jax.Array:
        """Return the actor's actions `[B, M, D]` for observations `[B, M, ...]`."""
        action: jax.Array = network.apply({"params": params, **stats}, rows(obs), method="policy")
        return action.reshape(*jax.tree.leaves(obs)[0].shape[:2], -1)

    def values(params: PyTree, stats: PyTree, obs: PyTree, action: jax.Array) -> jax.Array:
        """Return the value of actions `[B, M, D]` by every critic, `[C, B, G]`."""
        flat = action.reshape(-1, action.shape[-1])
        q = network.apply({"params": params, **stats}, rows(obs), flat, method="values")
        value: jax.Array = mixing.value(q.reshape(-1, *action.shape[:2], 1), None)  # each member has one action
        return value

    def noises(state: TrainState, begin: int | jax.Array = 0) -> jax.Array:
        """Return the deviation of the noise in every environment, `[n, 1, 1]`, see `qlax.pqn`."""
        h = state.hyper
        factor = spread(h.noise_spread, begin, len(state.step.reward), N, axis_name)[:, None, None]
        now = scheduled(state.updates, shape.num_updates, h.noise_start, h.noise_end, h.noise_fraction)
        return jnp.multiply(factor, now)

    def decide(state: TrainState, key: jax.Array, begin: int | jax.Array = 0) -> tuple[jax.Array, jax.Array]:
        """Return noisy actions of the latest observations, `[N, M, D]`, and the value that targets bootstrap from."""
        best = policy(state.params, state.stats, state.step.obs)
        noise = noises(state, begin) * half * jax.random.normal(key, best.shape)
        action = jnp.clip(best + noise, low[None, None], high[None, None])
        value = values(state.params, state.stats, state.step.obs, best if greedy_target else action)
        return action, value.mean(0)

    def init(key: jax.Array, hyper: Any, step: Step, env: PyTree = (), variables: PyTree | None = None) -> TrainState:
        def first(hyper: Any, params: PyTree) -> PyTree:
            tx = optimizer(hyper, num_gradient_steps)
            return {name: tx.init(part) for name, part in params.items()}  # of the actor and of the critics

        state = TrainState(*begun(network, first, key, hyper, step, env, variables))
        # The discounted return of each environment so far, from which the deviation of returns is computed.
        return state._replace(memory=jnp.zeros((len(step.reward), 1)) if network.reward_norm else ())

    def act(state: TrainState, begin: int | jax.Array = 0) -> tuple[TrainState, Decision]:
        key, key_noise, key_env = acting_keys(state.key, axis_name)
        action, value = decide(state, key_noise, begin)
        return state._replace(key=key), Decision(key_env, action, state.step.terminated | state.step.truncated, value)

    def rollout(state: TrainState) -> tuple[TrainState, Rollout]:
        after, transitions = roll(act, observe, env, T, state)
        return after, Rollout(state.memory, transitions)

    def with_statistics(state: TrainState, rollout: Rollout, obs: PyTree) -> tuple[PyTree, PyTree]:
        """Return the statistics with those of a rollout, and the discounted return so far of every environment."""
        steps, so_far, seen = rollout.transitions, rollout.memory, jnp.zeros(1)
        if network.reward_norm:

            def one(so_far: jax.Array, step: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
                reward, ends = step
                so_far = reward + state.hyper.gamma * so_far
                return jnp.where(ends, 0.0, so_far), so_far

            ends = steps.terminated | steps.truncated
            reward = jnp.where(steps.truncated & ~steps.terminated, 0.0, steps.reward)  # there it may be nan
            so_far, seen = jax.lax.scan(one, so_far, (reward[..., None], ends[..., None]))
        variables, collections = {"params": state.params, **state.stats}, list(state.stats)
        _, stats = network.apply(variables, rows(obs), seen, method="learn_statistics", mutable=collections)
        return stats, so_far

    def learn(state: TrainState, rollout: Rollout) -> tuple[TrainState, dict[str, Mean]]:
        h, steps = state.hyper, rollout.transitions
        key, key_last, key_order = jax.random.split(state.key, 3)
        if axis_name is not None:
            key_last = jax.random.fold_in(key_last, jax.lax.axis_index(axis_name))
        obs, action = jax.tree.map(lambda x: x.reshape(segments, *x.shape[2:]), (steps.obs, steps.action))
        acted = policy(state.params, state.stats, obs)  # what the actor chose, without noise
        stats, so_far = with_statistics(state, rollout, obs)
        deviation = network.apply({"params": state.params, **stats}, method="reward_deviation")
        reward = h.reward_scale / deviation * steps.reward[..., None]  # [T, N, 1]: the same for all G
        terminated, truncated = steps.terminated[..., None], steps.truncated[..., None]
        value = jnp.concatenate([steps.value, decide(state, key_last)[1][None]])
        lam_end = jnp.where(h.lam_fraction > 0, h.lam_end, h.lam)
        lam = scheduled(state.updates, shape.num_updates, h.lam, lam_end, h.lam_fraction)
        g = returns(reward, terminated, truncated, value, h.gamma, lam)[:-1]
        weight = 1.0 - (truncated & ~terminated).astype(jnp.float32)
        data = (obs, action, acted, g.reshape(segments, -1), weight.reshape(segments, 1))
        tx = optimizer(h, num_gradient_steps)

        def descend(name: str, objective: Callable[[PyTree], Any], carry: PyTree) -> tuple[PyTree, PyTree]:
            """Make a gradient step of one part, the actor or the critics; return what it measured, too."""
            params, opt_state = carry
            grads, measured = jax.grad(objective, has_aux=True)(params[name])
            grads = total(grads, axis_name)
            updates, of_part = tx.update(grads, opt_state[name], params[name])
            stepped = optax.apply_updates(params[name], updates)
            return (params | {name: stepped}, opt_state | {name: of_part}), (*measured, norm(grads))

        def minibatch(carry: PyTree, index: jax.Array) -> tuple[PyTree, jax.Array]:
            obs, action, acted, target, weight = jax.tree.map(lambda x: x[index], data)
            total_weight = jnp.maximum(total(weight.sum(), axis_name), 1.0)

            def of_critics(critic: PyTree) -> tuple[jax.Array, PyTree]:
                error = target[None] - values({"critic": critic}, stats, obs, action)
                error = jnp.where(weight[None] > 0, error, 0.0)  # [C, B, G]
                cost = (weight * loss(error).sum(0)).mean(-1).sum()
                return cost / total_weight, (cost, jnp.abs(error).mean((0, -1)).sum())

            def of_actor(actor: PyTree) -> tuple[jax.Array, PyTree]:
                chosen = policy({"actor": actor}, stats, obs)
                drift = (chosen - acted) / half
                is_far = jnp.abs(drift).mean(-1) >= h.drift_threshold  # [B, M]
                penalty = h.drift_penalty * jnp.where(is_far, optax.huber_loss(drift).mean(-1), 0.0).mean(-1)
                gain = values(carry[0], stats, obs, chosen).mean((0, -1))  # [B]
                cost = (weight[:, 0] * (penalty - gain)).sum()
                return cost / total_weight, (cost, (weight * is_far).mean(-1).sum())

            carry, (cost, error, of_grads) = descend("critic", of_critics, carry)
            carry, (actor_cost, far, _) = descend("actor", of_actor, carry)
            sums = jnp.stack([cost, error, actor_cost, far])
            measured = jnp.stack([sums, jnp.full(4, weight.sum())], -1)
            return carry, jnp.concatenate([measured, jnp.stack([of_grads, jnp.ones_like(of_grads)])[None]])

        carry = state.params, state.opt_state
        (params, opt_state), measured = passes(minibatch, carry, key_order, shape.num_epochs, segments, S)
        names = ("loss", "td_error", "actor_loss", "drift", "grad_norm")
        metrics = averaged(steps.metrics, names, measured)
        means = {"value": steps.value.mean(), "noise": noises(state).mean()}
        metrics |= {k: Mean(x, jnp.float32(1)) for k, x in means.items()}
        state = state._replace(params=params, stats=stats, opt_state=opt_state, memory=so_far)
        return state._replace(key=key, updates=state.updates + 1), total(metrics, axis_name)

    def update(state: TrainState) -> tuple[TrainState, dict[str, Mean]]:
        return learn(*rollout(state))

    usual: Any = usual_switches(returns_nan=True)
    return PQN(*map(usual, (init, act, observe, rollout, learn, update)))
