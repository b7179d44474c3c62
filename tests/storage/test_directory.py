"""Files of a run directory: weights written during training, and remains of a killed process."""

import errno
import os
import threading

import numpy as np
import pytest

from qlax.config.settings import Config
from qlax.errors import RunError
from qlax.storage import checkpoint, directory
from qlax.storage.directory import claim
from qlax.storage.paths import is_free
from qlax.util.files import write_whole

AGENTS = {index: ({"w": np.full(3, index)}, {"eval_return": float(index)}) for index in range(5)}


@pytest.fixture
def run(tmp_path):
    with claim(tmp_path / "run", Config(env="gymnax/CartPole-v1")) as made:
        yield made


def test_all_agents_of_an_evaluation_are_one_piece_of_work_with_one_sync_of_the_folder(run, monkeypatch):
    synced, let_go = [], threading.Event()
    monkeypatch.setattr(directory, "sync_folder", synced.append)
    monkeypatch.setattr("qlax.util.files.sync_folder", synced.append)
    run._writer.submit(let_go.wait, 60)  # the writer is busy
    run.save_agents("best", AGENTS)  # returns at once
    assert not (run.path / "best").exists()
    let_go.set()
    run.wait()
    assert synced == [run.path / "best"]
    for index in AGENTS:
        info, arrays = checkpoint.read(run.path / "best" / f"{index}.safetensors")
        assert info["eval_return"] == arrays["w"][0] == index


def test_the_writer_queues_only_so_much(run):
    let_go, queued = threading.Event(), []
    run._writer.submit(let_go.wait, 60)

    def save():
        for number in range(directory.MOST_QUEUED + 1):
            run.save_agents("best", {0: AGENTS[number]})
            queued.append(number)

    thread = threading.Thread(target=save)
    thread.start()
    thread.join(1.0)
    assert len(queued) == directory.MOST_QUEUED
    let_go.set()
    thread.join(60)
    run.wait()
    assert checkpoint.about(run.path / "best" / "0.safetensors")["eval_return"] == directory.MOST_QUEUED


def test_a_failure_ends_what_comes_after_it_and_is_raised_by_the_next_call(run, monkeypatch):
    let_go = threading.Event()

    def full_once(path, data, sync):
        if path.stem == "1":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write_whole(path, data, sync)

    monkeypatch.setattr(checkpoint, "write_whole", full_once)
    run._writer.submit(let_go.wait, 60)
    run.save_agents("best", AGENTS)
    run.save(4, {"w": np.zeros(2)}, {}, keep=2)
    let_go.set()
    with pytest.raises(RunError, match=r"1\.safetensors cannot be written: No space left on device; .*qlax resume"):
        run.wait()
    assert not (run.path / "checkpoints").exists()


def test_what_a_killed_process_left_is_free_and_is_removed(tmp_path):
    left = tmp_path / "run" / "config.json.0123abcd.partial"
    left.parent.mkdir()
    left.touch()
    assert is_free(left.parent)
    with claim(left.parent, Config(env="gymnax/CartPole-v1")):
        assert not left.exists()
