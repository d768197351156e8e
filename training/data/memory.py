"""How much memory this process may still take."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_MEMINFO: Final = Path("/proc/meminfo")
_CGROUP: Final = Path("/sys/fs/cgroup")
_UNKNOWN_BYTES: Final = 4 << 30  # where the system does not say


def available_bytes(meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> int:
    """What the machine has to give without swapping, or what is left of the container's limit where that is less.

    Args:
        meminfo: Linux's account of its memory.
        cgroup: The folder of the process's control group (version 2), which says what a container may take.
    """
    return min([_machine(meminfo), *_container(cgroup)])


def _machine(meminfo: Path) -> int:
    try:
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10  # in kB
    except (OSError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2  # elsewhere: half of what is built in
    except (AttributeError, OSError, ValueError):
        return _UNKNOWN_BYTES


def _container(cgroup: Path) -> list[int]:
    try:
        limit = int((cgroup / "memory.max").read_text())  # "max" where there is none
        taken = int((cgroup / "memory.current").read_text())
        cached = [
            line.split()[1] for line in (cgroup / "memory.stat").read_text().splitlines() if line.startswith("inactive_file ")
        ]
    except (OSError, ValueError, IndexError):
        return []
    return [max(0, limit - taken + sum(int(value) for value in cached))]  # the cache of files gives way
