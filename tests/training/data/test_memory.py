from __future__ import annotations

from pathlib import Path

import pytest

from convoy.training.data.memory import available_bytes


@pytest.fixture
def meminfo(tmp_path: Path) -> Path:
    path = tmp_path / "meminfo"
    path.write_text("MemTotal:       4000 kB\nMemFree:         100 kB\nMemAvailable:   3000 kB\n")
    return path


def limit(folder: Path, limit: str, current: int, cached: int) -> Path:
    folder.mkdir()
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{current}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {cached}\nactive_file 7\n")
    return folder


def test_it_is_what_the_machine_can_give(meminfo: Path, tmp_path: Path) -> None:
    assert available_bytes(meminfo, tmp_path / "none") == 3000 * 1024
    assert available_bytes(meminfo, limit(tmp_path / "group", "max", 10, 0)) == 3000 * 1024


def test_a_container_with_less_left_counts(meminfo: Path, tmp_path: Path) -> None:
    assert available_bytes(meminfo, limit(tmp_path / "group", "1000000", 600_000, 50_000)) == 450_000
    assert available_bytes(meminfo, limit(tmp_path / "full", "1000", 2000, 0)) == 0


def test_a_system_that_does_not_say_is_asked_otherwise(tmp_path: Path) -> None:
    assert available_bytes(tmp_path / "none", tmp_path / "none") > 1 << 26
