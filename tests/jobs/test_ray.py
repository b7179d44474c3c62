"""Jobs on Ray: where they run, and on a local cluster what happens when they are killed or stopped."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from runs import CARTPOLE, SMALL, flags

from qlax.config.configure import configure
from qlax.errors import UserError
from qlax.jobs.ray import Place
from qlax.jobs.runner import Job

LONGER = SMALL | {"total_steps": 32 * 4000, "log_interval": 20, "eval_interval": 200, "checkpoint_interval": 20}
SIX = {"num_envs": [2, 4, 8], "norm": ["layer", "none"]}
SECONDS = 300


class Cluster:
    """Stand-in for Ray, which runs a task at once when it is called."""

    exceptions = SimpleNamespace(RayError=OSError)

    def __init__(self, *machines):
        self.machines = machines

    def init(self, **options):
        self.connected = options

    def nodes(self):
        return [{"Alive": True, "Resources": machine} for machine in self.machines]

    def remote(self, function):
        def options(**occupied):
            self.occupied = occupied
            return SimpleNamespace(remote=function)

        return SimpleNamespace(options=options)

    def wait(self, references, timeout):
        return references, []

    def get(self, reference):
        if reference[0] < 0:
            raise OSError("the worker died\nunexpectedly")
        return reference


@pytest.mark.parametrize(
    ("machines", "place", "occupied", "at_once"),
    [
        ([{"CPU": 8.0}, {"CPU": 8.0}], {"jobs": 4}, (4, 0), 4),
        ([{"CPU": 8.0}, {"CPU": 8.0}], {"jobs": 1}, (8, 0), 1),  # a job uses the CPUs of one machine at most
        ([{"CPU": 8.0}, {"CPU": 8.0}], {}, (1, 0), 16),  # 10 jobs share 16 CPUs
        ([{"CPU": 2.0}], {}, (1, 0), 2),
        ([{"CPU": 8.0}], {"cpus": 3}, (3, 0), 2),
        ([{"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0}], {}, (1, 1), 2),
        ([{"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0}], {"gpus": 0.1, "cpus": 0.1}, (0.1, 0.1), 20),
        ([{"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0}], {"gpus": 0.5, "jobs": 3}, (1, 0.5), 3),
        ([{"CPU": 8.0, "GPU": 2.0}], {"gpus": 0}, (1, 0), 8),
    ],
)
def test_jobs_are_placed_where_there_is_room(machines, place, occupied, at_once, monkeypatch):
    ray = Cluster(*machines)
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert Place(on="ray", **place).runner(10).at_once == at_once
    assert ray.occupied == {"num_cpus": occupied[0], "num_gpus": occupied[1], "max_retries": 0}


def test_what_has_no_room_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", Cluster({"CPU": 4.0}, {"CPU": 8.0, "GPU": 1.0}))
    with pytest.raises(UserError, match="gpus_per_job=2: no machine of the cluster has more GPUs than 1"):
        Place(on="ray", gpus=2).runner(1)
    with pytest.raises(UserError, match="cpus_per_job=9: no machine of the cluster has more CPUs than 8"):
        Place(on="ray", cpus=9).runner(1)
    for address in ("127.0.0.1:1", "ray://127.0.0.1:1", "nowhere"):
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(UserError, match=f"RAY_ADDRESS={address}: no Ray cluster answers at this address"):
            Place(on="ray").runner(1)


@pytest.mark.filterwarnings("ignore:os.fork")  # a worker of Ray runs no JAX, which forking could harm
def test_an_attempt_is_the_same_process_as_here(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", Cluster({"CPU": 4.0, "GPU": 1.0}))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.chdir(tmp_path)
    code = "import os; print(os.getcwd(), os.environ['XLA_CLIENT_MEM_FRACTION']); raise SystemExit(3)"
    monkeypatch.setattr(Job, "command", lambda job: [sys.executable, "-S", "-c", code])
    runner = Place(on="ray", gpus=0.5).runner(1)
    attempt = runner.start(Job("job", configure(CARTPOLE), Path("all/job")))
    assert attempt.ending() == (3, f"exit code 3: {tmp_path} 0.375")
    monkeypatch.setattr(Job, "command", lambda job: [sys.executable, "-S", "-c", "import os; os.kill(os.getpid(), 9)"])
    died = runner.start(Job("job", configure(CARTPOLE), Path("all/job")))
    assert died.ending() == (1, "OSError: the worker died")


@pytest.fixture
def begin(tmp_path):
    """Return a function that starts the command in an empty directory and writes its output to a file there."""
    pytest.importorskip("ray")
    begun = []

    def command(settings, *words):
        python = [sys.executable, "-P", "-m", "qlax", "sweep", CARTPOLE, *flags(LONGER | settings)]
        with (tmp_path / "said").open("w") as said:
            command = [*python, "--on", "ray", "--out", "all", *words]
            begun.append(subprocess.Popen(command, cwd=tmp_path, stdout=said, stderr=said))
        return begun[-1]

    yield command
    for process in begun:
        process.kill()
        process.wait()


def training(directory):
    """Wait for a checkpoint in a directory, and return the process that trains there."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        if list(directory.glob("checkpoints/*.safetensors")):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    words = path.read_bytes().decode().split("\0")
                except OSError:  # the process has ended meanwhile
                    continue
                if str(directory) in words and "qlax" in words:
                    return int(path.parent.name)
        time.sleep(0.1)
    raise AssertionError(f"nobody trains in {directory}")


def parent(process):
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.slow
def test_what_is_killed_on_a_cluster_goes_on_and_the_table_is_complete(begin, tmp_path):
    command = begin(SIX, "--jobs", "2")
    killed = tmp_path / "all" / "0-num_envs=2-norm=layer"
    os.kill(training(killed), signal.SIGKILL)
    lost = tmp_path / "all" / "1-num_envs=2-norm=none"
    os.kill(parent(training(lost)), signal.SIGKILL)  # kill its worker
    assert command.wait(SECONDS) == 0, (tmp_path / "said").read_text()
    said = (tmp_path / "said").read_text()
    assert "Ray: machines 1" in said
    assert f"{killed.name}: failed after" in said
    assert "trying again: signal 9 (Killed)" in said
    assert f"{lost.name}: failed after" in said
    assert "trying again: WorkerCrashedError" in said
    for directory in (killed, lost):
        lines = [
            line for line in directory.with_name(f"{directory.name}.log").read_text().splitlines() if line[:1] == "$"
        ]
        assert [line.partition("qlax ")[2].split()[0] for line in lines] == ["train", "resume"]
    with (tmp_path / "all" / "sweep.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 6
    assert "train it again: qlax train gymnax/CartPole-v1 " in said


@pytest.mark.slow
def test_who_asks_to_stop_gets_checkpoints_and_goes_on(begin, tmp_path):
    settings = {"num_envs": [2, 4, 8], "total_steps": 32 * 20_000}
    command = begin(settings, "--jobs", "2")
    directories = [tmp_path / "all" / name for name in ("0-num_envs=2", "1-num_envs=4")]
    processes = [training(directory) for directory in directories]
    command.send_signal(signal.SIGINT)
    assert command.wait(60) == 130, (tmp_path / "said").read_text()
    said = (tmp_path / "said").read_text()
    assert "stopped with 0 of 3 jobs complete; continue with the same command with --out all" in said
    for directory, process in zip(directories, processes, strict=True):
        assert not Path(f"/proc/{process}").exists()
        assert "go on with: qlax resume" in directory.with_name(f"{directory.name}.log").read_text()
    again = begin(settings)
    assert again.wait(SECONDS) == 0, (tmp_path / "said").read_text()
    assert "jobs 3, complete 0, to resume 2" in (tmp_path / "said").read_text()
