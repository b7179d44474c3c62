"""Learning with parameters and moments as vectors, as on a GPU, against learning with trees."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from probes import ConstantReward, strict_and_quick

import qlax
from qlax import pqn
from qlax.config.configure import configure
from qlax.envs.vec import Vec
from qlax.training import guard, plan, vector
from qlax.training.placement import Placement


@pytest.fixture(autouse=True, scope="module")
def quick():
    with strict_and_quick():
        yield


def adamw(hyper, num_gradient_steps):
    del num_gradient_steps
    return optax.chain(optax.clip_by_global_norm(hyper.max_grad_norm), optax.adamw(hyper.learning_rate))


adamw.elementwise = True


def layer_by_layer(hyper, num_gradient_steps):
    """Make LAMB, whose steps depend on the norms of single layers, so that layers must not be joined."""
    del num_gradient_steps
    return optax.lamb(hyper.learning_rate)


@pytest.mark.parametrize("optimizer", [pqn.radam, adamw])
def test_two_updates_are_those_with_trees(optimizer):
    shape = pqn.Shape(num_envs=4, num_steps=4, num_minibatches=2, num_updates=10)
    vec, network = Vec(ConstantReward(), 4), qlax.QNetwork(num_actions=2, hidden=(8, 4))
    algorithm = pqn.make(vec, network, shape, optimizer=optimizer)
    env, step = jax.jit(vec.reset)(jax.random.key(0))
    hyper = pqn.Hyper(learning_rate=0.1, max_grad_norm=0.01)  # small enough to clip gradients
    state = jax.jit(algorithm.init)(jax.random.key(1), hyper, step, env)
    form = vector.chosen("gpu", optimizer, state.params, state.opt_state)
    assert form.enter(state).params.ndim == 1
    on_gpu = pqn.make(vec, form.network(network), shape, optimizer=optimizer)
    results = []
    for made in (guard.make(algorithm, network), guard.make(on_gpu, network, form=form)):
        learn, measure = made
        agent = state
        sums = jax.eval_shape(lambda state, measure=measure: measure(state, algorithm.rollout(state)[1])[1], agent)
        record = jax.tree.map(lambda x: x[0], guard.empty(jax.tree.map(lambda x: x.update(shape=(1,)), sums), 1))
        update = jax.jit(lambda state, record, learn=learn: learn(state, record, algorithm.rollout(state)[1]))
        for _ in range(2):
            agent, record = update(agent, record)
        results.append((agent.params, agent.opt_state, agent.key, record))
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    assert jax.tree.structure(results[0]) == jax.tree.structure(results[1])
    jax.tree.map(lambda *x: close(*(jax.random.key_data(y) if qlax.types.is_key(y) else y for y in x)), *results)


def counting(hyper, num_gradient_steps):
    """Make an optimiser whose state has a vector as long as all parameters that is not a moment."""
    del num_gradient_steps

    def init(params):
        return {"last": params, "own": jnp.zeros(sum(x.size for x in jax.tree.leaves(params)))}

    def update(grads, state, params=None):
        del params
        updates = jax.tree.map(lambda x: -hyper.learning_rate * x, grads)
        return updates, {"last": grads, "own": state["own"] + 1}

    return optax.GradientTransformation(init, update)


counting.elementwise = True


def test_a_vector_of_the_optimiser_s_own_is_not_taken_for_a_moment():
    params = {"a": jnp.ones((2, 3)), "b": jnp.ones(4)}
    opt_state = counting(pqn.Hyper(), 1).init(params)
    form = vector.chosen("gpu", counting, params, opt_state)
    state = pqn.TrainState(params, {}, opt_state, (), (), (), (), (), ())
    inside = form.enter(state)
    assert inside.opt_state["last"].shape == inside.opt_state["own"].shape == (10,)
    jax.tree.map(np.testing.assert_array_equal, form.leave(inside), state)


@pytest.mark.parametrize("reward", [1.0, np.inf])
def test_the_guard_freezes_an_agent_as_with_trees(reward):
    shape = pqn.Shape(num_envs=4, num_steps=4, num_minibatches=2, num_updates=10)
    vec, network = Vec(ConstantReward(), 4), qlax.QNetwork(num_actions=2, hidden=(8, 4))
    algorithm = pqn.make(vec, network, shape)
    state = jax.jit(algorithm.init)(jax.random.key(1), pqn.Hyper(), *reversed(jax.jit(vec.reset)(jax.random.key(0))))
    form = vector.chosen("gpu", pqn.radam, state.params, state.opt_state)
    learn, measure = guard.make(pqn.make(vec, form.network(network), shape), network, form=form)
    _, rollout = jax.jit(algorithm.rollout)(state)
    transitions = rollout.transitions._replace(reward=rollout.transitions.reward.at[0, 0].set(reward))
    rollout = rollout._replace(transitions=transitions)
    sums = jax.eval_shape(measure, state, rollout)[1]
    record = jax.tree.map(lambda x: x[0], guard.empty(jax.tree.map(lambda x: x.update(shape=(1,)), sums), 1))
    after, record = jax.jit(learn)(state, record, rollout)
    same = jax.tree.map(np.array_equal, (after.params, after.opt_state), (state.params, state.opt_state))
    assert jax.tree.all(same) == (record.diverged == 0) == np.isinf(reward)


@pytest.mark.parametrize(("optimizer", "joined"), [(pqn.radam, True), (adamw, True), (layer_by_layer, False)])
def test_only_optimizers_that_permit_it_get_a_vector_and_on_a_gpu_only(optimizer, joined, monkeypatch):
    seen = []

    def watched(hyper, num_gradient_steps):
        made = optimizer(hyper, num_gradient_steps)

        def update(grads, *rest):
            seen.append(isinstance(grads, jax.Array))
            return made.update(grads, *rest)

        return optax.GradientTransformation(made.init, update)

    watched.elementwise = joined
    config = configure("gymnax/CartPole-v1", num_envs=4, num_steps=4, num_minibatches=2, hidden=(8,), total_steps=160)
    plan.make(config, {"optimizer": watched})
    assert set(seen) == {False}
    seen.clear()
    monkeypatch.setattr(Placement, "platform", property(lambda self: "gpu", lambda self, platform: None), raising=False)
    made = plan.make(config, {"optimizer": watched})
    assert set(seen) == {joined}
    assert isinstance(made.shapes.params, dict)  # saved states have their usual form
