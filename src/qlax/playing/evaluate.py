"""Evaluation of saved agents, in the environment they were trained in or in another one with the same interface."""

import functools
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qlax import envs, pqn, pqn_continuous
from qlax.agents.agent import Agent, load
from qlax.agents.zoo import entries, located
from qlax.config import kinds
from qlax.config.settings import SWEEPABLE, Config
from qlax.envs import build
from qlax.envs.vec import Vec
from qlax.envs.worker import Worker
from qlax.errors import UserError, described, naming, nearest
from qlax.networks import qnetwork
from qlax.networks.names import algorithm_of
from qlax.playing import evaluation, host
from qlax.playing.interface import check_epsilon, check_interface
from qlax.storage import checkpoint, history
from qlax.switches import usual_switches
from qlax.types import HostEnv, Network
from qlax.util.statistics import of_episodes
from qlax.util.text import ends_in_words, four_digits, markdown, repetition_in_words, shown

LONGEST = 10_000  # largest number of steps of an episode, if neither the environment nor the run has a limit
MOST_COPIES = 4096  # environments in use at the same time, for all agents together; further agents take turns
ARGUMENTS = {
    "index": kinds.whole(low=0),
    "episodes": kinds.whole(high=100_000),
    "epsilon": kinds.number(low=0, high=1),
    "seed": kinds.whole(low=0),
    "max_steps": kinds.whole(),
    "fps": kinds.number(low=1, high=240),
    "speed": kinds.number(low=0.01, high=100),
}


class Stage(NamedTuple):
    """Agents with the same network, and the environment in which they play."""

    indices: list[int]  # numbers of the agents in their run
    agents: list[Agent]
    network: Network
    config: Config  # only env, env_options, wrappers and host_timeout are meaningful
    env: Any  # an `Env`, or a `HostEnv` that is already closed
    make_envs: Callable[[int], HostEnv] | None  # constructor from the number of environments; None for an `Env`
    max_steps: int  # largest number of steps of an episode

    def contract(self) -> AbstractContextManager[None]:
        """Name the user's network or environment in errors that come from their code."""
        own = self.agents[0].info["network"].get("network")
        what = f"environment {self.config.env!r}" if own is None else f"network {own!r}"
        return naming(f"{what} breaks its contract")

    def worker(self, num_envs: int) -> Worker:
        """Make `num_envs` environments on the host, on a thread of their own."""
        assert self.make_envs is not None
        device, timeout = jax.devices()[0], self.config.host_timeout
        return Worker(self.config.env, self.make_envs, num_envs, device=device, timeout=timeout)


class Estimate(NamedTuple):
    """Mean and its 95 % confidence interval, which is None for a single episode."""

    mean: float  # mean undiscounted return
    interval: tuple[float, float] | None  # lower and upper end


class EvaluationResult(NamedTuple):
    """Results of N whole episodes of each of R agents.

    Attributes:
      settings: The arguments `run`, `env`, `env_options`, `wrappers`, `best`, `episodes`, `epsilon`, `seed` and
        `max_steps`.
      agents: For each agent, its `index` in the run, its `seed` and the settings in which the agents differ.
      returns: Float32 array `[R, N]` with the undiscounted returns, of raw rewards.
      lengths: Int32 array `[R, N]` with the lengths of the episodes in steps.
      cut: Bool array `[R, N]`, True where `max_steps` cut the episode, which then counts with the return so far.
      metrics: Other metrics that the environment reports at the end of an episode, float32 arrays `[R, N]`; nan where
        it reports nothing.
      each: Mean return of each agent, with a confidence interval over its episodes.
      overall: Mean return over the agents, with a confidence interval over agents and episodes.
      scores: The environment's scores of `each` and of `overall`; None if the environment defines no score.
      distinct: Number of each agent's episodes that differ in their first observation, actions or rewards.
    """

    settings: dict[str, Any]
    agents: list[dict[str, Any]]
    returns: np.ndarray
    lengths: np.ndarray
    cut: np.ndarray
    metrics: dict[str, np.ndarray]
    each: list[Estimate]
    overall: Estimate
    scores: tuple[list[Estimate], Estimate] | None
    distinct: list[int]

    def __str__(self) -> str:
        settings, several = self.settings, len(self.agents) > 1
        metrics = [name for name in self.metrics if "/" not in name]  # grouped metrics may be dozens
        has_cut = bool(self.cut.any())
        header = [*self.agents[0], "return", "95 % interval", "lowest", "highest", "length", *metrics]
        header += ["cut"] * has_cut + ["score"] * bool(self.scores)
        rows = []
        for row, (agent, estimate) in enumerate(zip(self.agents, self.each, strict=True)):
            cells = [shown(value) for value in agent.values()] + _cells(estimate)
            numbers = [self.returns[row].min(), self.returns[row].max(), self.lengths[row].mean()]
            cells += [four_digits(float(number)) for number in numbers]
            cells += [_mean_without_nan(self.metrics[name][row]) for name in metrics]
            cells += [str(self.cut[row].sum())] * has_cut
            cells += [four_digits(self.scores[0][row].mean)] if self.scores else []
            rows.append(cells)
        how = f"epsilon {settings['epsilon']:g}" if settings["epsilon"] else "greedy"
        episodes = f"{settings['episodes']:,} episode{'' if settings['episodes'] == 1 else 's'} of each agent"
        notes = []
        if has_cut:
            limit = f"max_steps={settings['max_steps']:,}"
            notes.append(f"Episodes cut after {limit} steps count with their return so far.")
        notes += filter(None, [repetition_in_words(self.distinct, settings["episodes"])])
        if several:
            mean, interval = _cells(self.overall)
            notes.append(f"Mean of {len(rows)} agents: {mean}, 95 % interval over agents and episodes {interval}.")
        if several and self.scores:
            mean, interval = _cells(self.scores[1])
            notes.append(f"Mean score: {mean}, 95 % interval {interval}.")
        title = f"{settings['env']}: {episodes}, {how}, seed {settings['seed']}"
        return "\n\n".join([title, markdown(header, rows), *filter(None, ["\n".join(notes)])])

    def to_json(self) -> str:
        """Return everything as a line of JSON; nan becomes null."""
        estimates = [estimate._asdict() for estimate in self.each]
        if self.scores is not None:
            estimates = [old | {"score": new._asdict()} for old, new in zip(estimates, self.scores[0], strict=True)]
        episodes = {"returns": self.returns, "lengths": self.lengths, "cut": self.cut, **self.metrics}
        agents = [
            {
                **agent,
                **estimate,
                "distinct": distinct,
                **{name: _without_nan(values[row]) for name, values in episodes.items()},
            }
            for row, (agent, estimate, distinct) in enumerate(zip(self.agents, estimates, self.distinct, strict=True))
        ]
        overall = self.overall._asdict()
        if self.scores is not None:
            overall["score"] = self.scores[1]._asdict()
        return json.dumps({**self.settings, "overall": overall, "agents": agents}) + "\n"


@usual_switches()
def evaluate(
    run: Path | str,
    *,
    index: int | Sequence[int] | None = None,
    best: bool = False,
    episodes: int = 64,
    epsilon: float = 0.0,
    seed: int = 0,
    env: str | None = None,
    env_options: dict[str, Any] | None = None,
    wrappers: Sequence[str] | None = None,
    max_steps: int | None = None,
) -> EvaluationResult:
    """Evaluate the agents of a run over whole episodes, one in each of N environments.

    All agents play in environments that begin with the same random numbers.

    Args:
      run: Directory of a run, or one file of its `agents/` or `best/`; or "zoo:" and the name of a trained agent.
      index: Number or numbers of the agents in the run; None for all agents.
      best: If True, evaluate the weights of the best evaluation in training instead of the last ones. As they were
        chosen for their high return, a new evaluation returns a little less on average.
      episodes: Number of episodes of each agent, N.
      epsilon: Probability of a random legal action; 0 is greedy.
      seed: Seed of the episodes.
      env: Another environment with the same observations and actions; None for the one that the agents trained in.
      env_options: Options of the environment. They are added to those of training, unless `env` is another environment.
      wrappers: Wrappers of the environment; None for those of training.
      max_steps: Largest number of steps; a longer episode is cut, and counts with the return so far. None for the limit
        of the run's own evaluations, or for the time limit of another environment.

    Returns:
      All episodes, and mean returns with confidence intervals; `print` shows a table.

    Raises:
      UserError: There are no such agents, the environment cannot be made, or its interface is not that of the agents.
      HostError: An environment on the host crashed or hangs.

    Example:
      ```python
      result = qlax.evaluate("runs/a", episodes=16)
      print(result.overall.mean, result.overall.interval)
      ```
    """
    episodes, epsilon, seed = (
        checked(name, value) for name, value in (("episodes", episodes), ("epsilon", epsilon), ("seed", seed))
    )
    stage = prepared(run, index, best=best, env=env, env_options=env_options, wrappers=wrappers, max_steps=max_steps)
    check_epsilon(stage.agents[0], epsilon)
    play = _played_in_jax if stage.make_envs is None else _played_on_host
    with stage.contract():
        records = play(stage, episodes, epsilon, seed)
    del records["overestimation"]  # needs the gamma and reward_scale of training, which are unknown here
    returns = records.pop("episode_return")
    lengths, cut = records.pop("episode_length").astype(np.int32), records.pop("cut") > 0
    distinct = evaluation.distinct(records.pop("fingerprint")).tolist()
    intervals, overall_interval = of_episodes(returns)
    each = [Estimate(*pair) for pair in zip(returns.mean(axis=1).tolist(), intervals, strict=True)]
    overall = Estimate(float(returns.mean()), overall_interval)
    scores = None
    if (score := getattr(stage.env, "score", None)) is not None:
        try:
            scores = [_scored(estimate, score) for estimate in each], _scored(overall, score)
        except Exception as error:
            raise UserError(f"the method score of {stage.config.env} failed: {described(error)}") from error
    settings = {
        "run": str(run),
        "env": stage.config.env,
        "env_options": stage.config.env_options,
        "wrappers": list(stage.config.wrappers),
        "best": best,
        "episodes": episodes,
        "epsilon": epsilon,
        "seed": seed,
        "max_steps": stage.max_steps,
    }
    agents = _described(stage)
    return EvaluationResult(settings, agents, returns, lengths, cut, records, each, overall, scores, distinct)


def checked(name: str, value: Any) -> Any:
    """Convert and check an argument of `evaluate` or `render`, given as a value or as a word of a command line.

    Raises:
      UserError: The value has the wrong type or is out of range.
    """
    kind = ARGUMENTS[name]
    try:
        return kind.parse(value) if isinstance(value, str) else kind.convert(value)
    except ValueError:
        raise UserError(f"{name}={shown(value)}: expected {kind.expected}") from None


def prepared(
    run: Path | str,
    index: int | Sequence[int] | None,
    *,
    best: bool,
    env: str | None,
    env_options: dict[str, Any] | None,
    wrappers: Sequence[str] | None,
    max_steps: int | None,
    to_draw: bool = False,
) -> Stage:
    """Load agents of a run and make the environment in which they play.

    Args:
      run: See `evaluate`.
      index: See `evaluate`.
      best: See `evaluate`.
      env: See `evaluate`.
      env_options: See `evaluate`.
      wrappers: See `evaluate`.
      max_steps: See `evaluate`.
      to_draw: If True, make the environment with the options that `render` needs, see `qlax.envs.options_to_draw`.

    Raises:
      UserError: See `evaluate`.
    """
    max_steps = max_steps if max_steps is None else checked("max_steps", max_steps)
    path = located(run)
    indices, agents = _loaded(path, index, best)
    info = agents[0].info
    env_id = info["env"] if env is None else envs.spelled(env)
    is_another = env_id != info["env"]
    trained = _config_of(path, info["env"])
    drawing = envs.options_to_draw(env_id) if to_draw else {}
    config = Config(
        env=env_id,
        env_options={**drawing, **({} if is_another else info["env_options"]), **(env_options or {})},
        wrappers=tuple(info["wrappers"] if wrappers is None else wrappers),
        bins=info.get("spaces", {}).get("action", {}).get("bins"),
        algorithm=algorithm_of(info["network"]),
        host_timeout=(Config(env=env_id) if is_another else trained).host_timeout,
    )
    network = qnetwork.build(info["network"], info["num_actions"], info.get("action_dimensions"))
    built = build.build(config).against_itself(network).evaluated
    check_interface(info, config, built.env, built.step.obs)
    limits = [getattr(built.env, "time_limit", None), trained.eval_max_steps or info.get("eval_max_steps")]
    known = [limit for limit in (limits if is_another else reversed(limits)) if limit]
    return Stage(indices, agents, network, config, built.env, built.make_envs, max_steps or next(iter(known), LONGEST))


def _loaded(path: Path, index: int | Sequence[int] | None, best: bool) -> tuple[list[int], list[Agent]]:
    """Return the numbers of the agents that are asked for, and the agents; see `evaluate` for the arguments."""
    if not path.exists():
        beside = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        expected = "expected the directory of a run, or a file of its agents/ or best/"
        of_zoo = f"; the zoo has an agent of this name: zoo:{path}" if str(path) in entries() else ""
        raise UserError(f"there is no {path}; {expected}{of_zoo or nearest(path.name, beside)}")
    several = isinstance(index, Sequence) and not isinstance(index, str)
    asked: Any = index if several else [] if index is None else [index]
    indices = list(dict.fromkeys(checked("index", each) for each in asked))
    if path.is_file():
        if best:
            raise UserError(f"{path} is one file of weights; best=True is for the directory of a run")
        if any(indices):
            raise UserError(f"{path} is one agent; index={indices[-1]} is for the directory of a run")
        return [int(path.stem) if path.stem.isdecimal() else 0], [load(path)]
    if index is None:
        found = (path / ("best" if best else "agents")).glob(f"*{checkpoint.SUFFIX}")
        indices = sorted(int(file.stem) for file in found if file.stem.isdecimal())
        runs = sorted(file.parent.parent for file in path.glob(f"*/agents/0{checkpoint.SUFFIX}"))
        if not indices and runs:
            raise UserError(f"{path} holds runs, not agents; name one of them, as {runs[0]}")
        indices = indices or [0]  # so that `load` says which files exist instead
    elif not indices:
        raise UserError(f"index={index}: expected at least one; leave it out for all")
    return indices, [load(path, each, best=best) for each in indices]


def _config_of(path: Path, env: str) -> Config:
    """Return the configuration of the agents' run; the defaults if it cannot be read."""
    try:
        return history.config_of(path if path.is_dir() else path.parent.parent)
    except UserError:
        return Config(env=env)


def _described(stage: Stage) -> list[dict[str, Any]]:
    """Return the number and seed of every agent, and the settings in which the agents differ."""
    differing = [name for name in SWEEPABLE if len({agent.info.get(name) for agent in stage.agents}) > 1]
    names = ["seed", *differing]
    return [
        {"index": index, **{name: agent.info.get(name) for name in names}}
        for index, agent in zip(stage.indices, stage.agents, strict=True)
    ]


def _algorithm(stage: Stage, episodes: int) -> tuple[pqn.PQN, Any]:
    """Return the algorithm and its `Hyper`, to act in `episodes` environments; `rollout` and `learn` are not used."""
    page: Any = pqn_continuous if stage.agents[0].is_continuous else pqn
    shape = pqn.Shape(episodes, num_steps=1, num_minibatches=1, num_epochs=1)
    return page.make(None, stage.network, shape), page.Hyper()


def _played_in_jax(stage: Stage, episodes: int, epsilon: float, seed: int) -> dict[str, np.ndarray]:
    """Play in JAX; return the metrics `[R, N]` of `qlax.playing.evaluation.in_jax`."""
    algorithm, hyper = _algorithm(stage, episodes)
    # Resets are as cheap as possible, as only the first episode of each environment counts.
    vec = Vec(stage.env, episodes, reset_ratio=episodes)
    share = build.shared_at(stage.env, num_updates=1)

    def play(variables, key, epsilon):
        def one(variables):
            env_state, step = vec.reset(key)
            state = algorithm.init(key, hyper, step, env_state, variables)
            state = share(state._replace(updates=jnp.int32(1)))  # `shared` as at the end of training
            return evaluation.in_jax(algorithm, vec, stage.max_steps, epsilon)(key, state)

        at_once = max(1, MOST_COPIES // episodes)
        return jax.lax.map(one, variables, batch_size=at_once)

    variables = jax.tree.map(lambda *x: np.stack(x), *(agent.variables for agent in stage.agents))
    return jax.device_get(jax.jit(play)(variables, jax.random.key(seed), jnp.float32(epsilon)))


def _played_on_host(stage: Stage, episodes: int, epsilon: float, seed: int) -> dict[str, np.ndarray]:
    """Play on the host, one agent after the other; return the metrics `[R, N]` of `qlax.playing.evaluation.on_host`."""
    algorithm, hyper = _algorithm(stage, episodes)
    act = jax.jit(functools.partial(host.act, algorithm))
    init = jax.jit(algorithm.init)
    worker, played = stage.worker(episodes), []
    try:
        worker.reset(seed)
        step, _ = worker.result()
        for agent in stage.agents:
            state = init(jax.random.key(seed), hyper, step, (), agent.variables)
            metrics = evaluation.on_host(act, worker, state, seed, stage.max_steps, lambda: False, epsilon)
            assert metrics is not None
            played.append(metrics)
    finally:
        worker.close()
    return {name: np.stack([metrics[name] for metrics in played]) for name in played[0]}


def _scored(estimate: Estimate, score: Callable[[float], float]) -> Estimate:
    """Return the score of a mean return and of the ends of its interval."""
    interval = estimate.interval and (float(score(estimate.interval[0])), float(score(estimate.interval[1])))
    return Estimate(float(score(estimate.mean)), interval)


def _cells(estimate: Estimate) -> list[str]:
    """Return the cells of a table: mean and interval."""
    return [four_digits(estimate.mean), ends_in_words(estimate.interval)]


def _mean_without_nan(values: np.ndarray) -> str:
    known = values[~np.isnan(values)]
    return four_digits(float(known.mean()) if len(known) else None)


def _without_nan(values: np.ndarray) -> list[Any]:
    return [None if value != value else value for value in values.tolist()]
