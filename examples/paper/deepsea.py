"""DeepSea: how deep PQN finds the treasure, by chance alone and with a bonus for what is new.

The paper explores with epsilon-greedy alone, and blames it for the Atari games in which PQN stays below humans. It has
an experiment on DeepSea too, of whose settings we know too little to repeat it: this one is ours.

Every step of the diver (Osband et al., bsuite) leads one row down, to the left or the right; a fixed random table says
which action means which. The one treasure lies at the end of the diagonal: 1 for going right at every depth, at a small
cost on the way, 0 for going left. Random play finds it in one of 2^depth episodes.

The bonus is no part of PQN: the network counts how often it learned from an observation, and while acting, so in the
targets too, adds to the value of each what it would be paid for coming there:

    v(s) = max_a Q(s, a) + bonus / sqrt(1 + count(s))

In a state it is the same for all actions, so it does not change what is greedy there, but what is learned of the way.
Source: Bellemare et al., 2016, "Unifying count-based exploration and intrinsic motivation",
https://arxiv.org/abs/1606.01868, with counts of our own and the bonus in the values instead of the rewards.

The numbers are on docs/ideas.md. Five minutes on two cores.
"""

import argparse
from pathlib import Path

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

import qlax
from qlax.reports.style import STYLE
from qlax.util.files import check_is_new

BONUS = 1.0


class Counting(nn.Module):
    """qlax's own network with the bonus; for observations that are one-hot, as those of DeepSea."""

    num_actions: int
    recurrent = False

    def initial_memory(self, batch):
        """Nothing."""
        return ()

    @nn.compact
    def __call__(self, memory, obs, first, train):
        """See `qlax.Network`."""
        q, memory = qlax.QNetwork(self.num_actions, hidden=(64,))(memory, obs, first, train)
        counts = self.variable(
            "counts", "of", jnp.zeros, obs.shape[2:]
        )  # beside the parameters, like a norm's statistics
        if train:
            counts.value = counts.value + obs.sum((0, 1))
            return q, memory
        count = (counts.value * obs).sum((-2, -1))
        return q + BONUS / jnp.sqrt(1 + count)[..., None], memory


METHODS = {"epsilon-greedy": {"hidden": (64,)}, "with a bonus": {"network": "deepsea:Counting"}}


def main(words=None):
    """Train, draw and print; gives what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("deepsea.png"))
    parser.add_argument("--depths", type=int, nargs="+", default=[5, 10, 15, 20])
    parser.add_argument("--total-steps", type=int, default=200_000)
    parser.add_argument("--seeds", type=int, default=8)
    options = parser.parse_args(words)
    path = check_is_new(options.out)
    measured = []
    for depth in options.depths:
        for method, network in METHODS.items():
            result = qlax.train(
                "gymnax/DeepSea-bsuite",
                env_options={"size": depth},
                total_steps=options.total_steps,
                seeds=options.seeds,
                num_envs=32,
                num_steps=depth,
                num_minibatches=8,
                learning_rate=1e-3,
                eval_episodes=1,  # all are alike
                **network,
            )
            returns = result.summary["eval_return"]["per_run"]
            found = sum(each > 0.9 for each in returns)
            measured.append({"method": method, "depth": depth, "found": found, "eval_return": returns})
            print(f"depth {depth}, {method}: {found} of {options.seeds} seeds go for the treasure", flush=True)
    with rc_context(STYLE):
        figure = Figure(figsize=(3.4, 2.4), layout="constrained")
        axes = figure.subplots()
        for method in METHODS:
            found = [each["found"] / options.seeds for each in measured if each["method"] == method]
            axes.plot(options.depths, found, marker="o", ms=3, label=method)
        chance = 1 - (1 - 0.5 ** np.array(options.depths, float)) ** (options.total_steps / np.array(options.depths))
        axes.plot(options.depths, chance, color="0.5", ls=":", label="random play, at least once")
        axes.set(xlabel="depth", ylabel="share of seeds", ylim=(-0.03, 1.03), xticks=options.depths)
        figure.legend(loc="outside lower center", ncols=2)
        figure.savefig(path)
    print(f"figure: {path}")
    return {"total_steps": options.total_steps, "seeds": options.seeds, "bonus": BONUS, "results": measured}


if __name__ == "__main__":
    main()
