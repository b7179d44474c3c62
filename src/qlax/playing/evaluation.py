"""Evaluation of a policy, usually greedy, over the first whole episode of every environment."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qlax import pqn_continuous
from qlax.envs.worker import Worker
from qlax.networks.actor_critic import reward_deviation
from qlax.playing.host import Part, first_steps, frozen
from qlax.pqn import PQN, Decision, TrainState
from qlax.types import Array, PyTree


def first_fingerprints(obs: PyTree) -> jax.Array:
    """Return the fingerprints of E episodes of which only the first observations are known, `[E, ...]` each.

    Episodes with the same first observation, actions and rewards have the same fingerprint; others have different ones,
    except by chance. Later observations do not count, as they would cost too much if they are screens.
    """
    found: Any = 0
    for leaf in jax.tree.leaves(obs):
        bits = jnp.asarray(leaf).reshape(len(leaf), -1).astype(jnp.float32).view(jnp.uint32)
        places = np.uint32(2654435761) * np.arange(1, bits.shape[-1] + 1, dtype=np.uint32)
        found = found * np.uint32(3) + _mixed(bits ^ places[None]).sum(-1, dtype=jnp.uint32)
    return found


def fingerprints(before: Array, action: Array, reward: Array) -> Array:
    """Extend the fingerprints of E episodes by a step, in NumPy or JAX; see `first_fingerprints`.

    Args:
      before: Fingerprints so far, uint32 `[E]`.
      action: Actions, int32 `[E, M]`, or float32 `[E, M, D]` if they are continuous.
      reward: Rewards, float32 `[E]`.
    """
    if action.dtype == np.float32:
        action = action.view(np.uint32).reshape(len(action), -1)
    weights = np.uint32(2654435761) * (2 * np.arange(action.shape[-1], dtype=np.uint32) + 1)
    chosen = ((action.astype(np.uint32) + 1) * weights[None]).sum(-1, dtype=np.uint32)
    for number in (chosen, reward.view(np.uint32)):
        before = _mixed(before ^ number)
    return before


def _mixed(x: Array) -> Array:
    """Mix the bits of uint32 numbers, one to one, by the finaliser of MurmurHash3 (Appleby, 2011)."""
    for shift, factor in ((16, 2246822507), (13, 3266489909)):
        x = (x ^ (x >> shift)) * np.uint32(factor)
    return x ^ (x >> 16)


def distinct(fingerprint: np.ndarray) -> np.ndarray:
    """Return the number of distinct episodes of each of R agents, from the fingerprints `[R, E]` of all episodes."""
    return np.array([len(np.unique(of_agent)) for of_agent in fingerprint])


def _in_evaluation(state: TrainState, epsilon: float | jax.Array) -> Any:
    """Return hyper-parameters with the same epsilon in all environments, and at any time; or without noise."""
    hyper: Any = state.hyper
    if isinstance(hyper, pqn_continuous.Hyper):
        none = jnp.zeros_like(hyper.noise_start)
        scale = hyper.reward_scale / reward_deviation(state.stats)  # values are those of divided rewards
        return hyper._replace(noise_start=none, noise_end=none, reward_scale=scale)
    one = jnp.asarray(epsilon, jnp.float32)
    return hyper._replace(epsilon_start=one, epsilon_end=one, epsilon_spread=jnp.float32(1))


def in_jax(
    algorithm: PQN, env: Any, max_steps: int, epsilon: float | jax.Array = 0.0
) -> Callable[[jax.Array, TrainState], dict[str, jax.Array]]:
    """Make a function that plays one episode in each of E environments in JAX.

    The first episode of every environment counts, however long it is. An average over all episodes that end within a
    fixed number of steps would favour short episodes.

    Args:
      algorithm: Algorithm whose `act` chooses the actions.
      env: A `Vec` of E copies.
      max_steps: Largest number of steps, as a greedy policy may never finish. An episode this long is cut, and counts
        with the return so far.
      epsilon: Probability of a random action; 0 is greedy.

    Returns:
      Function `(key, state) -> metrics`, each metric `[E]`: those of the environment at the end of its episode, such
      as `episode_return` (of raw rewards) and `episode_length`; `cut`, 1 where `max_steps` cut the episode;
      `fingerprint`, uint32, see `fingerprints`; and `overestimation`, nan where `max_steps` cut the episode: the
      value at the first step minus the scaled and discounted sum of rewards (van Hasselt et al., 2016,
      arXiv:1509.06461, section 3) and, where a time limit ended the episode, minus the discounted value of its final
      observation, which targets bootstrap from. The value is the mean over learners where members of a team learn
      independently. The environment's `shared` is the current one of training.
    """

    def evaluate(key: jax.Array, state: TrainState) -> dict[str, jax.Array]:
        key_reset, key_act = jax.random.split(key)
        env_state, step = env.reset(key_reset)
        if env_state.shared:
            env_state = env_state._replace(shared=state.env.shared)
        envs = step.reward.shape[0]
        hyper = _in_evaluation(state, epsilon)
        memory = jax.tree.map(lambda m: jnp.zeros((envs, *m.shape[1:]), m.dtype), state.memory)
        step = step._replace(terminated=jnp.ones(envs, bool))  # marks a new episode, which resets the memory
        state = state._replace(env=env_state, step=step, memory=memory, hyper=hyper, key=key_act)
        records = {name: jnp.full(envs, jnp.nan) for name in (*step.metrics, "overestimation")}

        def is_going_on(carry):
            _, unfinished, truncated, *_, steps = carry
            return (unfinished.any() & (steps < max_steps)) | truncated.any()

        def one(carry):
            state, unfinished, truncated, cut, records, fingerprint, excess, discount, steps = carry
            state, decision = algorithm.act(state)
            value = decision.value.mean(-1)
            # This step's value is that of the final observation of episodes that a time limit ended in the last step.
            finally_known = jnp.where(truncated, excess - discount * value, records["overestimation"])
            records = records | {"overestimation": finally_known}
            state, transition = algorithm.observe(state, decision, *env.step(decision.key, state.env, decision.action))
            unfinished &= steps < max_steps  # beyond, only values of final observations are still looked at
            seen = fingerprints(fingerprint, decision.action, transition.reward)
            fingerprint = jnp.where(unfinished, seen, fingerprint)
            ended = unfinished & ~jnp.isnan(transition.metrics["episode_return"])
            first_value = jnp.where(steps == 0, value, 0.0)
            excess += first_value - state.hyper.reward_scale * discount * transition.reward
            # Values do not include rewards after a lost life, which terminates the episode for the learner.
            discount = jnp.where(transition.terminated, 0.0, state.hyper.gamma * discount)
            at_end = transition.metrics | {"overestimation": excess}
            records = {k: jnp.where(ended, at_end[k], v) for k, v in records.items()}
            unfinished &= ~ended
            for name in ("episode_return", "episode_length"):  # so far
                records[name] = jnp.where(unfinished, getattr(state.env.copies, name), records[name])
            cut |= unfinished & (steps + 1 == max_steps)
            return state, unfinished, ended & (discount > 0), cut, records, fingerprint, excess, discount, steps + 1

        nobody, begun = jnp.zeros(envs, bool), first_fingerprints(step.obs)
        carry = (state, ~nobody, nobody, nobody, records, begun, jnp.zeros(envs), jnp.ones(envs), jnp.int32(0))
        _, _, _, cut, records, fingerprint, *_ = jax.lax.while_loop(is_going_on, one, carry)
        return records | {"cut": cut.astype(jnp.float32), "fingerprint": fingerprint}

    return evaluate


def on_host(
    act: Callable[[TrainState, Part], tuple[Part, Decision]],
    worker: Worker,
    state: TrainState,
    seed: int,
    max_steps: int,
    stopped: Callable[[], bool],
    epsilon: float = 0.0,
) -> dict[str, np.ndarray] | None:
    """Play one episode in each of E environments on the host.

    Args:
      act: The function `qlax.playing.host.act` of the algorithm, compiled for E environments.
      worker: Worker with E environments.
      state: Training state; its memory is not used.
      seed: Seed of the episodes.
      max_steps: Largest number of steps. An episode this long is cut, and counts with the return so far.
      stopped: Function that returns True if the evaluation is to stop; it is called at every step, as an evaluation
        may take minutes.
      epsilon: Probability of a random action; 0 is greedy.

    Returns:
      Metrics `[E]` as those of `in_jax`; None if the evaluation was stopped.
    """
    worker.reset(seed)
    step, metrics = worker.result()
    envs = len(metrics["raw_reward"])
    hyper = _in_evaluation(state, epsilon)
    memory = jax.tree.map(lambda m: jnp.zeros((envs, *m.shape[1:]), m.dtype), state.memory)
    part = Part(jnp.int32(0), jax.random.key(seed), first_steps(step), memory)
    parameters = frozen(state)._replace(hyper=hyper)
    unfinished, steps = np.ones(envs, bool), 0
    records = {name: np.full(envs, np.nan, np.float32) for name in metrics if name != "raw_reward"}
    records["overestimation"] = np.full(envs, np.nan, np.float32)
    excess, discount = np.zeros(envs, np.float32), np.ones(envs, np.float32)
    gamma, reward_scale = np.float32(hyper.gamma), np.float32(hyper.reward_scale)
    so_far = {"episode_return": np.zeros(envs), "episode_length": np.zeros(envs)}  # float64, as in `qlax.Episodes`
    truncated, fingerprint = np.zeros(envs, bool), np.asarray(first_fingerprints(step.obs))
    while (is_going_on := unfinished.any() and steps < max_steps) or truncated.any():
        if stopped():
            return None
        part, decision = act(parameters, part)
        value = np.asarray(decision.value).mean(-1)
        # This step's value is that of the final observation of episodes that a time limit ended in the last step.
        records["overestimation"] = np.where(truncated, excess - discount * value, records["overestimation"])
        if not is_going_on:
            break
        action = np.asarray(decision.action)
        worker.step(action)
        step, metrics = worker.result()
        if steps == 0:
            excess += value
        seen = fingerprints(fingerprint, action, np.asarray(step.reward, np.float32))
        fingerprint = np.where(unfinished, seen, fingerprint)
        excess -= reward_scale * discount * np.asarray(step.reward)
        discount = np.where(step.terminated, 0, gamma * discount)
        part, steps = part._replace(step=step), steps + 1
        so_far["episode_return"] += metrics["raw_reward"]
        so_far["episode_length"] += 1
        ended = unfinished & ~np.isnan(metrics["episode_return"])
        # An environment that resets in the step of an end does not show the final observation.
        at_end = metrics | {"overestimation": np.where(step.truncated & (discount > 0), np.nan, excess)}
        records = {name: np.where(ended, at_end[name], record) for name, record in records.items()}
        truncated = ended & (discount > 0) & ~np.asarray(step.truncated)
        unfinished &= ~ended
    records |= {name: np.where(unfinished, value, records[name]).astype(np.float32) for name, value in so_far.items()}
    return records | {"cut": unfinished.astype(np.float32), "fingerprint": fingerprint}
