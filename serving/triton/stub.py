"""The backend's processes (Triton calls them stubs), one an instance, found among the server's children."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Stub:
    """A backend process that is alive.

    Attributes:
        pid: Its process.
        model_name: The model that it runs.
        model_version: The version of it.
        instance_name: The instance that it is, as Triton's messages name it.
        shm_name: Its shared-memory segment.
    """

    pid: int
    model_name: str
    model_version: str
    instance_name: str
    shm_name: str


def find_stubs(server_pid: int) -> list[Stub]:
    """The living backend processes of a server."""
    children: list[str] = []
    for path in Path(f"/proc/{server_pid}/task").glob("*/children"):
        try:
            children += path.read_text().split()
        except OSError:
            continue  # the thread has ended
    return [stub for child in children if (stub := _stub(int(child))) is not None]


def _stub(pid: int) -> Stub | None:
    """What a process is, by its arguments: PROGRAM MODEL/VERSION/FILE SHM_NAME ... INSTANCE ...; None where it is no stub."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return None
    if len(words) < 3 or "triton_python_backend_stub" not in words[0]:
        return None  # something else, or a process that has ended and is not yet reaped
    version = next((parent for parent in Path(words[1]).parents if parent.name.isdecimal()), None)
    if version is None:
        return None
    return Stub(pid, version.parent.name, version.name, words[8] if len(words) > 8 else "", words[2].lstrip("/"))


def instance_count(config: Mapping[str, Any]) -> int:
    """How many backend processes a model's configuration asks for."""
    groups = config.get("instance_group", [])
    return sum(int(group.get("count", 1)) * max(1, len(group.get("gpus", []))) for group in groups)
