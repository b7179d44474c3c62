"""Show that off-policy TD learning diverges on Baird's counterexample, and that LayerNorm prevents it.

The paper claims that TD learning from the data of another policy can diverge, with linear functions and with networks.
LayerNorm before the activations bounds the terms that cause the divergence, except for one term of the last layer, and
a little l2 regularisation of the last layer removes that term. So PQN needs neither a target network nor a replay
buffer.

Baird's counterexample has seven states and no reward, so that every value is 0. The behaviour policy visits all states
equally often, while the target policy goes to the seventh state from each. The script learns the values V from Baird's
features by the expected semi-gradient step

    theta <- theta + lr * mean over s of (gamma V(s_7) - V(s)) grad V(s),   and last layer <- (1 - lr * l2) last layer

It compares a linear V, qlax's own network without a norm, and the same network with LayerNorm. After 20,000 updates the
linear function and most networks without a norm have diverged, unless l2 is so strong that only zeros are learned. With
LayerNorm none has diverged, with or without l2. docs/ideas.md shows the numbers. The script takes half a minute on two
cores.
"""

import argparse
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

import qlax

GAMMA, LEARNING_RATE = 0.99, 0.01
STYLE = {  # of the figure
    **{"font.size": 8, "axes.grid": True, "grid.color": "0.92", "savefig.dpi": 200},
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
}
L2 = (0.0, 0.01, 0.1, 1.0)
DIVERGED = 1e6  # error from which learning never recovers
ROW = np.eye(7, 8)
FEATURES = jnp.asarray(
    np.where(np.arange(7)[:, None] < 6, 2 * ROW, ROW) + np.outer([1] * 6 + [2], np.eye(8)[7])
)  # [7, 8]


class Linear:
    """Linear function V = FEATURES @ theta with Baird's initial parameters."""

    def init(self, key):
        """Return Baird's initial parameters, which are ones except for a single ten."""
        del key
        return {"Dense_0": jnp.ones(8).at[6].set(10.0)}

    def value(self, params):
        """Return V of the seven states."""
        return FEATURES @ params["Dense_0"]


class Net:
    """Values V of the network that PQN trains, with one hidden layer of 16 and a single action."""

    def __init__(self, norm):
        self.network = qlax.QNetwork(1, hidden=(16,), norm=norm)
        self.inputs = (), FEATURES[None], jnp.ones((1, 7), bool), False  # memory, obs, first, train

    def init(self, key):
        """Return new weights."""
        return self.network.init(key, *self.inputs)["params"]

    def value(self, params):
        """Return V of the seven states."""
        return self.network.apply({"params": params}, *self.inputs)[0][0, :, 0]


FUNCTIONS = {"linear": Linear(), "network": Net("none"), "network with LayerNorm": Net("layer")}


@partial(jax.jit, static_argnums=(0, 3))
@partial(jax.vmap, in_axes=(None, 0, None, None))
def learn(function, key, l2, updates):
    """Learn V from each key; return its errors, root mean squares over the states: `[keys, updates]`."""
    params = function.init(key)
    last = max(name for name in params if name.startswith("Dense"))

    def update(params, _):
        value, pull_back = jax.vjp(function.value, params)
        (step,) = pull_back((GAMMA * value[6] - value) / 7)
        params = jax.tree.map(lambda x, dx: x + LEARNING_RATE * dx, params, step)
        decay = 1 - LEARNING_RATE * l2
        return params | {last: jax.tree.map(lambda x: decay * x, params[last])}, jnp.sqrt(jnp.mean(value**2))

    return jax.lax.scan(update, params, length=updates)[1]


def main(words=None):
    """Learn, draw the figure and print the results; return the measurements."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("baird.png"), help="figure to write (default baird.png)")
    parser.add_argument("--updates", type=int, default=20_000, help="number of updates (default 20000)")
    parser.add_argument("--seeds", type=int, default=10, help="number of initial weights (default 10)")
    options = parser.parse_args(words)
    if options.out.exists():
        parser.error(f"{options.out} exists already; name a new file with --out")
    keys = jax.random.split(jax.random.key(0), options.seeds)
    measured = []
    with rc_context(STYLE):
        figure = Figure(figsize=(6.8, 2.2), layout="constrained")
        for axes, (name, function) in zip(figure.subplots(1, 3, sharey=True), FUNCTIONS.items(), strict=True):
            for index, l2 in enumerate(L2):
                errors = np.asarray(learn(function, keys, l2, options.updates), np.float64)
                errors = np.where(errors < DIVERGED, errors, np.inf)  # nan counts as diverged as well
                # Clipped, because a logarithmic axis shows neither 0 nor infinity.
                axes.plot(np.clip(errors, 1e-12, 1e12).T, color=f"C{index}", lw=0.6, alpha=0.6)
                diverged, middle = int(np.isinf(errors[:, -1]).sum()), float(np.median(errors[:, -1]))
                print(
                    f"{name}, l2 {l2:g}: {diverged} of {options.seeds} seeds diverged, median error {middle:.2g}",
                    flush=True,
                )
                median = middle if np.isfinite(middle) else None
                measured.append({"function": name, "l2": l2, "diverged": diverged, "median_error": median})
            axes.set(title=name, xlabel="updates", yscale="log", ylim=(1e-8, DIVERGED))
        figure.axes[0].set_ylabel("error of the values")
        lines = [Line2D([], [], color=f"C{index}", label=f"{l2:g}") for index, l2 in enumerate(L2)]
        figure.legend(handles=lines, title="l2", loc="outside right center")
        figure.savefig(options.out)
    print(f"figure: {options.out}")
    return {"updates": options.updates, "seeds": options.seeds, "results": measured}


if __name__ == "__main__":
    main()
