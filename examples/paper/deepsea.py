"""Compare up to which depth PQN finds the treasure of DeepSea, by epsilon-greedy alone and with a bonus for new states.

The paper explores by epsilon-greedy alone, and considers this the reason why PQN stays below humans in some Atari
games. Too few settings of its own experiment on DeepSea are known to repeat it, so this experiment is our own.

In every step the diver (Osband et al., bsuite) sinks one row and moves to the left or to the right; a fixed random
table tells which action means which direction. The only treasure lies at the end of the diagonal. Going right at every
depth pays 1, less a small cost on the way, and always going left pays 0. Random play finds the treasure in one of
2^depth episodes.

The bonus is not part of PQN. The network counts how often it has learned from each observation. While acting, and so in
the targets too, it adds to the value of each observation a bonus for reaching that observation:

    v(s) = max_a Q(s, a) + bonus / sqrt(1 + count(s))

The bonus is equal for all actions in a state. So it does not change which action is greedy there, but it changes the
learned values of the actions that lead there.

Source: Bellemare et al., 2016, "Unifying count-based exploration and intrinsic motivation",
https://arxiv.org/abs/1606.01868; here with counts of our own, and with the bonus in the values instead of the rewards.

docs/ideas.md shows the numbers. The script takes five minutes on two cores.
"""

import argparse
from pathlib import Path

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

import qlax

BONUS = 1.0
STYLE = {  # of the figure
    **{"font.size": 8, "axes.grid": True, "grid.color": "0.92", "savefig.dpi": 200},
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
}


class Counting(nn.Module):
    """Network of qlax with the bonus, for one-hot observations such as those of DeepSea."""

    num_actions: int
    recurrent = False

    def initial_memory(self, batch):
        """Return no memory."""
        return ()

    @nn.compact
    def __call__(self, memory, obs, first, train):
        """See `qlax.Network`."""
        q, memory = qlax.QNetwork(self.num_actions, hidden=(64,))(memory, obs, first, train)
        # The counts are kept beside the parameters, like the statistics of a norm.
        counts = self.variable("counts", "of", jnp.zeros, obs.shape[2:])
        if train:
            counts.value = counts.value + obs.sum((0, 1))
            return q, memory
        count = (counts.value * obs).sum((-2, -1))
        return q + BONUS / jnp.sqrt(1 + count)[..., None], memory


METHODS = {"epsilon-greedy": {"hidden": (64,)}, "with a bonus": {"network": "deepsea:Counting"}}


def main(words=None):
    """Train, draw the figure and print the results; return the measurements."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("deepsea.png"), help="figure to write (default deepsea.png)")
    parser.add_argument(
        "--depths", type=int, nargs="+", default=[5, 10, 15, 20], help="depths of the sea (default 5 10 15 20)"
    )
    parser.add_argument("--total-steps", type=int, default=200_000, help="steps per seed (default 200000)")
    parser.add_argument("--seeds", type=int, default=8, help="number of seeds (default 8)")
    options = parser.parse_args(words)
    if options.out.exists():
        parser.error(f"{options.out} exists already; name a new file with --out")
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
                eval_episodes=1,  # greedy episodes of one agent are all equal
                **network,
            )
            returns = result.summary["eval_return"]["per_run"]
            found = sum(each > 0.9 for each in returns)
            measured.append({"method": method, "depth": depth, "found": found, "eval_return": returns})
            print(f"depth {depth}, {method}: {found} of {options.seeds} seeds reach the treasure", flush=True)
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
        figure.savefig(options.out)
    print(f"figure: {options.out}")
    return {"total_steps": options.total_steps, "seeds": options.seeds, "bonus": BONUS, "results": measured}


if __name__ == "__main__":
    main()
