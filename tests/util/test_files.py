"""Files are written whole or not at all, and results never replace existing files."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from qlax.errors import UserError
from qlax.util.files import free_name, write_result, write_whole


def no_links(*_):
    raise OSError(95, "Operation not supported")


@pytest.fixture(params=[True, False], ids=["links", "no links"])
def _links(request, monkeypatch):
    if not request.param:
        monkeypatch.setattr(os, "link", no_links)


@pytest.mark.usefixtures("_links")
def test_of_results_written_at_once_none_is_lost(tmp_path):
    path = free_name(tmp_path / "report.html")  # all threads find the same free name
    with ThreadPoolExecutor(8) as pool:
        written = list(pool.map(lambda number: write_result(path, str(number).encode(), is_named=False), range(8)))
    assert [file.read_text() for file in written] == list(map(str, range(8)))
    assert {file.name for file in tmp_path.iterdir()} == {
        "report.html",
        *(f"report-{number}.html" for number in range(2, 9)),
    }


@pytest.mark.usefixtures("_links")
def test_where_a_named_file_appeared_meanwhile_the_result_is_beside_it(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("of another process")
    with pytest.raises(UserError, match=r"report\.html was created by another process.* in .*report-2\.html instead"):
        write_result(path, b"mine", is_named=True)
    assert path.read_text() == "of another process"
    assert (tmp_path / "report-2.html").read_bytes() == b"mine"


def test_processes_that_write_the_same_file_do_not_take_each_others_part(tmp_path, monkeypatch):
    path, replace = tmp_path / "results.json", os.replace

    def while_another_writes(aside, target):
        monkeypatch.setattr(os, "replace", replace)
        write_whole(path, b"of another process")
        replace(aside, target)

    monkeypatch.setattr(os, "replace", while_another_writes)
    write_whole(path, b"mine")
    assert path.read_bytes() == b"mine"
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", no_links)
    with pytest.raises(UserError, match=r"results\.json cannot be written: Operation not supported"):
        write_result(path, b"new", is_named=True)
    with pytest.raises(OSError, match="Operation not supported"):
        write_whole(path, b"new")
    assert [file.read_text() for file in tmp_path.iterdir()] == ["old"]
