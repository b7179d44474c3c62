"""Evaluation, greedy unless said otherwise: the first whole episode of every environment, and no other."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qlax.envs.worker import Worker
from qlax.play.host import Part, first_steps, frozen
from qlax.pqn import PQN, Decision, TrainState


def in_jax(
    algorithm: PQN, env: Any, max_steps: int, epsilon: float | jax.Array = 0.0
) -> Callable[[jax.Array, TrainState], dict[str, jax.Array]]:
    """Make a function that plays one episode in each of E environments in JAX.

    Counting the first episode of every environment, and waiting for all of them, keeps short episodes
    from being favoured, as they are where whatever ends within a fixed number of steps is averaged.

    Args:
      algorithm: whose `act` chooses.
      env: a `Vec` of E copies.
      max_steps: a greedy policy may never finish; an episode this long is cut and counts as it stands.
      epsilon: share of random actions; 0 is greedy.

    Returns:
      `(key, state) -> metrics`, each `[E]`: those of the environment at the end of its episode, such as
      `episode_return` and `episode_length`; `cut`, 1 where `max_steps` cut the episode; and `overestimation`: what Q
      promised at the first step, minus the rewards that came, scaled and discounted as they are learned from (van
      Hasselt et al., 2016, arXiv:1509.06461, section 3), nan where the episode was cut. What all copies share is as it
      is at this point of training; returns are of raw rewards all the same.
    """

    def evaluate(key: jax.Array, state: TrainState) -> dict[str, jax.Array]:
        key_reset, key_act = jax.random.split(key)
        env_state, step = env.reset(key_reset)
        if env_state.shared:
            env_state = env_state._replace(shared=state.env.shared)
        envs = step.reward.shape[0]
        hyper = state.hyper._replace(epsilon_start=jnp.float32(epsilon), epsilon_end=jnp.float32(epsilon))
        memory = jax.tree.map(lambda m: jnp.zeros((envs, *m.shape[1:]), m.dtype), state.memory)
        step = step._replace(terminated=jnp.ones(envs, bool))  # so that the memory is reset
        state = state._replace(env=env_state, step=step, memory=memory, hyper=hyper, key=key_act)
        unfinished = jnp.ones(envs, bool)
        records = {name: jnp.full(envs, jnp.nan) for name in (*step.metrics, "overestimation")}

        def unfinished_within_limit(carry):
            _, unfinished, _, _, _, steps = carry
            return unfinished.any() & (steps < max_steps)

        def one(carry):
            state, unfinished, records, excess, discount, steps = carry
            state, decision = algorithm.act(state)
            state, transition = algorithm.observe(state, decision, *env.step(decision.key, state.env, decision.action))
            ended = unfinished & ~jnp.isnan(transition.metrics["episode_return"])
            promised = jnp.where(steps == 0, decision.value.mean(-1), 0.0)
            excess += promised - state.hyper.reward_scale * discount * transition.reward
            # Nothing is promised beyond a lost life that ends the learner's episode.
            discount = jnp.where(transition.terminated, 0.0, state.hyper.gamma * discount)
            seen = transition.metrics | {"overestimation": excess}
            records = {k: jnp.where(ended, seen[k], v) for k, v in records.items()}
            return state, unfinished & ~ended, records, excess, discount, steps + 1

        carry = (state, unfinished, records, jnp.zeros(envs), jnp.ones(envs), jnp.int32(0))
        state, unfinished, records, *_ = jax.lax.while_loop(unfinished_within_limit, one, carry)
        for name in ("episode_return", "episode_length"):
            records[name] = jnp.where(unfinished, getattr(state.env.copies, name), records[name])
        return records | {"cut": unfinished.astype(jnp.float32)}

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
    """Play one episode in each of E environments on the host, and count the same of it as `in_jax`.

    Args:
      act: `qlax.play.host.act` of the algorithm, for E environments.
      worker: of E environments.
      state: of the run; its memory is not touched.
      seed: of the episodes.
      max_steps: an episode this long is cut, and counts as it stands.
      stopped: whether the run is to be stopped, asked at every step: an evaluation may take minutes.
      epsilon: share of random actions; 0 is greedy.

    Returns:
      Metrics `[E]` as those of `in_jax`; None if it was stopped.
    """
    worker.reset(seed)
    step, metrics = worker.result()
    envs = len(metrics["raw_reward"])
    hyper = state.hyper._replace(epsilon_start=jnp.float32(epsilon), epsilon_end=jnp.float32(epsilon))
    memory = jax.tree.map(lambda m: jnp.zeros((envs, *m.shape[1:]), m.dtype), state.memory)
    part = Part(jax.random.key(seed), first_steps(step), memory)
    parameters = frozen(state)._replace(hyper=hyper)
    unfinished, steps = np.ones(envs, bool), 0
    records = {name: np.full(envs, np.nan, np.float32) for name in metrics if name != "raw_reward"}
    records["overestimation"] = np.full(envs, np.nan, np.float32)
    excess, discount = np.zeros(envs, np.float32), np.ones(envs, np.float32)
    gamma, reward_scale = np.float32(state.hyper.gamma), np.float32(state.hyper.reward_scale)
    so_far = {"episode_return": np.zeros(envs, np.float32), "episode_length": np.zeros(envs, np.float32)}
    while unfinished.any() and steps < max_steps:
        if stopped():
            return None
        part, decision = act(parameters, part)
        worker.step(np.asarray(decision.action))
        step, metrics = worker.result()
        if steps == 0:
            excess += np.asarray(decision.value).mean(-1)
        excess -= reward_scale * discount * np.asarray(step.reward)
        discount = np.where(step.terminated, 0, gamma * discount)
        part, steps = part._replace(step=step), steps + 1
        so_far["episode_return"] += metrics["raw_reward"]
        so_far["episode_length"] += 1
        ended = unfinished & ~np.isnan(metrics["episode_return"])
        seen = metrics | {"overestimation": excess}
        records = {name: np.where(ended, seen[name], record) for name, record in records.items()}
        unfinished &= ~ended
    records |= {name: np.where(unfinished, value, records[name]) for name, value in so_far.items()}
    return records | {"cut": unfinished.astype(np.float32)}
