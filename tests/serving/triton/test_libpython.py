"""Which libpython the backend's process runs on: the interpreter's own, else the system's, never a mixture."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from convoy.contract.errors import MissingDependencyError
from convoy.serving.triton import libpython
from convoy.serving.triton.libpython import SYSTEM_HOME, choose, library_name

RELEASE = ".".join(map(str, sys.version_info[:3]))
SHORT = f"{sys.version_info[0]}.{sys.version_info[1]}"


@pytest.fixture
def releases(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What each library (by its folder's name) says that it is."""
    known: dict[str, str] = {}
    monkeypatch.setattr(libpython, "release_of", lambda path: known[path.parent.name])
    return known


def put(folder: Path) -> Path:
    folder.mkdir()
    (folder / library_name()).touch()
    return folder


def test_the_interpreters_own_library_comes_first(tmp_path: Path, releases: dict[str, str]) -> None:
    releases.update(own=RELEASE, system="3.0.0")

    chosen = choose([tmp_path / "nothing", put(tmp_path / "own")], [put(tmp_path / "system")])

    assert chosen.path.parent.name == "own"
    assert chosen.home == Path(getattr(sys, "_base_executable", sys.executable)).resolve().parent


@pytest.mark.skipif(not Path(f"/usr/lib/python{SHORT}/os.py").exists(), reason="this system has no standard library of this Python")
def test_the_systems_library_comes_with_the_systems_standard_library(tmp_path: Path, releases: dict[str, str]) -> None:
    releases.update(system=f"{SHORT}.0")

    chosen = choose([tmp_path / "nothing"], [put(tmp_path / "system")])

    assert (chosen.path.parent.name, chosen.home, chosen.version) == ("system", SYSTEM_HOME, f"{SHORT}.0")


def test_a_library_of_another_release_is_not_taken_for_the_interpreters_own(tmp_path: Path, releases: dict[str, str]) -> None:
    releases.update(own=f"{SHORT}.99")

    with pytest.raises(MissingDependencyError, match=rf"{SHORT}.99, this Python is {RELEASE}"):
        choose([put(tmp_path / "own")], [])


def test_a_missing_library_names_the_package_that_has_it(tmp_path: Path) -> None:
    with pytest.raises(MissingDependencyError, match=f"apt-get install libpython{SHORT}"):
        choose([tmp_path], [tmp_path])


def test_a_file_that_is_no_library_is_said_to_be_none(tmp_path: Path) -> None:
    path = tmp_path / library_name()
    path.write_bytes(b"no library")

    with pytest.raises(MissingDependencyError, match=r"cannot be loaded: .*(file too short|invalid ELF)"):
        libpython.release_of(path)


def test_a_library_that_hangs_while_it_loads_is_said_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = tmp_path / "python"
    slow.write_text("#!/bin/sh\nexec /bin/sleep 600\n")
    slow.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(slow))
    monkeypatch.setattr(libpython, "LOAD_TIMEOUT_S", 0.2)

    with pytest.raises(MissingDependencyError, match=r"did not end within 0\.2 s"):
        libpython.release_of(tmp_path / library_name())
