"""``/dev/shm``: Triton hands every tensor to its Python backend through it."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

from convoy.serving.doctor.world import World
from convoy.serving.triton.finding import Finding, ok, problem, warning

MIB = 2**20
SMALL_MIB = 64
"""What Docker gives a container that asks for nothing: too little for large batches, and a server that finds no room dies."""
COMFORTABLE_MIB = 256
SEGMENT = re.compile(r"convoy_[0-9a-f]+_|triton_python_backend_shm_region_")
ORPHANED_S = 30.0
"""A segment that nobody has mapped for so long is nobody's: a new one is mapped within moments."""

_NEED = (
    "each model instance takes 1 MiB and as much more as the largest batch under way has bytes of inputs and outputs "
    "(64 images of 224x224x3 bytes: 9 MiB)"
)


def examine(world: World) -> list[Finding]:
    """Look at its size, at what is free, at how it is mounted, and at what dead servers left there."""
    folder = world.root / "dev/shm"
    try:
        state = os.statvfs(folder)
    except OSError as error:
        return [
            problem(
                "size",
                f"{folder}: {error.strerror}",
                "Mount one: sudo mount -t tmpfs -o size=1g,mode=1777 tmpfs /dev/shm; in Docker it is there unless removed.",
                expected="a tmpfs for Triton's Python backend",
            )
        ]
    size, free = state.f_blocks * state.f_frsize, state.f_bavail * state.f_frsize
    return [judge_size(folder, size, free), *_rights(folder, state), *_leftovers(world, folder)]


def judge_size(folder: Path, size: int, free: int) -> Finding:
    """Whether a shared memory of ``size`` bytes, ``free`` of them free, is enough for a server."""
    said = f"{folder} has {free // MIB:,} MiB free of {size // MIB:,}"
    if size <= SMALL_MIB * MIB:
        return problem(
            "size",
            said,
            f"Give it 1 GiB: docker run --shm-size=1g, in compose `shm_size: 1gb`, elsewhere "
            f"sudo mount -o remount,size=1g {folder}. Needed: {_NEED}.",
            expected=f"more than the {SMALL_MIB} MiB that Docker gives by default",
        )
    if free < COMFORTABLE_MIB * MIB:
        return warning(
            "size",
            said,
            f"Remove what is not used from {folder}, or enlarge it (docker run --shm-size=1g, `shm_size: 1gb`). Needed: {_NEED}.",
            expected=f"at least {COMFORTABLE_MIB} MiB free",
        )
    return ok("size", said)


def _rights(folder: Path, state: os.statvfs_result) -> list[Finding]:
    if state.f_flag & os.ST_RDONLY or not os.access(folder, os.W_OK | os.X_OK):
        return [
            problem(
                "rights",
                f"{folder} cannot be written to by this user",
                f"sudo mount -o remount,rw {folder} and sudo chmod 1777 {folder}; in Docker leave out --read-only for /dev/shm.",
                expected="a folder that everybody can write to",
            )
        ]
    return []


def _leftovers(world: World, folder: Path) -> list[Finding]:
    """Segments of this user's servers that no process has mapped."""
    mapped = _mapped(world.root / "proc")
    now, left = time.time(), []
    for path in folder.glob("*"):
        try:
            state = path.stat()
        except OSError:
            continue  # it has just been removed
        mine = state.st_uid == os.getuid()  # what others have mapped, this user may not see
        if mine and SEGMENT.match(path.name) and now - state.st_mtime > ORPHANED_S and str(path) not in mapped:
            left.append((path.name, state.st_size))
    if not left:
        return []
    names = " ".join(str(folder / name) for name, _ in sorted(left)[:3]) + (" ..." if len(left) > 3 else "")
    return [
        warning(
            "leftovers",
            f"{len(left)} segments of servers that are gone ({sum(size for _, size in left) / MIB:.0f} MiB): {names}",
            "The next `convoy serve` removes those of Convoy's servers; what is there after that goes with rm.",
            expected="none",
        )
    ]


def _mapped(proc: Path) -> set[str]:
    """The files beneath a ``shm`` folder that processes have mapped, as far as this user may know."""
    found: set[str] = set()
    for maps in proc.glob("[0-9]*/maps"):
        try:
            text = maps.read_text(errors="replace")
        except OSError:
            continue
        found.update(
            line.split(maxsplit=5)[5].removesuffix(" (deleted)")
            for line in text.splitlines()
            if "shm" in line and line.count(" ") >= 5
        )
    return found
