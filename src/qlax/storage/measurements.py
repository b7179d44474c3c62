"""Measurements of a run: the one table of what `metrics.jsonl` and `summary.json` call them and what they mean."""

from typing import Literal, NamedTuple


class Measurement(NamedTuple):
    """A number that is measured while runs train.

    Attributes:
      key: name in the files.
      name: name in figures and tables.
      unit: empty where the environment decides, or there is none.
      meaning: what the number is.
      group: "axis": how far training has come. "clock": time. Both are one number for all runs of a directory; others
        are one a run. "count": what else is counted. "return": the learning curves. "learning": how the learning goes.
        "end": in `summary.json` alone. "guard": in no file, watched alone.
      evaluated_as: name in what an evaluation returns; empty where no evaluation measures it.
      is_result: `summary.json` has it as one final number a run, by which runs are compared.
      cause: likely cause if it is not finite; empty where the guard does not watch it.
    """

    key: str
    name: str
    unit: str
    meaning: str
    group: Literal["axis", "clock", "count", "return", "learning", "end", "guard"]
    evaluated_as: str = ""
    is_result: bool = False
    cause: str = ""


# In the order in which reports show them. Those with a cause stand in the order in which what is not finite spreads,
# and checkpoints hold their place in it.
_ALL = (
    Measurement("updates", "updates", "", "rollouts learned from", "axis"),
    Measurement("steps", "environment steps", "steps", "environment steps of each run", "axis"),
    Measurement("seconds", "training time", "s", "wall-clock time of training, without compilation", "clock"),
    Measurement("steps_per_second", "speed", "steps/s", "environment steps per second, all runs together", "clock"),
    Measurement("episodes", "episodes", "", "episodes that ended since the last line, exploring", "count"),
    Measurement("parent", "parent", "", "member of the population whose weights this one goes on with", "count"),
    Measurement("train_return", "exploring return", "", "return in the last tenth of training", "end", is_result=True),
    Measurement(
        *("eval_return", "greedy return", "", "return of an episode, greedy", "return"),
        evaluated_as="episode_return",
        is_result=True,
    ),
    Measurement("episode_return", "exploring return", "", "return of an episode, exploring", "return"),
    Measurement("best_eval_return", "best greedy return", "", "best of all evaluations", "end", is_result=True),
    Measurement("eval_score", "score", "", "score that the environment gives the greedy return", "end", is_result=True),
    Measurement(
        *("reward", "reward", "", "reward of a step", "guard"),
        cause="the environment gave a reward that is not finite; qlax.check_env may show where",
    ),
    Measurement(
        *("value", "value", "", "largest Q of a state, a mean over those visited", "learning"),
        cause="the weights were finite, so an observation was not, or was too large for the network; "
        "try --input-norm layer",
    ),
    Measurement(
        *("loss", "loss", "", "half the squared error of Q, a mean", "learning"),
        cause="values have grown too large; try a lower learning_rate, gamma or reward_scale, or norm=layer",
    ),
    Measurement("td_error", "TD error", "", "absolute error of Q, a mean", "learning"),
    Measurement(
        *("grad_norm", "gradient norm", "", "norm of the gradients before they are clipped", "learning"),
        cause="gradients have grown too large; try a lower learning_rate or max_grad_norm, or norm=layer",
    ),
    Measurement(
        *("parameters", "parameters", "", "weights of the network and its statistics", "guard"),
        cause="a gradient step was too large; try a lower learning_rate or max_grad_norm, or norm=layer",
    ),
    Measurement(
        *("eval_overestimation", "overestimation", ""),
        "what Q promised at the start of greedy episodes, minus the discounted return that came",
        "learning",
        evaluated_as="overestimation",
    ),
    Measurement(
        *("dead_units", "dead units", "share"),
        "share of the network's units that are active nowhere in a sample",
        "learning",
    ),
    Measurement("epsilon", "epsilon", "share", "share of random actions", "learning"),
    Measurement("episode_length", "length of episodes, exploring", "steps", "steps an episode, exploring", "learning"),
    Measurement(
        *("eval_length", "length of greedy episodes", "steps", "steps an episode, greedy", "learning"),
        evaluated_as="episode_length",
    ),
    Measurement(
        *("eval_cut", "cut episodes", "share", "share of greedy episodes that were cut", "learning"),
        evaluated_as="cut",
    ),
)
MEASUREMENTS = {measurement.key: measurement for measurement in _ALL}


def in_group(group: str) -> list[Measurement]:
    """Select the measurements of one group, in the order of the table."""
    return [measurement for measurement in _ALL if measurement.group == group]


def watched() -> list[Measurement]:
    """Select what the guard watches, in the order in which what is not finite spreads."""
    return [measurement for measurement in _ALL if measurement.cause]


def evaluated() -> dict[str, str]:
    """Map the names that every evaluation returns to keys of `metrics.jsonl`; other names get the prefix `eval_`."""
    return {measurement.evaluated_as: measurement.key for measurement in _ALL if measurement.evaluated_as}


def is_own(key: str) -> bool:
    """Tell whether a name in `metrics.jsonl` is a measurement of the environment's own, or a setting."""
    return key not in MEASUREMENTS or MEASUREMENTS[key].group in ("end", "guard")


def is_shared(key: str) -> bool:
    """Tell whether a measurement is one number for all runs of a directory, not one a run."""
    return key in MEASUREMENTS and MEASUREMENTS[key].group in ("axis", "clock")


def shown(key: str) -> str:
    """Name a measurement as figures and tables do; those of the environment's own by their key in words."""
    return MEASUREMENTS[key].name if key in MEASUREMENTS else key.replace("_", " ")
