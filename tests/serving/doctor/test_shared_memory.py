"""Shared memory: its size, its rights, and what dead servers leave."""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path

import pytest

from convoy.serving.doctor import shared_memory
from convoy.serving.doctor.shared_memory import MIB, judge_size

from .conftest import Machine

SHM = Path("/dev/shm")


@pytest.mark.parametrize(
    ("size_mib", "free_mib", "level"),
    [(64, 64, "problem"), (65, 65, "warning"), (1024, 200, "warning"), (1024, 256, "ok"), (24_000, 23_000, "ok")],
)
def test_what_docker_gives_by_default_is_too_little(size_mib: int, free_mib: int, level: str) -> None:
    finding = judge_size(SHM, size_mib * MIB, free_mib * MIB)

    assert finding.level == level
    if level != "ok":
        assert "--shm-size=1g" in finding.advice


def test_a_machine_without_one_is_told_how_to_mount_it(machine: Machine) -> None:
    (finding,) = shared_memory.examine(machine.world)

    assert finding.level == "problem"
    assert "mount -t tmpfs" in finding.advice


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_one_that_cannot_be_written_to_is_a_problem(machine: Machine) -> None:
    machine.file("dev/shm/x").parent.chmod(0o555)

    assert {finding.name: finding.level for finding in shared_memory.examine(machine.world)}["rights"] == "problem"


def segment(machine: Machine, name: str, *, age_s: float) -> Path:
    path = machine.file(f"dev/shm/{name}", b"\0" * 4096)
    then = time.time() - age_s
    os.utime(path, (then, then))
    return path


def leftovers(machine: Machine) -> list[str]:
    return [finding.found for finding in shared_memory.examine(machine.world) if finding.name == "leftovers"]


def test_segments_of_dead_servers_are_named(machine: Machine) -> None:
    machine.real_proc()
    old = segment(machine, "convoy_55bdcd77a52b_21477551", age_s=3600)
    segment(machine, "triton_python_backend_shm_region_7", age_s=3600)

    (found,) = leftovers(machine)

    assert found.startswith("2 segments of servers that are gone")
    assert str(old) in found


def test_segments_that_are_new_or_of_others_are_left_in_peace(machine: Machine) -> None:
    machine.real_proc()
    segment(machine, "convoy_55bdcd77a52b_21477551", age_s=0)
    segment(machine, "pulse-shm-123", age_s=3600)

    assert leftovers(machine) == []


def test_segments_that_a_process_has_mapped_are_in_use(machine: Machine) -> None:
    machine.real_proc()
    path = segment(machine, "convoy_55bdcd77a52b_21477551", age_s=3600)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        os.utime(path, (0, 0))
        assert mapped[0] == 0
        assert leftovers(machine) == []
    os.utime(path, (0, 0))

    assert len(leftovers(machine)) == 1
