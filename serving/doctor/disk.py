"""Room on the disks where the repository, the temporary files and Docker's data lie."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from convoy.serving.doctor.world import World
from convoy.serving.triton.finding import Finding, ok, problem, warning

GIB = 2**30
REPOSITORY_GIB, TEMPORARY_GIB, DOCKER_GIB = 1.0, 0.25, 30.0
"""A version is copied whole before it is renamed; the server's libraries and its log are temporary files; NVIDIA's image takes
10 to 30 GiB once it is unpacked."""


def examine(world: World, docker: Path | None = None) -> list[Finding]:
    """Say how much is free.

    Args:
        world: The machine.
        docker: The folder of Docker's data; None where there is no Docker here.
    """
    places = [
        (
            "repository",
            world.repository,
            REPOSITORY_GIB,
            "Delete versions that are not served, or give --repository on another disk.",
        ),
        ("temporary folder", Path(_temporary(world)), TEMPORARY_GIB, "Delete what is not used, or set TMPDIR to another disk."),
    ]
    if docker is not None:
        places.append(("Docker's data", docker, DOCKER_GIB, "docker system prune, or move data-root in /etc/docker/daemon.json."))
    return [_place(name, path, wanted, advice) for name, path, wanted, advice in places]


def judge(name: str, path: Path, free: int, wanted_gib: float, advice: str) -> Finding:
    """Whether ``free`` bytes at ``path`` are enough."""
    said = f"{free / GIB:,.1f} GiB free at {path}"
    if free < 64 * 2**20:
        return problem(name, said, advice, expected=f"at least {wanted_gib:g} GiB free")
    if free < wanted_gib * GIB:
        return warning(name, said, advice, expected=f"at least {wanted_gib:g} GiB free")
    return ok(name, said)


def _place(name: str, path: Path, wanted_gib: float, advice: str) -> Finding:
    path = path.absolute()
    existing = next((folder for folder in (path, *path.parents) if folder.exists()), Path("/"))
    try:
        state = os.statvfs(existing)
    except OSError as error:
        return warning(name, f"{existing}: {error.strerror}", advice, expected="a disk that answers")
    if state.f_files and not state.f_favail:
        return problem(name, f"no inodes are left at {existing}", advice, expected="room for another file")
    return judge(name, path, state.f_bavail * state.f_frsize, wanted_gib, advice)


def _temporary(world: World) -> str:
    return world.environment.get("TMPDIR") or tempfile.gettempdir()
