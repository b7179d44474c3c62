"""Videos of saved agents: several episodes side by side, optionally with the agent's Q-values."""

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
from qlax.errors import UserError, described, remedy
from qlax.playing.evaluate import Stage, checked, prepared
from qlax.playing.painter import Moment, Painter
from qlax.pqn import epsilon_greedy
from qlax.switches import usual_switches
from qlax.trackers.base import best_run
from qlax.types import Array, PyTree, Step, is_key
from qlax.util.files import given_path, new_file, write_result
from qlax.util.text import shown

MOST_STEPS = 1000  # largest number of steps in a video, unless more are asked for
MOST_EPISODES = 64
TRACKED_STEPS = 500  # largest number of steps in the video for trackers
DEFAULT_FPS = 30.0
FORMATS = (".mp4", ".gif")


class Film(NamedTuple):
    """Video that was written, and the N episodes in it.

    Attributes:
      path: The video file.
      frames: Number of frames.
      width: Width of a frame in pixels.
      height: Height of a frame in pixels.
      fps: Frames per second.
      returns: Undiscounted return of each episode, of raw rewards.
      lengths: Length of each episode in steps.
      cut: For each episode, True if it did not end before the video did.
    """

    path: Path
    frames: int
    width: int
    height: int
    fps: float
    returns: list[float]
    lengths: list[int]
    cut: list[bool]


@usual_switches()
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
    """Write a video of an agent's episodes, side by side; episodes that have ended are dimmed while others go on.

    The environment needs the method `render`, see `qlax.Env` and `qlax.HostEnv`.

    Args:
      run: Directory of a run, or one file of its `agents/` or `best/`.
      out: New file with the ending .mp4 (H.264, which needs the package PyAV) or .gif. None for `video.mp4` in the
        run's directory, or `video.gif` without PyAV, with a number in its name if the file exists.
      index: Number of the agent in the run.
      best: See `qlax.evaluate`.
      episodes: Number of episodes side by side.
      epsilon: Probability of a random legal action; 0 is greedy.
      seed: Seed of the episodes.
      env: Another environment with the same observations and actions; None for the one that the agent trained in.
      env_options: Options of the environment, see `qlax.evaluate`.
      wrappers: Wrappers of the environment; None for those of training.
      max_steps: Largest number of steps, after which episodes are cut. None for the limit of the run's own evaluations,
        but at most 1,000.
      values: If True, draw the Q-values of the actions and the return so far beside the picture. The chosen action is
        blue, or orange if it was random.
      fps: Steps per second; None for the speed that the environment suggests.

    Returns:
      The file, and the episodes in it.

    Raises:
      UserError: There is no such agent, the environment cannot be made, has another interface or cannot be rendered,
        or the file exists or cannot be written.
      HostError: An environment on the host crashed or hangs.

    Example:
      ```python
      film = qlax.render("runs/a", "episodes.gif", episodes=2)
      print(film.returns)
      ```
    """
    episodes, epsilon, seed = checked("episodes", episodes), checked("epsilon", epsilon), checked("seed", seed)
    if episodes > MOST_EPISODES:
        raise UserError(f"episodes={episodes}: expected at most {MOST_EPISODES} side by side")
    index, fps = checked("index", index), fps if fps is None else checked("fps", fps)
    path = _file(given_path(run), out)
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
        raise UserError(f"{stage.config.env} cannot be rendered, as it has no method {method}; see {contract}")
    steps = stage.max_steps if max_steps is not None else min(stage.max_steps, MOST_STEPS)
    play = _played_in_jax if stage.make_envs is None else _played_on_host
    fps = fps or checked("fps", getattr(stage.env, "fps", DEFAULT_FPS))
    painter, last = Painter(values, _action_names(stage)), None

    def images(moments: Iterator[Moment]) -> Iterator[Image.Image]:
        nonlocal last
        for last in moments:
            yield (image := painter.image(last))
        yield from itertools.repeat(image, round(fps))  # repeats the last frame for one second

    with stage.contract(), contextlib.closing(play(stage, episodes, steps, epsilon, seed)) as moments:
        data, frames, size = (_mp4 if path.suffix == ".mp4" else _gif)(images(moments), fps)
    assert last is not None
    path = write_result(path, data, is_named=out is not None)
    return Film(path, frames, *size, fps, last.returns.tolist(), last.lengths.tolist(), last.playing.tolist())


def best_run_as_gif(directory: Path, summary: dict[str, Any], say: Callable[[str], None]) -> bytes | None:
    """Return a GIF of the best agent's first episode; None if the environment cannot be rendered.

    Args:
      directory: Directory of the run.
      summary: Summary of the run.
      say: Function that prints a line.
    """
    say("rendering a video of the best agent for the trackers; Ctrl-C skips it")
    try:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "video.gif"
            render(directory, out, index=best_run(summary), best=True, max_steps=TRACKED_STEPS)
            return out.read_bytes()
    except (UserError, KeyboardInterrupt):
        return None
    except Exception as error:
        say(f"qlax: no video for the trackers: {described(error)}")
        return None


def _action_names(stage: Stage) -> list[str]:
    """Return the names of the actions; their numbers if the environment has no names."""
    num_actions = stage.env.num_actions
    names = list(map(str, getattr(stage.env, "action_names", range(num_actions))))
    if len(names) != num_actions:
        found = f"{stage.config.env} has action_names {shown(names)}"
        raise UserError(f"{found}; expected one for each of its {num_actions} actions")
    return names


def _file(run: Path, out: Path | str | None) -> Path:
    """Return the file to write.

    Raises:
      UserError: The file exists or has another format, or PyAV is needed and not installed.
    """
    folder = run if run.is_dir() else run.parent.parent if run.parent.name in ("agents", "best") else run.parent
    path = new_file(out, folder / ("video.mp4" if _can_write_mp4() else "video.gif"), FORMATS)
    if path.suffix == ".mp4" and not _can_write_mp4():
        found = f"{path}: writing .mp4 needs PyAV, which is not installed"
        raise UserError(f"{found}: pip install 'qlax[video]', or write a .gif")
    return path


def _can_write_mp4() -> bool:
    try:
        import av  # noqa: F401  # imported here as it is slow
    except ImportError:
        return False
    return True


class _Policy:
    """Epsilon-greedy policy of an agent in N environments, which also returns the Q-values."""

    def __init__(self, agent: Agent, epsilon: float, seed: int):
        self._agent, self._epsilon, self._key = agent, epsilon, jax.random.key(seed)
        self._choose = jax.jit(epsilon_greedy)

    def decide(self, obs: PyTree, legal: Array | None, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return Q-values `[N, M, A]` and actions `[N, M]`, without the axis M if `obs` and `legal` have none."""
        axes = np.ndim(jax.tree.leaves(obs)[0]) - len(self._agent.info["obs"][0][1])
        q = self._agent._q_values(obs, first.reshape(-1, *(1,) * (axes - 1)))
        self._key, key = jax.random.split(self._key)
        return q, np.asarray(self._choose(key, q, legal, self._epsilon))


def _played_in_jax(stage: Stage, episodes: int, steps: int, epsilon: float, seed: int) -> Generator[Moment]:
    """Play in JAX without `Vec`, which would replace a final state by the first one of the next episode."""
    env, agent, end_of_training = stage.env, stage.agents[0], jnp.float32(1)
    shared = build.shared_by(env, shared_of(env), end_of_training, agent.variables)
    policy = _Policy(agent, epsilon, seed)
    reset = jax.jit(jax.vmap(env.reset))
    env_step = jax.jit(jax.vmap(lambda key, state, action: env.step(key, state, action, *shared)))
    key_reset, key = jax.random.split(jax.random.key(seed))
    state, step = reset(jax.random.split(key_reset, episodes))
    keys = jax.jit(lambda t: jax.random.split(jax.random.fold_in(key, t), episodes))

    def pictures(shown: np.ndarray) -> Iterator[np.ndarray | None]:
        on_host = jax.tree.map(lambda x: x if is_key(x) else np.asarray(x), state)
        for number in range(episodes):
            one_state = jax.tree.map(lambda x, n=number: x[n], on_host)
            try:
                yield env.render(one_state) if shown[number] else None
            except Exception as error:  # the environment's own code may raise anything
                raise UserError(f"{stage.config.env} cannot be rendered: {described(error)}{remedy(error)}") from error

    def advance(t: int, action: np.ndarray) -> tuple[Step, np.ndarray, np.ndarray]:
        nonlocal state
        state, step = env_step(keys(t), state, action)
        return (
            step,
            np.asarray(step.metrics.get("raw_reward", step.reward)),
            np.asarray(step.terminated | step.truncated),
        )

    yield from _moments(stage, policy, step, steps, pictures, advance)


def _played_on_host(stage: Stage, episodes: int, steps: int, epsilon: float, seed: int) -> Generator[Moment]:
    """Play on the host; if a back end resets in the step that ends an episode, the last picture shows the next one."""
    worker = stage.worker(episodes)

    def pictures(shown: np.ndarray) -> np.ndarray:
        del shown  # a worker renders all environments
        drawn = worker.render()
        if drawn.shape[:1] != (episodes,):
            found = f"{drawn.dtype}{list(drawn.shape)}"
            raise UserError(f"{stage.config.env} renders {found}; expected uint8 [{episodes}, height, width, 3]")
        return drawn

    def advance(t: int, action: np.ndarray) -> tuple[Step, np.ndarray, np.ndarray]:
        del t
        worker.step(action)
        step, metrics = worker.result()
        return step, metrics["raw_reward"], ~np.isnan(metrics["episode_return"])

    try:
        worker.reset(seed)
        step, _ = worker.result()
        yield from _moments(stage, _Policy(stage.agents[0], epsilon, seed), step, steps, pictures, advance)
    finally:
        worker.close()


def _moments(
    stage: Stage,
    policy: _Policy,
    step: Step,
    steps: int,
    pictures: Callable[[np.ndarray], Any],
    advance: Callable[[int, np.ndarray], tuple[Step, np.ndarray, np.ndarray]],
) -> Iterator[Moment]:
    """Play from the first step until all episodes have ended or are cut.

    Args:
      stage: Agents and environment.
      policy: Policy that chooses the actions.
      step: First step of the episodes.
      steps: Number of steps after which episodes are cut.
      pictures: Function that renders the environments where its argument, bool `[N]`, is True.
      advance: Function from time and actions to the next step, raw rewards `[N]`, and where an episode ended `[N]`.

    Yields:
      One moment for every time step.
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
        q, action = policy.decide(step.obs, step.legal, first)
        q = (q if step.legal is None else np.where(step.legal, q, -np.inf)).reshape(episodes, -1, q.shape[-1])
        decided = np.where(playing[:, None, None], q, decided) if t else q
        yield Moment(list(newest), playing, returns, lengths, decided, action.reshape(episodes, -1))
        if not playing.any() or t == steps:
            return
        step, reward, ended = advance(t, action)
        first = np.asarray(step.terminated) | np.asarray(step.truncated)
        shown = playing
        returns, lengths = returns + np.where(playing, reward, 0), lengths + playing
        playing = playing & ~ended


def _checked_picture(env_id: str, picture: Any) -> np.ndarray:
    picture = np.array(picture)  # a copy, as environments may reuse their memory
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[-1] != 3:
        found = f"{picture.dtype}{list(picture.shape)}"
        raise UserError(f"{env_id} renders {found}; expected a picture, uint8 [height, width, 3]")
    return picture


def _mp4(images: Iterator[Image.Image], fps: float) -> tuple[bytes, int, tuple[int, int]]:
    """Encode images as H.264; return the file's content, the number of frames, and width and height."""
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
    """Encode images as an endless GIF, with times in 1/100 s; return the same as `_mp4`."""
    file, frames = io.BytesIO(), 1
    first = next(images)

    def rest():
        nonlocal frames
        for image in images:
            frames += 1
            yield image

    first.save(file, "GIF", save_all=True, append_images=rest(), duration=max(20, 10 * round(100 / fps)), loop=0)
    return file.getvalue(), frames, first.size
