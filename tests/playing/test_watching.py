"""`qlax play` and `qlax.play` on a terminal, in a notebook and in a pipe."""

import io
import re

import numpy as np
import pytest
from playing import ONE, WALK, saved
from rich.console import Console
from runs import is_refused_in_one_line

import qlax
from qlax.cli.main import main
from qlax.playing import terminal

CELLS = re.compile(r"\x1b\[38;2;(\d+);(\d+);(\d+);48;2;(\d+);(\d+);(\d+)m(▀+)")


@pytest.fixture
def screen(monkeypatch):
    """Pretend to have a terminal with 24-bit colours, and return what it receives."""
    received = io.StringIO()

    def console():
        return Console(file=received, force_terminal=True, color_system="truecolor", width=70, height=20)

    monkeypatch.setattr(terminal, "Console", console)
    return received


def pixels(text):
    """Read a picture of half blocks: the foreground is the upper pixel, and the background the lower one."""
    rows = []
    for line in text.splitlines():
        cells = [(list(map(int, numbers)), len(blocks)) for *numbers, blocks in CELLS.findall(line)]
        rows += [[c[i : i + 3] for c, n in cells for _ in range(n)] for i in (0, 3)]
    return np.array([row for row in rows if row], np.uint8)


@pytest.mark.parametrize("shape", [(6, 9), (7, 3), (2, 1)])
def test_half_blocks_hold_every_pixel(shape):
    random = np.random.default_rng(0)
    small = terminal.fitted(random.integers(0, 256, (*shape, 3), np.uint8), columns=shape[1], rows=shape[0])
    console = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", width=40)
    console.print(terminal.Blocks(small))
    np.testing.assert_array_equal(pixels(console.file.getvalue()), small)


@pytest.mark.parametrize("side", [1, 5, 24])
def test_a_picture_of_cells_keeps_them_square_and_equal(side):
    cells = np.random.default_rng(1).integers(0, 256, (10, 10, 3), np.uint8)
    shown = terminal.fitted(cells.repeat(side, 0).repeat(side, 1), columns=47, rows=20)
    np.testing.assert_array_equal(shown, cells.repeat(4, 0).repeat(4, 1))  # 4 = floor(40 / 10), of 47 columns, 40 rows


@pytest.mark.parametrize(("height", "width"), [(210, 160), (30, 500), (501, 3), (1, 1)])
def test_any_picture_fits_into_the_terminal(height, width):
    drawn = np.random.default_rng(2).integers(0, 256, (height, width, 3), np.uint8)
    shown = terminal.fitted(drawn, columns=40, rows=15)
    assert shown.shape[0] % 2 == 0
    assert shown.shape[0] <= 30
    assert shown.shape[1] <= 40
    flat = terminal.fitted(np.full((height, width, 3), 77, np.uint8), columns=40, rows=15)
    assert (flat == 77).all()


def test_a_terminal_shows_the_pictures_with_q_values(screen, tmp_path, capsys):
    folder = saved(tmp_path / "run", "test_film:Seen", WALK)
    played = qlax.play(folder, speed=100)
    frames = re.split(r"return ", screen.getvalue())
    first, last = (pixels(text)[:, ::14] for text in (frames[0], frames[4]))
    white = [np.flatnonzero((row == 255).all(axis=-1)).tolist() for row in (first[0], last[0])]
    assert white[0] < white[1]  # the walker has moved to the right
    assert re.search(r">\s+1 █{12}\s+1\b", screen.getvalue())  # the agent prefers action 1, whose Q-value is 1
    assert re.search(r"  0 █ +0\b", screen.getvalue())
    assert (played.lengths, played.cut) == ([4], [False])
    assert played.returns == pytest.approx([2 - 0.3])
    assert "episode 0: return 1.7, 4 steps" in capsys.readouterr().out


def test_what_cannot_draw_shows_q_values_alone(screen, tmp_path):
    played = qlax.play(saved(tmp_path / "run", "hosts:Walk", WALK), speed=100)
    assert played.lengths == [4]
    assert "▀" not in screen.getvalue()
    assert "Q of each action" in screen.getvalue()


def test_every_member_of_a_team_has_its_q_values(screen, tmp_path):
    qlax.play(saved(tmp_path / "run", "test_film:Several", ONE, num_actions=30), speed=100)
    assert {"Q of member 0", "Q of member 1"} <= set(re.findall(r"Q of member \d", screen.getvalue()))


@pytest.mark.parametrize("env", ["hosts:Walk", "hosts:HostWalk"])
def test_a_pipe_gets_the_return_and_length_of_every_episode(env, tmp_path, capsys):
    assert main(["play", str(saved(tmp_path / "run", env, WALK, actions=(1, 0))), "--episodes", "2"]) == 0
    assert capsys.readouterr().out == "episode 0: return 1.7, 4 steps\nepisode 1: return 1.7, 4 steps\n"
    assert main(["play", str(tmp_path / "run"), "--index", "1"]) == 0
    assert capsys.readouterr().out == "episode 0: return -0.7, 7 steps\n"  # the agent walks left until the time limit
    assert main(["play", str(tmp_path / "run"), "--max-steps", "3"]) == 0
    assert capsys.readouterr().out == "episode 0: return -0.3, 3 steps (cut; see --max-steps)\n"


def test_the_next_episode_has_the_next_seed(tmp_path):
    folder = saved(tmp_path / "run", "hosts:Walk", WALK)
    both = qlax.play(folder, epsilon=0.7, episodes=6, seed=3)
    again = qlax.play(folder, epsilon=0.7, episodes=5, seed=4)
    assert both.returns[1:] == again.returns
    assert len(set(both.returns)) > 1


def test_a_video_is_written_instead(tmp_path, capsys):
    folder = saved(tmp_path / "run", "test_film:Seen", WALK)
    assert main(["play", str(folder), "--video", str(tmp_path / "a.gif"), "--speed", "2"]) == 0
    assert "a.gif: 25 frames" in capsys.readouterr().out  # 5 moments, and one second of the last at 2 x 10 a second
    is_refused_in_one_line(["play", str(folder), "--video", str(tmp_path / "a.gif")], "a.gif", capsys, tmp_path)


def test_a_notebook_shows_a_gif(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(terminal, "is_notebook", lambda: True)
    monkeypatch.setattr("IPython.display.display", shown.append)
    played = qlax.play(saved(tmp_path / "run", "test_film:Seen", WALK), episodes=2)
    assert played.lengths == [4, 4]
    assert shown[0].data.startswith(b"GIF89a")


def test_ctrl_c_ends_the_show(tmp_path, monkeypatch, screen):
    folder = saved(tmp_path / "run", "test_film:Seen", WALK)
    monkeypatch.setattr(terminal.time, "sleep", lambda seconds: (_ for _ in ()).throw(KeyboardInterrupt))
    assert qlax.play(folder, episodes=3).returns == []


def test_mistakes_are_refused_in_one_line(tmp_path, capsys):
    folder = str(saved(tmp_path / "run", "hosts:Walk", WALK))
    is_refused_in_one_line(["play", folder, "--speed", "0"], "speed=0: expected", capsys, tmp_path)
    is_refused_in_one_line(["play", folder, "--index", "5"], "there is no agent", capsys, tmp_path)
    is_refused_in_one_line(["play", str(tmp_path / "no")], "no run or file", capsys, tmp_path)
