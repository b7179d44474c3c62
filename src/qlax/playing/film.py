"""Videos of saved agents: several episodes side by side, optionally with the agent's Q-values."""

import contextlib
import io
import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from qlax.agents.zoo import home_of
from qlax.errors import UserError, described
from qlax.playing.evaluate import Stage, checked, prepared
from qlax.playing.moments import action_names, deciders, player
from qlax.playing.painter import Moment, Painter
from qlax.switches import usual_switches
from qlax.trackers.base import best_run
from qlax.util.files import new_file, write_result

MOST_STEPS = 1000  # largest number of steps in a video, unless more are asked for
MOST_EPISODES = 64
TRACKED_STEPS = 500  # largest number of steps in the video for trackers
DEFAULT_FPS, SLOWEST, FASTEST = 30.0, 1.0, 240.0
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
      run: Directory of a run, or one file of its `agents/` or `best/`; or "zoo:" and the name of a trained agent.
      out: New file with the ending .mp4 (H.264, which needs the package PyAV) or .gif. None for `video.mp4` in the
        run's directory, or the working directory for an agent of the zoo, or `video.gif` without PyAV, with a number in
        its name if the file exists.
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
    index, fps = checked("index", index), fps if fps is None else checked("fps", fps)
    path = checked_file(run, out)
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
    if values and stage.agents[0].is_continuous:
        raise UserError("values draws the Q-values of a choice of actions, but the agent has an actor; leave it out")
    steps = stage.max_steps if max_steps is not None else min(stage.max_steps, MOST_STEPS)
    return filmed(stage, path, out is not None, episodes, epsilon, seed, steps, values, fps or own_fps(stage))


def own_fps(stage: Stage) -> float:
    """Return the steps per second that the environment suggests."""
    return checked("fps", getattr(stage.env, "fps", DEFAULT_FPS))


def filmed(
    stage: Stage,
    path: Path,
    is_named: bool,
    episodes: int,
    epsilon: float,
    seed: int,
    steps: int,
    values: bool,
    fps: float,
) -> Film:
    """Write a video of the first agent of a stage, see `render`.

    Args:
      stage: The agent and its environment.
      path: New file.
      is_named: The user chose the file's name.
      episodes: See `render`.
      epsilon: See `render`.
      seed: See `render`.
      steps: Number of steps after which episodes are cut.
      values: See `render`; an agent with an actor is filmed without.
      fps: See `render`.

    Raises:
      UserError: See `render`.
    """
    if episodes > MOST_EPISODES:
        raise UserError(f"episodes={episodes}: expected at most {MOST_EPISODES} side by side")
    values = values and not stage.agents[0].is_continuous
    painter, last = Painter(values, action_names(stage), deciders(stage)), None

    def images(moments: Iterator[Moment]) -> Iterator[Image.Image]:
        nonlocal last
        for last in moments:
            yield (image := painter.image(last))
        yield from itertools.repeat(image, round(fps))  # repeats the last frame for one second

    with stage.contract(), contextlib.closing(player(stage, episodes, epsilon, to_draw=True)) as played:
        data, frames, size = (_mp4 if path.suffix == ".mp4" else _gif)(images(played.play(seed, steps)), fps)
    assert last is not None
    path = write_result(path, data, is_named)
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


def checked_file(run: Path | str, out: Path | str | None) -> Path:
    """Return the file to write.

    Raises:
      UserError: The file exists or has another format, or PyAV is needed and not installed.
    """
    home = home_of(run)
    folder = home.parent if home.name in ("agents", "best") else home
    path = new_file(out, folder / ("video.mp4" if _can_write_mp4() else "video.gif"), FORMATS)
    if path.suffix == ".mp4" and not _can_write_mp4():
        raise UserError(f"{path} needs PyAV, which is not installed: pip install 'qlax[video]', or write a .gif")
    return path


def _can_write_mp4() -> bool:
    try:
        import av  # noqa: F401  # imported here as it is slow
    except ImportError:
        return False
    return True


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
