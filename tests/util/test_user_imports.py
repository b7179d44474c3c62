import importlib
import sys

import pytest

from qlax.errors import UserError
from qlax.util.imports import import_object, imported_when_used


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """Work in a directory with the user's own modules, one of which has the name of an installed module."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    (tmp_path / "own_world.py").write_text("def later():\n    import own_neighbour\n    return own_neighbour.NAME\n")
    (tmp_path / "own_neighbour.py").write_text("NAME = 'beside'\n")
    (tmp_path / "six.py").write_text("MINE = True\n")
    for name in ("own_world", "own_neighbour", "six"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield str(tmp_path)
    for name in ("own_world", "own_neighbour", "six"):
        sys.modules.pop(name, None)


def test_a_users_module_may_import_its_neighbours_later_and_shadows_nothing_installed(folder):
    before = list(sys.path)
    assert import_object("own_world:later")() == "beside"
    assert sys.path == [*before, folder]
    assert not hasattr(importlib.import_module("six"), "MINE")
    import_object("own_world:later")
    assert sys.path == [*before, folder]


def test_what_a_user_names_is_of_the_working_directory(folder):
    assert import_object("six:MINE")


def test_the_import_path_stays_as_it_was_where_nothing_of_the_working_directory_is_imported(folder):
    before = list(sys.path)
    import_object("json:loads")
    with pytest.raises(UserError, match="cannot import 'nowhere'"):
        import_object("nowhere:Env")
    assert sys.path == before


def test_a_stand_in_imports_the_module_when_something_of_it_is_used(monkeypatch):
    monkeypatch.delitem(sys.modules, "counting", raising=False)
    with imported_when_used("counting"):
        import counting as during
    assert "counting" not in sys.modules
    assert during.STOP == 2
    assert "counting" in sys.modules


def test_a_stand_in_may_be_used_at_once(monkeypatch):
    monkeypatch.delitem(sys.modules, "counting", raising=False)
    with imported_when_used("counting"):
        import counting

        assert counting.STOP == 2
        assert sys.modules["counting"] is not counting


def test_a_stand_in_of_a_package_gives_those_of_its_modules(tmp_path, monkeypatch):
    (tmp_path / "drawing").mkdir()
    (tmp_path / "drawing" / "__init__.py").write_text("")
    (tmp_path / "drawing" / "colors.py").write_text("RED = 3")
    monkeypatch.syspath_prepend(tmp_path)
    with imported_when_used("drawing", "drawing.colors"):
        import drawing.colors as renamed
        from drawing import colors
    assert not {"drawing", "drawing.colors"} & set(sys.modules)
    assert colors.RED == renamed.RED == 3
    assert "drawing.colors" in sys.modules


def test_a_module_that_is_there_already_stays():
    with imported_when_used("sys"):
        assert sys.modules["sys"] is sys
