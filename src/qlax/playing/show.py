"""Trained agents at play: on a terminal, in a notebook, as a video, or as lines of returns in a pipe."""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from qlax.agents.zoo import named
from qlax.playing import film
from qlax.playing.evaluate import checked, prepared
from qlax.playing.moments import action_names, deciders, player
from qlax.switches import usual_switches


class Played(NamedTuple):
    """Episodes that were played.

    Attributes:
      returns: Undiscounted return of each episode, of raw rewards.
      lengths: Length of each episode in steps.
      cut: For each episode, True if a limit of steps cut it.
      video: The video that was written; None if none was asked for.
    """

    returns: list[float]
    lengths: list[int]
    cut: list[bool]
    video: film.Film | None

    def __str__(self) -> str:
        """Return a line for every episode."""
        return "\n".join(map(episode_in_words, range(len(self.returns)), self.returns, self.lengths, self.cut))


@usual_switches()
def play(
    agent: Path | str,
    *,
    video: Path | str | None = None,
    episodes: int = 1,
    seed: int = 0,
    speed: float = 1.0,
    epsilon: float = 0.0,
    index: int = 0,
    best: bool = False,
    env: str | None = None,
    env_options: dict[str, Any] | None = None,
    wrappers: Sequence[str] | None = None,
    max_steps: int | None = None,
) -> Played:
    """Show episodes of a trained agent.

    On a terminal with colours they are drawn one after the other, with the agent's Q-values; Ctrl-C ends them. A
    notebook shows them side by side. Elsewhere, as in a pipe, the return and the length of each episode are printed.

    Args:
      agent: Name of an agent of the zoo, see `qlax zoo`; or directory of a run, or a file of its `agents/` or `best/`.
      video: New file, .mp4 or .gif, to which a video is written instead, see `qlax.render`.
      episodes: Number of episodes.
      seed: Seed of the first episode; the next ones have the numbers after it. A video has one seed for all.
      speed: Factor of the speed that the environment suggests.
      epsilon: Probability of a random legal action; 0 is greedy.
      index: Number of the agent in the run.
      best: See `qlax.evaluate`.
      env: See `qlax.evaluate`.
      env_options: See `qlax.evaluate`.
      wrappers: See `qlax.evaluate`.
      max_steps: Largest number of steps, after which episodes are cut; None for the limit of the run's own evaluations,
        and in a video or a notebook for at most 1,000.

    Returns:
      The episodes; `print` shows a line for each.

    Raises:
      UserError: There is no such agent, the environment cannot be made or has another interface, or the video cannot
        be written.
      HostError: An environment on the host crashed or hangs.

    Example:
      ```python
      qlax.play("cartpole")
      ```
    """
    from qlax.playing import terminal  # rich takes long to import

    run, speed, episodes = named(agent), checked("speed", speed), checked("episodes", episodes)
    seed, epsilon, index = checked("seed", seed), checked("epsilon", epsilon), checked("index", index)
    file = None if video is None else film.checked_file(run, video)
    is_inline = file is None and terminal.is_notebook()
    is_drawn = terminal.has_colours()
    stage = prepared(
        run,
        index,
        best=best,
        env=env,
        env_options=env_options,
        wrappers=wrappers,
        max_steps=max_steps,
        to_draw=is_drawn or is_inline or file is not None,
    )
    rate = speed * film.own_fps(stage)
    if file is not None or is_inline:
        steps = stage.max_steps if max_steps is not None else min(stage.max_steps, film.MOST_STEPS)
        with tempfile.TemporaryDirectory() as folder:
            path = file or Path(folder) / "episodes.gif"
            fps = min(max(rate, film.SLOWEST), film.FASTEST)
            done = film.filmed(stage, path, True, episodes, epsilon, seed, steps, values=True, fps=fps)
            if is_inline:
                _show_inline(path.read_bytes())
        return Played(done.returns, done.lengths, done.cut, None if is_inline else done)
    screen = terminal.Screen(action_names(stage), deciders(stage), 1 / rate) if is_drawn else None
    found = Played([], [], [], None)
    with (
        stage.contract(),
        contextlib.closing(player(stage, 1, epsilon, is_drawn and hasattr(stage.env, "render"))) as one,
        contextlib.suppress(KeyboardInterrupt),
    ):
        for number in range(episodes):
            moments = one.play(seed + number, stage.max_steps)
            last = screen.show(moments) if screen else _last(moments)
            found.returns.append(float(last.returns[0]))
            found.lengths.append(int(last.lengths[0]))
            found.cut.append(bool(last.playing[0]))
            print(episode_in_words(number, found.returns[-1], found.lengths[-1], found.cut[-1]), flush=True)
    return found


def episode_in_words(number: int, episode_return: float, length: int, cut: bool) -> str:
    """Return a line about an episode."""
    return f"episode {number}: return {episode_return:g}, {length:,} steps{' (cut; see --max-steps)' if cut else ''}"


def _show_inline(gif: bytes) -> None:
    """Show a GIF in the notebook that runs this program."""
    from IPython.display import Image, display

    display(Image(data=gif, format="gif"))


def _last(moments: Iterator[Any]) -> Any:
    """Return the last of several moments."""
    for moment in moments:
        last = moment
    return last
