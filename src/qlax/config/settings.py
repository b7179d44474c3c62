"""Settings of a training run: typed, checked, read from presets and files."""

import dataclasses
import difflib
import itertools
import json
import math
import random
import tomllib
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

from qlax.config.kinds import (
    DISTRIBUTIONS,
    LARGEST_COUNT,
    LARGEST_WHOLE,
    LONGEST_NAME,
    LONGEST_PATH,
    Sweep,
    distribution,
    flag,
    number,
    sweep,
    table,
    text,
    whole,
    widths,
    words,
)
from qlax.errors import UserError, nearest
from qlax.util.text import shown

PRESETS = Path(str(resources.files("qlax.config"))) / "presets"
EACH, ANY = "each", "<name>"  # smax/each.toml is the preset smax/<name>, and `<name>` in it that of the environment
MOST_RUNS = 2**16
LARGEST_FILE = 2**20  # bytes; our own have a few thousand
DTYPES = ("float32", "bfloat16")
NORMS = ("layer", "batch", "batch_renorm", "none")
POPULATIONS = ("none", "pbt")
TRACKERS = ("tensorboard", "wandb")
NOT_FLAGS = ("env", "preset", "derived")  # the target says the first two, qlax the last


@dataclass(frozen=True, kw_only=True)
class Config:
    """Every choice of a training run; the defaults are the paper's for MinAtar.

    A field of type `Sweep` may hold several values, or a distribution of which they are drawn: every combination of
    values with every joint draw is trained with every seed.
    Intervals count updates. What is None follows from the rest when a run begins; `derived` then names it.

    Raises:
      UserError: a value of the wrong type or out of range, or sizes that do not fit each other.
    """

    env: str = text("", "suite/name, or module:Name of your own")
    env_options: dict[str, Any] = table("parameters of the environment, as name=value")
    preset: str | None = text(None, "where these settings came from")
    derived: tuple[str, ...] = words("fields that were not asked for but follow from the others")
    seed: int = whole(0, "of the first run", low=0)
    seeds: int = whole(1, "runs of each setting, with the seeds seed, seed + 1, ...")
    runs: int | None = whole(None, "in all, where settings are drawn: a multiple of seeds x lists")
    total_steps: int = whole(1_000_000, "environment steps a run, rounded up to whole updates", high=LARGEST_WHOLE)

    num_envs: int = whole(128, "environments a run, N")
    num_steps: int = whole(32, "steps of a rollout, T")
    num_minibatches: int = whole(32, "gradient steps an epoch")
    num_epochs: int = whole(2, "times a rollout is learned from")

    learning_rate: Sweep = sweep(5e-4, "at the start", low=0)
    learning_rate_end: Sweep = sweep(0.0, "at the end, as a fraction of learning_rate; 1 is constant", low=0, high=1)
    gamma: Sweep = sweep(0.99, "discount", low=0, high=1)
    lam: Sweep = sweep(0.65, "lambda of Q(lambda); 0 is one-step Q-learning", low=0, high=1)
    epsilon_start: Sweep = sweep(1.0, "share of random actions at the start", low=0, high=1)
    epsilon_end: Sweep = sweep(0.05, "share of random actions at the end", low=0, high=1)
    epsilon_fraction: Sweep = sweep(0.1, "of the run, until epsilon_end is reached", low=0, high=1)
    max_grad_norm: Sweep = sweep(10.0, "gradients are clipped to this global norm", low=1e-9)
    reward_scale: Sweep = sweep(1.0, "factor of the rewards learned from")

    population: str = text("none", "pbt: after an evaluation the worst go on as copies of the best", POPULATIONS)

    network: str | None = text(None, "module:Name of your own, called with the number of actions")
    encoder: str | None = text(None, "what fits the observation", choices=("mlp", "cnn", "nature", "impala", "hadamax"))
    hidden: tuple[int, ...] | None = widths(None, "widths of the dense layers; the encoder's own, unless given")
    norm: str = text("layer", "normalisation before every activation", choices=NORMS)
    input_norm: str = text("none", "normalisation of the observation", choices=NORMS)
    memory: str = text("none", "what the network remembers with", choices=("none", "lstm", "gru", "mingru", "lru"))
    dueling: bool = flag("separate value and advantage")
    compute_dtype: str = text("float32", "of products; bfloat16 where a device is faster at it", choices=DTYPES)

    wrappers: tuple[str, ...] = words("around the environment, inside first: frame_stack=4,last_action,module:Name")
    mixing: str = text("sum", "how a team learns: a sum of its members (VDN), or none: apart", choices=("sum", "none"))
    reset_ratio: int | None = whole(None, "copies that share a fresh episode a step; the environment's, unless given")
    time_limit_is_terminal: bool = flag("learn as if nothing followed a time limit")

    overlap: bool = flag("on the host, collect a rollout while learning from the last: parameters are an update older")
    host_timeout: float = number(
        120.0, "seconds after which an environment on the host counts as hanging", low=1e-3, high=1e9
    )

    eval_episodes: int = whole(64, "greedy episodes an evaluation, one in each of as many environments")
    eval_max_steps: int | None = whole(None, "evaluation cuts episodes this long; the time limit, unless given")
    log_interval: int | None = whole(
        None, "updates a line of metrics.jsonl, and a call of the device", high=LARGEST_WHOLE
    )
    eval_interval: int | None = whole(
        None, "updates between evaluations, a multiple of log_interval", high=LARGEST_WHOLE
    )
    checkpoint_interval: int | None = whole(
        None, "updates between checkpoints, a multiple of log_interval", high=LARGEST_WHOLE
    )
    keep: int = whole(2, "newest checkpoints that are kept")
    trackers: tuple[str, ...] = words("told every line of metrics: tensorboard, wandb, or module:Name of your own")
    init: str | None = text(None, "run, or file of its agents/, whose weights to begin with", longest=LONGEST_PATH)
    devices: int | None = whole(None, "of each process, at most; said of a CPU, its cores split single runs too")
    deterministic: bool = flag("on a GPU, only operations that give the same bits every time; a CPU's always do")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _checked(field, getattr(self, field.name)))
        if not self.env:
            raise UserError("env is missing: name a preset, or an environment as suite/name or module:Name")
        self._check_runs()
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

    def _check_runs(self) -> None:
        """Whether the runs asked for are as many as there can be."""
        if self.population != "none" and not self.swept:
            raise UserError(
                f"population={self.population} explores what has several values or a distribution, and nothing has; "
                "say for example learning_rate=log-uniform:1e-5:1e-2 and runs=16"
            )
        drawn = [name for name in self.swept if isinstance(getattr(self, name), str)]
        lists = {name: getattr(self, name) for name in self.swept if name not in drawn}
        for name, values in lists.items():
            if twice := [value for value in values if values.count(value) > 1]:
                raise UserError(f"{name}: {twice[0]:g} is given twice; for more runs of a setting use seeds")
        each = self._runs_a_draw
        several = [f"{len(values)} values of {name}" for name, values in lists.items()]
        among = " x ".join([f"seeds={self.seeds}", *several])
        if self.runs is None:
            if drawn:
                what = f"{drawn[0]}={getattr(self, drawn[0])} is drawn from"
                multiple = f", a multiple of {each:,} ({among})" if each > 1 else ""
                raise UserError(f"{what}: say with runs how many there are to be, as runs={16 * each}{multiple}")
        elif not drawn and self.runs != each:
            raise UserError(f"runs={self.runs}: nothing is drawn, and {among} makes {each:,}; leave runs out")
        elif self.runs % each:
            below = self.runs // each * each
            fitting = " or ".join(str(runs) for runs in (below, below + each) if runs)
            raise UserError(f"runs={self.runs} is not a multiple of {each:,} ({among}); use {fitting}")

    def _check_sizes(self) -> None:
        """Whether all that the device counts can be counted, and the runs be listed; memory is another matter."""
        gradient_steps = self.num_updates * self.num_epochs * self.num_minibatches
        among = f" (num_updates={self.num_updates:,} x num_epochs x num_minibatches)"
        runs = f"runs={self.runs}" if self.runs else f"seeds={self.seeds} x {', '.join(self.swept) or '1 setting'}"
        for what, count, most in (
            (f"num_envs={self.num_envs} x num_steps={self.num_steps}", self.steps_per_update, LARGEST_COUNT),
            (f"total_steps={self.total_steps}: the gradient steps{among}", gradient_steps, LARGEST_COUNT),
            (f"{runs}: the runs", self.num_runs, MOST_RUNS),
            (f"seed={self.seed} and seeds={self.seeds}: the last seed", self.seed + self.seeds - 1, LARGEST_COUNT),
        ):
            if count > most:
                raise UserError(f"{what} would be {count:,}; expected at most {most:,}")

    def _check_trackers(self) -> None:
        """Whether they are known, or may be somebody's own."""
        for name in self.trackers:
            if name not in TRACKERS and ":" not in name:
                known = f"expected {', '.join(TRACKERS)}, or module:Name of your own"
                raise UserError(f"trackers={name}: {known}{nearest(name, TRACKERS)}")
            if self.trackers.count(name) > 1:
                raise UserError(f"trackers: {name} is given twice")

    @property
    def num_updates(self) -> int:
        """Updates of the whole run."""
        return -(-self.total_steps // self.steps_per_update)

    @property
    def steps_per_update(self) -> int:
        """Environment steps of one update of one run."""
        return self.num_envs * self.num_steps

    @property
    def swept(self) -> list[str]:
        """The fields that hold several values, or a distribution of them."""
        return [name for name in SWEEPABLE if isinstance(getattr(self, name), tuple | str)]

    @property
    def compared(self) -> list[str]:
        """Of them those by whose values runs are compared; a population's change while it is trained."""
        return self.swept if self.population == "none" else []

    @property
    def num_runs(self) -> int:
        """A setting times a seed."""
        return self.runs or self._runs_a_draw

    @property
    def _runs_a_draw(self) -> int:
        """The runs that have the same draw of all distributions."""
        lists = (value for value in (getattr(self, name) for name in SWEEPABLE) if isinstance(value, tuple))
        return self.seeds * math.prod(map(len, lists))

    def settings(self) -> list[dict[str, float]]:
        """One setting of the sweepable fields for every draw and every combination of values, ordered in this way.

        What is drawn depends on `seed` and the field alone, so that more runs begin with the settings of fewer.
        """
        asked = {name: getattr(self, name) for name in SWEEPABLE}
        drawn = {name: distribution(value) for name, value in asked.items() if isinstance(value, str)}
        draws = {name: random.Random(f"{self.seed} {name}") for name in drawn}  # gives the same numbers in any version
        settings = []
        for _ in range(self.num_runs // self._runs_a_draw):
            asked |= {name: drawn[name].at(draws[name].random()) for name in drawn}
            values = [value if isinstance(value, tuple) else (value,) for value in asked.values()]
            settings += [dict(zip(SWEEPABLE, chosen, strict=True)) for chosen in itertools.product(*values)]
        return settings

    def all_runs(self) -> list[dict[str, Any]]:
        """What each run has of its own, ordered by setting, then seed: `seed` and the sweepable fields."""
        return self._all_runs

    @cached_property
    def _all_runs(self) -> list[dict[str, Any]]:
        seeds = range(self.seed, self.seed + self.seeds)
        return [{"seed": seed, **setting} for setting in self.settings() for seed in seeds]

    def with_intervals(self, time_limit: int | None, on_host: bool = False) -> "Config":
        """The same with whatever intervals are None derived, by the sizes of the run alone.

        A line of metrics is some seconds of a laptop's work, or a thousandth of a long run; all evaluations
        together take a tenth of the run's arithmetic and of its steps in sequence at most, or a tenth of its steps if
        the environments are on the host; checkpoints are a minute of a laptop's work apart at most, or a two-hundredth
        of a long run.
        """
        steps = self.steps_per_update * self.num_runs
        line_steps, checkpoint_steps = (2_048, 16_384) if on_host else (16_384, 200_000)
        log_interval = self.log_interval or min(
            max(math.ceil(line_steps / steps), math.ceil(self.num_updates / 1000)),
            *(interval for interval in (self.eval_interval, self.checkpoint_interval, self.num_updates) if interval),
        )
        if not self.log_interval:  # intervals asked for are kept, so the derived one has to divide them
            log_interval = math.gcd(log_interval, *(i for i in (self.eval_interval, self.checkpoint_interval) if i))
        max_steps = self.eval_max_steps or time_limit or 10_000
        # A backward pass costs two forward passes. Small batches cost as much as large ones, hence the second bound.
        cost = 1 if on_host else 1 + 3 * self.num_epochs
        arithmetic = self.total_steps * cost / (self.eval_episodes * max_steps)
        gradient_steps = self.num_epochs * self.num_minibatches
        sequence = self.num_updates * (self.num_steps + 3 * gradient_steps) / max_steps
        evaluations = min(20, max(1, int(0.1 * min(arithmetic, sequence))))
        lines = self.num_updates / log_interval
        checkpoint_lines = max(math.ceil(checkpoint_steps / (steps * log_interval)), math.ceil(lines / 200))
        return self.derive(
            log_interval=log_interval,
            eval_interval=log_interval * math.ceil(lines / evaluations),
            checkpoint_interval=log_interval * checkpoint_lines,
            eval_max_steps=max_steps,
        )

    def derive(self, **values: Any) -> "Config":
        """The same with these values for whichever of the fields are None, remembered in `derived`."""
        missing = {name: value for name, value in values.items() if getattr(self, name) is None}
        return dataclasses.replace(self, **missing, derived=(*self.derived, *missing))

    def to_json(self) -> str:
        """What `from_file` reads back."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


FIELDS = {field.name: field for field in dataclasses.fields(Config)}
SWEEPABLE = [name for name, field in FIELDS.items() if field.type == Sweep]


def configure(target: str | Config | None = None, **overrides: Any) -> Config:
    """The settings of a preset or of an environment, with some of them replaced.

    Args:
      target: a preset, such as "cartpole"; an environment, "suite/name" or "module:Name"; or settings to start from.
      overrides: fields of `Config`; options of the environment are added to those of the preset.

    Raises:
      UserError: no such preset or field, or a value that cannot be.
    """
    settings: dict[str, Any] = {}
    if isinstance(target, Config):
        settings = dataclasses.asdict(target)
    elif target is not None:
        _checked(FIELDS["env"], target)
        known = presets()
        if _preset_file(target):
            settings = {**_read_preset(target), "preset": target}
        elif ":" in target or ("/" in target and not _is_almost(target, known)):
            settings = {"env": target}
        else:
            hint = nearest(target, known)
            raise UserError(f"unknown preset {target!r}{hint}; presets: {', '.join(known)}; environments: suite/name")
    return _config(settings, overrides, "settings")


def from_file(path: Path | str, **overrides: Any) -> Config:
    """The settings in a `config.json`, with some of them replaced.

    Raises:
      UserError: the file is missing, damaged or not one of ours.
    """
    name = shown(str(path), 200)
    try:
        with Path(path).open("rb") as file:
            written = file.read(LARGEST_FILE + 1)
    except (OSError, ValueError) as error:  # the latter where the path holds a null
        raise UserError(f"{name} cannot be read: {getattr(error, 'strerror', error)}") from error
    if len(written) > LARGEST_FILE:
        raise UserError(f"{name} has more than {LARGEST_FILE:,} bytes; expected the settings of a run")
    try:
        settings = json.loads(written.decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name} is not JSON: {shown(str(error), 200)}") from error
    if not isinstance(settings, dict):
        raise UserError(f"{name} holds a {type(settings).__name__}; expected an object of settings")
    return _config(settings, overrides, name)


def presets() -> list[str]:
    """Names of the presets; `folder/<name>` stands for one of every environment of a kind."""
    names = (path.relative_to(PRESETS).with_suffix("").as_posix() for path in PRESETS.rglob("*.toml"))
    return sorted(name.removesuffix(EACH) + ANY if name.endswith(f"/{EACH}") else name for name in names)


def preset_text(name: str) -> str:
    """A preset as it stands in its file: the comments say where it comes from and what to expect.

    Raises:
      UserError: no such preset.
    """
    file = _preset_file(name)
    if file is None:
        known = presets()
        hint = nearest(name[:LONGEST_NAME], known)
        raise UserError(f"unknown preset {shown(repr(name))}{hint}; presets: {', '.join(known)}")
    return file.read_text()


def environment_presets(env: str) -> list[str]:
    """The presets made for this environment."""

    def made_for(preset):
        start, each, _ = _read_preset(preset)["env"].partition(ANY)
        if each and env.startswith(start):
            return preset.replace(ANY, env.removeprefix(start))
        return preset if start == env else None

    return [name for name in map(made_for, presets()) if name]


def parse(name: str, text: str) -> Any:
    """The value of a field as written on a command line; one of several where the field is a sweep.

    Raises:
      UserError: it cannot be read as the field's type.
    """
    try:
        return FIELDS[name].metadata["kind"].parse(text)
    except ValueError:
        raise _unfitting(FIELDS[name], text, shown(text)) from None


def as_words(config: Config, always: Collection[str] = ()) -> list[str]:
    """What asks for these settings on a command line: a target, and flags for all that is not as it has it.

    Args:
      config: the settings.
      always: fields to name, even if they are.
    """
    target, asked = config.env, configure(config.env)
    if config.preset and _preset_file(config.preset):
        preset = configure(config.preset)
        # No flag takes back what a preset says: where something of it is gone, all is said.
        gone = [name for name in FIELDS if getattr(config, name) is None and getattr(preset, name) is not None]
        if not gone and preset.env == config.env and preset.env_options.keys() <= config.env_options.keys():
            target, asked = config.preset, preset
    said = [name for name in FIELDS if name not in (*NOT_FLAGS, *config.derived)]
    here, there = ({name: getattr(of, name) for name in said} for of in (config, asked))
    differing = {name: value for name, value in here.items() if name in always or value != there[name]}
    return [target, *(word for name, value in differing.items() for word in _as_words(name, value))]


def _as_words(name: str, value: Any) -> list[str]:
    """A field on a command line: what `parse` reads back."""
    flag = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-", 1)]
    if isinstance(value, dict):
        return [flag, *(f"{key}={json.dumps(each)}" for key, each in value.items())]
    if isinstance(value, tuple) and name in SWEEPABLE:
        return [flag, *map(str, value)]
    word = written(value)
    return [f"{flag}={word}"] if word.startswith("-") else [flag, word]


def written(value: Any) -> str:
    """A value of a field in one word."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _preset_file(name: str) -> Path | None:
    """The file that holds a preset: its own, or the one its folder has for each of a kind of environments."""
    folder, _, variant = name.partition("/")
    known = presets()  # asked first, so that no name leads out of the folder
    if name in known and variant != ANY:
        return PRESETS / f"{name}.toml"
    return PRESETS / folder / f"{EACH}.toml" if f"{folder}/{ANY}" in known and variant not in ("", EACH) else None


def _read_preset(name: str) -> dict[str, Any]:
    settings = tomllib.loads(preset_text(name))
    return {**settings, "env": settings["env"].replace(ANY, name.partition("/")[2])}


def _is_almost(target: str, known: list[str]) -> bool:
    """Whether it is a preset with a slip of the pen, or at least of their folder."""
    folder = target.partition("/")[0]
    return any(name.startswith(f"{folder}/") for name in known) or bool(
        difflib.get_close_matches(target, known, cutoff=0.85)
    )


def _config(settings: dict[str, Any], overrides: dict[str, Any], source: str) -> Config:
    for name in (*settings, *overrides):
        if name not in FIELDS:
            raise UserError(f"unknown setting {shown(repr(name))} in {source}{nearest(name[:LONGEST_NAME], FIELDS)}")
    for name in ("derived", "env_options"):  # others are checked where all are there
        for given in (settings, overrides):
            if name in given:
                _checked(FIELDS[name], given[name])
    if overrides:  # what followed from other settings has to follow anew
        settings = {name: value for name, value in settings.items() if name not in settings.get("derived", ())}
        settings.pop("derived", None)
    if "env_options" in overrides and "env_options" in settings and "env" not in overrides:
        overrides = {**overrides, "env_options": {**settings["env_options"], **overrides["env_options"]}}
    return Config(**{**settings, **overrides})


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, in which no name may stand twice."""
    settings: dict[str, Any] = {}
    for name, value in pairs:
        if name in settings:
            raise ValueError(f"{shown(repr(name))} stands there twice")
        settings[name] = value
    return settings


def _checked(field: dataclasses.Field, value: Any) -> Any:
    if value is None and field.default is None:
        return None
    try:
        return field.metadata["kind"].convert(value)
    except ValueError:
        raise _unfitting(field, value, shown(repr(value)) if isinstance(value, str) else shown(value)) from None


def _unfitting(field: dataclasses.Field, value: Any, written: str) -> UserError:
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
