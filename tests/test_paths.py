"""Where kvmkit keeps things, by the environment."""

from __future__ import annotations

import os

import pytest

from kvmkit.errors import HostError
from kvmkit.paths import cache_dir, data_dir, runtime_dir


@pytest.fixture(autouse=True)
def _bare(monkeypatch, tmp_path):
    for name in ("KVMKIT_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_defaults_lie_below_the_home_directory(tmp_path):
    assert cache_dir() == tmp_path / ".cache/kvmkit"
    assert data_dir() == tmp_path / ".local/share/kvmkit"
    assert cache_dir().stat().st_mode & 0o777 == 0o700


def test_xdg_variables_count_when_they_are_absolute(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "c"))
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "r"))
    assert cache_dir() == tmp_path / "c/kvmkit"
    assert data_dir() == tmp_path / ".local/share/kvmkit"
    assert runtime_dir() == tmp_path / "r/kvmkit"


def test_one_variable_moves_everything(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "c"))
    monkeypatch.setenv("KVMKIT_HOME", str(tmp_path / "all"))
    assert [cache_dir(), data_dir(), runtime_dir()] == [tmp_path / "all" / name for name in ("cache", "data", "run")]
    assert not os.path.exists(tmp_path / "c")


def test_a_place_that_can_not_be_made_is_named(monkeypatch):
    monkeypatch.setenv("KVMKIT_HOME", "/proc/nothing")
    with pytest.raises(HostError, match=r"can't make /proc/nothing/cache.*KVMKIT_HOME"):
        cache_dir()
