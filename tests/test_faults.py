"""A process that is killed and resumed leaves the files of an undisturbed one; `faults.py` tests this many times."""

import random
import subprocess

import faults
import pytest


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    path = tmp_path_factory.mktemp("faults") / "undisturbed"
    subprocess.run(faults.qlax(*faults.next_words(path)), check=True, capture_output=True)
    return path


@pytest.fixture(autouse=True, scope="module")
def smaller():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(faults, "SETTINGS", ["cartpole-fast", "--total-steps", "100000", "--norm", "batch"])
        yield


@pytest.mark.slow  # tests of training simulate crashes, and tests of files unfinished writes
def test_killed_at_some_moment_and_within_a_write(reference, tmp_path):
    run, chance = tmp_path / "run", random.Random(0)
    kill = faults.killed_in_a_write(run, chance)
    assert kill["how"].startswith("in a write")
    assert not (run / "summary.json").exists()
    assert faults.killed_at_random(run, chance, 1.0)["how"] != "ended before"
    assert faults.finished(run, reference) == {"same_weights": True, "same_lines": True}


@pytest.mark.slow  # the tests of training also have a write that fails for lack of space
def test_a_disk_that_is_full(reference, tmp_path):
    disk = faults.full_disk(tmp_path, reference)
    if "skipped" in disk:
        pytest.skip(disk["skipped"])
    assert disk["code"] == 1
    assert "No space left on device; once that is fixed, go on with: qlax resume" in disk["said"]
    assert len(disk["said"].splitlines()) == 1
    assert disk["same_weights"]
    assert disk["same_lines"]
