"""Where data and caches are: whole paths, whatever the working directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from convoy.training.data import DataLocation


@pytest.mark.parametrize("environment", [{}, {"XDG_CACHE_HOME": ""}])
def test_downloads_are_kept_in_the_home_folder(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    expected = Path("/home/somebody/.cache/convoy")
    assert DataLocation.from_environment(environment).cache == expected
    assert DataLocation().cache == expected


def test_the_environment_names_data_and_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    found = DataLocation.from_environment({"CONVOY_DATA": "~/data", "XDG_CACHE_HOME": "~/caches"})
    assert found.root == Path("/home/somebody/data")
    assert found.cache == Path("/home/somebody/caches/convoy")
