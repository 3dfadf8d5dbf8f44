"""Which edits make a result stale."""

import importlib
from pathlib import Path

import pytest

from modelyard.code_version import PLUMBING, _closure, code_version
from modelyard.errors import ConfigError

ROOMS = ["modelyard.preprocess", "modelyard.compress", "modelyard.evaluate", "modelyard.train"]


def test_a_room_counts_with_all_it_imports():
    """Scaling is part of what preprocessing computes, although it lives elsewhere."""
    closure = _closure("modelyard.preprocess")
    assert {"modelyard.preprocess.clean", "modelyard.transform.fit", "modelyard.task_kinds"} <= closure


def test_imports_inside_functions_count():
    """Compression imports its heavy half late; an edit there is an edit all the same."""
    assert "modelyard.models.mlp" in _closure("modelyard.compress")


@pytest.mark.parametrize("room", ROOMS)
def test_plumbing_does_not_count(room: str):
    """How bytes travel changes no result, and rooms stay apart."""
    closure = _closure(room)
    assert not closure & PLUMBING
    assert not any(name.startswith(other) for other in ROOMS if other != room for name in closure)


def test_it_is_stable():
    """The order in which libraries and factories are named does not matter."""
    one = code_version("modelyard.preprocess", ["numpy", "pandas"])
    assert one == code_version("modelyard.preprocess", ["pandas", "numpy"])
    assert one != code_version("modelyard.preprocess", ["numpy"])
    assert len(one) == 16


def test_the_build_of_a_library_does_not_count(monkeypatch: pytest.MonkeyPatch):
    """torch 2.13.0+cpu and 2.13.0+cu130 are one release."""
    versions = {}
    for build in ("2.13.0", "2.13.0+cpu", "2.14.0"):
        monkeypatch.setattr("modelyard.code_version.version", lambda _, build=build: build)
        versions[build] = code_version("modelyard.transform", ["torch"])
    assert versions["2.13.0"] == versions["2.13.0+cpu"] != versions["2.14.0"]


def test_an_edited_user_function_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The user's own module is part of the code."""
    monkeypatch.syspath_prepend(tmp_path)
    module = tmp_path / "my_network_of_a_test.py"
    module.write_text("def make(): return 1")
    importlib.invalidate_caches()
    before = code_version("modelyard.transform", [], ["my_network_of_a_test:make"])
    module.write_text("def make(): return 2")
    assert code_version("modelyard.transform", [], ["my_network_of_a_test:make"]) != before


@pytest.mark.parametrize("factory", ["no_such_module_here:make", "no.such.module:make", "os:system"])
def test_a_missing_user_module_is_named(factory: str):
    """The error says which entry cannot be imported."""
    with pytest.raises(ConfigError, match=factory):
        code_version("modelyard.transform", [], [factory])
