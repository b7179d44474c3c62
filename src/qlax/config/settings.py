"""Settings of a training run: typed and checked."""

import dataclasses
import itertools
import math
import random
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from qlax.config.kinds import (
    DISTRIBUTIONS,
    LARGEST_COUNT,
    LARGEST_WHOLE,
    LONGEST_NAME,
    LONGEST_PATH,
    Sweep,
    distribution,
    number,
    setting,
    sweep,
    table,
    text,
    truth,
    whole,
    widths,
    words,
)
from qlax.errors import UserError, nearest
from qlax.networks.names import DTYPES, ENCODERS, MEMORIES, NORMS
from qlax.util.text import shown

MOST_MEMBERS = 2**16
TRACKERS = ("tensorboard", "wandb")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Every choice of a training run; the defaults are the paper's for MinAtar.

    A field of type `Sweep` may hold several values, or a distribution of which they are drawn: every combination of
    values with every joint draw is trained with every seed.
    Intervals count updates. What is None follows from the rest when a run begins; `derived` then names it.

    Raises:
      UserError: a value of the wrong type or out of range, or sizes that do not fit each other.
    """

    env: str = setting("", text(), "environment", "suite/name, or module:Name of your own", flag=False, compared=False)
    env_options: dict[str, Any] = setting(
        {}, table(), "environment", "parameters of the environment, as name=value", varies=False
    )
    preset: str | None = setting(
        None, text(), "run", "preset these settings came from", flag=False, origin=True, compared=False
    )
    derived: tuple[str, ...] = setting(
        (),
        words(),
        "run",
        "settings that were not asked for but follow from the others",
        flag=False,
        origin=True,
        compared=False,
        tracked=False,
    )
    seed: int = setting(0, whole(low=0), "run", "seed of the first agent", compared=False, varies=False)
    seeds: int = setting(
        1,
        whole(),
        "run",
        "agents of each setting, with the seeds seed, seed + 1, ...",
        compared=False,
        varies=False,
        tracked=False,
        remedy=2,
    )
    draws: int | None = setting(
        None,
        whole(),
        "run",
        "number of settings to draw from the given distributions; each is trained with every seed and list value",
        compared=False,
        varies=False,
        tracked=False,
    )
    total_steps: int = setting(
        1_000_000,
        whole(high=LARGEST_WHOLE),
        "run",
        "environment steps of each agent, rounded up to whole updates",
        changeable=True,
    )
    until: float | None = setting(
        None,
        number(),
        "run",
        "end training once every agent's latest greedy evaluation reaches this return; --eval-interval sets how often "
        "agents are evaluated",
        changeable=True,
        compared=False,
    )
    minutes: float | None = setting(
        None,
        number(low=1e-3, high=1e9),
        "run",
        "end training after this many minutes, those before an interruption included; compilation and evaluation do "
        "not count",
        changeable=True,
        compared=False,
    )

    num_envs: int = setting(128, whole(), "learning", "number of environments of each agent, N", remedy=3)
    num_steps: int = setting(32, whole(), "learning", "steps of a rollout, T", remedy=4)
    num_minibatches: int = setting(32, whole(), "learning", "gradient steps of an epoch")
    num_epochs: int = setting(2, whole(), "learning", "times each rollout is learned from")

    learning_rate: Sweep = setting(5e-4, sweep(low=0), "learning", "initial learning rate of RAdam")
    learning_rate_end: Sweep = setting(
        0.0, sweep(low=0, high=1), "learning", "final learning rate, as a fraction of learning_rate; 1 is constant"
    )
    gamma: Sweep = setting(0.99, sweep(low=0, high=1), "learning", "discount of future rewards")
    lam: Sweep = setting(
        0.65, sweep(low=0, high=1), "learning", "lambda of Q(lambda): 0 is one-step Q-learning, 1 full returns"
    )
    epsilon_start: Sweep = setting(
        1.0, sweep(low=0, high=1), "exploration", "initial share of random actions while training"
    )
    epsilon_end: Sweep = setting(0.05, sweep(low=0, high=1), "exploration", "final share of random actions")
    epsilon_fraction: Sweep = setting(
        0.1, sweep(low=0, high=1), "exploration", "fraction of the training after which epsilon_end is reached"
    )
    max_grad_norm: Sweep = setting(
        10.0, sweep(low=1e-9), "learning", "global norm to which larger gradients are clipped"
    )
    reward_scale: Sweep = setting(1.0, sweep(), "learning", "factor of the rewards learned from")

    population: str = setting(
        "none",
        text(("none", "pbt")),
        "run",
        "pbt: after each evaluation the worst agents continue as copies of the best",
        varies=False,
        world="in JAX",
    )

    network: str | None = setting(
        None, text(), "network", "module:Name of your own network, called with the number of actions"
    )
    encoder: str | None = setting(
        None, text((*ENCODERS,)), "network", "encoder of the observation; one that fits it, unless given"
    )
    hidden: tuple[int, ...] | None = setting(
        None, widths(), "network", "widths of the dense layers; the encoder's own, unless given", remedy=5
    )
    norm: str = setting("layer", text(NORMS), "network", "normalisation before every activation")
    input_norm: str = setting("none", text(NORMS), "network", "normalisation of the observation")
    memory: str = setting("none", text((*MEMORIES,)), "network", "memory between encoder and head")
    dueling: bool = setting(False, truth(), "network", "separate value and advantage")
    compute_dtype: str = setting(
        "float32", text(DTYPES), "network", "dtype of products; bfloat16 where a device is faster at it"
    )

    wrappers: tuple[str, ...] = setting(
        (),
        words(),
        "environment",
        "wrappers around the environment, the innermost first: frame_stack=4,last_action,module:Name",
    )
    mixing: str = setting(
        "sum",
        text(("sum", "none")),
        "learning",
        "how a team learns: sum of its members' values (VDN), or none: each by itself",
    )
    reset_ratio: int | None = setting(
        None,
        whole(),
        "environment",
        "number of copies that share a fresh episode each step; the environment's own, unless given",
        world="in JAX",
    )
    time_limit_is_terminal: bool = setting(False, truth(), "environment", "learn as if nothing followed a time limit")

    overlap: bool = setting(
        False,
        truth(),
        "environment",
        "on the host, collect a rollout while learning from the last one: parameters are one update older",
        world="on the host",
    )
    host_timeout: float = setting(
        120.0,
        number(low=1e-3, high=1e9),
        "environment",
        "seconds after which an environment on the host counts as hanging",
        changeable=True,
        compared=False,
        world="on the host",
    )

    eval_episodes: int = setting(
        64, whole(), "evaluation", "greedy episodes of each evaluation, one in each of as many environments", remedy=1
    )
    eval_max_steps: int | None = setting(
        None, whole(), "evaluation", "steps after which evaluation cuts an episode; the time limit, unless given"
    )
    log_interval: int | None = setting(
        None, whole(high=LARGEST_WHOLE), "output", "updates between lines of metrics.jsonl", compared=False
    )
    eval_interval: int | None = setting(
        None,
        whole(high=LARGEST_WHOLE),
        "evaluation",
        "updates between evaluations, a multiple of log_interval",
        compared=False,
    )
    checkpoint_interval: int | None = setting(
        None,
        whole(high=LARGEST_WHOLE),
        "output",
        "updates between checkpoints, a multiple of log_interval",
        compared=False,
    )
    keep: int = setting(2, whole(), "output", "number of newest checkpoints to keep", changeable=True, compared=False)
    trackers: tuple[str, ...] = setting(
        (),
        words(),
        "output",
        "trackers that receive every line of metrics: tensorboard, wandb, or module:Name of your own",
        changeable=True,
        compared=False,
        tracked=False,
    )
    init: str | None = setting(
        None, text(longest=LONGEST_PATH), "run", "run, or file of its agents/, whose weights to begin with"
    )
    devices: int | None = setting(
        None,
        whole(),
        "machine",
        "maximum number of devices per process; on a CPU, also split one agent over that many cores",
        compared=False,
    )
    deterministic: bool = setting(
        False,
        truth(),
        "machine",
        "on a GPU, only operations that give the same bits every time; a CPU's always do",
        compared=False,
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, checked(field, getattr(self, field.name)))
        if not self.env:
            raise UserError("env is missing: name a preset, or an environment as suite/name or module:Name")
        self._check_members()
        self._check_sizes()
        self._check_trackers()
        segments = self.num_envs if self.memory != "none" else self.num_envs * self.num_steps
        if segments % self.num_minibatches:
            what = f"{self.num_envs} environments"
            what += (
                " (whole rollouts, as the network has a memory)"
                if self.memory != "none"
                else f" x {self.num_steps} steps"
            )
            fitting = _nearest_divisors(segments, self.num_minibatches)
            raise UserError(f"num_minibatches={self.num_minibatches} does not divide the {what}; use {fitting}")
        if self.reset_ratio and self.num_envs % self.reset_ratio:
            fitting = _nearest_divisors(self.num_envs, self.reset_ratio)
            raise UserError(f"reset_ratio={self.reset_ratio} does not divide num_envs={self.num_envs}; use {fitting}")
        for name in ("eval_interval", "checkpoint_interval"):
            interval, log_interval = getattr(self, name), self.log_interval
            if interval and log_interval and interval % log_interval:
                fitting = math.ceil(interval / log_interval) * log_interval
                raise UserError(f"{name}={interval} is not a multiple of log_interval={log_interval}; use {fitting}")

    def _check_members(self) -> None:
        """Check that lists, distributions and draws fit each other."""
        if self.population != "none" and not self.swept:
            raise UserError(
                f"population={self.population} explores what has several values or a distribution, and nothing has; "
                "say for example learning_rate=log-uniform:1e-5:1e-2 and draws=16"
            )
        drawn = {name: getattr(self, name) for name in self.swept if isinstance(getattr(self, name), str)}
        for name, values in self._lists.items():
            if twice := [value for value in values if values.count(value) > 1]:
                raise UserError(f"{name}: {twice[0]:g} is given twice; for more agents of a setting use seeds")
        if drawn and self.draws is None:
            name, value = next(iter(drawn.items()))
            raise UserError(f"{name}={value} is drawn from: say how many settings to draw, as draws=16")
        if self.draws is not None and not drawn:
            raise UserError(
                f"draws={self.draws}: nothing is drawn; leave it out, or give a distribution, as "
                "learning_rate=log-uniform:1e-5:1e-2"
            )

    def _check_sizes(self) -> None:
        """Check that all that the device counts can be counted, and the members be listed."""
        gradient_steps = self.num_updates * self.num_epochs * self.num_minibatches
        among = f" (num_updates={self.num_updates:,} x num_epochs x num_minibatches)"
        lists = [f"{len(values)} values of {name}" for name, values in self._lists.items()]
        factors = [*([f"draws={self.draws}"] if self.draws else []), f"seeds={self.seeds}", *lists]
        for what, count, most in (
            (f"num_envs={self.num_envs} x num_steps={self.num_steps}", self.steps_per_update, LARGEST_COUNT),
            (f"total_steps={self.total_steps}: the gradient steps{among}", gradient_steps, LARGEST_COUNT),
            (f"{' x '.join(factors)}: the agents", self.num_members, MOST_MEMBERS),
            (f"seed={self.seed} and seeds={self.seeds}: the last seed", self.seed + self.seeds - 1, LARGEST_COUNT),
        ):
            if count > most:
                raise UserError(f"{what} would be {count:,}; expected at most {most:,}")

    def _check_trackers(self) -> None:
        """Check that the trackers are known, or may be somebody's own."""
        for name in self.trackers:
            if name not in TRACKERS and ":" not in name:
                known = f"expected {', '.join(TRACKERS)}, or module:Name of your own"
                raise UserError(f"trackers={name}: {known}{nearest(name, TRACKERS)}")
            if self.trackers.count(name) > 1:
                raise UserError(f"trackers: {name} is given twice")

    @property
    def num_updates(self) -> int:
        """Number of updates of the whole run."""
        return -(-self.total_steps // self.steps_per_update)

    @property
    def steps_per_update(self) -> int:
        """Number of environment steps in one update of one agent."""
        return self.num_envs * self.num_steps

    @property
    def swept(self) -> list[str]:
        """Names of the fields that hold several values, or a distribution of them."""
        return [name for name in SWEEPABLE if isinstance(getattr(self, name), tuple | str)]

    @property
    def compared(self) -> list[str]:
        """Names of the swept fields by which agents are compared; a population's change while it is trained."""
        return self.swept if self.population == "none" else []

    @property
    def _lists(self) -> dict[str, tuple[float, ...]]:
        """Values of the fields that hold several."""
        return {name: getattr(self, name) for name in SWEEPABLE if isinstance(getattr(self, name), tuple)}

    @property
    def num_members(self) -> int:
        """Number of agents of the run: settings drawn x lists x seeds."""
        return (self.draws or 1) * self.seeds * math.prod(map(len, self._lists.values()))

    def settings(self) -> list[dict[str, float]]:
        """One setting of the sweepable fields for every draw and every combination of values, ordered in this way.

        What is drawn depends on `seed` and the field alone, so that more draws begin with the settings of fewer.
        """
        asked = {name: getattr(self, name) for name in SWEEPABLE}
        drawn = {name: distribution(value) for name, value in asked.items() if isinstance(value, str)}
        random_of = {name: random.Random(f"{self.seed} {name}") for name in drawn}  # the same numbers in any version
        settings = []
        for _ in range(self.draws or 1):
            asked |= {name: drawn[name].at(random_of[name].random()) for name in drawn}
            values = [value if isinstance(value, tuple) else (value,) for value in asked.values()]
            settings += [dict(zip(SWEEPABLE, chosen, strict=True)) for chosen in itertools.product(*values)]
        return settings

    @cached_property
    def members(self) -> list[dict[str, Any]]:
        """Seed and sweepable fields of every agent of the run, ordered by setting, then seed."""
        seeds = range(self.seed, self.seed + self.seeds)
        return [{"seed": seed, **setting} for setting in self.settings() for seed in seeds]

    def derive(self, **values: Any) -> "Config":
        """The same with these values for whichever of the fields are None, remembered in `derived`."""
        missing = {name: value for name, value in values.items() if getattr(self, name) is None}
        return dataclasses.replace(self, **missing, derived=(*self.derived, *missing))


FIELDS = {field.name: field for field in dataclasses.fields(Config)}
SWEEPABLE = [name for name, field in FIELDS.items() if field.type == Sweep]


def fields_where(**metadata: Any) -> list[str]:
    """Names of the fields whose metadata are these; see `kinds.setting` for what there is."""
    return [
        name for name, field in FIELDS.items() if all(field.metadata[key] == value for key, value in metadata.items())
    ]


def checked(field: dataclasses.Field, value: Any) -> Any:
    """Convert a value to a field's own type.

    Raises:
      UserError: it does not fit.
    """
    if value is None and field.default is None:
        return None
    try:
        return field.metadata["kind"].convert(value)
    except ValueError:
        raise unfitting(field, value, shown(repr(value)) if isinstance(value, str) else shown(value)) from None


def unfitting(field: dataclasses.Field, value: Any, written: str) -> UserError:
    """Make the error that says what a field may hold, for a value that does not fit, as it is written."""
    kind = field.metadata["kind"]
    hint = nearest(value[:LONGEST_NAME], kind.choices) if isinstance(value, str) else ""
    if isinstance(value, str) and ":" in value and field.type == Sweep:
        name = value.partition(":")[0]
        hint = "" if name in DISTRIBUTIONS else nearest(name[:LONGEST_NAME], DISTRIBUTIONS)
    if isinstance(value, list | tuple) and "tuple" not in str(field.type):
        hint = f"; several values are for {', '.join(SWEEPABLE)}; of others for qlax sweep"
    return UserError(f"{field.name}={written}: expected {kind.expected}{hint}")


def _nearest_divisors(number: int, wanted: int) -> str:
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    divisors = sorted({*small, *(number // d for d in small)})
    below = max(d for d in divisors if d <= wanted)
    above = [d for d in divisors if d > wanted][:1]
    return " or ".join(str(d) for d in [below, *above])
