"""Table of all measurements of a run: their names in `metrics.jsonl` and `summary.json`, units and meanings."""

from typing import Literal, NamedTuple


class Measurement(NamedTuple):
    """A number that is measured during training.

    Attributes:
      key: Name in the files.
      name: Name in figures and tables.
      unit: Unit; empty if the environment decides the unit, or if the number has none.
      meaning: Description of the number.
      group: "axis": progress of training, and "clock": time; both have one number for all agents of a run, the other
        groups one number per agent. "count": other counts. "return": learning curves. "learning": diagnostics of
        learning. "end": only in `summary.json`. "guard": in no file, only checked for being finite.
      evaluated_as: Name among the results of an evaluation; empty if evaluations do not measure it.
      is_result: `summary.json` has one final number per agent, by which agents are compared.
      cause: Likely cause of a value that is not finite; empty if the guard does not watch this measurement.
    """

    key: str
    name: str
    unit: str
    meaning: str
    group: Literal["axis", "clock", "count", "return", "learning", "end", "guard"]
    evaluated_as: str = ""
    is_result: bool = False
    cause: str = ""


# In the order in which reports show them. Measurements with a cause are in the order in which a value that is not
# finite spreads from one to the next; checkpoints store positions in that order.
_ALL = (
    Measurement("updates", "updates", "", "number of updates", "axis"),
    Measurement("steps", "environment steps", "steps", "environment steps of each agent", "axis"),
    Measurement("seconds", "training time", "s", "wall-clock time of training, without compilation", "clock"),
    Measurement("steps_per_second", "speed", "steps/s", "environment steps per second, all agents together", "clock"),
    Measurement("episodes", "episodes", "", "exploring episodes that ended since the last line", "count"),
    Measurement("parent", "parent", "", "member of the population whose weights this member copied", "count"),
    Measurement(
        *("train_return", "exploring return", "", "mean return in the last tenth of training", "end"),
        is_result=True,
    ),
    Measurement(
        *("eval_return", "greedy return", "", "mean return of greedy episodes", "return"),
        evaluated_as="episode_return",
        is_result=True,
    ),
    Measurement("episode_return", "exploring return", "", "mean return of exploring episodes", "return"),
    Measurement("best_eval_return", "best greedy return", "", "best of all evaluations", "end", is_result=True),
    Measurement("eval_score", "score", "", "the environment's score for the greedy return", "end", is_result=True),
    Measurement(
        *("reward", "reward", "", "reward of a step", "guard"),
        cause="the environment gave a reward that is not finite; qlax.check_env may show where",
    ),
    Measurement(
        *("value", "value", "", "mean over states of the largest Q-value, or of that of the noisy action", "learning"),
        cause="the weights were finite, so an observation was not, or was too large for the network; "
        "try --input-norm layer",
    ),
    Measurement(
        *("loss", "loss", "", "mean cost: half the squared TD error, or the cross-entropy of hl_gauss", "learning"),
        cause="Q-values have grown too large; try a lower learning_rate, gamma or reward_scale, or norm=layer",
    ),
    Measurement("td_error", "TD error", "", "mean absolute TD error", "learning"),
    Measurement("actor_loss", "actor loss", "", "mean penalty on the actor's actions, minus their value", "learning"),
    Measurement(
        *("drift", "drifting actions", "share"),
        "share of states in which the actor's action has left that of the rollout by more than the threshold",
        "learning",
    ),
    Measurement(
        *("target_outside", "targets outside", "share"),
        "share of targets below head_low or above head_high, which count as these",
        "learning",
    ),
    Measurement(
        *("grad_norm", "gradient norm", "", "norm of the gradients before clipping", "learning"),
        cause="gradients have grown too large; try a lower learning_rate or max_grad_norm, or norm=layer",
    ),
    Measurement(
        *("parameters", "parameters", "", "weights and normalisation statistics of the network", "guard"),
        cause="a gradient step was too large; try a lower learning_rate or max_grad_norm, or norm=layer",
    ),
    Measurement(
        *("eval_overestimation", "overestimation", ""),
        "largest Q-value at the start of greedy episodes, minus their discounted return, which goes on at a time limit",
        "learning",
        evaluated_as="overestimation",
    ),
    Measurement(
        *("dead_units", "dead units", "share"),
        "share of the network's units that are inactive in a whole sample of the rollout",
        "learning",
    ),
    Measurement("epsilon", "epsilon", "share", "share of random actions, the mean over environments", "learning"),
    Measurement("noise", "noise", "", "deviation of the noise in actions, in halves of their range", "learning"),
    Measurement(
        *("episode_length", "exploring episode length", "steps", "mean length of exploring episodes", "learning"),
    ),
    Measurement(
        *("eval_length", "greedy episode length", "steps", "mean length of greedy episodes", "learning"),
        evaluated_as="episode_length",
    ),
    Measurement(
        *("eval_cut", "cut episodes", "share", "share of greedy episodes cut off at the step limit", "learning"),
        evaluated_as="cut",
    ),
    Measurement(
        *("eval_distinct", "distinct episodes", ""),
        "number of greedy episodes that differ in their first observation, actions or rewards",
        "learning",
        evaluated_as="distinct",
    ),
)
MEASUREMENTS = {measurement.key: measurement for measurement in _ALL}


def in_group(group: str) -> list[Measurement]:
    """Select the measurements of one group, in the order of the table."""
    return [measurement for measurement in _ALL if measurement.group == group]


def watched() -> list[Measurement]:
    """Select the measurements that the guard watches, in the order in which a value that is not finite spreads."""
    return [measurement for measurement in _ALL if measurement.cause]


def evaluated() -> dict[str, str]:
    """Map names of an evaluation's results to keys of `metrics.jsonl`; other names get the prefix `eval_`."""
    return {measurement.evaluated_as: measurement.key for measurement in _ALL if measurement.evaluated_as}


def is_own(key: str) -> bool:
    """Tell whether a key of `metrics.jsonl` is one of the environment's own measurements, or a setting."""
    return key not in MEASUREMENTS or MEASUREMENTS[key].group in ("end", "guard")


def is_shared(key: str) -> bool:
    """Tell whether a measurement is one number for all agents of a run, not one per agent."""
    return key in MEASUREMENTS and MEASUREMENTS[key].group in ("axis", "clock")


def shown(key: str) -> str:
    """Return a measurement's name in figures and tables; the environment's own measurements go by their key."""
    return MEASUREMENTS[key].name if key in MEASUREMENTS else key.replace("_", " ")
