import io

import numpy as np
import pytest
from rich.console import Console

from qlax.training import display as progress
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
