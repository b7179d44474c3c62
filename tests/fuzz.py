"""Draw random configurations and environments, most with mistakes: each is refused in one line, or trains.

`python tests/fuzz.py --configurations 1000 --environments 100 --seed 0 --out FILE.json` draws many of them, prints the
outcomes and writes them to the file; `test_fuzz.py` draws a few. Settings that change the compiled program have few
legal values here, because compiling takes most of the time; settings that JAX traces may be any number.
"""

import argparse
import contextlib
import io
import json
import math
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
from hosts import HostWalk
from hypothesis import strategies as st
from probes import RandomWorld

import qlax
from qlax.cli import flags
from qlax.cli import main as cli
from qlax.config.configure import configure
from qlax.config.settings import FIELDS, SWEEPABLE, Config
from qlax.errors import HostError, UserError, described
from qlax.storage.formats import config_of_file
from qlax.training.plan import NETWORK_FIELDS, make
from qlax.types import Step
from qlax.util.text import shown

LONGEST_MESSAGE = 700
MOST_SECONDS, MOST_MEMORY = 5.0, 1 << 30  # processor time and bytes that a refusal may take
HANGING = 120  # seconds

# Settings of the smallest run of two updates.
BASE = {
    "env": "probes:ActionReward",
    "num_envs": 4,
    "num_steps": 4,
    "num_minibatches": 2,
    "num_epochs": 1,
    "total_steps": 32,
    "hidden": (8,),
    "log_interval": 1,
    "eval_interval": 2,
    "checkpoint_interval": 2,
    "eval_episodes": 2,
    "eval_max_steps": 10,
}
# Settings that need a program of their own.
STRUCTURES: list[dict[str, Any]] = [
    {},
    {"seeds": 2},
    {"learning_rate": "log-uniform:1e-5:1", "gamma": "uniform:0:1", "draws": 2},
    {"env": "probes:Recall", "memory": "gru"},
    {"env": "probes:Recall", "memory": "lru", "dueling": True},
    {"env": "probes:MaskedAction", "norm": "batch", "input_norm": "batch_renorm"},
    {"env": "probes:ObservationReward", "norm": "none", "compute_dtype": "bfloat16"},
    {"env": "probes:RandomWorld", "env_options": {"num_agents": 2, "masked": True}, "mixing": "none"},
    {"env": "counting:Counting", "env_options": {"time_limit": 5}, "wrappers": ("frame_stack=2", "last_action")},
    {"env": "probes:DelayedReward", "env_options": {"length": 3}, "time_limit_is_terminal": True, "reset_ratio": 2},
    {"env": "hosts:HostWalk", "overlap": True, "host_timeout": 1e9},
]
# Settings that can change without compiling anew.
TRACED = {name: st.floats(0, 1) for name in SWEEPABLE} | {
    "learning_rate": st.floats(0, 3e38),
    "max_grad_norm": st.floats(1e-9, 3e38),
    "reward_scale": st.floats(-3e38, 3e38),
}
FREE = {
    **{name: value | st.tuples(value, value) for name, value in TRACED.items()},
    "log_interval": st.sampled_from([1, 2]),
    "eval_interval": st.sampled_from([2, 4, 2**31 - 2, 2**53]),
    "checkpoint_interval": st.sampled_from([2, 6, 2**31 - 2, 2**53]),
    "keep": st.integers(1, 2**31 - 1),
    "seed": st.integers(0, 2**31 - 1),
    "preset": st.text("ab/<", max_size=9),
    "derived": st.lists(st.sampled_from(sorted(FIELDS)), max_size=3),
    "deterministic": st.booleans(),
}
NUMBERS = [
    *(0, -1, 0.0, -0.0, 0.5, 2.5, 2**20, 2**31 - 1, 2**31, 2**53, 2**63, 10**30, 10**400, 10**5000),
    *(1e-320, 1e39, 1e308, -1e308, math.nan, math.inf, -math.inf, True, False, 1j),
]
WORDS = [
    *(
        "",
        " ",
        "1",
        "-1",
        "nan",
        "true",
        "None",
        "\n",
        "a\nb",
        "\0",
        "\ud800",
        "../../etc",
        "/",
        ":",
        "a:b",
        "a=b",
        "=",
    ),
    *(
        "layer",
        "sum",
        "x" * 10**6,
        "[" * 10**5,
        "9" * 5000,
        "1,1,1",
        "{}",
        "\N{GREEK SMALL LETTER LAMDA}",
        "%s%d",
        "--out",
    ),
]
DISTRIBUTIONS = [
    *("uniform:0:1", "log-uniform:1e-5:1", "uniform:1:0", "log-uniform:0:1", "uniform:0.5:nan", "uniform:-1e39:1e39"),
    *("uniform:0:1:2", "uniform", "uniform:0x1:1", "normal:0:1", "log-uniform:1e-320:1e-300", f"uniform:{'9' * 5000}"),
]
OTHERS = [
    *(None, (), [], {}, set(), b"x", object(), len, Path("x"), {"a": 1}, {1: 2}, [[1]], [None], ["a"] * 1000),
    *((0.5,) * 100_000, (8,) * 100, ("",), np.arange(3.0), np.zeros((2, 2)), np.float64(0.5), np.bool_(True)),
]
HOSTILE = st.one_of(*map(st.sampled_from, (NUMBERS, WORDS, DISTRIBUTIONS, OTHERS)), st.text(max_size=20))
PATHS = (
    *("nope", "gymnax/Nope-v1", "gymnax/", "gymnax/../..", "nope/x", "minatar/brekout", "probes:Nope", "nope.nope:X"),
    *(
        "probes:show",
        "probes:Team",
        "math:pi",
        "math:sqrt",
        "builtins:dict",
        "builtins:object",
        "probes:",
        "json.:x",
        "..:x",
    ),
)
HOSTILE_OF = {
    "env": st.sampled_from(PATHS),
    "network": st.sampled_from(PATHS),
    "init": st.sampled_from(["nope", "/", "/dev/null", "\0", "x" * 5000, "~", "."]),
    "wrappers": st.lists(
        st.sampled_from(
            [
                *(
                    *PATHS,
                    "one_hot=5",
                    "time_limit=-1",
                    "time_limit=2.5",
                    "clip_reward=inf",
                    "last_action=",
                    "a=b=c",
                    "",
                    "\n",
                ),
                "frame_stack",
                "frame_stack=0",
                "frame_stack=x",
                "frame_stack=nan",
                "frame_stack=1e30",
                "flatten=1",
            ]
        ),
        min_size=1,
        max_size=3,
    ),
    "env_options": st.dictionaries(
        st.sampled_from(
            ["nope", "path", "self", "length", "num_agents", "masked", "num_envs", "time_limit", "", "a b"]
        ),
        HOSTILE,
        min_size=1,
        max_size=2,
    ),
}


class Outcome(NamedTuple):
    """Outcome of one example."""

    kind: str  # "trained", "diverged", "crashed" on the host, "examined" but not trained, or "refused"
    seconds: float  # processor time
    message: str = ""


class Drawn(NamedTuple):
    """Configuration, and the way in which it is given."""

    settings: dict[str, Any]
    changed: tuple[str, ...]  # fields that differ from a configuration known to be valid
    route: str  # "keywords", "Config", "file" or "command"


@st.composite
def configurations(draw: Any, structures: list[dict[str, Any]] = STRUCTURES, max_hostile: int = 2) -> Drawn:
    """Draw a run of two updates in which some fields are changed: some to legal values, some to hostile ones."""
    settings = BASE | draw(st.sampled_from(structures))
    free = draw(st.fixed_dictionaries({}, optional=FREE)) if draw(st.booleans()) else {}
    names = draw(
        st.lists(st.sampled_from([*sorted(FIELDS), *sorted(HOSTILE_OF) * 3]), max_size=max_hostile, unique=True)
    )
    if "network" in names:  # a network of the user has none of these fields
        settings = {name: value for name, value in settings.items() if name not in NETWORK_FIELDS}
    hostile = {name: draw(HOSTILE_OF.get(name, HOSTILE) | HOSTILE) for name in names}
    route = draw(st.sampled_from(["keywords", "Config", "file", "command"]))
    return Drawn(settings | free | hostile, (*free, *names), route)


def examine(drawn: Drawn, folder: Path, with_training: bool = True) -> Outcome:
    """Check that a configuration is refused in one line and at once, or trains to finite numbers.

    Only short runs are trained, and only if `with_training` is set.

    Raises:
      AssertionError: The configuration is neither refused in this way nor trained.
    """
    folder.mkdir(parents=True)
    settings, route = drawn.settings, drawn.route
    words: list[str] = []
    with contextlib.suppress(TypeError, ValueError):  # JSON or a command line cannot express the value
        if route == "file":
            (folder / "config.json").write_text(json.dumps(settings))
        elif route == "command":
            words = _words(settings)
    if (route == "file" and not (folder / "config.json").exists()) or (route == "command" and not words):
        route = "keywords"
    before, memory, begun = sorted(folder.iterdir()), _memory(), time.process_time()
    out = folder / "run"
    try:
        try:
            config = _asked(settings, route, folder, words)
            trains = with_training and _is_small(config)
        except (UserError, SystemExit):
            if route != "command":
                raise
            trains = True  # the command itself has to refuse the settings
        if not trains:
            make(config, {})
            return Outcome("examined", time.process_time() - begun)
        result = (
            _command([*words, "--out", str(out)]) if route == "command" else qlax.train(config, out=out, progress=False)
        )
    except UserError as error:
        seconds, message = time.process_time() - begun, str(error)
        check_refusal(message, seconds, _memory() - memory)
        assert sorted(folder.iterdir()) == before, f"refused, but something was written: {message}"
        if len(drawn.changed) == 1 and drawn.changed[0] not in HOSTILE_OF:
            name = drawn.changed[0]
            assert name in message or name.replace("_", "-") in message, f"{name} is not named: {message}"
        return Outcome("refused", seconds, message)
    except qlax.DivergedError as error:
        return Outcome("diverged", time.process_time() - begun, str(error))
    except HostError as error:
        return Outcome("crashed", time.process_time() - begun, str(error))
    if result is not None:
        check_result(result)
    assert (out / "summary.json").exists()
    return Outcome("trained", time.process_time() - begun)


def check_refusal(message: str, seconds: float, memory: int) -> None:
    """Check that a refusal is one line, and came before any expensive computation."""
    shown = f"{message[:LONGEST_MESSAGE]!r}"
    assert message.strip(), "a refusal without a message"
    assert len(message.splitlines()) == 1, f"several lines: {shown}"
    assert len(message) <= LONGEST_MESSAGE, f"{len(message)} characters: {shown}"
    assert seconds < MOST_SECONDS, f"refused after {seconds:.1f} seconds: {shown}"
    assert memory < MOST_MEMORY, f"refused after taking {memory >> 20} MiB: {shown}"


def check_result(result: qlax.Result) -> None:
    """Check that the learned weights are finite."""
    assert result.summary["updates"] == 2
    for agent in result.agents:
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(agent.variables)), "weights are not finite"


def _asked(settings: dict[str, Any], route: str, folder: Path, words: list[str]) -> Config:
    """Return the configuration, made in one of the ways to give it."""
    if route == "Config":
        return Config(**settings)
    if route == "file":
        return config_of_file(folder / "config.json", keep=3)
    if route == "command":
        with contextlib.redirect_stderr(io.StringIO()):
            options, unknown = cli.parser().parse_known_args(words)
        if unknown:
            raise UserError("unknown flag")
        return configure(options.target, **flags.given(options))
    return configure(settings["env"], **{name: value for name, value in settings.items() if name != "env"})


def _words(settings: dict[str, Any]) -> list[str]:
    """Return settings as words of the command line; those that cannot be expressed there are left out."""
    words = ["train", str(settings["env"])]
    for name, value in settings.items():
        flag = "--" + name.replace("_", "-")
        if not FIELDS[name].metadata["flag"] or value is None:
            continue
        if isinstance(value, bool) and isinstance(FIELDS[name].default, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        elif isinstance(value, dict):
            words += [flag, *(f"{key}={each}" for key, each in value.items())]
        elif isinstance(value, tuple) and name in SWEEPABLE:
            words += [flag, *map(str, value)]
        else:
            words.append(f"{flag}={','.join(map(str, value)) if isinstance(value, list | tuple) else value}")
    return words


def _command(words: list[str]) -> Any:
    """Run a command, and raise the error that it reports.

    Raises:
      UserError: The command refused the settings; the message is what it printed.
      DivergedError, HostError: Training failed; the message is what the command printed.
    """
    stderr = io.StringIO()
    with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = cli.main(words)
        except SystemExit as exit:
            code = exit.code
    said = stderr.getvalue()
    if code == 2:
        assert said.startswith("qlax: "), f"the command says {said!r}"
        assert said.endswith("\n"), f"the command says {said!r}"
        raise UserError(said.removesuffix("\n"))
    if code == 1:
        raise (qlax.DivergedError if "finite" in said else HostError)(said.splitlines()[-1])
    assert code == 0, f"exit code {code}: {said}"
    return None


def _is_small(config: Config) -> bool:
    """Return whether training takes only a moment."""
    wide = max(config.hidden or (256,)) > 64 or len(config.hidden or ()) > 3 or len(config.wrappers) > 3
    epochs = config.num_epochs * config.num_minibatches
    return not wide and all(
        number <= most
        for number, most in (
            (config.num_updates, 2),
            (config.steps_per_update, 64),
            (epochs, 8),
            (config.num_members, 2),
            (config.eval_episodes, 8),
            (config.eval_max_steps or 10_000, 100),
        )
    )


def _memory() -> int:
    """Return the peak memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


_drawn: Any = None  # function that makes the environment drawn last


def drawn_env() -> Any:
    """Make the environment drawn last, in JAX; training finds it by this function's path."""
    return _drawn()


def drawn_host_env(num_envs: int) -> Any:
    """Make the environment drawn last, on the host; training finds it by this function's path."""
    return _drawn(num_envs)


class Fault(NamedTuple):
    """Difference between an environment and the one from which it is made."""

    where: str  # an attribute, "reset", "step" or "both"
    what: str  # "is", "raises", or the replaced part of the result: "result", "state" or a field of `Step`
    value: Any


class Odd:
    """Property that cannot be read."""

    def __get__(self, env: Any, kind: Any) -> Any:
        raise RuntimeError("not\nready")


DTYPES = (
    *("bool", "int8", "uint8", "int32", "float16", "bfloat16", "float32", "complex64", "int4", "float8_e4m3fn"),
    *("float64", "int64"),
)
SHAPES = ((), (0,), (1,), (2,), (3,), (4,), (1, 4), (2, 3), (2, 4), (3, 3, 1), (6, 3), (6, 4), (6,))


def arrays(module: Any) -> st.SearchStrategy[Any]:
    """Draw functions that make arrays of `jax.numpy` or NumPy, with various values, shapes and dtypes."""

    def made(fill, shape, dtype):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # JAX warns that it has no float64
            return lambda: module.asarray(np.full(shape, fill, np.float32)).astype(getattr(jnp, dtype))

    return st.builds(
        made, st.sampled_from([0, 1, math.nan, math.inf]), st.sampled_from(SHAPES), st.sampled_from(DTYPES)
    )


def junk(module: Any) -> st.SearchStrategy[Any]:
    """Draw functions that make something in place of an array."""
    own = [
        *(None, 0, 1, -1, 0.5, True, math.nan, 10**30, "text", b"x", (), {}, [], [1.0, 2.0], object(), 1j, {"a": None}),
        *({1: 0.0, "a": 0.0}, {"": 1.0}, {"loss": 1.0}, {"eval_x": 1.0}, {"a\nb": 1.0}, {"a": {"b": 1.0}}, {"a": "b"}),
    ]
    if module is np:
        own += [np.array(["a"]), np.array([None] * 6), np.zeros(6, "M8[s]"), np.zeros(6, "i4,f4"), np.float32(1)]
    one = st.sampled_from(own).map(lambda value: lambda: value) | arrays(module)
    if module is jnp:
        one = one | st.just(lambda: jax.random.key(0))
    names = st.sampled_from(["a", "b/c", "loss", "raw_reward", "episode_return", "episode_length", 1, ""])
    together = st.dictionaries(names, one, min_size=1, max_size=2)
    return one | together.map(lambda tree: lambda: {name: make() for name, make in tree.items()})


ATTRIBUTES = (
    "num_actions",
    "num_agents",
    "num_envs",
    "time_limit",
    "reset_ratio",
    "score",
    "shared",
    "shared_at",
    "step",
)
ODD_ATTRIBUTES = [
    *(None, 0, -1, 1, 2, 5, 2.5, True, "3", math.nan, 10**30, 2**31 - 1, 2**20, np.int64(4), np.array(4), [4], Odd()),
    *(len, str, lambda *arguments: 1.0, lambda *arguments: None, lambda: 0),
]
ERRORS = [
    ValueError("a\nb"),
    RuntimeError(""),
    RuntimeError("\n\n"),
    KeyError("x" * 5000),
    TypeError(None),
    OSError(2, "x"),
]


def faults(module: Any) -> st.SearchStrategy[Fault]:
    """Draw faults of an environment that computes with this module."""
    places = st.sampled_from(["reset", "step", "both"])
    parts = st.sampled_from(["result", "state", *Step._fields, *Step._fields])
    return (
        st.builds(Fault, st.sampled_from(ATTRIBUTES), st.just("is"), st.sampled_from(ODD_ATTRIBUTES))
        | st.builds(Fault, places, st.just("raises"), st.sampled_from(ERRORS))
        | st.builds(Fault, places, parts, junk(module))
    )


def parts_that_may_fit(module: Any) -> list[Fault]:
    """Return changes that may be valid, because their shapes may fit."""
    shapes = {"obs": [(), (3,), (5, 5, 3), (0,), (2, 3), (6, 5)], "reward": [()], "terminated": [()], "truncated": [()]}
    made = [
        Fault("both", name, lambda shape=shape, dtype=dtype: module.ones(shape, getattr(jnp, dtype)))
        for name, some in shapes.items()
        for shape in some
        for dtype in DTYPES[:-2]
    ]
    own = {
        name: lambda name=name: {name: module.float32(1)} for name in ("count", "a/b", "raw_reward", "episode_length")
    }
    made += [Fault("both", "metrics", value) for value in own.values()]
    return [*made, *(Fault("time_limit", "is", 5), Fault("reset_ratio", "is", 2), Fault("score", "is", float))]


def broken(base: type, found: tuple[Fault, ...], **options: Any) -> Any:
    """Return an environment with these faults."""
    members: dict[str, Any] = {}
    for fault in found:
        if fault.what == "is":
            members[fault.where] = fault.value
        else:
            for name in ("reset", "step") if fault.where == "both" else (fault.where,):
                members[name] = _changed(members.get(name) or getattr(base, name), fault, base is HostWalk)
    # An attribute that the constructor of `base` sets would hide the faulty one of the class.
    env = type("Broken", (base,), members)(**options)
    for name, value in members.items():
        if name in env.__dict__ and name != "num_envs":
            setattr(env, name, value)
    return env


def _changed(function: Callable[..., Any], fault: Fault, on_host: bool) -> Callable[..., Any]:
    def changed(self, *arguments):
        if fault.what == "raises":
            raise fault.value
        result = function(self, *arguments)
        if fault.what == "result":
            return fault.value()
        state, step = (None, result) if on_host else result
        if fault.what == "state":
            return result if on_host else (fault.value(), step)
        step = step._replace(**{fault.what: fault.value()})
        return step if on_host else (state, step)

    return changed


@st.composite
def environments(draw: Any) -> tuple[bool, Callable[..., Any]]:
    """Draw whether an environment lives on the host, and a function that makes it with one or two faults."""
    on_host = draw(st.booleans())
    module = np if on_host else jnp
    some = faults(module) if draw(st.booleans()) else st.sampled_from(parts_that_may_fit(module))
    found = tuple(draw(st.lists(some, min_size=1, max_size=2)))
    if on_host:
        return True, lambda num_envs: broken(HostWalk, found, num_envs=num_envs)
    options = draw(st.sampled_from([{}, {"num_agents": 2}, {"masked": True}]))
    return False, lambda: broken(RandomWorld, found, **options)


def examine_environment(on_host: bool, make: Callable[..., Any], folder: Path, with_training: bool = True) -> Outcome:
    """Check that `check_env` accepts or refuses an environment, and that a run refuses it or trains; see `examine`.

    Raises:
      AssertionError: A refusal is not one line, or a run is neither refused nor trained.
    """
    global _drawn
    _drawn = make
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            qlax.check_env(make(6) if on_host else make(), num_steps=20)
        except UserError as error:
            check_refusal(str(error), 0.0, 0)
        own = {"env": f"{__name__}:drawn_host_env"} if on_host else {"env": f"{__name__}:drawn_env"}
        return examine(Drawn(BASE | own, (), "Config"), folder, with_training)


class _HangError(BaseException):
    pass


@contextlib.contextmanager
def _not_hanging():
    def stop(*_):
        raise _HangError(f"not done after {HANGING} seconds")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(HANGING)
    try:
        yield
    finally:
        signal.alarm(0)


def draw_many(
    strategy: Any, examine_one: Callable[[Any, Path], Outcome], count: int, seed: int
) -> list[dict[str, Any]]:
    """Examine `count` examples; return a row for each, in which a failure is one more kind of outcome."""
    rows: list[dict[str, Any]] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(strategy)
    def run(drawn):
        begun = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            try:
                with _not_hanging():
                    outcome = examine_one(drawn, Path(folder, "0"))
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                outcome = Outcome("failed", 0.0, f"{shown(described(error), 1000)}, with {shown(repr(drawn), 2000)}")
                print(outcome.message, traceback.format_exc(limit=-5), sep="\n", file=sys.stderr, flush=True)
        rows.append(outcome._asdict() | {"wall_seconds": time.perf_counter() - begun})
        if len(rows) % 50 == 0:
            print(len(rows), dict(Counter(row["kind"] for row in rows)), file=sys.stderr, flush=True)

    run()
    return rows


def _configurations(count: int, seed: int) -> list[dict[str, Any]]:
    return draw_many(configurations(), examine, count, seed)


def _environments(count: int, seed: int) -> list[dict[str, Any]]:
    return draw_many(environments(), lambda drawn, folder: examine_environment(*drawn, folder), count, seed)


def summary_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the numbers of outcomes, the slowest refusal and all failures."""
    refusals = [row for row in rows if row["kind"] == "refused"]
    slowest = max(refusals, key=lambda row: row["seconds"], default={"seconds": 0.0, "message": ""})
    return {
        "examples": len(rows),
        "outcomes": dict(Counter(row["kind"] for row in rows).most_common()),
        "different_refusals": len({row["message"] for row in refusals}),
        "longest_refusal_characters": max((len(row["message"]) for row in refusals), default=0),
        "slowest_refusal": {"seconds": round(slowest["seconds"], 3), "message": slowest["message"]},
        "seconds": round(sum(row["wall_seconds"] for row in rows), 1),
        "failures": [row["message"] for row in rows if row["kind"] == "failed"],
    }


def main() -> None:
    """Draw examples, print the outcomes and write them to a file."""
    parser = argparse.ArgumentParser(description="Examine random configurations and broken environments.")
    parser.add_argument("--configurations", type=int, default=100, help="number of configurations (default 100)")
    parser.add_argument("--environments", type=int, default=20, help="number of environments (default 20)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the examples (default 0)")
    parser.add_argument("--jobs", type=int, default=1, help="processes, each with its own share and seed (default 1)")
    parser.add_argument("--out", type=Path, help="record to write (default none)")
    options = parser.parse_args()
    record: dict[str, Any] = {}
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        for name, function in (("configurations", _configurations), ("environments", _environments)):
            shares = [(getattr(options, name) + job) // options.jobs for job in range(options.jobs)]
            seeds = range(options.seed * options.jobs, (options.seed + 1) * options.jobs)
            shares = [(count, seed) for count, seed in zip(shares, seeds, strict=True) if count]
            parts = [pool.submit(function, count, seed) for count, seed in shares]
            record[name] = summary_of([row for part in parts for row in part.result()])
    print(json.dumps(record, indent=2))
    if options.out:
        sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
        from records import circumstances

        command = f"python tests/fuzz.py --configurations {options.configurations}"
        command += f" --environments {options.environments} --seed {options.seed} --jobs {options.jobs}"
        described = circumstances(command)
        described["versions"]["hypothesis"] = hypothesis.__version__
        options.out.write_text(json.dumps(described | record, indent=2) + "\n")
    sys.exit(any(part["failures"] for part in record.values()))


if __name__ == "__main__":
    main()
