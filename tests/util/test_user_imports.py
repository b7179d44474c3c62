import sys

from qlax.util.imports import imported_when_used


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


def test_a_module_that_is_there_already_stays():
    with imported_when_used("sys"):
        assert sys.modules["sys"] is sys
