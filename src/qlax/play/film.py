"""Films of saved agents: episodes side by side, and what the agent thought of its actions."""

import contextlib
import io
import itertools
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from qlax.agents.agent import Agent
from qlax.envs import build
from qlax.envs.check.common import shared_of
from qlax.errors import UserError, described
from qlax.play.evaluate import Stage, checked, prepared
from qlax.play.painter import Moment, Painter
from qlax.pqn import epsilon_greedy
from qlax.trackers.base import best_run
from qlax.types import Array, PyTree, Step, is_key
from qlax.util.files import new_file, write_result
from qlax.util.text import shown

MOST_STEPS = 1000  # of a film, unless more are asked for
MOST_EPISODES = 64
TRACKED_STEPS = 500  # of the film that trackers get
DEFAULT_FPS = 30.0
FORMATS = (".mp4", ".gif")


class Film(NamedTuple):
    """A film that was written, and the N episodes in it."""

    path: Path
    frames: int  # pictures
    width: int
    height: int
    fps: float
    returns: list[float]  # undiscounted sums of raw rewards
    lengths: list[int]
    cut: list[bool]


def render(
    run: Path | str,
    out: Path | str | None = None,
    *,
    index: int = 0,
    best: bool = False,
    episodes: int = 1,
    epsilon: float = 0.0,
    seed: int = 0,
    env: str | None = None,
    env_options: dict[str, Any] | None = None,
    wrappers: Sequence[str] | None = None,
    max_steps: int | None = None,
    values: bool = False,
    fps: float | None = None,
) -> Film:
    """Film episodes of an agent, side by side; those that have ended are dimmed while others go on.

    The environment has to have `render`, see `qlax.Env` and `qlax.HostEnv`.

    Args:
      run: the directory of a run, or one file of its `agents/` or `best/`.
      out: a new file, .mp4 (H.264, for which there has to be PyAV) or .gif; None: `video.mp4` in the run's directory,
        or `video.gif` without PyAV, with a number where there is one already.
      index: of the agent among the runs that trained side by side.
      best: see `qlax.evaluate`.
      episodes: side by side.
      epsilon: share of random legal actions; 0 is greedy.
      seed: of the episodes.
      env: another environment with the same observations and actions; None: the one trained in.
      env_options: of the environment, see `qlax.evaluate`.
      wrappers: around the environment, in place of those it was trained in.
      max_steps: an episode this long is cut; None: as in the run's own evaluations, but at most after 1,000 steps.
      values: draw Q of the actions beside the picture, the chosen one blue, or orange where it was drawn at random, and
        the return so far.
      fps: steps a second; None: what suits the environment.

    Returns:
      What was written, with its file as `path`.

    Raises:
      UserError: there is no such agent, the environment cannot be made, is not one that it can play in, or has no
        pictures of itself; or the file is there already or cannot be written.
      HostError: environments on the host crashed or hang.
    """
    episodes, epsilon, seed = checked("episodes", episodes), checked("epsilon", epsilon), checked("seed", seed)
    if episodes > MOST_EPISODES:
        raise UserError(f"episodes={episodes}: expected at most {MOST_EPISODES} side by side")
    index, fps = checked("index", index), fps if fps is None else checked("fps", fps)
    path = _file(Path(run), out)
    stage = prepared(
        run,
        index,
        best=best,
        env=env,
        env_options=env_options,
        wrappers=wrappers,
        max_steps=max_steps,
        to_draw=True,
    )
    if not hasattr(stage.env, "render"):
        method = "render(state)" if stage.make_envs is None else "render()"
        contract = "qlax.Env" if stage.make_envs is None else "qlax.HostEnv"
        raise UserError(f"{stage.config.env} has no {method}, which gives the pictures; see {contract}")
    steps = stage.max_steps if max_steps is not None else min(stage.max_steps, MOST_STEPS)
    play = _played_in_jax if stage.make_envs is None else _played_on_host
    fps = fps or checked("fps", getattr(stage.env, "fps", DEFAULT_FPS))
    painter, last = Painter(values, _action_names(stage)), None

    def images(moments: Iterator[Moment]) -> Iterator[Image.Image]:
        nonlocal last
        for last in moments:
            yield (image := painter.image(last))
        yield from itertools.repeat(image, round(fps))  # the end is shown for a second

    with contextlib.closing(play(stage, episodes, steps, epsilon, seed)) as moments:
        data, frames, size = (_mp4 if path.suffix == ".mp4" else _gif)(images(moments), fps)
    assert last is not None
    path = write_result(path, data, is_named=out is not None)
    return Film(path, frames, *size, fps, last.returns.tolist(), last.lengths.tolist(), last.playing.tolist())


def best_run_as_gif(directory: Path, summary: dict[str, Any], say: Callable[[str], None]) -> bytes | None:
    """Film the first episode of the best run; None where the environment draws no pictures."""
    say("filming the best run for the trackers; Ctrl-C leaves it out")
    try:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "video.gif"
            render(directory, out, index=best_run(summary), best=True, max_steps=TRACKED_STEPS)
            return out.read_bytes()
    except (UserError, KeyboardInterrupt):
        return None
    except Exception as error:
        say(f"qlax: no film for the trackers: {described(error)}")
        return None


def _action_names(stage: Stage) -> list[str]:
    num_actions = stage.env.num_actions
    names = list(map(str, getattr(stage.env, "action_names", range(num_actions))))
    if len(names) != num_actions:
        raise UserError(f"{stage.config.env} has {num_actions} actions, but action_names {shown(names)}")
    return names


def _file(run: Path, out: Path | str | None) -> Path:
    """Choose the file to write, and refuse one that cannot be.

    Raises:
      UserError: it is there already, or of another format; or PyAV is not installed.
    """
    folder = run if run.is_dir() else run.parent.parent if run.parent.name in ("agents", "best") else run.parent
    path = new_file(out, folder / ("video.mp4" if _can_write_mp4() else "video.gif"), FORMATS)
    if path.suffix == ".mp4" and not _can_write_mp4():
        raise UserError(f"{path}: .mp4 is written by PyAV, which is not installed: pip install 'qlax[video]', or .gif")
    return path


def _can_write_mp4() -> bool:
    try:
        import av  # noqa: F401  # takes a moment
    except ImportError:
        return False
    return True


class _Mind:
    """Agent that decides for N environments, and tells its Q-values."""

    def __init__(self, agent: Agent, epsilon: float, seed: int):
        self._agent, self._epsilon, self._key = agent, epsilon, jax.random.key(seed)
        self._choose = jax.jit(epsilon_greedy)

    def decide(self, obs: PyTree, legal: Array | None, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return Q `[N, M, A]` and actions `[N, M]`, without the axis M where `obs` and `legal` have none."""
        axes = np.ndim(jax.tree.leaves(obs)[0]) - len(self._agent.info["obs"][0][1])
        q = self._agent.q_values(obs, first.reshape(-1, *(1,) * (axes - 1)))
        self._key, key = jax.random.split(self._key)
        return q, np.asarray(self._choose(key, q, legal, self._epsilon))


def _played_in_jax(stage: Stage, episodes: int, steps: int, epsilon: float, seed: int) -> Generator[Moment]:
    """Play in JAX without `Vec`, which would show the next episode in place of an end."""
    env, agent, end_of_training = stage.env, stage.agents[0], jnp.float32(1)
    shared = build.shared_by(env, shared_of(env), end_of_training, agent.variables)
    mind = _Mind(agent, epsilon, seed)
    reset = jax.jit(jax.vmap(env.reset))
    advance = jax.jit(jax.vmap(lambda key, state, action: env.step(key, state, action, *shared)))
    key_reset, key = jax.random.split(jax.random.key(seed))
    state, step = reset(jax.random.split(key_reset, episodes))
    keys = jax.jit(lambda t: jax.random.split(jax.random.fold_in(key, t), episodes))

    def pictures(shown: np.ndarray) -> Iterator[np.ndarray | None]:
        on_host = jax.tree.map(lambda x: x if is_key(x) else np.asarray(x), state)
        for number in range(episodes):
            of_one = jax.tree.map(lambda x, n=number: x[n], on_host)
            try:
                yield env.render(of_one) if shown[number] else None
            except Exception as error:  # whatever goes wrong in somebody's drawing
                raise UserError(f"{stage.config.env} cannot be drawn: {described(error)}") from error

    def further(t: int, action: np.ndarray) -> tuple[Step, np.ndarray, np.ndarray]:
        nonlocal state
        state, step = advance(keys(t), state, action)
        return (
            step,
            np.asarray(step.metrics.get("raw_reward", step.reward)),
            np.asarray(step.terminated | step.truncated),
        )

    yield from _moments(stage, mind, step, steps, pictures, further)


def _played_on_host(stage: Stage, episodes: int, steps: int, epsilon: float, seed: int) -> Generator[Moment]:
    """Play on the host; where a back end resets in the step of an end, the last picture is of the next episode."""
    worker = stage.worker(episodes)

    def pictures(shown: np.ndarray) -> np.ndarray:
        del shown  # all or none
        drawn = worker.render()
        if drawn.shape[:1] != (episodes,):
            found = f"{drawn.dtype}{list(drawn.shape)}"
            raise UserError(f"{stage.config.env} renders {found}; expected uint8 [{episodes}, height, width, 3]")
        return drawn

    def further(t: int, action: np.ndarray) -> tuple[Step, np.ndarray, np.ndarray]:
        del t
        worker.step(action)
        step, metrics = worker.result()
        return step, metrics["raw_reward"], ~np.isnan(metrics["episode_return"])

    try:
        worker.reset(seed)
        step, _ = worker.result()
        yield from _moments(stage, _Mind(stage.agents[0], epsilon, seed), step, steps, pictures, further)
    finally:
        worker.close()


def _moments(
    stage: Stage,
    mind: _Mind,
    step: Step,
    steps: int,
    pictures: Callable[[np.ndarray], Any],
    further: Callable[[int, np.ndarray], tuple[Step, np.ndarray, np.ndarray]],
) -> Iterator[Moment]:
    """Play from the first step until all episodes have ended or are cut.

    Args:
      stage: where they are played.
      mind: that decides.
      step: the first.
      steps: after which they are cut.
      pictures: of those episodes that are to be shown `[N]`.
      further: time and action to step, raw reward and whether an episode ended.
    """
    episodes = len(step.reward)
    playing, first = np.ones(episodes, bool), np.ones(episodes, bool)
    returns, lengths = np.zeros(episodes), np.zeros(episodes, int)
    newest, decided = [np.empty(0)] * episodes, np.empty(0)
    shown = playing
    for t in itertools.count():
        for number, picture in enumerate(pictures(shown)):
            if shown[number]:
                newest[number] = _checked_picture(stage.config.env, picture)
        q, action = mind.decide(step.obs, step.legal, first)
        q = (q if step.legal is None else np.where(step.legal, q, -np.inf)).reshape(episodes, -1, q.shape[-1])
        decided = np.where(playing[:, None, None], q, decided) if t else q
        yield Moment(list(newest), playing, returns, lengths, decided, action.reshape(episodes, -1))
        if not playing.any() or t == steps:
            return
        step, reward, ended = further(t, action)
        first = np.asarray(step.terminated) | np.asarray(step.truncated)
        shown = playing
        returns, lengths = returns + np.where(playing, reward, 0), lengths + playing
        playing = playing & ~ended


def _checked_picture(env_id: str, picture: Any) -> np.ndarray:
    picture = np.array(picture)  # a copy, as environments may use their memory again
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[-1] != 3:
        found = f"{picture.dtype}{list(picture.shape)}"
        raise UserError(f"{env_id} renders {found}; expected a picture: uint8 [height, width, 3]")
    return picture


def _mp4(images: Iterator[Image.Image], fps: float) -> tuple[bytes, int, tuple[int, int]]:
    """Encode as H.264; return the file, its number of pictures and their size."""
    import av

    file, frames = io.BytesIO(), 0
    with av.open(file, "w", format="mp4") as container:
        for image in images:
            if not frames:
                stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
                stream.width, stream.height, stream.pix_fmt = *image.size, "yuv420p"
                stream.options = {"crf": "18", "preset": "fast"}
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
            frames += 1
        container.mux(stream.encode())
    return file.getvalue(), frames, image.size


def _gif(images: Iterator[Image.Image], fps: float) -> tuple[bytes, int, tuple[int, int]]:
    """Encode as a GIF that repeats and counts time in hundredths of a second; return the same."""
    file, frames = io.BytesIO(), 1
    first = next(images)

    def rest():
        nonlocal frames
        for image in images:
            frames += 1
            yield image

    first.save(file, "GIF", save_all=True, append_images=rest(), duration=max(20, 10 * round(100 / fps)), loop=0)
    return file.getvalue(), frames, first.size
