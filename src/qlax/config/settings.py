"""Settings of a training run: typed and checked."""

import dataclasses
import itertools
import math
import random
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from qlax.config import checks
from qlax.config.algorithm import AlgorithmSettings
from qlax.config.kinds import (
    DISTRIBUTIONS,
    LARGEST_WHOLE,
    LONGEST_NAME,
    LONGEST_PATH,
    Sweep,
    distribution,
    env_name,
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
from qlax.networks.names import DTYPES, ENCODERS, HEADS, INPUT_NORMS, MEMORIES, NORMS, TRANSFORMS
from qlax.util.text import shown


@dataclass(frozen=True, kw_only=True)
class Config(AlgorithmSettings):
    """All settings of a training run; the defaults are those of the paper for MinAtar.

    A field of type `Sweep` may hold several values, or a distribution from which values are drawn: every combination
    of values is trained with every draw and every seed. Intervals count updates. A field that is None is derived from
    the others when a run begins, and is then listed in `derived`.

    Raises:
      UserError: A value has the wrong type or is out of range, or sizes do not fit each other.
    """

    env: str = setting("", env_name(), "environment", "suite/name, or your own module:Name", flag=False, compared=False)
    env_options: dict[str, Any] = setting({}, table(), "environment", "arguments of the environment", varies=False)
    preset: str | None = setting(
        None, text(), "run", "preset that the settings came from", flag=False, origin=True, compared=False
    )
    derived: tuple[str, ...] = setting(
        (), words(), "run", "settings that follow from others", flag=False, origin=True, compared=False, tracked=False
    )
    seed: int = setting(0, whole(low=0), "run", "random seed of the first agent", compared=False, varies=False)
    seeds: int = setting(
        1,
        whole(),
        "run",
        "number of agents per setting; their random seeds are SEED, SEED + 1, ...",
        compared=False,
        varies=False,
        tracked=False,
        remedy=2,
    )
    draws: int | None = setting(
        None,
        whole(),
        "run",
        "number of combinations of settings to draw from the given distributions; each is trained with every seed",
        compared=False,
        varies=False,
        tracked=False,
    )
    total_steps: int = setting(
        1_000_000,
        whole(high=LARGEST_WHOLE),
        "run",
        "environment steps per agent, rounded up to whole updates",
        changeable=True,
    )
    until: float | None = setting(
        None,
        number(),
        "run",
        "end training once the latest greedy evaluation of every agent reaches this return",
        changeable=True,
        compared=False,
    )
    minutes: float | None = setting(
        None,
        number(low=1e-3, high=1e9),
        "run",
        "end training after this many minutes, before interruptions too; neither compilation nor evaluation counts",
        changeable=True,
        compared=False,
    )

    num_envs: int = setting(
        128,
        whole(),
        "learning",
        "number of parallel environments per agent; more environments are faster per step, but mean fewer updates",
        remedy=3,
    )
    num_steps: int = setting(
        32,
        whole(),
        "learning",
        "steps per rollout in each environment; longer rollouts bootstrap later, but mean fewer updates",
        remedy=4,
    )
    num_minibatches: int = setting(
        32,
        whole(),
        "learning",
        "number of minibatches per epoch, with one gradient step each; more minibatches are smaller and noisier",
    )
    num_epochs: int = setting(
        2, whole(), "learning", "number of passes over each rollout; more passes learn faster, but may overfit to it"
    )

    learning_rate: Sweep = setting(5e-4, sweep(low=0), "learning", "initial learning rate of the optimiser")
    learning_rate_end: Sweep = setting(
        0.0,
        sweep(low=0, high=1),
        "learning",
        "final learning rate as a fraction of the initial one; 1 keeps it constant",
    )
    gamma: Sweep = setting(
        0.99, sweep(low=0, high=1), "learning", "discount factor; values closer to 1 give later rewards more weight"
    )
    lam: Sweep = setting(
        0.65,
        sweep(low=0, high=1),
        "learning",
        "lambda of Q(lambda): 0 is one-step Q-learning, 1 full returns; larger values mean less bias, more variance",
    )
    lam_end: Sweep = setting(0.65, sweep(low=0, high=1), "learning", "final lambda; only used if lam_fraction is not 0")
    lam_fraction: Sweep = setting(
        0.0,
        sweep(low=0, high=1),
        "learning",
        "fraction of training over which lam moves to lam_end; 0 keeps lam constant",
    )
    epsilon_start: Sweep = setting(
        1.0, sweep(low=0, high=1), "exploration", "initial probability of a random action while training"
    )
    epsilon_end: Sweep = setting(
        0.05, sweep(low=0, high=1), "exploration", "final probability of a random action while training"
    )
    epsilon_fraction: Sweep = setting(
        0.1, sweep(low=0, high=1), "exploration", "fraction of training over which epsilon falls to its final value"
    )
    epsilon_spread: Sweep = setting(
        1.0,
        sweep(low=1, high=1e6),
        "exploration",
        "factor that spreads epsilon over the environments, from epsilon / FACTOR to epsilon * FACTOR; 1 for no spread",
    )
    max_grad_norm: Sweep = setting(
        10.0, sweep(low=1e-9), "learning", "maximum global norm of a gradient; larger gradients are scaled down to it"
    )
    reward_scale: Sweep = setting(
        1.0, sweep(), "learning", "factor by which rewards are multiplied for learning; reported returns are not scaled"
    )

    population: str = setting(
        "none",
        text(("none", "pbt")),
        "run",
        "pbt is population-based training: after each evaluation, the worst agents become changed copies of the best",
        varies=False,
        world="in JAX",
    )

    network: str | None = setting(
        None,
        text(),
        "network",
        "import path of your own network, which is called with the number of actions; see qlax.Network "
        "(default: qlax.QNetwork)",
    )
    encoder: str | None = setting(
        None,
        text((*ENCODERS,)),
        "network",
        "encoder of the observation: mlp for vectors, cnn or product for small grids, the others for Atari's screens "
        "(default: chosen by the observation)",
    )
    hidden: tuple[int, ...] | None = setting(
        None, widths(), "network", "widths of the dense layers, as in 256,256 (default: the encoder's own)", remedy=5
    )
    norm: str = setting("layer", text(NORMS), "network", "normalisation before every activation function")
    input_norm: str | None = setting(
        None, text(INPUT_NORMS), "network", "normalisation of the observation (default: none; running with an actor)"
    )
    memory: str = setting("none", text((*MEMORIES,)), "network", "recurrent memory, for partially observed tasks")
    head: str = setting(
        "scalar",
        text((*HEADS,)),
        "network",
        "what the network predicts: Q itself, a histogram of it (hl_gauss), or several estimates (ensemble)",
    )
    head_low: float = setting(-10.0, number(), "network", "smallest Q-value of hl_gauss; lower targets are clipped")
    head_high: float = setting(10.0, number(), "network", "largest Q-value of hl_gauss; higher targets are clipped")
    head_bins: int = setting(
        51, whole(high=10_000), "network", "number of bins of hl_gauss; more bins are more precise, but slower"
    )
    head_sigma: float = setting(
        0.75, number(low=1e-3, high=100), "network", "standard deviation of hl_gauss, in bins; larger is smoother"
    )
    head_transform: str = setting(
        "none", text(TRANSFORMS), "network", "transform of Q-values, after which the bins of hl_gauss have equal width"
    )
    head_members: int = setting(
        10, whole(high=1000), "network", "number of estimates of an ensemble, each with its own targets"
    )
    dueling: bool = setting(False, truth(), "network", "compute Q from a state value and advantages (dueling network)")
    compute_dtype: str = setting(
        "float32", text(DTYPES), "network", "dtype of matrix products; bfloat16 is less precise, but faster on a GPU"
    )

    wrappers: tuple[str, ...] = setting(
        (),
        words(),
        "environment",
        "wrappers around the environment, the innermost first, as in frame_stack=4,last_action,module:Name",
    )
    mixing: str = setting(
        "sum",
        text(("sum", "mean", "none")),
        "learning",
        "how the members of a team, or the dimensions of an action, learn together: by the sum (VDN) or the mean of "
        "their Q-values; none trains each by itself",
    )
    bins: int | None = setting(
        None,
        whole(low=2),
        "environment",
        "number of values of each dimension of a continuous action, its bounds included; with more values, actions are "
        "finer, but learning takes longer",
    )
    reset_ratio: int | None = setting(
        None,
        whole(),
        "environment",
        "number of environments that share a new episode, where resets are expensive (default: the environment's own)",
        world="in JAX",
    )
    time_limit_is_terminal: bool = setting(
        False, truth(), "environment", "treat reaching the time limit as terminal, instead of bootstrapping there"
    )

    overlap: bool = setting(
        False,
        truth(),
        "environment",
        "collect a rollout on the host while learning from the one before, so that its policy is one update old",
        world="on the host",
    )
    host_timeout: float = setting(
        120.0,
        number(low=1e-3, high=1e9),
        "environment",
        "seconds without an answer after which an environment on the host counts as hanging",
        changeable=True,
        compared=False,
        world="on the host",
    )

    eval_episodes: int = setting(
        64, whole(), "evaluation", "number of episodes per evaluation, which are played in parallel", remedy=1
    )
    eval_epsilon: float = setting(
        0.0, number(low=0, high=1), "evaluation", "probability of a random action in evaluations; 0 plays greedily"
    )
    eval_max_steps: int | None = setting(
        None,
        whole(),
        "evaluation",
        "number of steps after which evaluation cuts off an episode (default: its time limit, or 10,000 without one)",
    )
    log_interval: int | None = setting(
        None,
        whole(high=LARGEST_WHOLE),
        "output",
        "number of updates between lines of metrics.jsonl (default: a line every few seconds on a laptop)",
    )
    eval_interval: int | None = setting(
        None,
        whole(high=LARGEST_WHOLE),
        "evaluation",
        "number of updates between evaluations, a multiple of log_interval (default: for at "
        "least 20 evaluations, or fewer if these would take more than a tenth of the time)",
        compared=False,
    )
    checkpoint_interval: int | None = setting(
        None,
        whole(high=LARGEST_WHOLE),
        "output",
        "number of updates between checkpoints, a multiple of log_interval (default: about a minute apart on a laptop)",
    )
    keep: int = setting(2, whole(), "output", "number of newest checkpoints to keep", changeable=True)
    trackers: tuple[str, ...] = setting(
        (),
        words(),
        "output",
        "trackers that receive every line of metrics: tensorboard, wandb, or your own as module:Name",
        changeable=True,
        tracked=False,
    )
    init: str | None = setting(
        None,
        text(longest=LONGEST_PATH),
        "run",
        "run directory, file in its agents/ or best/, or zoo:NAME, with the weights to start from (default: random)",
    )
    devices: int | None = setting(
        None,
        whole(),
        "machine",
        "maximum number of devices per process; on a CPU, it lets several cores share the environments of one agent "
        "(default: all)",
    )
    deterministic: bool = setting(
        False, truth(), "machine", "use only GPU operations that give the same bits every time, which are slower"
    )
    cuda_graph: bool = setting(
        False, truth(), "machine", "launch many updates on a GPU as one CUDA graph; experimental", changeable=True
    )
    matmul_precision: str = setting(
        "default",
        text(("default", "tensorfloat32", "float32")),
        "machine",
        "precision of float32 matrix products on GPUs; float32 is slower (default: tensorfloat32 on Ampere and later)",
        compared=True,
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, checked(field, getattr(self, field.name)))
        if not self.env:
            raise UserError("env is missing: name a preset, or an environment as suite/name or module:Name")
        checks.check(self)

    @property
    def num_updates(self) -> int:
        """Number of updates of the whole run."""
        return -(-self.total_steps // self.steps_per_update)

    @property
    def steps_per_update(self) -> int:
        """Number of environment steps in one update of one agent, N * T."""
        return self.num_envs * self.num_steps

    @property
    def swept(self) -> list[str]:
        """Names of the fields that hold several values, or a distribution."""
        return [name for name in SWEEPABLE if isinstance(getattr(self, name), tuple | str)]

    @property
    def compared(self) -> list[str]:
        """Names of the swept fields by which agents are compared; none in a population, whose settings change."""
        return self.swept if self.population == "none" else []

    @property
    def listed(self) -> dict[str, tuple[float, ...]]:
        """Values of the fields that hold several values, by name."""
        return {name: getattr(self, name) for name in SWEEPABLE if isinstance(getattr(self, name), tuple)}

    @property
    def num_members(self) -> int:
        """Number of agents R of the run: draws x combinations of listed values x seeds."""
        return (self.draws or 1) * self.seeds * math.prod(map(len, self.listed.values()))

    def settings(self) -> list[dict[str, float]]:
        """Return the values of the sweepable fields for every draw and, within it, every combination of listed values.

        Drawn values depend on `seed` and the name of the field alone, so that more draws begin with those of fewer.
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
        """Seed, and fields that may have several values, of every agent, ordered by setting and then by seed."""
        return [{"seed": self.seed + n, **setting} for setting in self.settings() for n in range(self.seeds)]

    def derive(self, **values: Any) -> "Config":
        """Return these settings with the given values in place of those that are None, listed in `derived`."""
        missing = {name: value for name, value in values.items() if getattr(self, name) is None}
        return dataclasses.replace(self, **missing, derived=(*self.derived, *missing))


FIELDS = {field.name: field for field in dataclasses.fields(Config)}
SWEEPABLE = [name for name, field in FIELDS.items() if field.type == Sweep]


def fields_where(**metadata: Any) -> list[str]:
    """Return the names of the fields with this metadata, the arguments of `kinds.setting`."""
    return [name for name, field in FIELDS.items() if metadata.items() <= field.metadata.items()]


def checked(field: dataclasses.Field[Any], value: Any) -> Any:
    """Convert a value to the type of a field.

    Raises:
      UserError: The field cannot hold the value.
    """
    if value is None and field.default is None:
        return None
    try:
        return field.metadata["kind"].convert(value)
    except ValueError:
        raise unfitting(field, value, shown(repr(value)) if isinstance(value, str) else shown(value)) from None


def unfitting(field: dataclasses.Field[Any], value: Any, written: str) -> UserError:
    """Return the error for a value that a field cannot hold; `written` is how the message shows the value."""
    kind = field.metadata["kind"]
    hint = nearest(value[:LONGEST_NAME], kind.choices) if isinstance(value, str) else ""
    if isinstance(value, str) and ":" in value and field.type == Sweep:
        name = value.partition(":")[0]
        hint = "" if name in DISTRIBUTIONS else nearest(name[:LONGEST_NAME], DISTRIBUTIONS)
    if isinstance(value, list | tuple) and "tuple" not in str(field.type):
        hint = f"; only {', '.join(SWEEPABLE)} take several values; vary others with qlax sweep"
    return UserError(f"{field.name}={written}: expected {kind.expected}{hint}")
