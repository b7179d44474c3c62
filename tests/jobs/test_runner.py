"""The runner of jobs, tested by sweeps over the games of MinAtar."""

import fcntl
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runs import begun, stand_in_for_training

from qlax.cli.main import main
from qlax.config.configure import configure
from qlax.errors import UserError
from qlax.jobs import sweep
from qlax.jobs.runner import Job, Outcome, here, run_jobs, share_of_gpu

# Stand-in for training: it writes the files of a run, and behaves as the name of the game says.
JOB = """
import json, os, pathlib, signal, sys, time

directory = pathlib.Path(sys.argv[1])
game = directory.name.partition("minatar-")[2]
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
    if len(list(directory.parent.glob("*/ready"))) == 2:
        os.kill(os.getppid(), int(sys.argv[-1]))
    time.sleep(60)
summary = {
    "preset": None, "env": "gymnax/" + game, "seeds": [0, 1],
    "total_steps": 1000, "steps_per_second": 2345.6, "device": "cpu: cpu",
    "eval_return": {"mean": 1.5, "per_run": [1.0, 2.0]}, "eval_episodes": 64, "eval_cut": [0.0, 0.0],
    "eval_distinct": [64, 64],
}
(directory / "summary.json").write_text(json.dumps(summary))
"""


pytestmark = pytest.mark.filterwarnings("ignore:os.fork")  # the command runs no JAX, which forking could harm
GAMES = ["asterix", "breakout", "freeway", "seaquest", "space-invaders"]


@pytest.fixture(autouse=True)
def in_an_empty_directory(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def stand_in(monkeypatch):
    """Return a function that lets jobs run `JOB`, with further words."""

    def use(*words):
        stand_in_for_training(monkeypatch, JOB, *words)

    return use


def directories(games):
    """Return the directories of the jobs of a sweep over these games."""
    return [f"{number}-minatar-{game}" for number, game in enumerate(games)]


def test_what_fails_is_tried_again_and_reported_and_the_others_go_on(capsys, stand_in, tmp_path):
    stand_in()
    words = ["sweep", "minatar", "--jobs", "2", "--seeds", "2", "--out", "all"]
    assert main(words) == 1
    said = capsys.readouterr()
    attempts = [len((tmp_path / "all" / name / "attempts").read_text()) for name in directories(GAMES)]
    assert attempts == [1, 3, 2, 1, 1]
    assert said.err.count("1-minatar-breakout: failed after 0:0") == 2
    assert "trying again: signal 9 (Killed): attempt 1" in said.err
    assert "1-minatar-breakout: failed: exit code 1: out of luck" in said.err
    assert "3-minatar-seaquest: failed: exit code 2: no such sea" in said.err
    failed = "qlax: 2 of 5 jobs failed: 1-minatar-breakout, 3-minatar-seaquest"
    assert f"{failed}; try them again with the same command with --out all" in said.err
    assert "- Left out because it failed: minatar/breakout (exit code 1: out of luck)." in said.out
    assert said.out.startswith("minatar: 3 of 5 targets")
    assert "| minatar/asterix        |    1.5 |         1, 2 |          1,000 |              2,346 |" in said.out
    log = (tmp_path / "all" / "1-minatar-breakout.log").read_text()
    assert [log.count(f"attempt {number}\n") for number in (1, 2, 3)] == [1, 1, 1]
    (results,) = json.loads((tmp_path / "all" / "results.json").read_text())
    assert list(results["targets"]) == ["minatar/asterix", "minatar/freeway", "minatar/space-invaders"]
    assert results["failed"].keys() == {"minatar/breakout", "minatar/seaquest"}
    assert said.out == (tmp_path / "all" / "table.md").read_text()
    assert main(words) == 1  # only the failed job is tried again
    attempts = [len((tmp_path / "all" / name / "attempts").read_text()) for name in directories(GAMES)]
    assert attempts == [1, 6, 2, 2, 1]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_request_to_stop_is_passed_on_and_nothing_begins_after(number, code, capsys, monkeypatch, stand_in, tmp_path):
    before = signal.getsignal(signal.SIGINT)  # background jobs of a shell ignore the signal
    games = ["space-invaders", "asterix", "freeway", "seaquest"]
    words = ["sweep", *[f"minatar/{game}" for game in games], "--jobs", "2", "--out", "all"]
    with monkeypatch.context() as patched:
        patched.setattr(sweep, "run_jobs", lambda jobs, runner: Outcome({}, None))
        assert main(words) == 0
    complete, *two, last = directories(games)
    for name, game in zip((complete, *two), games[:-1], strict=True):
        begun(tmp_path / "all" / name, f"minatar/{game}")
        (tmp_path / "all" / name / "attempts").write_text("x")
    summary = {"preset": None, "env": "", "seeds": [0], "total_steps": 1, "steps_per_second": 1.0, "device": "cpu"}
    summary |= {
        "eval_return": {"mean": 1.5, "per_run": [1.5]},
        "eval_episodes": 1,
        "eval_cut": [0.0],
        "eval_distinct": [1],
    }
    (tmp_path / "all" / complete / "summary.json").write_text(json.dumps(summary))
    stand_in("interrupt", str(int(number)))
    assert main(words) == code
    said = capsys.readouterr()
    for name in two:
        assert (tmp_path / "all" / name / "checkpoint").read_text() == str(int(number))
        assert f"{name}: stopped after" in said.err
    assert not (tmp_path / "all" / last).exists()
    assert "qlax: stopped with 1 of 4 jobs complete; continue with the same command with --out all" in said.err
    assert "minatar/seaquest: 1 of 4 targets" in said.out
    assert "Left out because they are not complete yet: minatar/asterix, minatar/freeway, minatar/seaquest." in said.out
    assert signal.getsignal(signal.SIGINT) is before


def test_a_job_that_another_process_trains_is_left_alone(stand_in, tmp_path):
    stand_in()
    jobs = [Job(name, configure(f"minatar/{name}"), tmp_path / f"minatar-{name}") for name in ("asterix", "freeway")]
    begun(jobs[0].directory, "minatar/asterix")
    with jobs[0].log.open("w") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="asterix is being trained by another process"):
            jobs[0].check()
        failed, _ = run_jobs(jobs, here(1))
    assert failed.keys() == {"asterix"}
    assert not (jobs[0].directory / "attempts").exists()
    assert jobs[1].complete
    assert run_jobs(jobs, here(1)).failed == {}  # the second runner waits until the first has ended


@pytest.mark.parametrize(
    ("put", "reason"),
    [(Path.mkdir, "Is a directory"), (lambda log: log.symlink_to("/dev/full"), "No space left on device")],
)
def test_a_job_whose_log_cannot_be_written_fails_alone(put, reason, stand_in, tmp_path):
    stand_in()
    jobs = [Job(name, configure(f"minatar/{name}"), tmp_path / f"minatar-{name}") for name in ("asterix", "freeway")]
    begun(jobs[0].directory, "minatar/asterix")
    put(jobs[0].log)
    for job in jobs:
        job.check()
    outcome = run_jobs(jobs, here(1))
    assert outcome.failed == {"asterix": f"{jobs[0].log}: {reason}"}
    assert jobs[1].complete


ORPHAN = """
import signal, sys, time
from pathlib import Path

def save(*_):
    Path("saved").touch()
    sys.exit(0)

signal.signal(signal.SIGTERM, save)
Path("ready").touch()
time.sleep(60)
"""
COMMAND = f"""
import sys
from pathlib import Path
from qlax.config.configure import configure
from qlax.jobs.runner import Job, here, run_jobs

Job.command = lambda job: [sys.executable, "-S", "-c", {ORPHAN!r}]
run_jobs([Job("job", configure("cartpole"), Path("job"))], here(1))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell a process of its parent's end")
def test_jobs_of_a_killed_command_save_and_end(tmp_path):
    command = subprocess.Popen([sys.executable, "-c", COMMAND], stderr=subprocess.DEVNULL)
    wait_for(tmp_path / "ready")
    command.kill()
    command.wait()
    wait_for(tmp_path / "saved")


def wait_for(path):
    """Wait until the file exists."""
    deadline = time.monotonic() + 40
    while not path.exists():
        assert time.monotonic() < deadline, f"there is no {path}"
        time.sleep(0.02)


def test_jobs_need_neither_jax_nor_training():
    code = "import sys, qlax.jobs.sweep, qlax.jobs.ray; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"jax", "matplotlib", "ray", "qlax.training"} & set(loaded)


def test_a_run_begun_with_the_same_settings_is_gone_on_with_however_they_came(tmp_path):
    begun(tmp_path / "breakout", "gymnax/Breakout-MinAtar", total_steps=10_000_000, hidden=(8,))
    job = Job("breakout", configure("minatar/breakout", hidden=(8,), log_interval=4), tmp_path / "breakout")
    job.check()
    assert job.command()[3:6] == ["qlax", "resume", str(tmp_path / "breakout")]


def test_jobs_side_by_side_take_a_gpu_once(monkeypatch):
    assert share_of_gpu(1) == {}
    assert share_of_gpu(0.5) == {"XLA_CLIENT_MEM_FRACTION": "0.375"}
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.2")
    assert share_of_gpu(0.5) == {}


def test_a_job_is_alone_whatever_a_launcher_says(tmp_path):
    job = Job("job", configure("cartpole", seeds=3), tmp_path / "job", compilation_cache=False)
    words = ["train", "cartpole", "--seeds", "3", "--no-compilation-cache", "--num-processes", "1"]
    assert job.command()[3:] == ["qlax", *words, "--out", str(tmp_path / "job")]
