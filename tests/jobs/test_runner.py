"""What runs jobs, shown by suites: their games are the simplest jobs."""

import fcntl
import json
import signal

import pytest
from runs import begun, stand_in_for_training

from qlax.cli.main import main
from qlax.config.settings import configure
from qlax.errors import UserError
from qlax.jobs.runner import Job, here, run_jobs, share_of_gpu
from qlax.jobs.suite import plan

# What stands in for training: it leaves what a run leaves, and does as the game's name says.
JOB = """
import json, os, pathlib, signal, sys, time

directory = pathlib.Path(sys.argv[1])
game = directory.name
directory.mkdir(exist_ok=True)
(directory / "config.json").write_text(sys.argv[2])
with open(directory / "attempts", "a") as file:
    file.write("x")
attempts = len((directory / "attempts").read_text())
print("attempt", attempts, flush=True)
if game == "breakout":
    sys.exit("qlax: out of luck")
if game == "seaquest":
    print("qlax: no such sea", file=sys.stderr)
    sys.exit(2)
if game == "freeway" and attempts == 1:
    os.kill(os.getpid(), signal.SIGKILL)
if "interrupt" in sys.argv:
    def save(number, _):
        (directory / "checkpoint").write_text(str(number))
        sys.exit(130)
    signal.signal(signal.SIGINT, save)
    signal.signal(signal.SIGTERM, save)
    (directory / "ready").touch()
    if all((directory.parent / name / "ready").exists() for name in ("asterix", "freeway")):
        os.kill(os.getppid(), int(sys.argv[-1]))
    time.sleep(60)
summary = {
    "env": "gymnax/" + game, "seeds": [0, 1], "total_steps": 1000, "steps_per_second": 2345.6, "device": "cpu: cpu",
    "eval_return": {"mean": 1.5, "per_run": [1.0, 2.0]}, "eval_episodes": 64, "eval_cut": [0.0, 0.0],
}
(directory / "summary.json").write_text(json.dumps(summary))
"""


@pytest.fixture(autouse=True)
def in_an_empty_directory(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def stand_in(monkeypatch):
    """Jobs that run `JOB` with these further words."""

    def use(*words):
        stand_in_for_training(monkeypatch, JOB, *words)

    return use


def test_what_fails_is_tried_again_and_reported_and_the_others_go_on(capsys, stand_in, tmp_path):
    stand_in()
    assert main(["suite", "minatar", "--jobs", "2", "--out", "all"]) == 1
    said = capsys.readouterr()
    attempts = {job.parent.name: len(job.read_text()) for job in (tmp_path / "all").glob("*/attempts")}
    assert attempts == {"asterix": 1, "breakout": 3, "freeway": 2, "seaquest": 1, "space-invaders": 1}
    assert said.err.count("breakout: failed after 0:0") == 2
    assert "is tried again: signal 9 (Killed): attempt 1" in said.err
    assert "breakout: failed: exit code 1: out of luck" in said.err
    assert "seaquest: failed: exit code 2: no such sea" in said.err
    assert "qlax: 2 of 5 games failed: breakout, seaquest; the same command tries them again" in said.err
    assert "- Failed, hence left out: breakout (exit code 1: out of luck)." in said.out
    assert said.out.startswith("minatar: 3 of 5 games")
    assert "| asterix        |    1.5 |         1, 2 |        1,000 |              2,346 |" in said.out
    log = (tmp_path / "all" / "breakout.log").read_text()
    assert [log.count(f"attempt {number}\n") for number in (1, 2, 3)] == [1, 1, 1]
    results = json.loads((tmp_path / "all" / "results.json").read_text())
    assert list(results["games"]) == ["asterix", "freeway", "space-invaders"]
    assert results["failed"].keys() == {"breakout", "seaquest"}
    assert main(["suite", "minatar", "--games", "asterix,freeway", "--out", "all"]) == 0  # nothing is left to do
    assert (tmp_path / "all" / "freeway" / "attempts").read_text() == "xx"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_request_to_stop_is_passed_on_and_nothing_begins_after(number, code, capsys, stand_in, tmp_path):
    before = signal.getsignal(signal.SIGINT)  # a shell's background jobs ignore it
    stand_in()
    assert main(["suite", "minatar", "--games", "space-invaders", "--out", "all"]) == 0
    for game in ("asterix", "freeway"):
        begun(tmp_path / "all" / game, f"minatar/{game}")
        (tmp_path / "all" / game / "attempts").write_text("x")
    capsys.readouterr()
    stand_in("interrupt", str(int(number)))
    games = "space-invaders,asterix,freeway,seaquest"
    assert main(["suite", "minatar", "--games", games, "--jobs", "2", "--out", "all"]) == code
    said = capsys.readouterr()
    for game in ("asterix", "freeway"):
        assert (tmp_path / "all" / game / "checkpoint").read_text() == str(int(number))
        assert f"{game}: stopped after" in said.err
    assert not (tmp_path / "all" / "seaquest").exists()
    assert "qlax: stopped with 1 of 4 games complete; the same command goes on" in said.err
    assert "minatar: 1 of 4 games" in said.out
    assert "Not complete yet, hence left out: asterix, freeway, seaquest." in said.out
    assert signal.getsignal(signal.SIGINT) is before


def test_a_job_that_another_process_trains_is_left_alone(stand_in, tmp_path):
    stand_in()
    begun(tmp_path / "asterix", "minatar/asterix")
    jobs = plan("minatar", "asterix,space-invaders", {}, tmp_path)
    with jobs[0].log.open("w") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="asterix is being trained by another process"):
            plan("minatar", None, {}, tmp_path)
        failed, _ = run_jobs(jobs, here(1))
    assert failed.keys() == {"asterix"}
    assert not (tmp_path / "asterix" / "attempts").exists()
    assert jobs[1].complete
    assert run_jobs(jobs, here(1)).failed == {}  # once the other is gone


def test_jobs_side_by_side_take_a_gpu_once(monkeypatch):
    assert share_of_gpu(1) == {}
    assert share_of_gpu(0.5) == {"XLA_CLIENT_MEM_FRACTION": "0.375"}
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.2")
    assert share_of_gpu(0.5) == {}


def test_a_job_is_alone_whatever_a_launcher_says(tmp_path):
    job = Job("job", configure("cartpole", seeds=3), tmp_path / "job", compilation_cache=False)
    words = ["train", "cartpole", "--seeds", "3", "--no-compilation-cache", "--num-processes", "1"]
    assert job.command()[3:] == ["qlax", *words, "--out", str(tmp_path / "job")]
