"""A machine of files and small programs for the doctor to look at: nothing of the doctor itself is replaced."""

from __future__ import annotations

import struct
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from convoy.serving.doctor.world import Programs, World


@dataclass(frozen=True)
class Machine:
    """A world beneath a temporary folder, with its own ``PATH``, its own root and its own packages."""

    world: World
    folder: Path

    def program(self, name: str, script: str) -> Path:
        """Put a program on the PATH: a shell script."""
        path = self.folder / "bin" / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    def hanging(self, name: str) -> Path:
        """Put a program on the PATH that does not end by itself, nor does what it starts."""
        return self.program(name, "/bin/sleep 600 & /bin/sleep 600")

    def file(self, path: str, text: str | bytes = "") -> Path:
        """Put a file beneath the root."""
        target = self.folder / "root" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(text if isinstance(text, bytes) else text.encode())
        return target

    def package(self, path: str, text: str | bytes = "") -> Path:
        """Put a file into the folder of packages."""
        target = self.folder / "packages" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(text if isinstance(text, bytes) else text.encode())
        return target

    def distribution(self, name: str, version: str, record: str = "") -> None:
        """Say that a package is installed."""
        folder = f"{name.replace('-', '_')}-{version}.dist-info"
        self.package(f"{folder}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        self.package(f"{folder}/RECORD", record)

    def programs(self, limit_s: float = 20.0) -> Programs:
        """Runs the programs on the PATH."""
        return Programs(self.world.environment, limit_s=limit_s)

    def real_proc(self) -> None:
        """Give the world this machine's /proc."""
        (self.folder / "root/proc").symlink_to("/proc")

    def with_python(self, path: Path) -> Machine:
        """The same machine with another interpreter."""
        return replace(self, world=replace(self.world, python=str(path)))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    for name in ("bin", "root", "packages", "here", "repository"):
        (tmp_path / name).mkdir()
    world = World(
        environment={"PATH": str(tmp_path / "bin"), "HOME": str(tmp_path)},
        folder=tmp_path / "here",
        repository=tmp_path / "repository",
        module_path=(str(tmp_path / "packages"), sysconfig.get_path("stdlib")),
        root=tmp_path / "root",
        python=sys.executable,
    )
    return Machine(world, tmp_path)


@pytest.fixture
def shared_library() -> Callable[..., bytes]:
    return make_shared_library


def make_shared_library(*needed: str) -> bytes:
    """A shared library that the loader loads, with nothing in it but the names of those that it wants."""
    names = b"\0" + b"".join(name.encode() + b"\0" for name in needed)
    starts = [names.index(name.encode() + b"\0") for name in needed]
    at_dynamic = 64 + 3 * 56
    n_entries = len(needed) + 6
    at_symbols = at_dynamic + 16 * n_entries
    at_hash = at_symbols + 24
    at_names = at_hash + 16
    size = at_names + len(names)
    entries = [(1, start) for start in starts]
    entries += [(4, at_hash), (5, at_names), (6, at_symbols), (10, len(names)), (11, 24), (0, 0)]
    header = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 0, 0, 64, 56, 3, 0, 0, 0)
    load = struct.pack("<IIQQQQQQ", 1, 6, 0, 0, 0, size, size, 0x1000)
    dynamic = struct.pack("<IIQQQQQQ", 2, 6, at_dynamic, at_dynamic, at_dynamic, 16 * n_entries, 16 * n_entries, 8)
    stack = struct.pack("<IIQQQQQQ", 0x6474E551, 6, 0, 0, 0, 0, 0, 16)
    table = struct.pack("<IIII", 1, 1, 0, 0)  # one bucket, one symbol: the empty one
    return header + load + dynamic + stack + b"".join(struct.pack("<qQ", *entry) for entry in entries) + bytes(24) + table + names
