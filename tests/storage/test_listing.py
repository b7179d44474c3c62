"""The list of runs below a folder, in every state that a run can be in."""

import json
import os
import shutil
from pathlib import Path

import pytest
from filelock import FileLock
from runs import begun, is_refused_in_one_line

from qlax.cli.main import main
from qlax.cli.watch import ago
from qlax.storage.listing import runs_below

OLD = Path(__file__).parents[1] / "data" / "format-0"
LINE = {"updates": 4, "steps": 400, "eval_return": [1.0, 2.0]}


@pytest.fixture
def folder(tmp_path):
    """Make runs in all states, some in subfolders; the number at the end of a name is the run's age in hours."""
    shutil.copytree(OLD / "finished", tmp_path / "complete-6")
    shutil.copytree(OLD / "interrupted", tmp_path / "sweep" / "job" / "interrupted-5")
    shutil.copytree(OLD / "finished", tmp_path / "failed-4")
    summary = json.loads((tmp_path / "failed-4" / "summary.json").read_text())
    summary |= {"diverged": [{"steps": 8}] * 4, "eval_return": {"mean": None, "per_run": [None] * 4}}
    (tmp_path / "failed-4" / "summary.json").write_text(json.dumps(summary))
    begun(tmp_path / "begun-3", seeds=2)
    written = [LINE, {**LINE, "steps": 500, "eval_return": [None, None]}]
    (tmp_path / "begun-3" / "metrics.jsonl").write_text("\n".join(map(json.dumps, written)) + '\n{"updates": 5, "st')
    begun(tmp_path / "damaged-2")
    (tmp_path / "damaged-2" / "metrics.jsonl").write_text(f"nonsense\n{json.dumps({**LINE, 'eval_return': [None]})}\n")
    (tmp_path / "damaged-1").mkdir()
    (tmp_path / "damaged-1" / "config.json").write_text("{")
    (tmp_path / "empty").mkdir()
    for file in tmp_path.rglob("*.json*"):
        age = 3600 * int(next(part for part in file.parts[::-1] if part[-1].isdecimal() and "-" in part)[-1])
        os.utime(file, (file.stat().st_mtime - age,) * 2)
    return tmp_path


def test_every_run_is_listed_with_its_state_the_newest_first(folder):
    found = runs_below(folder)
    assert [run.path.name for run in found] == [
        *("damaged-1", "damaged-2", "begun-3", "failed-4", "interrupted-5", "complete-6"),
    ]
    assert [run.state for run in found] == ["damaged", "damaged", "interrupted", "failed", "interrupted", "complete"]
    by_name = {run.path.name: run for run in found}
    run = by_name["begun-3"]  # the last line is half written; the one before has no evaluation
    assert (run.what, run.steps, run.score) == ("minatar/breakout", 500, 1.5)
    complete, summary = by_name["complete-6"], json.loads((OLD / "finished" / "summary.json").read_text())
    assert complete.steps == summary["total_steps"] == complete.total
    assert complete.score == pytest.approx(summary["eval_return"]["mean"])
    last = json.loads((OLD / "interrupted" / "metrics.jsonl").read_text().splitlines()[-1])
    assert by_name["interrupted-5"].steps == last["steps"] < by_name["interrupted-5"].total
    assert by_name["failed-4"].score is None
    assert "line 1 of" in by_name["damaged-2"].damage
    assert "config.json is not JSON" in by_name["damaged-1"].damage


def test_a_run_whose_directory_is_locked_is_in_progress_and_keeps_its_lock(folder):
    with FileLock(folder / "begun-3" / "lock") as lock:
        assert {run.state for run in runs_below(folder / "begun-3")} == {"in progress"}
        assert lock.is_locked
    assert {run.state for run in runs_below(folder / "begun-3")} == {"interrupted"}


def test_looking_changes_nothing(folder):
    def content():
        return {path: (path.stat().st_mtime, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}

    before = content()
    runs_below(folder)
    assert content() == before


def test_the_command_prints_a_line_for_every_run(folder, capsys, monkeypatch):
    assert main(["runs", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7
    assert "500 of 10,002,432" in lines[3]
    assert lines[3].endswith("3 h ago")
    assert "line 1 of" in lines[2]
    assert main(["runs", str(folder / "empty")]) == 0
    assert capsys.readouterr().out == f"no runs in {folder / 'empty'}\n"
    is_refused_in_one_line(["runs", str(folder / "no")], "there is no folder", capsys, folder)


@pytest.mark.parametrize(("seconds", "said"), [(-1, "0 s"), (59, "59 s"), (60, "1 min"), (7200, "2 h"), (9e5, "10 d")])
def test_ages_have_one_unit(seconds, said):
    assert ago(seconds) == said
