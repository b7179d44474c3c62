"""Several processes on one machine, which talk over loopback."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from pages import TESTS
from runs import CARTPOLE, SMALL, flags, without_times

import qlax
from qlax.cli.main import main
from qlax.errors import LostError, UserError
from qlax.training import processes

ON_ONE_CORE = {"JAX_NUM_CPU_DEVICES": "1"}


@pytest.fixture(autouse=True)
def not_asked_yet(monkeypatch):
    monkeypatch.setitem(processes._state, "joined", False)


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextlib.contextmanager
def started(number, words, cache, *own):
    """Start `number` processes of the command, each with further words, and kill those that are left at the end."""
    several = ["--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", str(number), "--process-id"]
    environment = os.environ | ON_ONE_CORE | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    each = [
        subprocess.Popen(
            [sys.executable, "-m", "qlax", *words, *(own[index] if own else ()), *several, str(index)],
            env=environment,
            cwd=TESTS,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(number)
    ]
    try:
        yield each
    finally:
        for process in each:
            process.kill()
            process.communicate()


def ended(each, timeout=300):
    """Wait for the processes; return exit code, standard output and standard error of each."""
    texts = [process.communicate(timeout=timeout) for process in each]
    return [(process.returncode, *text) for process, text in zip(each, texts, strict=True)]


@pytest.fixture
def cache(pytestconfig):
    return pytestconfig.cache.mkdir("jax")


def test_two_processes_learn_what_two_devices_of_one_learn_and_one_writes(tmp_path, cache):
    words = ["train", CARTPOLE, *flags(SMALL), "--out"]
    with started(2, [*words, str(tmp_path / "two")], cache) as each:
        first, second = ended(each)
    assert (first[0], second[0]) == (0, 0), (first, second)
    assert "greedy return over 3 episodes" in first[1]
    assert "greedy return" not in second[1]
    alone = [sys.executable, "-m", "qlax", *words, str(tmp_path / "one"), "--devices", "2"]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2", "JAX_COMPILATION_CACHE_DIR": str(cache)}
    subprocess.run(alone, env=environment, cwd=TESTS, check=True, capture_output=True)
    two, one = (qlax.load(tmp_path / name).variables for name in ("two", "one"))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), two, one)
    lines = [[json.loads(line) for line in (tmp_path / name / "metrics.jsonl").open()] for name in ("two", "one")]
    assert [line["episodes"] for line in lines[0]] == [line["episodes"] for line in lines[1]]
    assert [without_times(line)["updates"] for line in lines[0]] == [2, 4, 6, 8, 10, 12]
    assert qlax.load(tmp_path / "two", best=True)


@pytest.mark.slow  # other tests have callbacks in one process, and agreement of several
def test_two_processes_end_after_the_same_update_when_the_first_one_s_callback_asks_for_it(tmp_path, cache):
    words = ["train", CARTPOLE, *flags(SMALL), "--until", "0", "--out", str(tmp_path / "run")]
    with started(2, words, cache) as each:
        first, second = ended(each, timeout=120)
    assert (first[0], second[0]) == (0, 0), (first, second)
    assert "--until 0 ended training before the planned 384 steps" in first[1]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["updates"], summary["stopped_by"]) == (4, "until")


@pytest.mark.slow
def test_a_population_is_dealt_to_two_processes(tmp_path, cache):
    settings = SMALL | {
        "draws": 4,
        "learning_rate": "log-uniform:1e-4:1e-1",
        "population": "pbt",
        "total_steps": 8 * 32,
    }
    words = ["train", CARTPOLE, *flags(settings), "--out"]
    with started(2, [*words, str(tmp_path / "two")], cache) as each:
        for code, _, said in ended(each):
            assert code == 0, said
    assert main([*words, str(tmp_path / "one")]) == 0
    two, one = ([json.loads(line) for line in (tmp_path / name / "metrics.jsonl").open()] for name in ("two", "one"))
    assert [line.get("parent") for line in two] == [line.get("parent") for line in one]
    np.testing.assert_allclose(two[-1]["learning_rate"], one[-1]["learning_rate"], rtol=1e-6)
    np.testing.assert_allclose(two[-1]["loss"], one[-1]["loss"], rtol=1e-3)


@pytest.mark.slow
def test_processes_started_with_different_settings_refuse(tmp_path, cache):
    words = ["train", CARTPOLE, *flags(SMALL), "--out", str(tmp_path / "run")]
    with started(2, words, cache, ["--lam", "0.5"], ["--lam", "0.6"]) as each:
        first, second = ended(each, timeout=60)
    assert (first[0], second[0]) == (2, 2)
    assert "process 1 cannot continue; see its message" in first[2]
    assert "the settings of this process differ from the first process's: lam=0.6, not 0.5" in second[2]
    assert not (tmp_path / "run").exists()


def checkpoints(run):
    return sorted((run / "checkpoints").glob("*.safetensors")) if (run / "checkpoints").exists() else []


def wait_for(condition, seconds=200):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)


LONG = ["--total-steps", "4e6", "--log-interval", "4", "--checkpoint-interval", "8", "--eval-interval", "1000"]


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_process_ends_the_others_with_a_message_and_fewer_go_on(tmp_path, cache, lost):
    run = tmp_path / "run"
    with started(2, ["train", "cartpole-fast", *LONG, "--out", str(run)], cache) as each:
        wait_for(lambda: len(checkpoints(run)) > 1)
        each[lost].kill()
        begun = time.monotonic()
        left = each[1 - lost]
        _, said = left.communicate(timeout=processes.LOST_SECONDS + 30)
        assert time.monotonic() - begun < processes.LOST_SECONDS + 30
        assert left.returncode != 0
        last = said.strip().splitlines()[-1]
        assert last.startswith(f"qlax: process {1 - lost} of 2")
        assert f"another process was lost; go on with: qlax resume {run}" in last
    newest = int(checkpoints(run)[-1].stem)
    settings = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(settings | {"total_steps": 1024 * (newest + 8)}))
    assert main(["resume", str(run)]) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["updates"] == newest + 8
    assert "num_devices 1 instead of 2" in summary["inexact"][0]


@pytest.mark.slow
def test_what_the_first_cannot_write_ends_all_at_once(tmp_path, cache):
    run = tmp_path / "run"
    with started(2, ["train", "cartpole-fast", *LONG, "--out", str(run)], cache) as each:
        wait_for(lambda: len(checkpoints(run)) > 1)
        (run / "metrics.jsonl").unlink()
        (run / "metrics.jsonl").mkdir()
        first, second = ended(each, timeout=20)
    assert first[0] == 1
    assert "metrics.jsonl cannot be written" in first[2]
    assert second[0] != 0
    assert "another process was lost; go on with: qlax resume" in second[2].splitlines()[-1]


@pytest.mark.slow
def test_one_process_asked_to_stop_stops_all_with_a_checkpoint_and_more_go_on(tmp_path, cache):
    run = tmp_path / "run"
    with started(2, ["train", "cartpole-fast", *LONG, "--out", str(run)], cache) as each:
        wait_for(lambda: len(checkpoints(run)) > 1)
        each[1].send_signal(signal.SIGTERM)
        for code, _, said in ended(each, timeout=60):
            assert code == 0
            assert f"go on with: qlax resume {run}" in said
    newest = int(checkpoints(run)[-1].stem)
    settings = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(settings | {"total_steps": 1024 * (newest + 8)}))
    with started(4, ["resume", str(run)], cache) as each:
        assert [code for code, *_ in ended(each)] == [0] * 4
    assert json.loads((run / "summary.json").read_text())["updates"] == newest + 8


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 4])
def test_processes_that_split_the_environments_learn_cartpole(tmp_path, cache, number):
    words = ["train", "cartpole-fast", "--out", str(tmp_path / "run")]
    with started(number, words, cache) as each:
        assert [code for code, *_ in ended(each, timeout=900)] == [0] * number
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["eval_return"]["mean"] >= 475


@pytest.mark.slow
def test_a_user_error_of_the_first_process_is_that_of_all(tmp_path, cache):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with started(2, ["train", CARTPOLE, *flags(SMALL), "--out", str(tmp_path / "taken")], cache) as each:
        for code, _, said in ended(each):
            assert code == 2
            assert "exists and is not empty" in said


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"coordinator": "node1:1234"}, "--num-processes and --process-id missing"),
        ({"num_processes": 2, "process_id": 0}, "--coordinator missing"),
        ({"coordinator": "node1", "num_processes": 2, "process_id": 0}, "expected host:port"),
        ({"coordinator": "node1:99999", "num_processes": 2, "process_id": 0}, "expected host:port"),
        ({"coordinator": "node1:1234", "num_processes": 2, "process_id": 2}, "expected 0 to 1"),
        ({"coordinator": "node1:1234", "num_processes": 0, "process_id": 0}, "expected a whole number from 1"),
    ],
)
def test_what_is_missing_or_does_not_fit_is_said_before_anybody_is_waited_for(told, said):
    with pytest.raises(UserError, match=said):
        processes.join(**told)


@pytest.fixture
def joined(monkeypatch):
    """Record the arguments of `jax.distributed.initialize`, outside of any launcher."""
    asked = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *told, **_: asked.append(told))
    for names in processes.LAUNCHERS.values():
        for name in names:
            monkeypatch.delenv(name, raising=False)
    return asked


def test_a_launcher_says_how_many_and_which(joined, monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    monkeypatch.setenv("SLURM_PROCID", "3")
    processes.join()
    processes.join("node1:1", 7, 0)  # only the first call has an effect
    assert joined == [(None, 4, 3)]


@pytest.mark.parametrize(
    "environment",
    [{}, {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, {"SLURM_PROCID": "0"}, {"OMPI_COMM_WORLD_SIZE": "4"}],
)
def test_alone_nobody_is_waited_for(joined, monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    processes.join()
    assert joined == []


def test_one_of_several_may_train_alone(joined, monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")
    processes.join(num_processes=1)
    processes.join()
    assert joined == []


def test_others_that_do_not_come_are_reported(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("DEADLINE_EXCEEDED: nobody\ncame")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(
        UserError, match="cannot join the other processes: DEADLINE_EXCEEDED: nobody came; give --coord"
    ):
        processes.join("node1:1234", 2, 1)


def test_the_loss_of_another_process_is_told_from_other_errors(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(LostError, match="Gloo all-reduce failed"), processes.losing():
        raise ValueError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer")
    with pytest.raises(ValueError, match="anything"), processes.losing():
        raise ValueError("anything else")


def test_without_others_there_is_nothing_to_tell():
    assert not processes.are_several()
    assert processes.is_first()
    assert processes.from_first(lambda: 3) == 3
    with pytest.raises(ValueError, match="as it is"), processes.losing():
        raise ValueError("Gloo, as it is")
