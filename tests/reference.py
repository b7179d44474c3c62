"""Independent PQN in plain NumPy and float64, which tests compare with the library.

It uses no code of the library, and of two ways to compute something it takes the slower or the plainer one.

Axes, always in this order: T steps (L within a segment), N environments (B in a batch), M team members, F features; A
actions.
"""

from typing import NamedTuple

import numpy as np

LAYER_NORM_EPSILON = 1e-6  # Flax's default
MEMORY_DECAY = 0.9


def q_lambda(reward, terminated, truncated, value, gamma, lam):
    """Return Q(lambda) targets in the forward view: each a mixture of n-step returns, computed on its own.

    Each target walks forward from its own step. With R_n = r_t + ... + gamma^(n-1) r_{t+n-1} + gamma^n v_{t+n} and K
    the number of steps before the walk ends,

        G_t = sum_{n=1..K} (1 - lam) lam^(n-1) R_n  +  lam^K (the return at which the walk ends)

    The walk ends after a terminated step, with no further value; before a step u that is truncated and not terminated,
    with v_u; and at the end of the rollout, with v_T.

    Args: reward, terminated, truncated [T, N]; value [T+1, N]. Returns: G [T+1, N].
    """
    reward, value = np.asarray(reward, np.float64), np.asarray(value, np.float64)
    terminated, truncated = np.asarray(terminated), np.asarray(truncated)
    num_steps, num_envs = reward.shape
    returns = np.zeros_like(value)
    for n in range(num_envs):
        for start in range(num_steps + 1):
            mixture, unspent, rewards, discount = 0.0, 1.0, 0.0, 1.0
            end = rewards + discount * value[start, n]
            for t in range(start, num_steps):
                if truncated[t, n] and not terminated[t, n]:
                    break  # before its reward is read: it belongs to no action and may be nan
                rewards += discount * reward[t, n]
                if terminated[t, n]:
                    end = rewards
                    break
                discount *= gamma
                end = rewards + discount * value[t + 1, n]
                mixture += unspent * (1 - lam) * end
                unspent *= lam
            returns[start, n] = mixture + unspent * end
    return returns


def mlp(params, obs):
    """Apply dense, LayerNorm and relu for each hidden layer, then dense to the actions: obs [..., F] -> q [..., A].

    Args: params: a list, {"kernel", "bias", "scale", "shift"} for a hidden layer and {"kernel", "bias"} for the last.
    """
    return _mlp_layers(params, obs)[0]


def mlp_gradient(params, obs, dq):
    """Return the gradient of sum(q * dq), derived by hand, shaped like params: obs [..., F], dq [..., A]."""
    params, upstream = as_float64(params), as_float64(dq)
    _, inputs, normals, deviations = _mlp_layers(params, obs)
    grads = [_dense_gradient(inputs[-1], upstream)]
    for i in reversed(range(len(params) - 1)):
        normal = normals[i]
        upstream = (upstream @ params[i + 1]["kernel"].T) * (inputs[i + 1] > 0)  # through the relu of layer i
        shift, scale = _sum_but_last(upstream), _sum_but_last(upstream * normal)
        upstream = upstream * params[i]["scale"]
        mean, along = upstream.mean(-1, keepdims=True), (upstream * normal).mean(-1, keepdims=True)
        # The two components are subtracted because LayerNorm removes any shift and any scaling of all sums.
        upstream = (upstream - mean - normal * along) / deviations[i]
        grads.insert(0, {**_dense_gradient(inputs[i], upstream), "scale": scale, "shift": shift})
    return grads


def leaky(params, memory, obs, first):
    """Compute a leaky sum of the observations, reset where an episode begins, then apply a dense layer.

    Args: params {"kernel" [F, A], "bias" [A]}; memory [B, F]; obs [L, B, F]; first [L, B].
    Returns: q [L, B, A], memory [B, F].
    """
    memories = _leaky_memories(memory, obs, first)
    params = as_float64(params)
    return memories @ params["kernel"] + params["bias"], memories[-1]


def leaky_gradient(params, memory, obs, first, dq):
    """Return the gradient of sum(q * dq), dq [L, B, A]; only the dense layer has parameters."""
    del params
    return _dense_gradient(_leaky_memories(memory, obs, first), as_float64(dq))


def _mlp_layers(params, obs):
    """Return q, and for the backward pass the inputs of all layers, the normalised sums and their deviations."""
    inputs, normals, deviations = [as_float64(obs)], [], []
    *hidden, last = as_float64(params)
    for layer in hidden:
        sums = inputs[-1] @ layer["kernel"] + layer["bias"]
        deviations.append(np.sqrt(sums.var(-1, keepdims=True) + LAYER_NORM_EPSILON))
        normals.append((sums - sums.mean(-1, keepdims=True)) / deviations[-1])
        inputs.append(np.maximum(normals[-1] * layer["scale"] + layer["shift"], 0))
    return inputs[-1] @ last["kernel"] + last["bias"], inputs, normals, deviations


def _leaky_memories(memory, obs, first):
    """Return the memory after each step: [L, B, F]."""
    memory, memories = as_float64(memory), []
    for obs_t, first_t in zip(as_float64(obs), np.asarray(first), strict=True):
        memory = MEMORY_DECAY * np.where(first_t[:, None], 0, memory) + obs_t
        memories.append(memory)
    return np.stack(memories)


def _dense_gradient(inputs, upstream):
    return {"kernel": _sum_but_last(inputs[..., :, None] * upstream[..., None, :], 2), "bias": _sum_but_last(upstream)}


def _sum_but_last(x, kept=1):
    return x.sum(tuple(range(x.ndim - kept)))


class RAdam(NamedTuple):
    """Clipping by global norm, then rectified Adam with a learning rate that falls linearly over gradient steps.

    With t the number of gradient steps, this one included, m^ and s^ the unbiased means of the gradient and its square,
    ro_inf = 2 / (1 - b2) - 1 and ro = ro_inf - 2 t b2^t / (1 - b2^t):

        change = - rate * rectification * m^ / (sqrt(s^) + eps)    where ro >= 5
        change = - rate * m^                                       otherwise (in the first five steps)

    Source: Liu et al. 2020, "On the variance of the adaptive learning rate and beyond", algorithm 2,
    https://arxiv.org/abs/1908.03265
    """

    learning_rate: float
    learning_rate_end: float  # a fraction of learning_rate; 1 is constant
    max_grad_norm: float
    num_gradient_steps: int  # number in the whole run

    def initial(self, params):
        """Return the state before the first gradient step."""
        zeros = tree_map(lambda x: np.zeros(x.shape), params)
        return {"count": 0, "mean": zeros, "square": zeros}  # may be shared, because no array is ever changed

    def step(self, params, grads, state, b1=0.9, b2=0.999, eps=1e-8, threshold=5.0):
        """Return params and state after one gradient step; grads are shaped like params."""
        params, grads = as_float64(params), as_float64(grads)
        squares = []
        tree_map(lambda g: squares.append(np.sum(g * g)), grads)
        norm = np.sqrt(sum(squares))
        if norm > self.max_grad_norm:
            grads = tree_map(lambda g: g * (self.max_grad_norm / norm), grads)
        progress = min(state["count"] / self.num_gradient_steps, 1)
        rate = self.learning_rate * (1 + progress * (self.learning_rate_end - 1))
        count = state["count"] + 1
        mean = tree_map(lambda m, g: b1 * m + (1 - b1) * g, state["mean"], grads)
        square = tree_map(lambda s, g: b2 * s + (1 - b2) * g * g, state["square"], grads)
        ro_inf = 2 / (1 - b2) - 1
        ro = ro_inf - 2 * count * b2**count / (1 - b2**count)

        def change(parameter, m, s):
            m = m / (1 - b1**count)
            if ro >= threshold:
                s = s / (1 - b2**count)
                rectification = np.sqrt((ro - 4) * (ro - 2) * ro_inf / ((ro_inf - 4) * (ro_inf - 2) * ro))
                m = m * rectification / (np.sqrt(s) + eps)
            return parameter - rate * m

        return tree_map(change, params, mean, square), {"count": count, "mean": mean, "square": square}


def tree_map(function, tree, *others):
    """Apply `function` to each array of nested lists and dicts, and to its counterparts in trees of the same shape."""
    if isinstance(tree, dict):
        return {name: tree_map(function, tree[name], *(other[name] for other in others)) for name in tree}
    if isinstance(tree, (list, tuple)):
        return [tree_map(function, *items) for items in zip(tree, *others, strict=True)]
    return function(np.asarray(tree), *others)


def as_float64(tree):
    return tree_map(lambda x: x.astype(np.float64), tree)


def learn(network, params, optimizer_state, rollout, hyper, shape):
    """Make all gradient steps on one rollout from `params`; minibatches take the data in their order.

    Args:
      params: Parameters before; see `mlp` and `leaky`.
      network: "mlp" (segments of one step, targets fixed) or "leaky" (segments of T steps, targets by newest params).
      optimizer_state: `RAdam.initial(params)`, or the state returned by the last call.
      rollout: memory [N, M, F] at its start or None; first [T, N]; obs [T+1, N, M, F]; legal [T+1, N, M, A] or None;
        action [T, N, M]; reward, terminated, truncated [T, N]; first_after [N], whether the last obs begins an episode.
      hyper: learning_rate, learning_rate_end, max_grad_norm, gamma, lam, reward_scale.
      shape: num_minibatches, num_epochs, num_updates.
    Returns: params, optimizer_state, metrics: loss, the mean over gradient steps, and td_error, the mean |error| over
      the weighted transitions of all gradient steps pooled.
    """
    num_gradient_steps = shape["num_updates"] * shape["num_epochs"] * shape["num_minibatches"]
    optimizer = RAdam(hyper["learning_rate"], hyper["learning_rate_end"], hyper["max_grad_norm"], num_gradient_steps)
    data = {name: np.asarray(x) for name, x in rollout.items() if x is not None}
    num_steps, num_envs = data["reward"].shape
    data.setdefault("legal", np.ones((num_steps + 1, num_envs, 1, 1), bool))
    reward = as_float64(data["reward"]) * hyper["reward_scale"]
    terminated, truncated = data["terminated"].astype(bool), data["truncated"].astype(bool)
    weight = np.where(truncated & ~terminated, 0.0, 1.0)
    first = np.concatenate([data["first"], data["first_after"][None]]).astype(bool)

    def targets(value, envs):
        return q_lambda(reward[:, envs], terminated[:, envs], truncated[:, envs], value, hyper["gamma"], hyper["lam"])

    everyone = np.arange(num_envs)
    q = _team(network, params, data, first, everyone)
    value = _team_value(q, data["legal"])
    G = targets(value, everyone)
    tail = (1 - hyper["lam"]) * value[-1] + hyper["lam"] * G[-1]

    size = num_steps * num_envs if network == "mlp" else num_envs
    losses, absolute_errors, weights = [], 0.0, 0.0
    for _ in range(shape["num_epochs"]):
        for block in np.split(np.arange(size), shape["num_minibatches"]):
            if network == "mlp":
                t, n = np.divmod(block, num_envs)  # time-major: index = t * N + n
                inputs = data["obs"][t, n]
                q = mlp(params, inputs)
                target = G[t, n]
            else:
                t, n = slice(num_steps), block
                q = _team(network, params, data, first, n)[:-1]
                target = targets(np.concatenate([_team_value(q, data["legal"][:-1, n]), tail[None, n]]), n)[:-1]
            chosen = np.eye(q.shape[-1])[data["action"][t, n]]  # [..., M, A], one at the action of each member
            counts = weight[t, n]
            error = np.where(counts > 0, target - (q * chosen).sum((-2, -1)), 0)
            total = max(counts.sum(), 1)
            dq = chosen * (-counts * error / total)[..., None, None]
            if network == "mlp":
                grads = mlp_gradient(params, inputs, dq)
            else:
                memory, obs, starts = _members_as_batch(data, first, n)
                grads = leaky_gradient(params, memory, obs[:-1], starts[:-1], dq.reshape(num_steps, -1, dq.shape[-1]))
            params, optimizer_state = optimizer.step(params, grads, optimizer_state)
            losses.append((counts * 0.5 * error**2).sum() / total)
            absolute_errors += (counts * np.abs(error)).sum()
            weights += counts.sum()
    return params, optimizer_state, {"loss": np.mean(losses), "td_error": absolute_errors / max(weights, 1)}


def _team(network, params, data, first, envs):
    """Return Q [T+1, B, M, A] of all observations of the environments `envs` [B]."""
    if network == "mlp":
        return mlp(params, data["obs"][:, envs])
    q, _ = leaky(params, *_members_as_batch(data, first, envs))
    return q.reshape(*data["obs"][:, envs].shape[:3], -1)


def _team_value(q, legal):
    """Return the sum over members of the best legal q: q and legal [..., M, A] -> [...]."""
    return np.where(legal, q, -np.inf).max(-1).sum(-1)


def _members_as_batch(data, first, envs):
    """Return memory [B * M, F], obs [T+1, B * M, F] and first [T+1, B * M], as every member has its own memory."""
    memory, obs = data["memory"][envs], data["obs"][:, envs]
    members, features = obs.shape[2:]
    return memory.reshape(-1, features), obs.reshape(len(obs), -1, features), np.repeat(first[:, envs], members, axis=1)
