"""Where data and caches are: whole paths, whatever the working directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from convoy.training.data import DataLocation


@pytest.mark.parametrize("environment", [{}, {"XDG_CACHE_HOME": ""}])
def test_downloads_are_kept_in_the_home_folder(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    expected = tmp_path / ".cache" / "convoy"
    assert DataLocation.from_environment(environment).cache == expected
    assert DataLocation().cache == expected


def test_the_environment_names_data_and_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    found = DataLocation.from_environment({"CONVOY_DATA": "~/data", "XDG_CACHE_HOME": "~/caches"})
    assert found.root == tmp_path / "data"
    assert found.cache == tmp_path / "caches" / "convoy"
