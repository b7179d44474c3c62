import io
import xml.etree.ElementTree
from unittest import mock

import numpy as np
import pytest
from rich.console import Console

import qlax
from qlax.training import display as progress
from qlax.training.curves import Curves
from qlax.training.display import ProgressDisplay


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_shown_on_a_terminal_alone(terminal, monkeypatch):
    written = io.StringIO()
    console = Console(file=written, force_terminal=terminal, width=120)
    monkeypatch.setattr(progress, "Console", lambda stderr, quiet: console)
    with ProgressDisplay(1000) as display:
        display.show(500, 1234.5, np.array([1.0, 3.0]), np.array([np.nan, np.nan]))
        display.show(750, 1234.5, np.array([1.0, 3.0]), np.array([7.0, 8.0]))
        display.show(800, 1234.5, np.array([np.nan]), np.array([np.nan]))
        display.say("[run] directory")
    shown = written.getvalue()
    if terminal:
        assert "[run] directory" in shown
        assert "greedy 7.5" in shown[shown.index("800/1,000") :]
        for part in ("800/1,000", "1,234 steps/s", "return 2", "greedy 7.5"):
            assert part in shown
    else:
        assert shown.strip() == ""


def lit(text):
    """Return the dots of a Braille chart as bool `[rows, columns]`; dots are numbered as in the Unicode standard."""
    order = ((0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1), (3, 0), (3, 1))  # row and column of dots 1 to 8
    lines = [line.partition("│")[2] for line in text.splitlines() if "│" in line]
    dots = np.zeros((4 * len(lines), 2 * len(lines[0])), bool)
    for row, line in enumerate(lines):
        for column, letter in enumerate(line):
            for bit, (down, right) in enumerate(order):
                dots[4 * row + down, 2 * column + right] = (ord(letter) - 0x2800) >> bit & 1
    return dots


def drawn(of, width=40):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(of)
    return console.file.getvalue()


def test_a_rising_line_is_a_diagonal_of_dots():
    rising = Curves(total=100)
    for steps in (0, 50, 100):
        rising.add(steps, np.nan, steps / 10)
    dots = lit(drawn(rising))
    height, width = dots.shape
    rows, columns = np.nonzero(dots)
    wanted = (height - 1) * (1 - columns / (width - 1))
    assert np.abs(rows - wanted).max() <= 1
    assert dots.any(axis=0).all()  # the curve has no gap


def test_the_axis_reaches_to_the_planned_steps_from_the_beginning():
    half = Curves(total=1000)
    half.add(0, 1.0, np.nan)
    half.add(500, 3.0, 2.0)
    text = drawn(half)
    columns = np.flatnonzero(lit(text).any(axis=0))
    assert columns.max() == pytest.approx(lit(text).shape[1] / 2, abs=1)
    assert text.splitlines()[0].split()[0] == "3"
    assert "1,000 steps" in text.splitlines()[-1]
    assert max(map(len, text.splitlines())) <= 40


def test_nothing_is_drawn_before_the_first_return():
    curves = Curves(total=10)
    curves.add(5, np.nan, np.nan)
    assert drawn(curves).strip() == ""
    assert curves.svg() == ""


def test_live_curves_stand_above_the_bar_with_what_was_before_the_run_was_resumed(monkeypatch):
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=100)
    monkeypatch.setattr(progress, "Console", lambda stderr=False, quiet=False: console)
    with progress.display_of("live", 1000, 400, quiet=False) as display:
        display.remember(200, np.array([-5.0]), np.array([np.nan]))
        display.show(500, 10.0, np.array([1.0, 3.0]), np.array([7.0, 8.0]))
    last = written.getvalue().rpartition("7.5 ")[2]
    assert "-5" in last
    assert 0x2800 < max(map(ord, last)) < 0x2900
    assert last.index("└") < last.index("500/1,000")


def test_a_notebook_has_one_output_that_is_renewed(monkeypatch):
    outputs, renewed = [], []

    class Handle:
        def update(self, page):
            renewed.append(page.data)

    monkeypatch.setattr("IPython.display.display", lambda page, display_id: outputs.append(page.data) or Handle())
    monkeypatch.setattr(progress, "Console", lambda: mock.Mock(is_jupyter=True))
    monkeypatch.setattr(progress, "SECONDS", 0)
    with progress.display_of(None, 1000, 0, quiet=False) as display:
        display.show(250, 10.0, np.array([1.0]), np.array([2.0]))
        display.show(500, 10.0, np.array([3.0]), np.array([np.nan]))
        display.say("run directory <a&b>")
    assert len(outputs) == 1
    assert "compiling" in outputs[0]
    page = xml.etree.ElementTree.fromstring(renewed[-1])
    assert page.find("progress").attrib["value"] == "500"
    assert "return 3, greedy 2" in page.find("pre").text
    assert "run directory <a&b>" in page.find("pre").text
    (line,) = [x.attrib["points"] for x in page.iter() if x.tag.endswith("polyline") and " " in x.attrib["points"]]
    points = [tuple(map(float, point.split(","))) for point in line.split()]
    assert points == [(160, 180), (320, 0)]  # x: a quarter and half of 640; y: values 1 and 3


def test_what_is_no_way_to_show_progress_is_refused():
    with pytest.raises(qlax.UserError, match="progress='alive': expected True, False, None or 'live'"):
        progress.display_of("alive", 10, 0, quiet=False)
