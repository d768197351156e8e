"""Room on disks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from convoy.serving.doctor import disk
from convoy.serving.doctor.disk import GIB, judge

from .conftest import Machine


@pytest.mark.parametrize(("free", "level"), [(0, "problem"), (63 * 2**20, "problem"), (GIB // 2, "warning"), (GIB, "ok")])
def test_little_room_is_said_with_what_to_do(free: int, level: str) -> None:
    finding = judge("repository", Path("/models"), free, 1.0, "Delete versions.")

    assert finding.level == level
    if level != "ok":
        assert (finding.advice, finding.expected) == ("Delete versions.", "at least 1 GiB free")


def test_the_three_places_are_looked_at(machine: Machine) -> None:
    findings = disk.examine(machine.world, machine.folder)

    assert [finding.name for finding in findings] == ["repository", "temporary folder", "Docker's data"]


def test_without_docker_its_disk_does_not_matter(machine: Machine) -> None:
    assert [finding.name for finding in disk.examine(machine.world)] == ["repository", "temporary folder"]


def test_a_repository_that_is_not_there_yet_counts_by_its_folder(machine: Machine) -> None:
    world = replace(machine.world, repository=machine.folder / "not/there/yet")

    finding = disk.examine(world)[0]

    assert finding.level in ("ok", "warning")
    assert str(machine.folder / "not/there/yet") in finding.found


def test_the_temporary_folder_is_the_environments(machine: Machine) -> None:
    world = replace(machine.world, environment={"TMPDIR": str(machine.folder)})

    assert str(machine.folder) in disk.examine(world)[1].found
