"""Settings that choose the algorithm, and those of PQN with an actor."""

from dataclasses import dataclass

from qlax.config.kinds import Sweep, setting, sweep, text, truth, whole, widths
from qlax.networks.names import ALGORITHMS, OPTIMIZERS


@dataclass(frozen=True, kw_only=True)
class AlgorithmSettings:
    """Settings of a training run: its algorithm, and what is for an actor; `Config` has all others."""

    algorithm: str = setting(
        "pqn",
        text(ALGORITHMS),
        "learning",
        "pqn for a choice of actions; pqn-continuous learns an actor for continuous ones",
    )
    optimizer: str = setting(
        "radam",
        text(OPTIMIZERS),
        "learning",
        "optimiser of the network, applied to clipped gradients; radam is the choice of the PQN paper",
    )

    noise_start: Sweep = setting(
        1.0,
        sweep(low=0),
        "actor",
        "initial deviation of the noise in actions, in halves of their range; more explores more",
    )
    noise_end: Sweep = setting(0.15, sweep(low=0), "actor", "final deviation of the noise in actions")
    noise_fraction: Sweep = setting(
        1.0, sweep(low=0, high=1), "actor", "fraction of training over which the noise moves to its final value"
    )
    noise_spread: Sweep = setting(
        1.0,
        sweep(low=1, high=1e6),
        "actor",
        "factor by which the noise is larger in the noisiest environment, and smaller in the least; 1: all the same",
    )
    drift_penalty: Sweep = setting(
        10.0, sweep(low=0), "actor", "weight of the penalty on actions far from those of the rollout; 0 is none"
    )
    drift_threshold: Sweep = setting(
        0.15, sweep(low=0), "actor", "mean distance of actions from which the penalty counts, in halves of their range"
    )
    greedy_target: bool = setting(
        False, truth(), "actor", "learn from the value of the actor's next action instead of the noisy one"
    )
    critics: int = setting(
        2, whole(high=100), "actor", "number of critics, whose mean is the value; more are steadier, and cost more"
    )
    critic_hidden: tuple[int, ...] | None = setting(
        None, widths(), "actor", "widths of the critics' dense layers (default: those of hidden)", remedy=6
    )
    reward_norm: bool = setting(True, truth(), "actor", "divide rewards by the running deviation of discounted returns")
