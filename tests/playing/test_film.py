import sys
import time
from typing import ClassVar

import av
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hosts import LENGTH, LIMIT, HostWalk, Walk
from PIL import Image
from playing import WALK, saved
from probes import show
from runs import SMALL, is_refused_in_one_line, random_agent, stand_in_suite

import qlax
from qlax import Agent
from qlax.cli.main import main
from qlax.config.configure import configure
from qlax.playing import painter
from qlax.storage.formats import to_json

SIDE = 60  # pixels of a cell; a film keeps pictures of this size as they are


def picture(cell):
    """Draw a row of black cells, with the walker's cell in white."""
    row = np.zeros((SIDE, (LENGTH + 1) * SIDE, 3), np.uint8)
    row[:, int(cell) * SIDE : (int(cell) + 1) * SIDE] = 255
    return row


class Seen(Walk):
    """Walk that can be rendered."""

    fps = 10

    def render(self, state):
        return picture(state[0])


class HostSeen(HostWalk):
    """Rendered walk on the host, whose picture shows the end of an episode, because a reset takes a step."""

    def step(self, action):
        before = self.cell
        step = super().step(action)
        self.seen = np.where(step.terminated, before + 2 * action - 1, self.cell)
        return step

    def reset(self, seed):
        step = super().reset(seed)
        self.seen = self.cell
        return step

    def render(self):
        return np.stack([picture(cell) for cell in self.seen])


class Several(Walk):
    """Walk of a team of two that is as fast as its slower member; 25 of 30 actions are legal."""

    num_agents = 2
    num_actions = 30

    def reset(self, key):
        return (jnp.int32(0), jnp.int32(0)), self._show(jnp.int32(0), 0.0, False)

    def step(self, key, state, action):
        cell, time = state[0] + action.min(), state[1] + 1
        return (cell, time), self._show(cell, 1.0, time >= 4)

    def render(self, state):
        return picture(min(int(state[0]), LENGTH))[:, :200]

    def _show(self, cell, reward, ended):
        obs = jnp.broadcast_to(cell.astype(jnp.float32), (2, 1))
        return show(obs, reward, terminated=ended, legal=jnp.ones((2, 30), bool).at[:, 25:].set(False))


class Unseen(Walk):
    pass


class Wrong(Walk):
    def render(self, state):
        del state
        return np.zeros((3, 3))


class Failing(Walk):
    def render(self, state):
        raise ValueError(f"no brush\nfor {len(state)}")


class Misnamed(Seen):
    action_names = ("left",)


class Still(Seen):
    fps = 0


class HostFrozen(HostSeen):
    """Environment that hangs when it is rendered."""

    def render(self):
        time.sleep(60)


class HostThrifty(HostSeen):
    """Environment that renders every picture into the same memory."""

    def render(self):
        self.memory = getattr(self, "memory", super().render())
        self.memory[:] = super().render()
        return self.memory


class HostAlone(HostSeen):
    """Environment that renders only the first of its copies."""

    def render(self):
        return super().render()[0]


class HostFailing(HostSeen):
    """Environment that fails when it is rendered, and records which instances were closed."""

    closed: ClassVar[list[int]] = []

    def render(self):
        raise ValueError("no brush")

    def close(self):
        self.closed.append(self.num_envs)


def pictures(path):
    """Return the pictures of a film, `[frames, height, width, 3]`."""
    if path.suffix == ".mp4":
        with av.open(str(path)) as container:
            return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    film = Image.open(path)
    frames = []
    for number in range(film.n_frames):
        film.seek(number)
        frames.append(np.asarray(film.convert("RGB")))
    return np.stack(frames)


def cells(frames):
    """Return the walker's cell in each picture."""
    return [int(frame[SIDE // 2, SIDE // 2 :: SIDE].mean(-1).argmax()) for frame in frames]


@pytest.mark.parametrize("env", ["test_film:Seen", "test_film:HostSeen"])
def test_a_film_has_every_step_and_the_end(env, tmp_path):
    run = saved(tmp_path / "run", env, WALK)
    path = qlax.render(run, fps=10).path
    assert path == run / "video.mp4"
    frames = pictures(path)
    assert frames.shape[1:] == (SIDE, (LENGTH + 1) * SIDE, 3)
    assert cells(frames) == [0, 1, 2, 3, 4] + [4] * 10  # the last picture stays for a second
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 10
    assert qlax.render(run).path == run / "video-2.mp4"


def test_an_episode_that_is_cut_is_told(tmp_path, capsys):
    run = saved(tmp_path / "run", "test_film:Seen", WALK, actions=(0, 1))
    assert main(["render", str(run), "--out", str(tmp_path / "a.gif"), "--max-steps", "3"]) == 0
    said = capsys.readouterr().out
    assert "episode 0: return -0.3, 3 steps (cut; see --max-steps)" in said
    assert "10 per second" in said  # the environment's own `fps`
    assert main(["render", str(run), "--out", str(tmp_path / "b.gif"), "--index", "1"]) == 0
    assert "episode 0: return 1.7, 4 steps\n" in capsys.readouterr().out
    assert cells(pictures(tmp_path / "b.gif"))[:5] == [0, 1, 2, 3, 4]


def test_episodes_side_by_side_wait_dimmed_for_the_others(tmp_path):
    run = saved(tmp_path / "run", "test_film:Seen", WALK, actions=(1,))
    made = qlax.render(run, tmp_path / "a.mp4", episodes=4, epsilon=0.7, seed=3)
    assert len(set(made.lengths)) > 1
    assert made.returns == pytest.approx([2.1 - 0.1 * n if n < LIMIT else -0.1 * n for n in made.lengths], abs=1e-5)
    assert not any(made.cut)  # a time limit of the environment does not count as a cut
    frames = pictures(made.path)
    assert made.frames == len(frames) == max(made.lengths) + 1 + 10
    assert (made.height, made.width) == frames.shape[1:3]
    rows = [number * (SIDE + 4) + SIDE // 2 for number in range(4)]  # wide pictures are stacked vertically
    for row, length in zip(rows, made.lengths, strict=True):
        darkest = frames[:, row].min(axis=(1, 2))
        assert darkest[: min(length, max(made.lengths) - 1)].max() < 20
        if length < max(made.lengths):
            assert darkest[length : max(made.lengths)].min() > 60
    assert frames[-1, rows].min(axis=(1, 2)).max() < 20


@pytest.mark.parametrize("epsilon", [0, 1])
def test_values_and_choices_are_drawn_beside_the_picture(epsilon, tmp_path):
    run = saved(tmp_path / "run", "test_film:Seen", WALK)
    path = qlax.render(run, tmp_path / "a.gif", values=True, epsilon=epsilon, seed=1).path
    frames = pictures(path).astype(int)
    assert frames.shape[2] > (LENGTH + 1) * SIDE + painter.BAR_WIDTH + painter.NUMBER_WIDTH

    def count(color):
        return (np.abs(frames - np.array(color)).max(-1) < 12).sum(axis=(1, 2))

    greedy, at_random = count(painter.CHOSEN) > 100, count(painter.AT_RANDOM) > 0
    ended = np.arange(len(frames)) == len(frames) - 1  # a GIF merges equal pictures to one that lasts longer
    assert not (greedy & at_random).any()
    assert greedy[~ended].all() == (epsilon == 0)
    assert at_random.any() == (epsilon == 1)
    assert not greedy[ended].any()  # after the end no action is chosen


def test_of_many_actions_and_members_some_are_drawn(tmp_path):
    run = saved(tmp_path / "run", "test_film:Several", [["float32", [1]]], actions=(2,), num_actions=30)
    path = qlax.render(run, tmp_path / "a.gif", values=True, epsilon=0.5).path
    frames = pictures(path)
    assert frames.shape[1] > painter.LINE * painter.MOST_BARS
    assert frames.shape[2] >= 200 + 2 * (painter.BAR_WIDTH + painter.NUMBER_WIDTH)


def test_environments_on_the_host_are_closed_whatever_happens(tmp_path, monkeypatch):
    run = saved(tmp_path / "run", "test_film:HostFailing", WALK)
    with pytest.raises(qlax.RunError, match="test_film:HostFailing crashed: ValueError: no brush"):
        qlax.render(run, episodes=3)
    assert HostFailing.closed.count(3) == 1
    monkeypatch.setattr(HostFailing, "render", HostSeen.render)
    monkeypatch.setattr(painter.Painter, "image", lambda *_: 1 / 0)
    with pytest.raises(qlax.UserError, match="ZeroDivisionError"):  # the lambda above counts as code of the user
        qlax.render(run, episodes=3)
    assert HostFailing.closed.count(3) == 2
    assert not list(run.glob("video*"))


def test_an_environment_that_hangs_while_it_is_filmed_is_named_in_time(tmp_path):
    run = saved(tmp_path / "run", "test_film:HostFrozen", WALK)
    (run / "config.json").write_text(to_json(configure("test_film:HostFrozen", **SMALL | {"host_timeout": 0.5})))
    with pytest.raises(qlax.HostError, match=r"test_film:HostFrozen did not answer within 0\.5 seconds"):
        qlax.render(run)
    assert qlax.render(run, tmp_path / "a.gif", env="test_film:Seen").lengths == [4]  # a JAX environment has no timeout


def test_an_environment_may_draw_into_the_same_memory_again(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        painter.Painter, "image", lambda _, moment: drawn.append(moment.pictures) or Image.new("RGB", (2, 2))
    )
    run = saved(tmp_path / "run", "test_film:HostThrifty", WALK)
    qlax.render(run, tmp_path / "a.gif", episodes=2)
    assert [cells(pictures) for pictures in drawn] == [[cell, cell] for cell in range(LENGTH + 1)]


def test_an_agent_of_which_only_nan_is_left_is_filmed(tmp_path):
    run = tmp_path / "0.safetensors"
    agent = random_agent({}, WALK, 2, env="test_film:Seen")
    Agent(jax.tree.map(lambda x: x * np.nan, agent.variables), agent.info).save(run)
    assert qlax.render(run, tmp_path / "a.gif", values=True).lengths == [LIMIT]


def test_without_pyav_films_are_gifs(tmp_path, monkeypatch, capsys):
    run = saved(tmp_path / "run", "test_film:Seen", WALK)
    monkeypatch.setitem(sys.modules, "av", None)
    is_refused_in_one_line(
        ["render", str(run), "--out", str(tmp_path / "a.mp4")], "pip install 'qlax[video]'", capsys, tmp_path
    )
    assert qlax.render(run / "agents" / "0.safetensors").path == run / "video.gif"


@pytest.mark.parametrize(
    ("env", "words", "message"),
    [
        ("test_film:Unseen", [], "test_film:Unseen cannot be rendered, as it has no method render(state)"),
        ("hosts:HostWalk", [], "hosts:HostWalk cannot be rendered, as it has no method render()"),
        ("test_film:Seen", ["--out", "a.avi"], "expected a file that ends with .mp4 or .gif"),
        ("test_film:Seen", ["--out", "there.gif"], "there.gif exists already"),
        ("test_film:Seen", ["--episodes", "100"], "expected at most 64 side by side"),
        ("test_film:Seen", ["--fps", "0"], "fps=0: expected a number from 1 to 240"),
        ("test_film:Seen", ["--index", "3"], "agents there: 0"),
        ("test_film:Seen", ["--index", "-1"], "index=-1: expected a whole number from 0"),
        ("test_film:Seen", ["--out", "x" * 251 + ".gif"], "cannot be written: File name too long"),
        ("test_film:Misnamed", [], "test_film:Misnamed has action_names ['left']; expected one for each of its 2"),
        ("test_film:Still", [], "fps=0: expected a number from 1 to 240"),
        ("test_film:Failing", [], "test_film:Failing cannot be rendered: ValueError: no brush for 2"),
        ("test_film:HostAlone", ["--episodes", "2"], "uint8[60, 300, 3]; expected uint8 [2, height, width, 3]"),
        (
            "test_film:Wrong",
            [],
            "renders float64[3, 3]; expected a picture, uint8 [height, width, 3]",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(env, words, message, tmp_path, capsys, monkeypatch):
    saved(tmp_path / "run", env, WALK)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.gif").touch()
    is_refused_in_one_line(["render", "run", *words], message, capsys, tmp_path)


def test_a_package_that_fails_when_it_is_first_used_is_one_line(tmp_path, capsys, monkeypatch):
    error = ModuleNotFoundError("No module named 'pygame'", name="pygame")
    stand_in_suite(monkeypatch, ["Blind", "Gone"], making={"Gone": error}, rendering={"Blind": error})
    saved(tmp_path / "run", "flaky/Blind", [["float32", [2]]], num_actions=3)
    monkeypatch.chdir(tmp_path)
    remedy = "ModuleNotFoundError: No module named 'pygame'; install the package that has the module 'pygame'"
    is_refused_in_one_line(["render", "run"], f"flaky/Blind cannot be rendered: {remedy}", capsys, tmp_path)
    for command in ("render", "evaluate"):
        words = [command, "run", "--env", "flaky/gone"]
        is_refused_in_one_line(words, f"flaky/Gone cannot be made: {remedy}", capsys, tmp_path)
